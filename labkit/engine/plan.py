"""The parts of a prepared network: buffers, places in them, kernel calls, and the borders to real numbers.

Inside the fast tier a tensor lies in the layout (N, H, W, C): as bytes, from 0 for the lowest number of its grid on, or
as int16 with its zero point subtracted; `storage` chooses. Its buffer has a border as wide as the widest padding that a
consumer asks for, filled with what stands for real 0, and its producer writes straight into the interior. A tensor that
is no image is one row of channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labkit.engine.storage import tensors_in_bytes
from labkit.graph import int_ops
from labkit.graph.ir import IntGraph, IntNode, Tensor
from labkit.graph.shapes import Padding
from labkit.kernels.fast.border import fill_border
from labkit.kernels.fast.elementwise import Corner
from labkit.kernels.fast.packing import DENSE_CHANNELS, rounded_up
from labkit.kernels.fast.tile import Dot, Registers

__all__ = ["TABLES", "Buffer", "Entry", "Exit", "Place", "Plan", "Prepared", "Purpose", "Route", "Step", "as_image"]

TABLES = -1  # in Step.buffers: the arena's scratch table of addresses


Number = type[np.int8] | type[np.uint8] | type[np.int16] | type[np.int32] | type[np.float32]


_BORDERS_IN = (int_ops.Quantize, int_ops.QuantizeByReciprocal, int_ops.QuantizeAwayFromZero, int_ops.Input)


class Route(Enum):
    """How 3x3 convolutions of stride 1 are computed; all ways give the same integers.

    FASTEST : whatever is expected to be fastest for the shape.
    DIRECT : product by product.
    F2, F4 : by Winograd's F(2x2, 3x3) or F(4x4, 3x3) wherever that is exact and the image large enough, else directly.
    """

    FASTEST = "fastest"
    DIRECT = "direct"
    F2 = "f2"
    F4 = "f4"


class Purpose(Enum):
    """What a network is prepared for; both give the same integers.

    SPEED : whatever is fastest.
    MEMORY : few bytes. No Winograd; weights are int8, or two to a byte where all of a layer fit four bits (convolutions
        in groups stay int8, and int16 are those that need nine bits and some depthwise layers); images run one at a
        time; memory is shared by tensors with borders too, which are filled in every run.
    """

    SPEED = "speed"
    MEMORY = "memory"


@dataclass(frozen=True)
class Buffer:
    """Memory for one tensor of each image: ``shape`` (height, width, channels) with its border; or int32 sums.

    Where not ``is_per_image`` it is scratch of any shape, which all images share.
    ``border`` : rows and columns at its top, bottom, left and right that hold ``zero``.
    """

    shape: tuple[int, ...]
    dtype: Number
    is_per_image: bool = True
    border: tuple[int, int, int, int] = (0, 0, 0, 0)
    zero: int = 0

    @property
    def bytes(self) -> int:
        """Bytes for each image, or of the scratch."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Place:
    """Where a tensor lies: the number of a buffer, the size (C, H, W) of the image and the corner where it starts.

    The image of a tensor that was reshaped may be that of another shape with the same elements in the same order.

    zero : the number in the buffer that stands for real 0, with which its border is filled
    strides : elements of the buffer from one channel, row and column to the next where these do not lie as (H, W, C); such a
        tensor starts at the first element, and only some operations on sequences take it
    """

    buffer: int
    image: tuple[int, int, int]
    corner: Corner
    zero: int = 0
    strides: tuple[int, int, int] | None = None

    def view(self, buffer: NDArray[Any]) -> tuple[NDArray[Any], Corner]:
        """``buffer`` [N, H', W', C'], of any dtype, as the images in it are indexed: [N, H, W, C], and their corner there."""
        if self.strides is None:
            return buffer, self.corner
        channels, height, width = self.image
        by_channel, by_row, by_column = (step * buffer.itemsize for step in self.strides)
        shape, strides = (len(buffer), height, width, channels), (buffer.strides[0], by_row, by_column, by_channel)
        return np.lib.stride_tricks.as_strided(buffer, shape, strides), Corner(0, 0)


@dataclass(frozen=True, eq=False)
class Step:
    """One kernel call: ``kernel(part, parts, images, *buffers, *constants)`` on behalf of ``node``.

    kernel : returns 0, or the number of elements that break the bounds of its rounding rule
    kernel_for_one : what to call instead where memory is for a single image
    """

    node: str
    kernel: Callable[..., int]
    buffers: tuple[int, ...]
    constants: tuple[Any, ...]
    kernel_for_one: Callable[..., int] | None = None


@dataclass(frozen=True, eq=False)
class Entry:
    """A border in: ``kernel(part, parts, images, given, buffer, numbers, corner)`` brings its integers to ``place``.

    kernel, numbers : `elementwise.quantize` or what does the same, and its float32 constants, where real numbers are given
        to a Quantize node; else `elementwise.take_integers` and its constant
    """

    node: IntNode
    place: Place
    kernel: Callable[..., int]
    numbers: NDArray[np.float32] | NDArray[np.int64]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the array that the kernel takes: float32 for a Quantize node, else that of the node's integers."""
        return np.dtype(np.float32) if isinstance(self.node.op, int_ops.Quantize) else self.node.output.dtype


@dataclass(frozen=True, eq=False)
class Exit:
    """How to read the result of ``node`` from the place where its integers lie.

    scale : of a Dequantize node, else None
    dtype : of the array that is returned
    """

    node: IntNode
    place: Place
    scale: np.float32 | None
    zero_point: np.int16
    dtype: np.dtype[Any]


@dataclass(frozen=True, eq=False)
class Prepared:
    """What `engine.run` needs to run ``graph``; it holds no run-time state.

    buffers : memory for each image of a chunk
    slots : for each of them a number; those with the same number may lie in the same memory
    entries, steps : in running order
    exits : one for every node
    chunk : the largest number of images that run together
    """

    graph: IntGraph
    buffers: tuple[Buffer, ...]
    slots: tuple[int, ...]
    entries: tuple[Entry, ...]
    steps: tuple[Step, ...]
    exits: Mapping[str, Exit]
    chunk: int

    @cached_property
    def resident_bytes(self) -> int:
        """Bytes of every array that the kernel calls read: packed weights, biases, multipliers, tables."""
        found = (array for step in self.steps for array in _arrays(step.constants))
        return sum({array.__array_interface__["data"][0]: array.nbytes for array in found}.values())


class Plan:
    """What `prepare` has decided so far: ``buffers``, ``places`` by node and ``steps``.

    in_bytes : names of the nodes whose results are stored as bytes
    """

    def __init__(
        self, graph: IntGraph, route: Route, registers: Registers, dots: tuple[Dot, ...], purpose: Purpose
    ) -> None:
        self.graph = graph
        self.route = route
        self.purpose = purpose
        self.registers = registers
        self.dots = dots
        self.in_bytes = tensors_in_bytes(graph, dots)
        self.buffers: list[Buffer] = []
        self.places: dict[str, Place] = {}
        self.steps: list[Step] = []
        self.consumers: dict[str, list[IntNode]] = {node.name: [] for node in graph}
        for node in graph:
            for name in node.inputs:
                self.consumers[name].append(node)

    def add_buffer(self, buffer: Buffer) -> int:
        """The number of the new ``buffer``."""
        self.buffers.append(buffer)
        return len(self.buffers) - 1

    def new_place(self, node: IntNode, image: tuple[int, int, int] | None = None) -> Place:
        """A buffer for the result of ``node``, with the border that its consumers need.

        Where few bytes are wanted the border is filled in every run, by a first step of ``node``. It lies as the ``image``
        (C, H, W), by default that of its own shape.
        """
        channels, height, width = image = image or as_image(node.output)
        (top, bottom), (left, right) = self.border(node.name)
        is_small_input = isinstance(node.op, _BORDERS_IN) and height * width > 1 and channels <= DENSE_CHANNELS
        lanes = channels if is_small_input else rounded_up(channels)
        shape = (top + height + bottom, left + width + right, lanes)
        (dtype, zero), border = self.stored_as(node), (top, bottom, left, right)
        is_refilled = self.purpose is Purpose.MEMORY and any(border)  # so that its memory may serve any other tensor
        buffer = self.add_buffer(Buffer(shape, dtype, border=(0, 0, 0, 0) if is_refilled else border, zero=zero))
        if is_refilled:
            self.steps.append(Step(node.name, fill_border, (buffer,), (border, zero)))
        self.places[node.name] = Place(buffer, image, Corner(top, left), zero)
        return self.places[node.name]

    def new_rows(self, node: IntNode) -> Place:
        """A buffer for the result of ``node`` in which the last axis of its image is contiguous, without a border."""
        channels, height, width = image = as_image(node.output)
        dtype, zero = self.stored_as(node)
        lanes = rounded_up(width)
        buffer = self.add_buffer(Buffer((channels, height, lanes), dtype, zero=zero))
        self.places[node.name] = Place(buffer, image, Corner(0, 0), zero, (height * lanes, lanes, 1))
        return self.places[node.name]

    def stored_as(self, node: IntNode) -> tuple[Number, int]:
        """The type of the numbers that hold the result of ``node``, and the one that stands for real 0."""
        if node.output.is_index:
            return np.int32, 0
        if node.name not in self.in_bytes:
            return np.int16, 0
        spec, params = node.output.quantized
        return np.uint8, int(params.zero_point) - spec.qmin

    def source(self, node: IntNode, index: int = 0) -> Place:
        """Where input ``index`` of ``node`` lies."""
        return self.places[node.inputs[index]]

    def all_consumers_are(self, node: IntNode, *kinds: type[int_ops.IntOp]) -> bool:
        """Whether no operation but some of ``kinds`` takes the result of ``node``."""
        return all(isinstance(consumer.op, kinds) for consumer in self.consumers[node.name])

    def border(self, name: str) -> Padding:
        """The rows and columns of zeros that the consumers of the node ``name`` want around its result.

        A Pad is not carried out where they are there already, so that it wants its own and what its consumers want.
        """
        wanted: list[Padding] = [((0, 0), (0, 0))]
        for consumer in self.consumers[name]:
            if isinstance(consumer.op, int_ops.Conv2d | int_ops.AveragePool2d):
                wanted.append(consumer.op.padding)
            elif isinstance(consumer.op, int_ops.Pad):
                (top, bottom), (left, right) = self.border(consumer.name)
                (above, below), (before, after) = consumer.op.padding
                wanted.append(((top + above, bottom + below), (left + before, right + after)))
        top, bottom, left, right = (max(p[axis][side] for p in wanted) for axis in (0, 1) for side in (0, 1))
        return (top, bottom), (left, right)


def as_image(tensor: Tensor) -> tuple[int, int, int]:
    """The shape as (C, H, W): a sequence has height 1, and what is no image becomes one row of channels."""
    if len(tensor.shape) == 3:
        channels, height, width = tensor.shape
        return channels, height, width
    if len(tensor.shape) == 2:
        channels, width = tensor.shape
        return channels, 1, width
    return int(np.prod(tensor.shape)), 1, 1


def _arrays(value: Any) -> Iterator[NDArray[Any]]:
    """Every array in nested tuples, lists and dataclasses."""
    if isinstance(value, np.ndarray):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _arrays(item)
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from _arrays(getattr(value, field.name))
