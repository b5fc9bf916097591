"""What every judge is, what it finds, and the plain form in which values are compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from labkit.errors import InputError

__all__ = ["Difference", "Judge", "as_array", "described", "plain"]


@dataclass(frozen=True)
class Difference:
    """The first thing that is wrong with a value.

    ``message`` is one sentence. ``place`` says where (``[2, 0]``, ``["scale"]``), '' for the whole value; ``expected`` and
    ``got`` are the values there, shortened for a reader.
    """

    message: str
    place: str = ""
    expected: str = ""
    got: str = ""

    def inside(self, place: str) -> Difference:
        """The same difference, found at ``place`` of a larger value."""
        return Difference(self.message, place + self.place, self.expected, self.got)


class Judge(Protocol):
    """Compares a value with the right one. ``kind`` names the class in files; its fields are plain data."""

    kind: ClassVar[str]

    def compare(self, got: Any, expected: Any, inputs: Mapping[str, Any]) -> Difference | None:
        """What is wrong with ``got`` beside ``expected``, given the case's ``inputs``; None where nothing is. All plain."""
        ...

    def same(self, got: Any, other: Any) -> bool:
        """Whether ``got`` is the value ``other`` that a known mistake gives."""
        ...


def described(judge: Judge) -> dict[str, Any]:
    """``judge`` as plain data: its kind and its fields; judges among the fields are described in turn."""

    def plainly(value: Any) -> Any:
        if isinstance(value, tuple):
            return [plainly(item) for item in value]
        return described(value) if hasattr(value, "kind") else value

    return {"judge": judge.kind} | {f.name: plainly(getattr(judge, f.name)) for f in fields(judge)}  # type: ignore[arg-type]


def plain(value: Any) -> Any:
    """``value`` as plain data: numbers, strings, None, lists, tuples, dicts and NumPy arrays.

    Torch tensors become arrays (detached, on the processor), NumPy scalars Python numbers, 0-D arrays too. Nothing is rounded.

    Raises
    ------
    InputError
        It is of another type.
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, np.ndarray):
        array = np.array(value, copy=True, subok=False)
        if array.dtype.kind not in "biuf":
            raise InputError(f"An array of dtype {array.dtype} was returned; numbers or booleans are wanted.")
        return array if array.ndim else array.item()
    if isinstance(value, np.generic):
        return plain(np.asarray(value))
    if isinstance(value, tuple):
        return tuple(plain(item) for item in value)
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {str(name): plain(item) for name, item in value.items()}
    if type(value).__module__.split(".")[0] == "torch" and hasattr(value, "detach"):
        return plain(value.detach().cpu().numpy())
    if isinstance(value, bool | int | float | str):  # a subclass, such as an IntEnum
        return plain(value.__reduce_ex__(2) and _base(value))
    raise InputError(
        f"A {type(value).__name__} was returned; an array, a number, or a tuple, list or dict of these is wanted."
    )


def _base(value: bool | int | float | str) -> bool | int | float | str:
    for kind in (int, float, str):
        if isinstance(value, kind):
            return kind(value)
    return bool(value)


def as_array(value: Any) -> NDArray[Any] | None:
    """A plain number, array, or regular nested list or tuple of numbers, as an array of the same shape and its own dtype.

    None for anything else.
    """
    if isinstance(value, np.ndarray):
        return value
    if isinstance(value, bool | int | float):
        number = np.asarray(value)
        return number if number.dtype.kind in "biuf" else None  # 2**64 and above is no number of a fixed width
    if isinstance(value, list | tuple):
        try:
            array = np.array(value)
        except ValueError:  # ragged
            return None
        return array if array.dtype.kind in "biuf" or not array.size else None
    return None
