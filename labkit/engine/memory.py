"""Which buffers may lie in the same memory: a tensor's memory is free again after its last reader."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence

from labkit.engine.plan import Buffer, Step

__all__ = ["share_memory", "slot_bytes"]


def share_memory(
    buffers: Sequence[Buffer], steps: Sequence[Step], inputs: Iterable[int], outputs: Iterable[int]
) -> tuple[int, ...]:
    """The number of a slot of memory for each of ``buffers``; no two that share one are needed at the same time.

    A border is written by the one who makes the memory, so that a buffer with a border only shares with
    its like; where a border is filled in every run the buffer is given without one. Scratch only shares with scratch,
    because it does not grow with the number of images.

    Parameters
    ----------
    buffers, steps : of the plan
    inputs : buffers that are filled before the first step
    outputs : buffers that are read after the last one
    """
    first: dict[int, int] = dict.fromkeys(inputs, -1)
    last: dict[int, int] = {}
    for index, step in enumerate(steps):
        for number in step.buffers:
            first.setdefault(number, index)
            last[number] = index
    last |= dict.fromkeys(outputs, len(steps))
    slots = [-1] * len(buffers)
    sizes: list[int] = []
    free_from: list[int] = []  # by slot, the step after which it is free
    kinds: list[Hashable] = []
    for number in sorted(range(len(buffers)), key=lambda number: first.get(number, -1)):
        buffer, start = buffers[number], first.get(number, -1)
        free = [slot for slot in range(len(sizes)) if kinds[slot] == _kind(buffer) and free_from[slot] < start]
        if free:  # the smallest that is large enough, else the largest
            slot = min(free, key=lambda slot: (sizes[slot] < buffer.bytes, abs(sizes[slot] - buffer.bytes)))
            sizes[slot] = max(sizes[slot], buffer.bytes)
        else:
            slot = len(sizes)
            sizes.append(buffer.bytes)
            free_from.append(-1)
            kinds.append(_kind(buffer))
        slots[number] = slot
        free_from[slot] = last.get(number, start)
    return tuple(slots)


def slot_bytes(buffers: Sequence[Buffer], slots: Sequence[int], images: int) -> list[int]:
    """Bytes of each slot of ``buffers``, by their numbers in ``slots``, where ``images`` run together."""
    sizes = [0] * (1 + max(slots, default=-1))
    for buffer, slot in zip(buffers, slots, strict=True):
        sizes[slot] = max(sizes[slot], buffer.bytes * (images if buffer.is_per_image else 1))
    return sizes


def _kind(buffer: Buffer) -> Hashable:
    return (buffer.shape, buffer.border, buffer.dtype, buffer.zero) if any(buffer.border) else buffer.is_per_image
