"""Arguments that are no plain data (a function, a random generator, a network), as a name and the data it is made from.

A case of a task must travel as data: into a file, or into a process that can do no harm. An argument such as a loss function is
written as ``Made("losses.logistic", {"x": ..., "y": ...})`` and built where the student's function runs, by the function
``logistic`` of the module ``labkit.course.ingredients.losses``.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from labkit.errors import InputError

__all__ = ["Made", "build"]


@dataclass(frozen=True)
class Made:
    """An argument to be made: ``maker`` is module.function below labkit.course.ingredients, ``data`` its keywords."""

    maker: str
    data: Mapping[str, Any] = field(default_factory=dict)


def build(value: Any, modules: Mapping[str, Any] | None = None) -> Any:
    """``value`` with every `Made` in it (also inside lists, tuples and dicts) replaced by what it makes.

    ``modules`` are the modules of ingredients by their last name; they are imported where it is left out.

    Raises
    ------
    InputError
        There is no such maker.
    """
    if isinstance(value, Made):
        return _maker(value.maker, modules)(**build(dict(value.data), modules))
    if isinstance(value, dict):
        return {name: build(item, modules) for name, item in value.items()}
    if isinstance(value, list):
        return [build(item, modules) for item in value]
    if isinstance(value, tuple):
        return tuple(build(item, modules) for item in value)
    return value


def _maker(name: str, modules: Mapping[str, Any] | None) -> Any:
    module_name, _, function = name.partition(".")
    if module_name.isidentifier() and function.isidentifier():
        module = _module(module_name) if modules is None else modules.get(module_name)
        if module is not None and function in getattr(module, "__all__", ()):
            return getattr(module, function)
    raise InputError(f"There is no ingredient {name!r}; it is module.function of labkit/course/ingredients.")


def _module(name: str) -> Any:
    try:
        return importlib.import_module(f"labkit.course.ingredients.{name}")
    except ModuleNotFoundError:
        return None
