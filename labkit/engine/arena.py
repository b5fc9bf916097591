"""`Arena`: the memory in which one caller runs a prepared network, and its kernel calls bound to that memory.

Arenas are made on first use, one for each thread, network and number of images. From then on a run makes no buffers,
only the arrays that it returns. A trace has an arena of its own, in which every tensor is kept.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from labkit.engine.memory import slot_bytes
from labkit.engine.plan import TABLES, Buffer, Entry, Exit, Prepared
from labkit.graph.costs import costs
from labkit.kernels.fast.conv import BLOCK
from labkit.kernels.fast.elementwise import dequantize, give_integers
from labkit.kernels.fast.leave_rows import dequantize_rows, give_rows
from labkit.kernels.fast.packing import aligned_zeros
from labkit.kernels.jit import entry_point
from labkit.kernels.program import Call, make_program

__all__ = ["Arena", "Port", "arena_for", "chunk_of", "exit_call"]

_of_this_thread = threading.local()

_UNIT = 8.0  # microseconds of work that are worth handing to another thread
_MACS_IN_MICROSECOND, _BYTES_IN_MICROSECOND = 2.5e5, 2e4  # about, of one thread
_TRACED_BYTES = 1 << 26  # of tensors that are all kept; one image may take more
_PARTS_OF_A_THREAD = 4  # at most, so that who is held up leaves little undone


@dataclass(frozen=True)
class Port:
    """Where an array of the caller enters or leaves a program: ``word`` of its blocks takes the address of an image.

    name : of the node
    image_bytes : from one image to the next
    """

    name: str
    word: int
    image_bytes: int


class Arena:
    """Buffers for ``capacity`` images and the calls that use them.

    buffers : one array [capacity, height, width, channels] for each of ``prepared.buffers``, scratch as it is
    bytes : of all memory
    program : the kernel calls in running order, with scratch of its own for each of ``threads``
    ports_in, ports_out : of the network's inputs, and of its outputs unless it ``keeps_all``
    """

    def __init__(self, prepared: Prepared, capacity: int, keeps_all: bool, threads: int) -> None:
        slots = range(len(prepared.buffers)) if keeps_all else prepared.slots
        self.capacity, self._threads = capacity, threads
        sizes = slot_bytes(prepared.buffers, slots, capacity)
        is_scratch = {slot for slot, buffer in zip(slots, prepared.buffers, strict=True) if not buffer.is_per_image}
        memory = [aligned_zeros((size,), np.uint8) for size in sizes]
        by_thread = [memory]
        for _ in range(1, threads):
            own = [
                aligned_zeros((size,), np.uint8) if at in is_scratch else memory[at] for at, size in enumerate(sizes)
            ]
            by_thread.append(own)
        self._by_thread = [
            [_lay(b, own[slot], capacity) for b, slot in zip(prepared.buffers, slots, strict=True)] for own in by_thread
        ]
        self.buffers: list[NDArray[Any]] = self._by_thread[0]
        self.bytes = sum(sizes) + (threads - 1) * sum(sizes[slot] for slot in is_scratch)
        entries = [self._entry(entry) for entry in prepared.entries]
        self._steps = self._step_calls(prepared)
        ways = [] if keeps_all else [prepared.exits[name] for name in dict.fromkeys(prepared.graph.outputs)]
        exits = [self._exit(way) for way in ways]
        self.program = make_program([*entries, *self._steps, *exits])
        first_exit = len(entries) + len(self._steps)
        self.ports_in = tuple(self._port(call, at, 0) for at, call in enumerate(entries))
        self.ports_out = tuple(self._port(call, first_exit + at, 1) for at, call in enumerate(exits))

    def _step_calls(self, prepared: Prepared) -> list[Call]:
        tables = [aligned_zeros((2, BLOCK), np.int64) for _ in range(self._threads)]
        macs = costs(prepared.graph).macs
        calls = []
        for step in prepared.steps:
            kernel = step.kernel_for_one if self.capacity == 1 and step.kernel_for_one else step.kernel
            touched = sum(prepared.buffers[number].bytes for number in step.buffers if number != TABLES)
            arguments = tuple(
                (*(tables[t] if number == TABLES else own[number] for number in step.buffers), *step.constants)
                for t, own in enumerate(self._by_thread)
            )
            calls.append(Call(step.node, kernel, arguments, self._parts(macs.get(step.node, 0), touched)))
        return calls

    def _parts(self, macs: int, touched: int) -> int:
        """Into how many parts to divide a call that multiplies and touches so much for each image."""
        microseconds = self.capacity * (macs / _MACS_IN_MICROSECOND + touched / _BYTES_IN_MICROSECOND)
        most = _PARTS_OF_A_THREAD * self._threads if self._threads > 1 else 1
        return max(1, min(most, int(microseconds / _UNIT)))

    def _entry(self, entry: Entry) -> Call:
        image, buffer = np.empty((1, *entry.place.image), entry.dtype), self.buffers[entry.place.buffer]
        arguments = (image, buffer, entry.numbers, entry.place.corner)
        return Call(entry.node.name, entry.kernel, (arguments,) * self._threads, self._parts(0, image.nbytes))

    def _exit(self, way: Exit) -> Call:
        kernel, arguments = exit_call(way, self.buffers[way.place.buffer], np.empty((1, *way.place.image), way.dtype))
        return Call(way.node.name, kernel, (arguments,) * self._threads, self._parts(0, arguments[1].nbytes))

    def _port(self, call: Call, at: int, argument: int) -> Port:
        return Port(call.name, self.program.data_word(at, argument), call.arguments[0][argument].nbytes)

    @property
    def calls(self) -> list[tuple[str, Callable[..., int], tuple[int, int], tuple[Any, ...]]]:
        """For whoever calls kernels one by one: (node, kernel, (part 0, of 1), arguments after the number of images)."""
        return [
            (c.name, entry_point(c.kernel, (0, 1, self.capacity, *c.arguments[0])), (0, 1), c.arguments[0])
            for c in self._steps
        ]


def exit_call(way: Exit, buffer: NDArray[Any], images: NDArray[Any]) -> tuple[Callable[..., int], tuple[Any, ...]]:
    """The kernel that reads the result of ``way`` from its ``buffer``, and its arguments after the number of images.

    It fills ``images``, an array [N, C, H, W] of the dtype of ``way``.
    """
    place = way.place
    where: Any = place.corner
    if place.strides is not None:
        by_channel, by_row, by_column = place.strides
        assert by_column == 1
        where = (by_channel, by_row)
    kernel: Any
    if way.scale is None:
        kernel = give_integers if place.strides is None else give_rows
        return kernel, (buffer, images, np.array([way.zero_point], np.int64), where)
    kernel = dequantize if place.strides is None else dequantize_rows
    return kernel, (buffer, images, np.array([way.scale]), place.zero, where)


def _lay(buffer: Buffer, memory: NDArray[np.uint8], capacity: int) -> NDArray[Any]:
    """``buffer`` for ``capacity`` images at the beginning of ``memory``, its border filled."""
    shape = (capacity, *buffer.shape) if buffer.is_per_image else buffer.shape
    size = int(np.prod(shape)) * np.dtype(buffer.dtype).itemsize
    array: NDArray[Any] = memory[:size].view(buffer.dtype).reshape(shape)
    if buffer.zero and any(buffer.border):
        array[...] = buffer.zero
    return array


def chunk_of(prepared: Prepared, keeps_all: bool = False) -> int:
    """How many images of ``prepared`` run together: its chunk, or fewer where an arena ``keeps_all`` and they are large."""
    if not keeps_all:
        return prepared.chunk
    each = sum(buffer.bytes for buffer in prepared.buffers if buffer.is_per_image)
    return max(1, min(prepared.chunk, _TRACED_BYTES // each))


def arena_for(prepared: Prepared, images: int, keeps_all: bool = False, threads: int = 1) -> Arena:
    """This thread's arena for ``images`` of ``prepared``: a small one for a single image, else that of a chunk.

    With ``keeps_all`` no two tensors share memory, so that every one can be read after a run. Its program can be run by
    up to ``threads`` threads.
    """
    arenas: WeakKeyDictionary[Prepared, dict[tuple[int, bool, int], Arena]] | None = getattr(
        _of_this_thread, "arenas", None
    )
    if arenas is None:
        arenas = _of_this_thread.arenas = WeakKeyDictionary()  # an arena goes with its network
    by_kind = arenas.setdefault(prepared, {})
    kind = (1 if images == 1 else chunk_of(prepared, keeps_all), keeps_all, threads)
    if kind not in by_kind:
        by_kind[kind] = Arena(prepared, *kind)
    return by_kind[kind]
