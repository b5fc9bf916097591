"""Looks for answers where students would find them."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

from labkit.course.build import BuiltFile, built, sources
from labkit.course.source import blanked, solution_lines, with_headings

__all__ = ["leaks_in_archive", "leaks_in_notebooks"]

_TELLING = 24
"""A line of an answer that is at least so long says something; a shorter one (``return total``) stands anywhere."""


def leaks_in_notebooks(course: Path, files: list[BuiltFile] | None = None) -> dict[str, list[str]]:
    """The telling lines of answers that stand in a blanked notebook of ``course``, by notebook.

    ``files`` are what `built` gave, where it was called before.
    """
    texts = {
        made.path.stem: {
            line.strip() for cell in json.loads(made.text)["cells"] for line in "".join(cell["source"]).split("\n")
        }
        for made in (built(course) if files is None else files)
        if made.path.suffix == ".ipynb"
    }
    found: dict[str, list[str]] = {}
    for stem, (text, _) in sources(course).items():
        for line in solution_lines(text, stem):
            if len(line) >= _TELLING:
                for notebook in (name for name, lines in texts.items() if line in lines):
                    found.setdefault(notebook, []).append(line)
    return {name: sorted(lines) for name, lines in found.items()}


def leaks_in_archive(course: Path, archive: Path) -> list[str]:
    """Every line of any answer of ``course`` that stands in a file of the zip ``archive``, as "file: line".

    Lines that also stand in the blanked sources are no leak, and neither are those of the public cases.
    """
    answers: set[str] = set()
    open_lines: set[str] = set()
    for stem, (text, module) in sources(course).items():
        answers |= solution_lines(text, stem)
        blank = with_headings(blanked(text, module, stem), module, stem)
        open_lines |= {line.strip().removeprefix("# ") for line in blank.split("\n")}
        open_lines |= {line.strip() for line in blank.split("\n")}
    answers -= open_lines
    found = []
    with zipfile.ZipFile(archive) as held:
        for name in held.namelist():
            text = held.read(name).decode("utf-8", "replace")
            if name.endswith(".ipynb"):
                text = "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"])
            elif name.endswith(".json"):
                continue
            lines = {line.strip() for line in text.split("\n")}
            found += [f"{name}: {line}" for line in sorted(answers & lines)]
    return found
