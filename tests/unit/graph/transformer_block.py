"""A transformer's encoder layer as an integer net made by hand, with random weights: every operation on sequences, once."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labkit.arithmetic.affine import PerAxis, QParams, QTensor, QuantSpec, params_from_values, quantize_tensor
from labkit.graph import float_ops, int_ops
from labkit.graph.ir import IntGraph, IntNode, Tensor
from labkit.quantization import convert_sequences
from labkit.runtimes.labkit_rules import add, requantizer, scale_of

BYTE, WIDE = QuantSpec(8, signed=False, symmetric=False), QuantSpec(16, narrow=True)
SHARES = 2.0**-8
VOCABULARY = 30
_NONE, _ONES = ((0, 0), (0, 0)), (1, 1)


def tensor(shape: tuple[int, ...], scale: float, zero_point: int = 0, spec: QuantSpec = WIDE) -> Tensor:
    return Tensor(shape, spec, QParams(np.array(scale, np.float32), np.array(zero_point, np.int32)))


def layer_norm(gamma: Any, beta: Any, output: Tensor) -> int_ops.LayerNorm:
    op = float_ops.LayerNorm(np.asarray(gamma, np.float32), np.asarray(beta, np.float32), 1e-12)
    return convert_sequences.layer_norm(op, output, output)


def block(seed: int = 0, tokens: int = 5, heads: int = 3, depth: int = 4, masked: bool = True) -> IntGraph:
    """One layer of ``heads`` heads with ``depth`` features each, for ``tokens`` tokens; inputs "ids" and "mask"."""
    rng, width = np.random.default_rng(seed), heads * depth
    nodes: list[IntNode] = []

    def put(name: str, op: Any, inputs: tuple[str, ...], output: Tensor) -> str:
        nodes.append(IntNode(name, op, inputs, output))
        return name

    def of(name: str) -> Tensor:
        return next(node.output for node in nodes if node.name == name)

    def weights(shape: tuple[int, ...]) -> QTensor:
        real = rng.normal(size=shape).astype(np.float32) / math.sqrt(shape[1])
        spec = QuantSpec(8, narrow=True, granularity=PerAxis(0))
        return quantize_tensor(real, params_from_values(real, spec), spec)

    def conv(name: str, source: str, output: Tensor) -> str:
        weight = weights((output.shape[0], of(source).shape[0], 1, 1))
        scales = weight.params.scale.astype(np.float64) * scale_of(of(source))
        bias = np.rint(rng.normal(0, 0.3, output.shape[0]) / scales).astype(np.int32)
        by = requantizer(scales / scale_of(output), output)
        return put(name, int_ops.Conv2d(weight, bias, by, _ONES, _NONE, _ONES, 1), (source,), output)

    def norm(name: str, source: str) -> str:
        output = tensor((width, tokens), 6 / 32767)
        made = layer_norm(rng.normal(1, 0.4, width), rng.normal(0, 0.3, width), output)
        return put(name, made, (source,), output)

    def narrow(name: str, source: str) -> str:
        output = tensor(of(source).shape, 0.04, 128, BYTE)
        by = requantizer(scale_of(of(source)) / scale_of(output), output)
        return put(name, int_ops.Requantize(by), (source,), output)

    def plus(name: str, a: str, b: str) -> str:
        output = tensor((width, tokens), 12 / 32767)
        return put(name, add((of(a), of(b)), output), (a, b), output)

    put("ids", int_ops.Input((tokens,)), (), Tensor((tokens,), None, None, is_index=True))
    if masked:
        put("mask", int_ops.Input((tokens,)), (), tensor((tokens,), 1.0, 0, BYTE))
    table = weights((VOCABULARY, width))
    embedded = tensor((width, tokens), 4 / 32767)
    put("embedding", convert_sequences.embedding(table, embedded), ("ids",), embedded)
    start = norm("norm", "embedding")
    x = narrow("narrow", start)
    split = (heads, depth, tokens)
    for name in ("query", "key", "value"):
        conv(f"{name}s", x, tensor((width, tokens), 0.03, 120, BYTE))
        put(name, int_ops.Reshape(split), (f"{name}s",), tensor(split, 0.03, 120, BYTE))
    scores = tensor((heads, tokens, tokens), 8 / 32767)
    product = convert_sequences.matmul(
        float_ops.MatMul(True, False, 1 / math.sqrt(depth)), (of("query"), of("key")), scores
    )
    put("scores", product, ("query", "key"), scores)
    shares = tensor(scores.shape, SHARES, 0, BYTE)
    put("shares", convert_sequences.masked_softmax(scores, shares), ("scores", "mask")[: 1 + masked], shares)
    context = tensor(split, 0.03, 120, BYTE)
    product = convert_sequences.matmul(float_ops.MatMul(False, True, 1.0), (of("value"), shares), context)
    put("context", product, ("value", "shares"), context)
    put("joined", int_ops.Reshape((width, tokens)), ("context",), tensor((width, tokens), 0.03, 120, BYTE))
    conv("attention", "joined", tensor((width, tokens), 4 / 32767))
    middle = norm("middle", plus("first sum", "attention", start))
    up = conv("up", narrow("narrow again", middle), tensor((2 * width, tokens), 8.2 / 32767))
    active = tensor((2 * width, tokens), 0.02, 9, BYTE)
    put("gelu", convert_sequences.gelu(of(up), active), (up,), active)
    conv("down", "gelu", tensor((width, tokens), 4 / 32767))
    norm("last", plus("second sum", "down", middle))
    put("output", int_ops.Dequantize(), ("last",), Tensor((width, tokens), None, None))
    return IntGraph(tuple(nodes), ("output",))


def with_positions(graph: IntGraph, seed: int = 1) -> IntGraph:
    """``graph``, a `block`, with a constant of 16 bits that is added to the embedding, as a second output."""
    output = graph["embedding"].output
    values = np.random.default_rng(seed).integers(-32767, 32768, output.shape).astype(np.int16)
    nodes = (
        *graph.nodes,
        IntNode("positions", int_ops.Constant(values), (), output),
        IntNode("placed", add((output, output), output), ("embedding", "positions"), output),
    )
    return IntGraph(nodes, (*graph.outputs, "placed"), graph.notes)


def sentences(graph: IntGraph, count: int, seed: int = 0) -> dict[str, NDArray[Any]]:
    """``count`` random sentences for a ``graph`` of `block`: ids int32 and masks uint8 by name; the first token takes part."""
    rng = np.random.default_rng(seed)
    tokens = graph["ids"].output.shape[0]
    found: dict[str, NDArray[Any]] = {"ids": rng.integers(0, VOCABULARY, (count, tokens)).astype(np.int32)}
    if "mask" in graph.inputs:
        found["mask"] = (np.arange(tokens) < rng.integers(1, tokens + 1, (count, 1))).astype(np.uint8)
    return found
