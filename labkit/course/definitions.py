"""What a notebook or script defines, taken out by its syntax: imports, functions, classes and assignments to names.

Nothing is run here. Loops, calls, plots, magics and everything else at the top level are left out, and so it does not matter in
which order the cells were run, whether they were run, or what an editor did to their ids. Of two definitions of a name the last
one counts. Of all that, `reachable` keeps what certain functions can come to use: their helpers and constants, and not the
network that was trained for a plot.
"""

from __future__ import annotations

import ast
import codecs
import json
import re
import symtable
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from labkit.errors import InputError

__all__ = ["Definitions", "definitions_of", "reachable", "read_cells", "read_cells_of", "read_definitions"]

_MAGIC = re.compile(r"^\s*[%!?]|\?\s*$")
_MOST_CODE = 1_000_000  # characters; a module's code has some ten thousand
_CELL_MAGICS_OF_PYTHON = ("%%time", "%%timeit", "%%capture", "%%prun")


@dataclass(frozen=True)
class Definitions:
    """The definitions of one submission.

    Parameters
    ----------
    source : Python text of all definitions, in their order; run `reachable` of it, not all
    names : what it defines, imports apart
    strings : assignments of one string to a name, such as the answers to open questions
    notes : what a reader should know: a cell that is no Python, a name defined twice
    """

    source: str
    names: tuple[str, ...]
    strings: dict[str, str]
    notes: tuple[str, ...]


def read_cells(path: str | Path) -> list[str]:
    """The code cells of an ``.ipynb`` file in their order, or the whole of a ``.py`` file as one cell.

    Raises
    ------
    InputError
        The file cannot be read, or is no notebook.
    """
    file = Path(path)
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise InputError(
            f"Cannot read {file}: {error.strerror or error}. Name a notebook (.ipynb) or a script (.py)."
        ) from error
    return read_cells_of(raw, str(file))


def read_cells_of(raw: bytes, name: str) -> list[str]:
    """The code cells in the bytes ``raw`` of a notebook, or of a script where ``name`` ends in ``.py``.

    Raises
    ------
    InputError
        They are no notebook.
    """
    wide = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))  # what Windows calls Unicode
    text = raw.decode("utf-16" if wide else "utf-8-sig", "replace")
    if name.endswith(".py"):
        return [text]
    try:
        notebook = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{name} is no notebook: {error}. Save it again from Jupyter, or hand in a .py file."
        ) from error
    cells = notebook.get("cells") if isinstance(notebook, dict) else None
    if not isinstance(cells, list):
        raise InputError(f"{name} is no notebook: it has no list of cells. Save it again from Jupyter.")
    found = []
    for cell in cells:
        if not isinstance(cell, dict) or cell.get("cell_type") != "code":
            continue
        source = cell.get("source", "")
        if isinstance(source, list):
            source = "".join(line for line in source if isinstance(line, str))
        if isinstance(source, str):
            found.append(source)
    return found


def read_definitions(path: str | Path) -> Definitions:
    """The definitions of the notebook or script ``path``.

    Raises
    ------
    InputError
        The file cannot be read, or is no notebook.
    """
    return definitions_of(read_cells(path))


def definitions_of(cells: list[str]) -> Definitions:
    """The definitions in ``cells`` of Python text, in their order."""
    kept: list[ast.stmt] = []
    texts: list[str] = []
    strings: dict[str, str] = {}
    notes: list[str] = []
    places: dict[str, int] = {}
    room = _MOST_CODE
    for number, cell in enumerate(cells, 1):
        room -= len(cell)
        if room < 0:
            notes.append(
                f"From code cell {number} on everything was left out: more than {_MOST_CODE:,} characters of code."
            )
            break
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # such as "\\d" in a student's string
                tree = ast.parse(_without_magics(cell))
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            line = f", line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
            notes.append(f"Code cell {number} is no valid Python ({_said(error)}{line}) and was left out.")
            continue
        for statement in tree.body:
            try:
                if not _is_definition(statement):
                    continue
                text = ast.unparse(statement)
                ast.parse(text)
            except (
                SyntaxError,
                ValueError,
                RecursionError,
                MemoryError,
            ):  # a number of thousands of digits, or brackets in brackets in brackets
                notes.append(
                    f"Code cell {number}, line {statement.lineno}: this is too large or too deep, and was left out."
                )
                continue
            for name in _names(statement):
                if name in places and isinstance(statement, ast.FunctionDef | ast.ClassDef):
                    notes.append(f"{name} is defined twice (cells {places[name]} and {number}); the last one counts.")
                if isinstance(statement, ast.FunctionDef | ast.ClassDef):
                    places[name] = number
                strings.pop(name, None)
            value = statement.value if isinstance(statement, ast.Assign) else None
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                strings |= dict.fromkeys(_names(statement), value.value)
            kept.append(statement)
            texts.append(text)
    source = "\n\n".join(texts) + "\n"
    names = {name for statement in kept if not _is_import(statement) for name in _names(statement)}
    return Definitions(source, tuple(sorted(names)), strings, tuple(notes))


def reachable(source: str, names: Iterable[str]) -> str:
    """The part of ``source``, as `Definitions` hold it, that the functions ``names`` can come to use.

    A statement stays when a name that it binds is mentioned in a statement that stays. What a plot needs is left out, and so is
    the time that its imports take.
    """
    statements = ast.parse(source).body
    binding: dict[str, list[int]] = {}
    for place, statement in enumerate(statements):
        for name in _names(statement):
            binding.setdefault(name, []).append(place)
    waiting, kept = [*names, "*"], set[int]()  # what "from numpy import *" binds is anybody's guess, so it stays
    seen: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        for place in binding.get(name, []):
            if place not in kept:
                kept.add(place)
                waiting += _mentioned(ast.unparse(statements[place]))
    return "\n\n".join(ast.unparse(statements[place]) for place in sorted(kept)) + "\n"


def _mentioned(statement: str) -> set[str]:
    """The top-level names that ``statement`` uses, at once or when what it defines is called; parameters and the like are not."""

    def of(table: symtable.SymbolTable) -> set[str]:
        inside = table.get_type() != "module"
        found = {s.get_name() for s in table.get_symbols() if (s.is_global() if inside else s.is_referenced())}
        for child in table.get_children():
            found |= of(child)
        return found

    return of(symtable.symtable(statement, "<statement>", "exec"))


def _without_magics(cell: str) -> str:
    """``cell`` with IPython's magics commented out; a cell in another language becomes empty."""
    lines = cell.splitlines()
    first = next((line.strip() for line in lines if line.strip()), "")
    if first.startswith("%%") and not first.startswith(_CELL_MAGICS_OF_PYTHON):
        return ""
    try:
        ast.parse(cell)  # (the caller has turned warnings off)
        return cell  # no magics, and a % inside a string stays what it is
    except (SyntaxError, ValueError):
        return "\n".join(re.sub(r"\S.*", "pass", line) if _MAGIC.search(line) else line for line in lines)


def _is_import(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Import | ast.ImportFrom)


def _is_definition(statement: ast.stmt) -> bool:
    if _is_import(statement):
        return True
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return True
    if isinstance(statement, ast.Assign):
        return all(_is_plain_target(target) for target in statement.targets)
    if isinstance(statement, ast.AnnAssign):
        return isinstance(statement.target, ast.Name) and statement.value is not None
    return False


def _is_plain_target(target: ast.expr) -> bool:
    """A name, or names side by side; neither an element nor an attribute of something that is there already."""
    if isinstance(target, ast.Tuple | ast.List):
        return all(_is_plain_target(item) for item in target.elts)
    return isinstance(target, ast.Name)


def _names(statement: ast.stmt) -> list[str]:
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [statement.name]
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return [alias.asname or alias.name.split(".")[0] for alias in statement.names]
    if isinstance(statement, ast.Assign):
        return [node.id for target in statement.targets for node in ast.walk(target) if isinstance(node, ast.Name)]
    if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
        return [statement.target.id]
    return []


def _said(error: BaseException) -> str:
    return error.msg if isinstance(error, SyntaxError) else str(error) or type(error).__name__
