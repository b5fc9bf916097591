"""`Arena`: the memory in which one thread runs a prepared network, and its kernel calls bound to that memory.

Arenas are made on first use, one for each thread, network and number of images. From then on a run makes no buffers,
only the arrays that it returns. A trace has an arena of its own, in which every tensor is kept.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from labkit.engine.memory import slot_bytes
from labkit.engine.plan import TABLES, Prepared
from labkit.kernels.fast.conv import BLOCK
from labkit.kernels.fast.packing import aligned_zeros
from labkit.kernels.jit import entry_point

__all__ = ["Arena", "arena_for"]

_of_this_thread = threading.local()


class Arena:
    """Buffers for ``capacity`` images and the calls that use them.

    buffers : one array [capacity, height, width, channels] for each of ``prepared.buffers``, scratch as it is
    bytes : of all memory
    calls : (node, kernel, part and parts, arguments after the number of images) in running order
    """

    def __init__(self, prepared: Prepared, capacity: int, keeps_all: bool) -> None:
        slots = range(len(prepared.buffers)) if keeps_all else prepared.slots
        sizes = slot_bytes(prepared.buffers, slots, capacity)
        memory = [aligned_zeros((size,), np.uint8) for size in sizes]
        self.buffers: list[NDArray[Any]] = []
        for buffer, slot in zip(prepared.buffers, slots, strict=True):
            shape = (capacity, *buffer.shape) if buffer.is_per_image else buffer.shape
            size = int(np.prod(shape)) * np.dtype(buffer.dtype).itemsize
            self.buffers.append(memory[slot][:size].view(buffer.dtype).reshape(shape))
            if buffer.zero and any(buffer.border):
                self.buffers[-1][...] = buffer.zero
        self.bytes = sum(sizes)
        tables = aligned_zeros((2, BLOCK), np.int64)
        self.calls: list[tuple[str, Callable[..., int], tuple[int, ...], tuple[Any, ...]]] = []
        for step in prepared.steps:
            kernel = step.kernel_for_one if capacity == 1 and step.kernel_for_one else step.kernel
            given = tuple(tables if number == TABLES else self.buffers[number] for number in step.buffers)
            arguments = (*given, *step.constants)
            whole = (0, 1) if "parts" in inspect.signature(kernel.py_func).parameters else ()  # type: ignore[attr-defined]
            self.calls.append((step.node, entry_point(kernel, (*whole, capacity, *arguments)), whole, arguments))


def arena_for(prepared: Prepared, images: int, keeps_all: bool = False) -> Arena:
    """This thread's arena for ``images`` of ``prepared``: a small one for a single image, else that of a chunk.

    With ``keeps_all`` no two tensors share memory, so that every one can be read after a run.
    """
    arenas: WeakKeyDictionary[Prepared, dict[tuple[int, bool], Arena]] | None = getattr(_of_this_thread, "arenas", None)
    if arenas is None:
        arenas = _of_this_thread.arenas = WeakKeyDictionary()  # an arena goes with its network
    by_kind = arenas.setdefault(prepared, {})
    kind = (1 if images == 1 else prepared.chunk, keeps_all)
    if kind not in by_kind:
        by_kind[kind] = Arena(prepared, *kind)
    return by_kind[kind]
