"""Looks for answers where students would find them."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

from labkit.course.build import source_of, sources
from labkit.course.source import blanked, solution_lines, with_headings

__all__ = ["leaks_in_archive", "leaks_in_notebook"]

_TELLING = 24
"""A line of an answer that is at least so long says something; a shorter one (``return total``) stands anywhere."""


def leaks_in_notebook(course: Path, stem: str) -> list[str]:
    """The telling lines of any answer of ``course`` that stand in the blanked notebook ``stem``."""
    text, module = source_of(course, stem)
    blank = {line.strip() for line in with_headings(blanked(text, module, stem), module, stem).split("\n")}
    answers: set[str] = set()
    for path in sorted((course / "solutions").glob("*.py")):
        answers |= solution_lines(path.read_text("utf-8"), path.stem)
    return sorted(line for line in answers & blank if len(line) >= _TELLING)


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
