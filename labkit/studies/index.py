"""The overview of all studies: what each looked at, and how many of the document's claims were found again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from labkit.studies.run import read_study
from labkit.studies.study import Study

__all__ = ["index"]

_HEAD = """# Studies

<!-- Made by `labkit study --index` from the results beside it. Do not edit. -->

Tables and figures of the literature, repeated at lab scale: CIFAR-10, LeNet and ResNet-20, the integer engine, two cores. Each
page says what the document claims, what came out here and whether that agrees; where it does not, the figure stands beside it.
`labkit study NAME` makes a page again, `labkit study --list` lists them all.
"""


def index(studies: Sequence[Study], folder: Path) -> str:
    """The page in Markdown.

    Parameters
    ----------
    studies
        In the order of the page, grouped by where they come from.
    folder
        Holds one folder with a result.json for each of them.

    Raises
    ------
    InputError
        A result is missing.
    """
    parts, document = [_HEAD], None
    for study in studies:
        name = study.source.split(", ")[0] if not study.source.startswith("labkit") else "labkit"
        if name != document:
            document = name
            parts.append(
                f"\n## {_heading(study.source)}\n\n| study | | agrees | in part | does not |\n|---|---|---|---|---|\n"
            )
        found = Counter(finding["agrees"] for finding in read_study(folder / study.name)["findings"])
        counts = " | ".join(str(found[word]) for word in ("yes", "partly", "no"))
        parts.append(f"| [{study.name}]({study.name}/README.md) | {study.title} | {counts} |\n")
    return "".join(parts)


def _heading(source: str) -> str:
    """The document without the place in it: everything before a table, figure, section or row."""
    if source.startswith("labkit"):
        return "labkit's own targets"
    return source.rsplit("), ", 1)[0] + (")" if "), " in source else "")
