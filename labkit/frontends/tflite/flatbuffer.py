"""Tables of a flatbuffer, read with every offset checked: a damaged file raises an error and never reads outside itself.

The format: a table starts with the distance to its vtable, which has the place of each field in the table, 0 for one that is
left out. Strings, vectors and other tables stand elsewhere, and the field holds the distance to them. All numbers are
little-endian. (FlatBuffers documentation, "FlatBuffer Internals".)
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labkit.errors import ModelError

__all__ = ["Table", "root"]

LONGEST_TEXT = 250  # bytes of a name that are read


def root(data: bytes, identifier: bytes) -> Table:
    """The first table of the flatbuffer ``data``, whose ``identifier`` stands in bytes 4 to 8.

    Raises
    ------
    ModelError
        The identifier is another one, or the table lies outside ``data``.
    """
    if len(data) < 8 or data[4:8] != identifier:
        raise ModelError(f"It does not have the mark {identifier.decode()!r} in its first bytes.")
    return Table(data, struct.unpack_from("<I", data, 0)[0])


class Table:
    """The table at byte ``at`` of ``data``; fields are counted from 0 in the order of the schema.

    Raises
    ------
    ModelError
        The table or its vtable reaches outside ``data``.
    """

    __slots__ = ("_at", "_data", "_end", "_fields", "_vtable")

    def __init__(self, data: bytes, at: int) -> None:
        self._data, self._at = data, at
        self._need(at, 4)
        self._vtable = at - struct.unpack_from("<i", data, at)[0]
        self._need(self._vtable, 4)
        size, extent = struct.unpack_from("<HH", data, self._vtable)
        self._need(self._vtable, size)
        self._need(at, extent)
        self._end, self._fields = at + extent, (size - 4) // 2

    def has(self, field: int) -> bool:
        """Whether ``field`` is there."""
        return self.place(field) is not None

    def place(self, field: int) -> int | None:
        """Where ``field`` stands in the file, or None if it is left out."""
        if field >= self._fields:
            return None
        offset = struct.unpack_from("<H", self._data, self._vtable + 4 + 2 * field)[0]
        return self._at + offset if offset else None

    def number(self, field: int, kind: str, default: float = 0) -> Any:
        """The number in ``field``, in the format ``kind`` of `struct` ("i", "b", "I", "?", "f", ...); ``default`` if left out.

        Raises
        ------
        ModelError
            It reaches outside the table.
        """
        place = self.place(field)
        if place is None:
            return default
        if place + struct.calcsize(f"<{kind}") > self._end:
            raise ModelError(f"A field of the table at byte {self._at} reaches outside it.")
        return struct.unpack_from(f"<{kind}", self._data, place)[0]

    def table(self, field: int) -> Table | None:
        """The table that ``field`` leads to, or None.

        Raises
        ------
        ModelError
            It reaches outside the file.
        """
        place = self._target(field)
        return None if place is None else Table(self._data, place)

    def numbers(self, field: int, dtype: str) -> NDArray[Any]:
        """The vector of numbers of ``dtype`` (NumPy's, such as "<i4") in ``field``: a view of shape (length,), empty if left out.

        Raises
        ------
        ModelError
            It reaches outside the file.
        """
        start, length = self._vector(field, np.dtype(dtype).itemsize)
        return np.frombuffer(self._data, dtype, length, start) if length else np.zeros(0, dtype)

    def tables(self, field: int, most: int) -> list[Table]:
        """The vector of tables in ``field``, at ``most`` so many; empty if left out.

        Raises
        ------
        ModelError
            There are more of them, or one reaches outside the file.
        """
        start, length = self._vector(field, 4)
        if length > most:
            raise ModelError(f"A list in it has {length:,} entries; {most:,} are read.")
        places = [start + 4 * i for i in range(length)]
        return [Table(self._data, place + self._distance(place)) for place in places]

    def text(self, field: int) -> str:
        """The string in ``field``, its first 250 bytes at the most; empty if left out.

        Raises
        ------
        ModelError
            It reaches outside the file.
        """
        start, length = self._vector(field, 1)
        return self._data[start : start + min(length, LONGEST_TEXT)].decode("utf-8", "replace")

    def _vector(self, field: int, size: int) -> tuple[int, int]:
        place = self._target(field)
        if place is None:
            return 0, 0
        self._need(place, 4)
        length = struct.unpack_from("<I", self._data, place)[0]
        self._need(place + 4, length * size)
        return place + 4, length

    def _target(self, field: int) -> int | None:
        place = self.place(field)
        if place is None:
            return None
        self._need(place, 4)
        return place + self._distance(place)

    def _distance(self, place: int) -> int:
        distance: int = struct.unpack_from("<I", self._data, place)[0]
        if distance == 0:
            raise ModelError(f"The distance at byte {place} is 0: it leads to itself.")
        return distance

    def _need(self, start: int, length: int) -> None:
        if start < 0 or start + length > len(self._data):
            raise ModelError(
                f"It is damaged or cut off: bytes {start} to {start + length} of {len(self._data)} are needed."
            )
