"""Small encoders as float graphs made by hand, of drawn sizes, with what calibrates and feeds them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labkit.graph import float_ops
from labkit.graph.float_ops import FloatOp, InputKind
from labkit.graph.ir import FloatGraph, FloatNode
from labkit.graph.shapes import symmetric_padding

NO_PADDING = symmetric_padding(0, 0)


@dataclass(frozen=True)
class Sizes:
    """Of an encoder: rows of its table, features, heads, features between the layers' two products, layers, tokens."""

    vocabulary: int = 20
    width: int = 16
    heads: int = 2
    inner: int = 24
    layers: int = 1
    length: int = 7
    has_mask: bool = True


def drawn_sizes(seed: int) -> Sizes:
    """Sizes by ``seed``, of which some have one head, one token, or no mask."""
    rng = np.random.default_rng(seed)
    heads, features = int(rng.integers(1, 4)), int(rng.integers(1, 9))
    return Sizes(
        vocabulary=int(rng.integers(1, 40)),
        width=heads * features * int(rng.integers(1, 3)),
        heads=heads,
        inner=int(rng.integers(1, 40)),
        layers=int(rng.integers(1, 3)),
        length=int(rng.integers(1, 20)),
        has_mask=bool(rng.random() < 0.7),
    )


def linear(rng: np.random.Generator, inputs: int, outputs: int) -> float_ops.Conv2d:
    """A linear layer on each token."""
    weight = rng.normal(0, inputs**-0.5, (outputs, inputs, 1, 1)).astype(np.float32)
    bias = rng.normal(0, 0.3, outputs).astype(np.float32) if rng.random() < 0.8 else None
    return float_ops.Conv2d(weight, bias, (1, 1), NO_PADDING, (1, 1), 1)


def layer_norm(rng: np.random.Generator, width: int) -> float_ops.LayerNorm:
    """A layer norm whose gammas have either sign, and one of which may vanish."""
    gamma = rng.normal(0.8, 0.5, width).astype(np.float32)
    if rng.random() < 0.3:
        gamma[0] = 0.0
    return float_ops.LayerNorm(gamma, rng.normal(0, 0.4, width).astype(np.float32), 1e-12)


def encoder(sizes: Sizes, seed: int = 0) -> FloatGraph:
    """BERT's encoder of these ``sizes`` as a simplified float graph, with weights by ``seed``; its output is (T, D)."""
    rng = np.random.default_rng(seed)
    nodes: list[FloatNode] = []

    def add(name: str, op: FloatOp, *inputs: str) -> str:
        nodes.append(FloatNode(name, op, inputs))
        return name

    width, length = sizes.width, sizes.length
    table = rng.normal(0, 1, (sizes.vocabulary, width)).astype(np.float32)
    if sizes.vocabulary > 3:
        table[2] = 0.0  # of a token that was never trained
    ids = add("ids", float_ops.Input((length,), InputKind.INDEX))
    mask = (add("mask", float_ops.Input((length,), InputKind.MASK)),) if sizes.has_mask else ()
    x = add("words", float_ops.Embedding(table), ids)
    positions = add("positions", float_ops.Constant(rng.normal(0, 0.5, (width, length)).astype(np.float32)))
    x = add("embedded", float_ops.Add(), x, positions)
    x = add("norm", layer_norm(rng, width), x)
    softmax = float_ops.MaskedSoftmax() if sizes.has_mask else float_ops.Softmax(2)
    apart = (sizes.heads, width // sizes.heads, length)
    for layer in range(sizes.layers):
        short = add(f"{layer}.short", float_ops.Rescale(), x)
        parts = []
        for part in ("query", "key", "value"):
            projected = add(f"{layer}.{part}", linear(rng, width, width), short)
            parts.append(add(f"{layer}.{part}_heads", float_ops.Reshape(apart), projected))
        factor = (width // sizes.heads) ** -0.5
        scores = add(f"{layer}.scores", float_ops.MatMul(transpose_a=True, factor=factor), parts[0], parts[1])
        shares = add(f"{layer}.shares", softmax, scores, *mask)
        context = add(f"{layer}.context", float_ops.MatMul(transpose_b=True), parts[2], shares)
        joined = add(f"{layer}.joined", float_ops.Reshape((width, length)), context)
        dense = add(f"{layer}.dense", linear(rng, width, width), joined)
        x = add(f"{layer}.sum", float_ops.Add(), dense, x)
        x = add(f"{layer}.norm", layer_norm(rng, width), x)
        short = add(f"{layer}.short_again", float_ops.Rescale(), x)
        inner = add(f"{layer}.inner", linear(rng, width, sizes.inner), short)
        inner = add(f"{layer}.gelu", float_ops.Gelu(), inner)
        dense = add(f"{layer}.outer", linear(rng, sizes.inner, width), inner)
        x = add(f"{layer}.last_sum", float_ops.Add(), dense, x)
        x = add(f"{layer}.last_norm", layer_norm(rng, width), x)
    tokens_first = add("tokens_first", float_ops.Transpose((1, 0)), x)
    return FloatGraph(tuple(nodes), (tokens_first,))


def sentences(sizes: Sizes, count: int, seed: int = 0) -> dict[str, NDArray[Any]]:
    """``count`` rows of indices, and masks that end anywhere, or of drawn places, by input name."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, sizes.vocabulary, (count, sizes.length)).astype(np.int32)
    if not sizes.has_mask:
        return {"ids": ids}
    lengths = rng.integers(1, sizes.length + 1, (count, 1))
    mask = np.arange(sizes.length) < lengths
    if count > 2:
        mask[1] = rng.random(sizes.length) < 0.5  # maybe nothing at all
        mask[2] = True
    return {"ids": ids, "mask": mask.astype(np.uint8)}


def whole_sentences(sizes: Sizes, count: int, seed: int = 0) -> dict[str, NDArray[Any]]:
    """``count`` sentences of which nothing is masked, as calibration wants them, by input name."""
    found = sentences(sizes, count, seed)
    return {name: np.ones_like(array) if name == "mask" else array for name, array in found.items()}
