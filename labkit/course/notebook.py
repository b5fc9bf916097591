"""A percent script as the text of an ``.ipynb`` file: the same script gives the same bytes.

No outputs, no execution counts. The cell of a task has the task's name as its id, and its check cell, too; the id of every other
cell depends on the cell's text alone, so that an edit of one cell leaves the ids of all others as they were.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from typing import Any

from labkit.course.tasks import Module
from labkit.errors import LabkitError

__all__ = ["notebook_text", "setup_cells"]

_METADATA = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def notebook_text(script: str, module: Module | None = None, before: tuple[tuple[str, str], ...] = ()) -> str:
    """The notebook that the percent script ``script`` of ``module`` describes; ``before`` are (kind, text) of cells put first.

    Raises
    ------
    LabkitError
        jupytext, which reads the script, is not installed.
    """
    try:
        import jupytext
    except ImportError as error:
        raise LabkitError(
            'Notebooks are made with jupytext, which is not installed. Install it with: pip install ".[lab]"'
        ) from error
    names = {item.variable: item.name for item in module.items} if module else {}
    cells: list[dict[str, Any]] = []
    seen: Counter[str] = Counter()
    read = [(cell.cell_type, cell.source) for cell in jupytext.reads(script, fmt="py:percent").cells]
    for kind, source in [*before, *read]:
        name = _task_id(source, names) if kind == "code" else None
        name = name or hashlib.sha256(f"{kind}\n{source}".encode()).hexdigest()[:12]
        seen[name] += 1
        name = name if seen[name] == 1 else f"{name}-{seen[name]}"
        made = {"cell_type": kind, "id": name, "metadata": {}, "source": source.splitlines(keepends=True)}
        cells.append(made | ({"execution_count": None, "outputs": []} if kind == "code" else {}))
    notebook = {"cells": cells, "metadata": _METADATA, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def _task_id(source: str, names: dict[str, str]) -> str | None:
    if found := re.search(r'^check\("(m\d\d\.[qce]\d)"\)', source, re.M):
        return f"{found[1].replace('.', '-')}-check"
    for defined in re.findall(r"^(?:def (\w+)\(|(m\d\d_e\d) =)", source, re.M):
        if task := names.get(defined[0] or defined[1]):
            return task.replace(".", "-")
    return None


def setup_cells(stem: str, repository: str, needs: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """The badge and the install cell of the notebook ``stem``.

    ``repository`` is the address of the clone, '' where there is none yet: then there is no badge, and the cell says how to
    install labkit. ``needs`` are labkit's requirements; torch and what belongs to it stay as they are on Colab.
    """
    if not repository:
        text = (
            "# Run this cell first. It only looks whether labkit is there.\n"
            "import importlib.util\n\n"
            'if importlib.util.find_spec("labkit") is None:\n'
            '    print("This kernel has no labkit. In a clone of labkit: pip install \\".[lab]\\", then labkit lab")'
        )
        return (("code", text),)
    place = re.sub(r"^https?://(www\.)?|\.git$|/$", "", repository)
    cells: list[tuple[str, str]] = []
    if place.startswith("github.com/"):
        link = f"https://colab.research.google.com/github/{place.removeprefix('github.com/')}/blob/main/notebooks/{stem}.ipynb"
        badge = "https://colab.research.google.com/assets/colab-badge.svg"
        cells.append(("markdown", f"[![Open in Colab]({badge})]({link})"))
    kept = " ".join(f'"{need}"' for need in needs if not need.startswith("torch"))
    text = (
        "# Run this cell first. Where labkit is installed it does nothing; on Colab it keeps the torch that is there.\n"
        "import importlib.util\n\n"
        'if importlib.util.find_spec("labkit") is None:\n'
        f"    %pip install --quiet {kept}\n"
        f'    %pip install --quiet --no-deps "labkit @ git+{repository}"'
    )
    return (*cells, ("code", text))
