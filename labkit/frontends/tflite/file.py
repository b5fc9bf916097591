"""What a TFLite file holds, as tensors and operators of Python: read with bounds, checked, and not yet understood."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labkit.arithmetic.packing import unpack_int4
from labkit.errors import ModelError, UnsupportedOperation
from labkit.frontends.tflite.flatbuffer import Table, root
from labkit.frontends.tflite.schema import OPERATORS, OPTIONS, TYPES
from labkit.frontends.work import Work

__all__ = ["LARGEST_FILE", "File", "FileOperator", "FileTensor", "read_file", "with_every_output"]

LARGEST_FILE = 2**28  # bytes
MOST_TENSORS, MOST_OPERATORS, MOST_AXES, MOST_INPUTS = 10_000, 2_000, 6, 200
MOST_OPERANDS = 6_000  # inputs and outputs of all operators together
LARGEST_SIZE = 2**20  # of one axis
LARGEST_TENSOR = 2**26  # numbers an image
_KINDS: Mapping[str, Any] = {
    "int8": "<i1",
    "uint8": "<u1",
    "int32": "<i4",
    "int64": "<i8",
    "float32": "<f4",
    "int4": "<u1",
}


@dataclass(frozen=True, eq=False)
class FileTensor:
    """One tensor of the file: ``shape`` with all axes in the file's order, ``kind`` a name of `TYPES`.

    scales, zero_points : of a quantized tensor, one or one for each index of ``axis``; empty for others.
    data : the bytes of a constant, else None.
    """

    index: int
    name: str
    shape: tuple[int, ...]
    kind: str
    scales: NDArray[np.float32]
    zero_points: NDArray[np.int64]
    axis: int
    data: NDArray[np.uint8] | None
    is_variable: bool = False

    @property
    def is_constant(self) -> bool:
        """Whether the file holds the tensor's numbers."""
        return self.data is not None

    def values(self, work: Work) -> NDArray[Any]:
        """The numbers of a constant, of ``shape``; int4 as int8. ``work`` counts them.

        Raises
        ------
        ModelError
            It is no constant, or its bytes do not fit its shape and kind.
        """
        if self.data is None or self.kind not in _KINDS:
            raise ModelError(f"{self.name}: a constant of integers or float32 numbers is needed here, got {self.kind}.")
        count, dtype = math.prod(self.shape), np.dtype(_KINDS[self.kind])
        needed = (count + 1) // 2 if self.kind == "int4" else count * dtype.itemsize
        if len(self.data) != needed:
            raise ModelError(
                f"{self.name}: {self.kind} of shape {self.shape} takes {needed} bytes, got {len(self.data)}."
            )
        work.spend(count)
        if self.kind == "int4":
            return unpack_int4(np.array(self.data), self.shape, signed=True)
        numbers: NDArray[Any] = self.data.view(dtype).reshape(self.shape).astype(dtype.newbyteorder("="))
        return numbers


@dataclass(frozen=True, eq=False)
class FileOperator:
    """One operator: its ``code`` of the schema, indices of ``inputs`` (-1: left out) and ``outputs``, and its ``options``."""

    code: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class File:
    """A network as the file has it: ``operators`` in running order, ``inputs`` and ``outputs`` indices of ``tensors``."""

    tensors: tuple[FileTensor, ...]
    operators: tuple[FileOperator, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    work: Work


def read_file(data: bytes) -> File:
    """The first network of the TFLite file whose bytes are ``data``.

    Raises
    ------
    ModelError
        They are damaged, cut off, of another kind, or ask for more than a network needs.
    UnsupportedOperation
        The file keeps its numbers elsewhere or in a form that is not read.
    """
    model = root(data, b"TFL3")
    graphs = model.tables(2, MOST_OPERATORS)
    if not graphs:
        raise ModelError("It holds no network.")
    graph = graphs[0]
    buffers = model.tables(4, 2 * MOST_TENSORS)
    names: set[str] = set()
    tensors = tuple(_tensor(table, index, buffers, names) for index, table in enumerate(graph.tables(0, MOST_TENSORS)))
    codes = [_code(table) for table in model.tables(1, MOST_OPERATORS)]
    operators = tuple(_operator(table, codes, len(tensors)) for table in graph.tables(3, MOST_OPERATORS))
    operands = sum(len(op.inputs) + len(op.outputs) for op in operators)
    if operands > MOST_OPERANDS:
        raise ModelError(f"Its operators have {operands:,} inputs and outputs; {MOST_OPERANDS:,} are read.")
    return File(
        tensors,
        operators,
        _indices(graph, 1, len(tensors)),
        _indices(graph, 2, len(tensors)),
        Work(4 * len(data) + 2**25),
    )


def with_every_output(data: bytes) -> bytes:
    """The TFLite file ``data`` with every tensor that an operator of its network computes as an output, in their order.

    Raises
    ------
    ModelError, UnsupportedOperation
        As `read_file`.
    """
    computed = [index for op in read_file(data).operators for index in op.outputs]
    place = root(data, b"TFL3").tables(2, MOST_OPERATORS)[0].place(2)
    if place is None:
        raise ModelError("The network has no outputs.")
    fill = bytes(-len(data) % 4)
    vector = struct.pack(f"<I{len(computed)}i", len(computed), *computed)
    distance = struct.pack("<I", len(data) + len(fill) - place)  # to the end, where the new list is put
    return data[:place] + distance + data[place + 4 :] + fill + vector


def _code(table: Table) -> str:
    number = max(table.number(0, "b"), table.number(3, "i"))
    if number == OPERATORS.index("CUSTOM"):
        return f"CUSTOM ({table.text(1)!r})"
    return OPERATORS[number] if 0 <= number < len(OPERATORS) else f"operator {number} of the schema"


def _tensor(table: Table, index: int, buffers: list[Table], names: set[str]) -> FileTensor:
    name = table.text(3) or f"tensor {index}"
    name = f"{name} {index}" if name in names else name  # the file knows tensors by their number
    while name in names:
        name += "_"
    names.add(name)
    sizes = table.numbers(0, "<i4")
    shape = tuple(int(size) for size in sizes[: MOST_AXES + 1])
    if len(shape) > MOST_AXES or min(shape, default=1) < 1 or max(shape, default=1) > LARGEST_SIZE:
        raise ModelError(
            f"{name}: a shape has at most {MOST_AXES} axes of 1 to {LARGEST_SIZE:,} numbers, got {list(shape)}."
        )
    if math.prod(shape) > LARGEST_TENSOR:
        raise ModelError(
            f"{name}: a tensor of shape {list(shape)} is too large; {LARGEST_TENSOR:,} numbers are allowed."
        )
    if table.has(6):
        raise UnsupportedOperation(f"{name}: a sparse tensor is not read. Convert the network without sparsity.")
    quantization, empty = table.table(4), np.zeros(0)
    number = table.number(1, "b")
    return FileTensor(
        index,
        name,
        shape,
        TYPES.get(number, f"type {number}"),
        empty.astype(np.float32) if quantization is None else quantization.numbers(2, "<f4"),
        empty.astype(np.int64) if quantization is None else quantization.numbers(3, "<i8"),
        0 if quantization is None else quantization.number(6, "i"),
        _data(table.number(2, "I"), name, buffers),
        bool(table.number(5, "?")),
    )


def _data(place: int, name: str, buffers: list[Table]) -> NDArray[np.uint8] | None:
    """The bytes of a tensor; buffer 0 and every other one without bytes stand for what is computed."""
    if place == 0:
        return None
    if place >= len(buffers):
        raise ModelError(f"{name}: its numbers are in buffer {place}, but there are {len(buffers)}.")
    if buffers[place].number(1, "Q") > 1:
        raise UnsupportedOperation(f"{name}: its numbers lie outside the flatbuffer, in a form for files beyond 2 GiB.")
    data = buffers[place].numbers(0, "u1")
    return data if len(data) else None


def _operator(table: Table, codes: list[str], tensors: int) -> FileOperator:
    number = table.number(0, "I")
    if number >= len(codes):
        raise ModelError(f"An operator is of kind {number}, but there are {len(codes)} kinds.")
    code = codes[number]
    inputs, outputs = _indices(table, 1, tensors, optional=True), _indices(table, 2, tensors)
    return FileOperator(code, inputs, outputs, MappingProxyType(_options(table, code)))


def _options(table: Table, code: str) -> dict[str, Any]:
    if code not in OPTIONS:
        return {}
    kind, fields = OPTIONS[code]
    found = table.table(4)
    if found is not None and table.number(3, "B") != kind:
        raise ModelError(f"A {code} has options of another operator.")
    defaults = {name: 1 if name.startswith("dilation") else 0 for name, _ in fields.values()}
    if found is None:
        return defaults
    return {name: found.number(place, kind, defaults[name]) for place, (name, kind) in fields.items()}


def _indices(table: Table, field: int, tensors: int, optional: bool = False) -> tuple[int, ...]:
    numbers = table.numbers(field, "<i4")
    if len(numbers) > MOST_INPUTS:
        raise ModelError(f"An operator has {len(numbers):,} inputs or outputs; {MOST_INPUTS} are read.")
    indices = tuple(int(number) for number in numbers)
    if any(not (-1 if optional else 0) <= index < tensors for index in indices):
        raise ModelError(f"An operator names the tensors {list(indices[:8])}, but there are {tensors}.")
    return indices
