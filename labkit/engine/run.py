"""Run a prepared network: quantize where real numbers are given, integers only, dequantize where they are wanted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from labkit.arithmetic import affine
from labkit.engine.arena import Arena, arena_for, chunk_of
from labkit.engine.node_by_node import enter_node
from labkit.engine.plan import Entry, Exit, Prepared
from labkit.engine.team import team_of
from labkit.errors import BoundError
from labkit.graph import int_ops
from labkit.kernels.kernel_set import REFERENCE
from labkit.kernels.program import walk

__all__ = ["run", "trace"]

Array = NDArray[Any]


def run(prepared: Prepared, inputs: Mapping[str, Array], threads: int = 1) -> dict[str, Array]:
    """The outputs of ``prepared.graph`` for any number of images.

    Parameters
    ----------
    prepared : from `labkit.engine.prepare`
    inputs : [N, ...], C-contiguous, by the name of each input node, all with the same N: integers in the tensor's dtype for
        an Input node, else float32
    threads : how many work on it, 1 or more; the integers are the same

    Returns
    -------
    by the name of each output: float32 [N, ...] of a Dequantize node, else integers in the tensor's own dtype

    Raises
    ------
    QuantizationError
        An input holds a NaN.
    BoundError
        These images drive a GEMMLOWP rule out of 32 bits.
    """
    exits = [prepared.exits[name] for name in prepared.graph.outputs]
    return _run(prepared, inputs, exits, keeps_all=False, threads=threads)


def trace(prepared: Prepared, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """The result of every node of ``prepared`` by name, [N, ...] in PyTorch's layout; ``inputs`` and errors as `run`.

    Integers are in each tensor's own dtype, zero point included; a Dequantize node gives float32. The name of a node
    that was fused into another (its ``carries``) gives the array of the node that computes it.
    """
    results = _run(prepared, inputs, list(prepared.exits.values()), keeps_all=True)
    return {name: results[carrier] for name, carrier in prepared.graph.carriers().items()}


def _run(
    prepared: Prepared, inputs: Mapping[str, Array], exits: Sequence[Exit], *, keeps_all: bool, threads: int = 1
) -> dict[str, Array]:
    inputs = {entry.node.name: _entering(entry, inputs[entry.node.name]) for entry in prepared.entries}
    images = next(iter(inputs.values())).shape[0]
    results = {way.node.name: np.empty((images, *way.node.output.shape), way.dtype) for way in exits}
    chunk = chunk_of(prepared, keeps_all)
    for first in range(0, images, chunk):
        count = min(chunk, images - first)
        arena = arena_for(prepared, count, keeps_all, threads)
        blocks = arena.program.blocks
        for port in arena.ports_in:
            blocks[:, port.word] = _address(inputs[port.name]) + first * port.image_bytes
        for port in arena.ports_out:
            blocks[:, port.word] = _address(results[port.name]) + first * port.image_bytes
        broken = walk(arena.program, count) if threads == 1 else team_of(threads).run(arena.program, count)
        if broken >= 0:
            _refuse(prepared, inputs, arena.program.names[broken])
        if keeps_all:
            for way in exits:
                _leave(arena, way, results[way.node.name][first : first + count])
    return results


def _entering(entry: Entry, given: Array) -> Array:
    """``given`` as the kernel of ``entry`` takes it: borders that only other runtimes have are crossed by the readable tier."""
    crosses = not isinstance(entry.node.op, int_ops.Quantize | int_ops.Input)
    return np.ascontiguousarray(enter_node(entry.node, given, REFERENCE)) if crosses else given


def _address(array: Array) -> int:
    return array.__array_interface__["data"][0]  # type: ignore[no-any-return]


def _refuse(prepared: Prepared, inputs: Mapping[str, Array], name: str) -> NoReturn:
    """Raise what is wrong with ``inputs`` where the call of the node ``name`` broke a bound."""
    _refuse_indices(prepared, inputs, name)
    if name in inputs:
        spec, params = prepared.graph[name].output.quantized
        affine.quantize(inputs[name], params, spec)  # raises, and says how many NaN there are and where
    if isinstance(prepared.graph[name].op, int_ops.GeluPolynomial):
        raise BoundError(
            f"{name}: for these inputs a product of i-GELU does not fit int32. Its constants belong to no scale: convert it anew."
        )
    raise BoundError(
        f"{name}: its rounding rule shifts the accumulator left before multiplying, and for these images the result does "
        f"not fit int32. Use the rule SINGLE for multipliers above 1."
    )


def _refuse_indices(prepared: Prepared, inputs: Mapping[str, Array], name: str) -> None:
    """Raise where the node ``name`` is an Embedding and ``inputs`` hold indices that its table lacks."""
    node = prepared.graph[name]
    if not isinstance(node.op, int_ops.Embedding):
        return
    rows, source = len(node.op.weight.values), node.inputs[0]
    indices = inputs.get(source)
    if indices is None:
        raise BoundError(f"{name}: indices must be in 0..{rows - 1}, and {source!r} puts out others.")
    if indices.min() < 0 or indices.max() >= rows:
        raise BoundError(
            f"{name}: indices must be in 0..{rows - 1}, got {indices.min()}..{indices.max()} in the input {source!r}."
        )


def _leave(arena: Arena, way: Exit, result: Array) -> None:
    """Fill ``result`` [images, ...] from the buffer of its node."""
    channels, height, width = way.place.image
    buffer, (top, left) = way.place.view(arena.buffers[way.place.buffer])
    stored = buffer[: result.shape[0], top : top + height, left : left + width, :channels].transpose(0, 3, 1, 2)
    image = result.reshape(-1, channels, height, width)
    if way.scale is not None:
        image[...] = (stored.astype(np.int32) - way.place.zero).astype(np.float32) * way.scale
        return
    image[...] = stored  # modulo 256, and so is the sum, which fits: no wider copy is made
    image += way.zero_point.astype(image.dtype)
