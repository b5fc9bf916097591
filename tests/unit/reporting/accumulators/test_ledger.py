"""The ledger of bit widths: bounds that hold, that are attained, and kernels that are exact where they are."""

from __future__ import annotations

from collections.abc import Iterator
from math import isqrt
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from unit.engine.graphs import Builder
from unit.graph.transformer_block import BYTE, WIDE, block, layer_norm, sentences, tensor

from labkit.arithmetic.affine import QuantSpec
from labkit.graph import float_ops, int_ops
from labkit.graph.ir import IntGraph, IntNode, Tensor
from labkit.net import IntegerNet
from labkit.quantization import convert_sequences
from labkit.reporting.accumulators.analyse import analyse
from labkit.reporting.accumulators.results import Step
from labkit.reporting.accumulators.steps import EQUATIONS

FEATURES, TOKENS = 8, 6
TOP = WIDE.qmax
Values = dict[str, list[int]]


def by_step(steps: tuple[Step, ...], name: str) -> dict[str, Step]:
    return {step.step: step for step in steps if step.name == name}


def alone(op: Any, output: Tensor, *inputs: Tensor) -> IntGraph:
    nodes = [IntNode(f"x{i}", int_ops.Input(t.shape), (), t) for i, t in enumerate(inputs)]
    return IntGraph((*nodes, IntNode("y", op, tuple(node.name for node in nodes), output)), ("y",))


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_nothing_that_is_seen_passes_its_bound(seed: int, masked: bool) -> None:
    graph = block(seed, tokens=3 + seed, heads=1 + seed % 3, masked=masked)
    found = analyse(IntegerNet(graph), sentences(graph, 30, seed))
    assert {step.operation for step in found.ledger} > set(EQUATIONS)
    for step in found.ledger:
        assert step.observed is not None, step
        assert step.worst.low <= step.observed.low <= step.observed.high <= step.worst.high, step


@pytest.mark.parametrize("seed", range(12))
def test_layers_and_sums_have_ledgers_too(seed: int) -> None:
    b = Builder(seed, extreme=seed % 2 == 0)
    x = b.quantize((3, 5, 5), BYTE)
    first = b.conv(x, 4, (3, 3), padding=((1, 1), (1, 1)))
    graph = b.graph(b.linear(b.flatten(b.add(first, b.conv(first, 4, (1, 1)))), 7))
    rng = np.random.default_rng(seed)
    found = analyse(IntegerNet(graph), rng.normal(0, 5, (20, 3, 5, 5)).astype(np.float32))
    sums = {layer.name: layer for layer in found.layers}
    for step in found.ledger:
        assert step.observed is not None
        assert step.worst.low <= step.observed.low <= step.observed.high <= step.worst.high, step
        if step.step == "sum" and step.operation != "Add":
            assert (step.worst, step.observed) == (sums[step.name].worst, sums[step.name].observed)


# What attains the bounds, and the equations in Python's own integers, which know no width


def norm_case() -> tuple[IntGraph, NDArray[np.int16], int_ops.LayerNorm]:
    """gamma of both signs; columns with all features at an end, half of them, one of them, and one a step above the rest."""
    output = tensor((FEATURES, TOKENS), 6 / 32767)
    op = layer_norm(np.linspace(-1.5, 2, FEATURES), np.linspace(-1, 1, FEATURES), output)
    half, one = np.arange(FEATURES) % 2, np.arange(FEATURES)[:, None] == np.arange(FEATURES)
    columns = [np.full(FEATURES, TOP), np.full(FEATURES, -TOP), np.where(half, TOP, -TOP), np.where(half, -TOP, TOP)]
    columns += [np.where(row, a, b) for row in one for a, b in ((TOP, -TOP), (-TOP, TOP), (1, 0), (-1, 0), (7, 7))]
    filled = np.zeros((-(-len(columns) // TOKENS) * TOKENS, FEATURES), np.int16)
    filled[: len(columns)] = columns
    x = filled.reshape(-1, TOKENS, FEATURES).transpose(0, 2, 1).copy()
    return alone(op, output, tensor((FEATURES, TOKENS), 0.001)), x, op


def norm_in_integers(op: int_ops.LayerNorm, column: list[int], seen: Values) -> Iterator[int]:
    """Eqs. 49 and 50."""
    total, count = sum(column), len(column)
    mean = total // count
    rest = total - mean * count
    mean += 2 * rest > count or (2 * rest == count and mean % 2 == 1)
    y = [q - mean for q in column]
    squares = sum(v * v for v in y)
    deviation = isqrt(squares)
    reciprocal = 2**31 // max(deviation, 1)
    note(seen, "sum of features", total)
    note(seen, "difference to the mean", *y)
    note(seen, "its square", *(v * v for v in y))
    note(seen, "sum of squares", squares)
    note(seen, "deviation", deviation)
    note(seen, "dividend", 2**31)
    note(seen, "reciprocal", reciprocal)
    for v, m, b in zip(y, op.multipliers.tolist(), op.addends.tolist(), strict=True):
        normalised = v * reciprocal // 2
        gained = normalised * m + b + 2 ** (op.shift - 1)
        note(seen, "times the reciprocal", v * reciprocal)
        note(seen, "normalised", normalised)
        note(seen, "times gamma, and beta", gained)
        yield min(max(gained // 2**op.shift, op.clamp[0]), op.clamp[1])


def softmax_case() -> tuple[IntGraph, dict[str, NDArray[Any]], int_ops.SoftmaxPolynomial]:
    """Rows of equal scores, of both ends, of one score, of none, and every distance of thirty halvings."""
    scores, shares = tensor((1, TOKENS, TOKENS), 8 / 32767), tensor((1, TOKENS, TOKENS), 2.0**-8, 0, BYTE)
    op = convert_sequences.masked_softmax(scores, shares)
    ends = np.full((TOKENS, TOKENS), -TOP)
    ends[:, 0] = TOP
    near = [min(max(TOP + step * op.ln2 + nudge, -TOP), TOP) for step in range(32) for nudge in (-1, 0, 1)]
    steps = np.array(near[: len(near) // TOKENS * TOKENS]).reshape(-1, TOKENS)
    steps[:, 0] = TOP
    rows = [
        np.full((TOKENS, TOKENS), TOP),
        ends,
        ends,
        ends,
        *steps[: len(steps) // TOKENS * TOKENS].reshape(-1, TOKENS, TOKENS),
    ]
    x = np.array(rows, np.int16)[:, None]
    mask = np.ones((len(x), TOKENS), np.uint8)
    mask[2, 1:], mask[3] = 0, 0
    graph = alone(op, shares, scores, tensor((TOKENS,), 1.0, 0, BYTE))
    return graph, {"x0": x, "x1": mask}, op


def softmax_in_integers(op: int_ops.SoftmaxPolynomial, row: list[int], mask: list[int], seen: Values) -> Iterator[int]:
    """Eqs. 46 and 47."""
    largest = max((q for q, m in zip(row, mask, strict=True) if m), default=0)
    shift, mantissa = 31 - int(op.multiplier.exponent), int(op.multiplier.mantissa)
    exponentials = []
    for q, m in zip(row, mask, strict=True):
        if not m:
            exponentials.append(0)
            continue
        x = max(q - largest, 30 * op.ln2)
        z = x // op.ln2
        r = x - z * op.ln2
        product = (r + op.b) * r
        polynomial = max(product + op.c, 0)
        before = polynomial * mantissa + 2 ** (min(shift + z, 62) - 1)
        exponentials.append(before // 2 ** (shift + z) if shift + z <= 62 else 0)
        note(seen, "difference to the largest", q - largest)
        note(seen, "product of the polynomial", product)
        note(seen, "polynomial", polynomial)
        note(seen, "times the multiplier", before)
    total = sum(exponentials)
    reciprocal = 2**32 // max(total, 1)
    note(seen, "exponential", *exponentials)
    note(seen, "sum of exponentials", total)
    note(seen, "dividend", 2**32)
    note(seen, "reciprocal of the sum", reciprocal)
    for e in exponentials:
        share = e * reciprocal + 2 ** (31 - op.bits)
        note(seen, "times the reciprocal", share)
        yield min(share // 2 ** (32 - op.bits), 2**op.bits - 1)


def gelu_case() -> tuple[IntGraph, NDArray[np.int16], int_ops.GeluPolynomial]:
    """Every integer of 16 bits."""
    source = tensor((1, 2 * TOP + 1), 8.2 / 32767)
    output = tensor(source.shape, 0.03, 20, BYTE)
    op = convert_sequences.gelu(source, output)
    return alone(op, output, source), np.arange(-TOP, TOP + 1).astype(np.int16)[None, None], op


def gelu_in_integers(op: int_ops.GeluPolynomial, q: int, seen: Values) -> int:
    """Eq. 48, and eq. 13 behind it."""
    by = op.requantizer
    near = min(abs(q), -op.b) + op.b
    polynomial = ((q > 0) - (q < 0)) * (near * near + op.c)
    erf = polynomial // 2**14 + op.one
    shift = 31 - int(by.multiplier.exponent)
    product = -q * erf * int(by.multiplier.mantissa) + 2 ** (shift - 1)
    note(seen, "square", near * near)
    note(seen, "square and constant", polynomial)
    note(seen, "error function and 1", erf)
    note(seen, "times the input", -q * erf)
    note(seen, "times the multiplier", product)
    return min(max(product // 2**shift + by.zero_point, by.clamp[0]), by.clamp[1])


def note(seen: Values, step: str, *values: int) -> None:
    low, high = seen.setdefault(step, [values[0], values[0]])
    seen[step] = [min(low, *values), max(high, *values)]


def agree(graph: IntGraph, inputs: Any, wanted: NDArray[Any], seen: Values) -> dict[str, Step]:
    """Both tiers give the ``wanted`` integers, and the ledger has seen what the equations have: its steps."""
    net = IntegerNet(graph)
    for kernels in ("reference", "numba"):
        np.testing.assert_array_equal(net.run(inputs, kernels=kernels), wanted, err_msg=kernels)
    steps = by_step(analyse(net, inputs).ledger, "y")
    assert list(seen.keys() - steps.keys()) == []
    for name, (low, high) in seen.items():
        observed = steps[name].observed
        assert observed is not None
        assert (observed.low, observed.high) == (low, high), name
    return steps


def check_attained(steps: dict[str, Step]) -> None:
    for step in steps.values():
        assert step.observed is not None
        assert step.worst.low <= step.observed.low <= step.observed.high <= step.worst.high, step
        assert step.observed.bits >= step.worst.bits - 1, step
        assert (step.observed.bits > 32) == (step.register == "int64"), step  # int32 would wrap on these inputs


def test_layer_norm_in_integers_of_any_width() -> None:
    graph, x, op = norm_case()
    seen: Values = {}
    wanted = np.empty(x.shape, np.int64)
    for image, token in np.ndindex(len(x), TOKENS):
        wanted[image, :, token] = list(norm_in_integers(op, x[image, :, token].tolist(), seen))
    steps = agree(graph, x, wanted, seen)
    check_attained(steps)
    wide = {name for name, step in steps.items() if step.register == "int64"}
    known = {"its square", "sum of squares", "dividend", "reciprocal", "times the reciprocal", "times gamma, and beta"}
    assert wide == known


def test_softmax_in_integers_of_any_width() -> None:
    graph, inputs, op = softmax_case()
    seen: Values = {}
    wanted = np.empty(inputs["x0"].shape, np.int64)
    for image, row in np.ndindex(len(wanted), TOKENS):
        found = softmax_in_integers(op, inputs["x0"][image, 0, row].tolist(), inputs["x1"][image].tolist(), seen)
        wanted[image, 0, row] = list(found)
    seen["difference to the largest"][1] = 0
    steps = agree(graph, inputs, wanted, seen)
    check_attained(steps)
    wide = {name for name, step in steps.items() if step.register == "int64"}
    assert wide == {"times the multiplier", "dividend", "reciprocal of the sum", "times the reciprocal"}


def test_gelu_in_integers_of_any_width() -> None:
    graph, x, op = gelu_case()
    seen: Values = {}
    wanted = np.array([gelu_in_integers(op, q, seen) for q in x.reshape(-1).tolist()]).reshape(x.shape)
    steps = agree(graph, x, wanted, seen)
    check_attained(steps)
    for name, (low, high) in seen.items():
        assert (steps[name].worst.low, steps[name].worst.high) == (low, high)


@pytest.mark.parametrize("specs", [(BYTE, BYTE), (QuantSpec(8, narrow=True), BYTE)], ids=["bytes", "signed"])
def test_products_of_two_tensors_attain_their_bounds(specs: tuple[QuantSpec, QuantSpec]) -> None:
    grids = [
        tensor(s, 0.05, 0 if spec.symmetric else 77, spec)
        for s, spec in zip(((2, 3, 40), (2, 40, 3)), specs, strict=True)
    ]
    output = tensor((2, 3, 3), 0.002 * 40)
    op = convert_sequences.matmul(float_ops.MatMul(), grids, output)
    graph = alone(op, output, *grids)
    ends = [(spec.qmin, spec.qmax) for spec in specs]
    pairs = [(a, b) for a in ends[0] for b in ends[1]]
    inputs = {
        f"x{i}": np.array([np.full(grid.shape, pair[i]) for pair in pairs]).astype(spec.dtype)
        for i, (grid, spec) in enumerate(zip(grids, specs, strict=True))
    }
    steps = by_step(analyse(IntegerNet(graph), inputs).ledger, "y")
    zero = [int(grid.quantized[1].zero_point) for grid in grids]
    sums = [40 * (a - zero[0]) * (b - zero[1]) for a, b in pairs]
    assert (steps["sum"].worst.low, steps["sum"].worst.high) == (min(sums), max(sums))
    for step in steps.values():
        assert step.observed == step.worst


def test_an_embedding_has_as_many_bits_as_its_rows() -> None:
    graph = block()
    ids = np.arange(30).astype(np.int32).reshape(6, 5)
    steps = by_step(analyse(IntegerNet(graph), {"ids": ids, "mask": np.ones((6, 5), np.uint8)}).ledger, "embedding")
    for step in steps.values():
        assert step.observed == step.worst
