"""Makes what students get from what instructors edit: notebooks from ``solutions/``, public cases from ``exercises/``."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

from labkit.course.cases import cases_text, public_cases
from labkit.course.loading import load_module, load_modules
from labkit.course.notebook import notebook_text, setup_cells
from labkit.course.overview import with_overview
from labkit.course.source import answered, blanked, task_signatures, with_headings
from labkit.course.tasks import Module
from labkit.errors import InputError
from labkit.files import write_atomically

__all__ = ["BuiltFile", "answered_notebook", "built", "cases_folder", "source_of", "sources", "write_built"]


@dataclass(frozen=True)
class BuiltFile:
    """One file of the course as it should be: its path and its text."""

    path: Path
    text: str

    @property
    def is_there(self) -> bool:
        """Whether the file has this very text."""
        return self.path.exists() and self.path.read_bytes() == self.text.encode()


def sources(course: Path) -> dict[str, tuple[str, Module | None]]:
    """The text and the module of every script of ``course``/solutions by its stem; a script without tasks has no module.

    Raises
    ------
    InputError
        A module of exercises/ has no script.
    """
    scripts = {path.stem: path.read_text("utf-8") for path in sorted((course / "solutions").glob("*.py"))}
    modules = {module.stem: module for module in load_modules(course).values()}
    if lost := sorted(set(modules) - set(scripts)):
        raise InputError(f"exercises/ has {', '.join(lost)}, and solutions/ has no such script.")
    return {stem: (text, modules.get(stem)) for stem, text in scripts.items()}


def source_of(course: Path, stem: str) -> tuple[str, Module | None]:
    """The text and the module of ``course``/solutions/``stem``.py alone.

    Raises
    ------
    InputError
        There is no such script.
    """
    path = course / "solutions" / f"{stem}.py"
    if not path.exists():
        raise InputError(f"solutions/ has no {path.name}.")
    is_module = (course / "exercises" / f"{stem}.py").exists()
    return path.read_text("utf-8"), load_module(course, stem.split("_")[0]) if is_module else None


def cases_folder(course: Path) -> Path:
    """Where the public cases of ``course`` lie: in the package of a clone, else in a folder beside the notebooks."""
    package = course / "labkit" / "course"
    return package / "cases" if package.is_dir() else course / "labkit-cases"


def _repository(course: Path) -> str:
    path = course / "exercises" / "course.toml"
    settings = tomllib.loads(path.read_text("utf-8")) if path.exists() else {}
    return str(settings.get("repository", ""))


def _requirements(course: Path) -> tuple[str, ...]:
    path = course / "pyproject.toml"
    if not path.exists():
        return ()
    project = tomllib.loads(path.read_text("utf-8"))["project"]
    return tuple(str(need) for need in (*project["dependencies"], "ipywidgets"))


def built(course: Path, only: str | None = None) -> list[BuiltFile]:
    """Every notebook, every file of public cases and the tables of docs/course.md, or the files of the module ``only`` (``m02``).

    Raises
    ------
    InputError
        Sources and exercises do not belong together.
    """
    repository, needs = _repository(course), _requirements(course)
    found = []
    if only is None:
        chosen = sources(course)
    else:
        stem = load_module(course, only).stem
        chosen = {stem: source_of(course, stem)}
    for stem, (text, module) in chosen.items():
        where = f"solutions/{stem}.py"
        blank = with_headings(blanked(text, module, where), module, where)
        setup = setup_cells(stem, repository, needs)
        found.append(BuiltFile(course / "notebooks" / f"{stem}.ipynb", notebook_text(blank, module, setup)))
        if module is not None:
            public = public_cases(module, task_signatures(answered(text)))
            found.append(BuiltFile(cases_folder(course) / f"{stem}.json", cases_text(public)))
    page = course / "docs" / "course.md"
    if only is None and page.exists():
        found.append(BuiltFile(page, with_overview(page.read_text("utf-8"), list(load_modules(course).values()))))
    return found


def answered_notebook(course: Path, stem: str) -> str:
    """The notebook of ``course``/solutions/``stem``.py with its answers filled in, as the text of an ``.ipynb`` file."""
    text, module = source_of(course, stem)
    return notebook_text(
        with_headings(answered(text), module, f"solutions/{stem}.py"), module, setup_cells(stem, "", ())
    )


def write_built(course: Path, only: str | None = None) -> list[Path]:
    """Write what `built` gives for ``course`` and ``only`` where it is not there already; the paths that were written."""
    written = []
    for made in built(course, only):
        if not made.is_there:
            made.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(made.path, made.text.encode())
            written.append(made.path)
    return written
