"""Finds and loads the course: the modules of ``exercises/``, and Python text as a module of its own."""

from __future__ import annotations

import importlib.abc
import importlib.util
import linecache
import sys
import types
from functools import cache
from pathlib import Path
from types import ModuleType

from labkit.course.tasks import Module
from labkit.errors import InputError

__all__ = ["find_course", "load_module", "load_modules", "module_of_text"]


def find_course(folder: str | Path | None = None) -> Path:
    """The folder that holds ``solutions/`` and ``exercises/``: ``folder``, the current one, or the clone that labkit runs from.

    Raises
    ------
    InputError
        There is none: this is a student's installation, or the wrong folder.
    """
    tried = [Path(folder)] if folder is not None else [Path.cwd(), Path(__file__).parents[2]]
    for place in tried:
        if (place / "exercises").is_dir() and (place / "solutions").is_dir():
            return place.resolve()
    raise InputError(
        f"There is no course in {' or '.join(str(place) for place in tried)}: a folder with solutions/ and exercises/ is "
        "wanted. They come with a clone of labkit, not with its installed package; name the clone with --course."
    )


def load_modules(course: Path) -> dict[str, Module]:
    """Every module of ``course`` by its name (``m02``), in order.

    Raises
    ------
    InputError
        A file of ``exercises/`` has no ``MODULE``, or one whose name is not the file's.
    """
    paths = sorted((course / "exercises").glob("m[0-9][0-9]_*.py"))
    return {module.name: module for module in map(_loaded, paths)}


def load_module(course: Path, name: str) -> Module:
    """The module ``name`` (``m02``) of ``course``, without a look at the others.

    Raises
    ------
    InputError
        There is no such module, or its file has no ``MODULE`` of its name.
    """
    paths = sorted((course / "exercises").glob("m[0-9][0-9]_*.py"))
    for path in paths:
        if path.stem.split("_")[0] == name:
            return _loaded(path)
    known = ", ".join(path.stem.split("_")[0] for path in paths) or "none"
    raise InputError(f"There is no module {name!r}; there are {known}.")


@cache
def _loaded(path: Path) -> Module:
    module = getattr(_module_of_file(path), "MODULE", None)
    if not isinstance(module, Module) or module.stem != path.stem:
        said = f"{module.stem!r}" if isinstance(module, Module) else "none"
        raise InputError(f"{path.name}: a MODULE named like the file ({path.stem!r}) is wanted, got {said}.")
    return module


def _module_of_file(path: Path) -> ModuleType:
    name = f"labkit_exercises_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # a dataclass or a pickle of its functions looks its module up
    spec.loader.exec_module(module)
    return module


class _TextLoader(importlib.abc.InspectLoader):
    def __init__(self, text: str, shown_as: str) -> None:
        self.text, self.shown_as = text, shown_as

    def get_source(self, fullname: str) -> str:
        return self.text

    def get_code(self, fullname: str) -> types.CodeType:
        return self.source_to_code(self.text, self.shown_as)


def module_of_text(text: str, name: str) -> ModuleType:
    """Python ``text`` run as a module ``name``, whose tracebacks show its lines.

    It is run in this process: for an instructor's own solutions, or a student's own work on the student's own machine.
    Work of other people belongs into the grader's sandbox.
    """
    shown_as = f"<{name}>"
    linecache.cache[shown_as] = (len(text), None, text.splitlines(keepends=True), shown_as)
    spec = importlib.util.spec_from_loader(name, _TextLoader(text, shown_as))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
