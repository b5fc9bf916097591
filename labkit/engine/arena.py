"""`Arena`: the memory in which one thread runs a prepared network, and its kernel calls bound to that memory.

Arenas are made on first use, one for each thread, network and number of images. From then on a run makes no buffers,
only the arrays that it returns.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from labkit.engine.plan import TABLES, Prepared
from labkit.kernels.fast.conv import BLOCK
from labkit.kernels.fast.packing import aligned_zeros
from labkit.kernels.jit import entry_point

__all__ = ["Arena", "arena_for"]

_of_this_thread = threading.local()


class Arena:
    """Buffers for ``capacity`` images and the calls that use them.

    buffers : one array [capacity, height, width, channels] for each of ``prepared.buffers``
    calls : (node, kernel, arguments after the number of images) in running order
    """

    def __init__(self, prepared: Prepared, capacity: int) -> None:
        shared = max((buffer.bytes for buffer in prepared.buffers if buffer.dtype is np.int32), default=0)
        sums = aligned_zeros((capacity * shared // 4,), np.int32)  # sums are read at once, so all layers share them
        self.buffers: list[NDArray[Any]] = []
        for buffer in prepared.buffers:
            shape = (capacity, *buffer.shape)
            if buffer.dtype is np.int32:
                self.buffers.append(sums[: int(np.prod(shape))].reshape(shape))
            else:
                self.buffers.append(aligned_zeros(shape, buffer.dtype))
        tables = aligned_zeros((2, BLOCK), np.int64)
        self.calls: list[tuple[str, Callable[..., int], tuple[Any, ...]]] = []
        for step in prepared.steps:
            kernel = step.kernel_for_one if capacity == 1 and step.kernel_for_one else step.kernel
            memory = tuple(tables if number == TABLES else self.buffers[number] for number in step.buffers)
            arguments = (*memory, *step.constants)
            self.calls.append((step.node, entry_point(kernel, (capacity, *arguments)), arguments))


def arena_for(prepared: Prepared, images: int) -> Arena:
    """This thread's arena for ``images`` of ``prepared``: a small one for a single image, else that of a chunk."""
    arenas: WeakKeyDictionary[Prepared, dict[int, Arena]] | None = getattr(_of_this_thread, "arenas", None)
    if arenas is None:
        arenas = _of_this_thread.arenas = WeakKeyDictionary()  # an arena goes with its network
    by_capacity = arenas.setdefault(prepared, {})
    capacity = 1 if images == 1 else prepared.chunk
    if capacity not in by_capacity:
        by_capacity[capacity] = Arena(prepared, capacity)
    return by_capacity[capacity]
