"""Modules that exist as text alone: what of labkit a task is given lies in no file of the sandbox.

Runs inside the sandbox.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import types
from contextlib import suppress
from typing import Any

__all__ = ["Library", "hide_labkit"]


class Library:
    """Imports modules from ``sources``: by name, the text and whether it is a package."""

    def __init__(self, sources: dict[str, Any]) -> None:
        self.sources = sources

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """How ``name`` is imported, where it is one of the sources; ``path`` and ``target`` are not needed for that."""
        if name not in self.sources:
            return None
        return importlib.util.spec_from_loader(name, self, is_package=self.sources[name][1])  # type: ignore[arg-type]

    def create_module(self, spec: Any) -> None:
        """The usual module for ``spec``."""
        return None

    def exec_module(self, module: types.ModuleType) -> None:
        """Fill ``module`` from its text."""
        exec(compile(self.sources[module.__name__][0], f"<{module.__name__}>", "exec"), vars(module))

    def close(self) -> None:
        """Forget the texts, and all modules that were made from them."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        for name in self.sources:
            sys.modules.pop(name, None)
            home, _, last = name.rpartition(".")
            if home in sys.modules:
                vars(sys.modules[home]).pop(last, None)
        self.sources = {}


def hide_labkit(task: str, given: list[str], library: Library) -> None:
    """Leave of labkit what is ``given`` to the ``task``, taken out of ``library``, and nothing else that can be imported."""
    found = {}
    for dotted in given:
        home, _, name = dotted.rpartition(".")
        found[dotted] = getattr(importlib.import_module(home), name)
    library.close()
    for name in [name for name in sys.modules if name.split(".")[0] == "labkit"]:
        del sys.modules[name]
    listed = ", ".join(given) or "nothing of labkit"
    why = f"{task} may use {listed}, and {{}} is not among it"

    class Stub(types.ModuleType):
        def __getattr__(self, name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            raise ImportError(why.format(f"{self.__name__}.{name}"))

    class Finder:
        def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
            if name.split(".")[0] == "labkit":
                raise ImportError(why.format(name))

    homes = {"labkit"}
    for dotted in given:
        parts = dotted.split(".")[:-1]
        homes |= {".".join(parts[: i + 1]) for i in range(len(parts))}
    for home in sorted(homes):
        stub = Stub(home)
        stub.__path__ = []
        sys.modules[home] = stub
        if "." in home:
            parent, _, last = home.rpartition(".")
            setattr(sys.modules[parent], last, stub)
    for dotted, value in found.items():
        home, _, name = dotted.rpartition(".")
        setattr(sys.modules[home], name, value)
    sys.meta_path.insert(0, Finder())
    for entry in [entry for entry in sys.path if _can_be_read(os.path.join(entry, "labkit", "__init__.py"))]:
        sys.path.remove(entry)


def _can_be_read(path: str) -> bool:
    """Whether ``path`` opens: installed packages stay importable where only labkit among them is out of reach."""
    with suppress(OSError), open(path, "rb"):
        return True
    return False
