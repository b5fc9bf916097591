"""Make each notebook in notebooks/ from the percent script of the same name beside it.

    python tools/build_notebooks.py            write the notebooks
    python tools/build_notebooks.py --check    write nothing; exit 1 and name those that are not up to date

The same script gives the same bytes: no outputs, no execution counts, and cell ids that depend on a cell's text alone,
so that an edit of one cell leaves the ids of all others as they were.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jupytext

__all__ = ["main", "notebook_text"]

_NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
_METADATA = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def notebook_text(script: str) -> str:
    """The notebook, as the text of an .ipynb file, that the percent script ``script`` describes."""
    cells: list[dict[str, Any]] = []
    seen: Counter[str] = Counter()
    for cell in jupytext.reads(script, fmt="py:percent").cells:
        digest = hashlib.sha256(f"{cell.cell_type}\n{cell.source}".encode()).hexdigest()[:12]
        seen[digest] += 1
        name = digest if seen[digest] == 1 else f"{digest}-{seen[digest]}"
        kind, lines = cell.cell_type, cell.source.splitlines(keepends=True)
        made = {"cell_type": kind, "id": name, "metadata": {}, "source": lines}
        cells.append(made | ({"execution_count": None, "outputs": []} if kind == "code" else {}))
    notebook = {"cells": cells, "metadata": _METADATA, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the notebooks, or compare them; 0 when all is well."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only say whether the notebooks are up to date")
    parser.add_argument("--folder", type=Path, default=_NOTEBOOKS, help="where scripts and notebooks are")
    options = parser.parse_args(arguments)
    stale = 0
    for script in sorted(options.folder.glob("*.py")):
        target = script.with_suffix(".ipynb")
        text = notebook_text(script.read_text("utf-8"))
        if target.exists() and target.read_text("utf-8") == text:
            continue
        stale += 1
        if options.check:
            print(f"{target.name} is not what {script.name} gives: run python tools/build_notebooks.py")
        else:
            target.write_text(text, "utf-8", newline="\n")
            print(f"wrote {target.name}")
    return 1 if options.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
