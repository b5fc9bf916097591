"""From AdaRound's variables to the logits of the engine, link by link, each computed a second time and compared.

The second computations share nothing with the library's: whole numbers in place of its float64, a reader of the file's
bytes of its own, and PyTorch on int64 and float64 in place of the engine.

    V, w, scale --whole numbers--> integers --two to a byte--> the file's bytes --unpacked--> PyTorch --> logits
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from labkit.arithmetic.affine import QTensor
from labkit.errors import InputError
from labkit.frontends.torch_fx import parameters_digest
from labkit.graph import int_ops
from labkit.graph.ir import FloatGraph, IntGraph
from labkit.net import IntegerNet
from labkit.net import load as load_net
from labkit.parity.compare import verify
from labkit.parity.restate_torch import run_graph
from labkit.quantization.convert import convert
from labkit.quantization.plan import BitPlan
from labkit.quantization.weight_rounding.options import RoundedWeights

__all__ = [
    "Link",
    "chain",
    "file_arrays",
    "flipped",
    "integers_from_variables",
    "net_of",
    "packed_bytes",
    "unpacked",
    "with_weights",
]

_HEAD = struct.Struct("<8sIQ32s")
_SHIFT = 31  # beyond it every quotient of mantissas rounds down to 0 or -1, or lies beyond any grid
_BATCH = 50

Integers = NDArray[np.int8]


@dataclass(frozen=True)
class Link:
    """A link of the chain: ``name``, how many ``elements`` were compared, and how many of them are ``differing``."""

    name: str
    elements: int
    differing: int


def integers_from_variables(
    variables: NDArray[np.float32], weight: NDArray[np.float32], tensor: QTensor
) -> NDArray[np.int8]:
    """The integers that AdaRound's variables stand for, in whole numbers only.

    ``floor(w / s)`` is a division of the mantissas; V >= 0 adds 1; both levels are clipped to the grid.

    Parameters
    ----------
    variables : float32 [O, K], V
    weight : float32 [O, ...], the original ones
    tensor : whose scales, zero points and grid of 2 to 8 bits are taken, and no integer

    Returns
    -------
    int8 [O, ...]
    """
    rows = weight.reshape(len(weight), -1)
    scale = np.broadcast_to(tensor.params.scale.reshape(-1), (len(rows),))[:, None]
    zero_point = np.broadcast_to(tensor.params.zero_point.reshape(-1), (len(rows),))[:, None].astype(np.int64)
    (w, w_exponent), (s, s_exponent) = (_mantissa(part) for part in (rows, scale))
    shift = np.clip(w_exponent - s_exponent, -_SHIFT, _SHIFT)
    below = (w << np.maximum(shift, 0)) // (s << np.maximum(-shift, 0))
    low, high = tensor.spec.qmin - zero_point, tensor.spec.qmax - zero_point
    down, up = np.clip(below, low, high), np.clip(below + 1, low, high)
    found: NDArray[np.int8] = (np.where(variables >= 0, up, down) + zero_point).astype(np.int8)
    return found.reshape(weight.shape)


def packed_bytes(integers: NDArray[np.int8]) -> bytes:
    """Integers -8..7 (int8, any shape) two to a byte, the first in the low half; an odd end is filled with 0."""
    flat = [int(value) & 15 for value in integers.reshape(-1)]
    if len(flat) % 2:
        flat.append(0)
    return bytes(low | high << 4 for low, high in zip(flat[::2], flat[1::2], strict=True))


def unpacked(data: bytes, shape: tuple[int, ...]) -> NDArray[np.int8]:
    """The int8 of ``shape`` that ``data`` holds two to a byte: what `packed_bytes` undoes."""
    halves = [half - 16 if half > 7 else half for byte in data for half in (byte & 15, byte >> 4)]
    return np.array(halves[: int(np.prod(shape))], np.int8).reshape(shape)


def file_arrays(data: bytes) -> dict[str, bytes]:
    """The arrays of a ``.lab`` file as raw bytes by name.

    ``data`` is the whole file: a head of 52 bytes with the length of the JSON header, that header, and safetensors: the length
    of its own header in 8 bytes, the header with each array's place, and the arrays.
    """
    body = data[_HEAD.size + _HEAD.unpack_from(data)[2] :]
    (length,) = struct.unpack_from("<Q", body)
    places = json.loads(body[8 : 8 + length])
    arrays = body[8 + length :]
    return {name: arrays[slice(*entry["data_offsets"])] for name, entry in places.items() if name != "__metadata__"}


def with_weights(graph: IntGraph, weights: Mapping[str, NDArray[np.int8]]) -> IntGraph:
    """``graph`` with the integers int8 [O, ...] of the layers that ``weights`` names in place of its own."""
    nodes = []
    for node in graph:
        if node.name in weights:
            assert isinstance(node.op, int_ops.Conv2d | int_ops.Linear)
            old = node.op.weight
            node = replace(node, op=replace(node.op, weight=QTensor(weights[node.name], old.params, old.spec)))
        nodes.append(node)
    return replace(graph, nodes=tuple(nodes))


def net_of(graph: FloatGraph, plan: BitPlan, rounded: RoundedWeights, module: torch.nn.Module) -> IntegerNet:
    """The integer network of ``graph`` under ``plan`` with ``rounded`` weights, and the notes by which ``module`` verifies it."""
    notes = {"rounding": rounded.method, "parameters_sha256": parameters_digest(module)}
    return IntegerNet(convert(graph, rounded.calibration, plan, notes, rounded.layers))


def chain(
    module: torch.nn.Module,
    graph: FloatGraph,
    plan: BitPlan,
    rounded: RoundedWeights,
    x: NDArray[np.float32],
    path: Path,
    verified: int = 100,
    variables: Mapping[str, NDArray[np.float32]] | None = None,
) -> tuple[Link, ...]:
    """Go the whole way from V to logits, and count at each link what is not equal.

    Parameters
    ----------
    module, graph : the float network, as it came and with batch norms folded
    plan : weights of 2 to 4 bits
    rounded : made with ``history``, by AdaRound
    x : float32 [N, ...], images
    path : where the file is written
    verified : of how many images every layer is compared too
    variables : V by layer in place of the kept ones, float32 [O, K], to plant a mistake

    Raises
    ------
    InputError
        The variables were not kept.
    """
    kept = {name: one.variables for name, one in rounded.history.items() if one.variables is not None}
    if set(kept) != set(rounded.weights):
        raise InputError("The variables of some layer were not kept: round by AdaRound with a history.")
    given = {**kept, **(variables or {})}
    weights = {name: graph[name].op.weight for name in rounded.weights}  # type: ignore[union-attr]
    integers = {
        name: integers_from_variables(given[name], weights[name], tensor) for name, tensor in rounded.weights.items()
    }
    links = [_compared("V, up or down, and the integers", integers, {n: t.values for n, t in rounded.weights.items()})]
    net = net_of(graph, plan, rounded, module)
    net.save(path)
    stored = file_arrays(path.read_bytes())
    in_file = {name: np.frombuffer(stored[f"{name}.op.weight.values"], np.uint8) for name in integers}
    packed = {name: np.frombuffer(packed_bytes(values), np.uint8) for name, values in integers.items()}
    links.append(_compared("integers, and the file's bytes, two to a byte", packed, in_file))
    again = load_net(path)
    loaded = {name: again.graph[name].op.weight.values for name in integers}  # type: ignore[union-attr]
    read = {name: unpacked(in_file[name].tobytes(), values.shape) for name, values in integers.items()}
    links.append(_compared("bytes, and the integers of the loaded network", read, loaded))
    report = verify(again, module, x[:verified])
    links.append(
        Link(
            f"all else of it, and every layer's output on {len(x[:verified])} images (labkit verify)",
            report.elements,
            report.differing,
        )
    )
    expected = _logits(with_weights(again.graph, integers), x)
    for purpose in ("speed", "memory"):
        got = again.run(x, purpose=purpose)
        links.append(_compared(f"logits, engine made for {purpose}", {"": expected}, {"": got}))
    return tuple(links)


def flipped(rounded: RoundedWeights, graph: FloatGraph, name: str) -> dict[str, NDArray[np.float32]]:
    """The kept V, float32 [O, K], of the layer ``name`` with the other decision for its first weight that has a choice.

    Parameters
    ----------
    rounded : made with ``history``, by AdaRound
    graph : the float network, whose weights say which have a choice
    name : of the layer

    Raises
    ------
    InputError
        The variables of the layer were not kept.
    """
    kept = rounded.history[name].variables if name in rounded.history else None
    if kept is None:
        raise InputError(f"The variables of {name} were not kept: round by AdaRound with a history.")
    weight, tensor = graph[name].op.weight, rounded.weights[name]  # type: ignore[union-attr]
    other = np.where(kept >= 0, np.float32(-1), np.float32(1))
    differs = integers_from_variables(kept, weight, tensor) != integers_from_variables(other, weight, tensor)
    at = int(np.argmax(differs))
    changed = kept.copy()
    changed.reshape(-1)[at] = other.reshape(-1)[at]
    return {name: changed}


def _mantissa(values: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Each float32 as a whole number of 24 bits times a power of two."""
    fraction, exponent = np.frexp(values.astype(np.float64))
    return (fraction * 2**24).astype(np.int64), exponent.astype(np.int64)


def _compared(name: str, one: Mapping[str, NDArray[np.generic]], other: Mapping[str, NDArray[np.generic]]) -> Link:
    """Element by element; where shapes differ all of them do."""
    elements = differing = 0
    for key, array in one.items():
        same_shape = array.shape == other[key].shape
        elements += array.size
        differing += int(np.sum(array != other[key])) if same_shape else array.size
    return Link(name, elements, differing)


def _logits(graph: IntGraph, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """The network's first output on ``x`` by PyTorch in int64 (sums in float64, where they are exact)."""
    parts = []
    for start in range(0, len(x), _BATCH):
        batch = {graph.inputs[0]: torch.from_numpy(x[start : start + _BATCH])}
        parts += [result.numpy() for name, result in run_graph(graph, batch) if name == graph.outputs[0]]
    return np.concatenate(parts)
