"""What is refused of the operations of transformers, and that what is not refused never leaves its bits.

The bounds are held against Python's own integers: equations 46 to 50 are computed once more, element by element, and each
number on the way is measured.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from unit.graph.builders import changed
from unit.graph.transformer_block import BYTE, WIDE, block, tensor, with_positions

from labkit.arithmetic.affine import PerAxis, QParams, QTensor, QuantSpec
from labkit.arithmetic.fixedpoint import FixedPointMultiplier
from labkit.arithmetic.ibert import exp_constants, gelu_constants
from labkit.arithmetic.requantize import Requantizer, RoundingRule
from labkit.engine.node_by_node import run_nodes
from labkit.errors import BoundError, LabkitError, ModelError
from labkit.graph import int_ops
from labkit.graph.ir import IntGraph, IntNode, Tensor
from labkit.kernels.kernel_set import REFERENCE
from labkit.runtimes.labkit_rules import requantizer

BLOCK = with_positions(block())
INT32, INT64 = 2**31, 2**63
FULL_WIDE = QuantSpec(16)  # with -32768
INDEX = Tensor((5,), None, None, is_index=True)


def op(name: str) -> Any:
    return BLOCK[name].op


def output(name: str, **fields: Any) -> Tensor:
    return replace(BLOCK[name].output, **fields)


def params(scale: float, zero_point: int = 0) -> QParams:
    return QParams(np.float32(scale), np.int32(zero_point))


TABLE = op("embedding").weight
FLOAT_ROWS = Requantizer(RoundingRule.FLOAT32_EVEN, np.full(30, 0.5, np.float32), 0, (-32767, 32767))
BY_COLUMN = QTensor(
    TABLE.values,
    QParams(np.full(12, 0.01, np.float32), np.zeros(12, np.int32)),
    QuantSpec(8, narrow=True, granularity=PerAxis(1)),
)
SHIFTED = QTensor(
    TABLE.values,
    QParams(TABLE.params.scale, np.ones(30, np.int32)),
    QuantSpec(8, symmetric=False, granularity=PerAxis(0)),
)
WIDE_TABLE = QTensor(TABLE.values.astype(np.int16), TABLE.params, QuantSpec(16, narrow=True, granularity=PerAxis(0)))
CUBE = QTensor(TABLE.values.reshape(30, 4, 3), TABLE.params, TABLE.spec)
CONV = op("querys").weight
WIDE_WEIGHT = QTensor(CONV.values.astype(np.int16), CONV.params, QuantSpec(16, narrow=True, granularity=PerAxis(0)))


def multiplier(mantissa: int, exponent: int) -> FixedPointMultiplier:
    return FixedPointMultiplier(np.array(mantissa, np.int32), np.array(exponent, np.int32))


def spoiled(array: Any, value: int) -> Any:
    copy = np.array(array)
    copy[3] = value
    return copy


# (node, changed fields, kind of error, what it says is wrong, what it says to do)
WRONG: list[tuple[str, dict[str, Any], type[LabkitError], str, str]] = [
    (
        "embedding",
        {"inputs": ("mask",)},
        ModelError,
        "an Embedding takes indices, got 5 u8",
        "Give it an Input of indices",
    ),
    ("embedding", {"op_weight": SHIFTED}, ModelError, "the zero point 0, got int8", "Make it with labkit.quantize"),
    ("embedding", {"op_weight": WIDE_TABLE}, ModelError, "at most 8 bits", "Make it with labkit.quantize"),
    ("embedding", {"op_weight": BY_COLUMN}, ModelError, "one for each row", "Make it with labkit.quantize"),
    ("embedding", {"op_requantizer": FLOAT_ROWS}, ModelError, "requantized in integers", "Use RoundingRule.SINGLE"),
    ("embedding", {"op_requantizer": op("querys").requantizer}, ModelError, "12 multipliers for 30 channels", ""),
    ("shares", {"op_bits": 9}, ModelError, "with 9 bits, of which 1..8", "Make it with labkit.quantize"),
    ("shares", {"op_bits": 0}, ModelError, "with 0 bits", "Make it with labkit.quantize"),
    ("shares", {"op_bits": 7}, ModelError, "its scale is 2..-bits", "Make it with labkit.quantize"),
    ("shares", {"output": output("shares", params=params(2.0**-8, 1))}, ModelError, "zero point 0", "Make it with"),
    (
        "shares",
        {"output": output("shares", spec=QuantSpec(8, narrow=True))},
        ModelError,
        "8 bits do not fit the grid -127..127",
        "Use an unsigned grid, or one bit less",
    ),
    ("shares", {"op_ln2": 0}, ModelError, "ln2 is negative", "Make it with labkit.quantize"),
    ("shares", {"op_b": 0}, ModelError, "b and c are positive", "Make it with labkit.quantize"),
    ("shares", {"op_c": -1}, ModelError, "b and c are positive", "Make it with labkit.quantize"),
    ("shares", {"op_c": 2**32}, BoundError, "more than 32 bits", "Give the scores a scale of at least"),
    ("shares", {"op_b": 2**21, "op_c": 1}, BoundError, "more than 32 bits", "Give the scores a scale of at least"),
    ("shares", {"op_ln2": -(2**40), "op_b": 1}, BoundError, "32 bits", "Give the scores a scale"),
    ("shares", {"op_multiplier": multiplier(2**30, -9)}, BoundError, "to 0..32,767", "Make it with labkit.quantize"),
    ("shares", {"op_multiplier": multiplier(2**30, 30)}, BoundError, "to 0..32,767", "Make it with labkit.quantize"),
    (
        "shares",
        {"op_multiplier": FixedPointMultiplier.from_real(np.full(3, 1e-4))},
        BoundError,
        "the multiplier of i-softmax",
        "Make it with labkit.quantize",
    ),
    (
        "shares",
        {"inputs": ("scores", "scores")},
        ModelError,
        r"a mask for \(3, 5, 5\) has the shape \(5,\)",
        "1 for what",
    ),
    ("shares", {"inputs": ("scores", "ids")}, ModelError, "An index has no scale", "only an Embedding can take it"),
    ("shares", {"inputs": ("scores", "mask", "mask")}, ModelError, "takes 1 inputs, got 3", ""),
    ("gelu", {"op_b": 1}, ModelError, "b, c and one are negative", "Make it with labkit.quantize"),
    ("gelu", {"op_c": 0}, ModelError, "b, c and one are negative", "Make it with labkit.quantize"),
    ("gelu", {"op_one": 0}, ModelError, "b, c and one are negative", "Make it with labkit.quantize"),
    ("gelu", {"op_b": -(2**31)}, ModelError, "fits 62 bits", "Make it with labkit.quantize"),
    ("gelu", {"op_one": -60_000}, BoundError, "more than int32 holds", "Give its input a scale of at least"),
    ("gelu", {"op_c": -(2**31)}, BoundError, "more than int32 holds", "Give its input a scale of at least"),
    (
        "gelu",
        {"inputs": ("keys",), "output": output("gelu", shape=(12, 5))},
        ModelError,
        "with the zero point 0",
        "Quantize it symmetrically",
    ),
    ("norm", {"inputs": ("narrow",)}, ModelError, "which no earlier node puts out", ""),
    ("middle", {"inputs": ("narrow",)}, ModelError, "with the zero point 0", "Quantize it symmetrically"),
    (
        "norm",
        {"op_multipliers": np.zeros(11, np.int32)},
        ModelError,
        r"multipliers must be int32 \[12\]",
        "Make it with",
    ),
    ("norm", {"op_multipliers": np.zeros(12, np.int64)}, ModelError, "got int64", "Make it with labkit.quantize"),
    ("norm", {"op_addends": np.zeros(12, np.int32)}, ModelError, r"addends must be int64 \[12\]", "Make it with"),
    ("norm", {"op_shift": 0}, ModelError, "takes a shift of 1..61", "Make it with labkit.quantize"),
    ("norm", {"op_shift": 62}, ModelError, "takes a shift of 1..61", "Make it with labkit.quantize"),
    ("norm", {"op_clamp": (-40_000, 0)}, ModelError, "does not fit the grid", "Keep it inside"),
    ("norm", {"op_clamp": (5, 4)}, ModelError, "does not fit the grid", "Keep it inside"),
    *(
        (
            "norm",
            {"op_addends": spoiled(op("norm").addends, value)},
            BoundError,
            "62 bits",
            "Calibrate the output again",
        )
        for value in (2**62, -(2**62), 2**63 - 1, -(2**63))
    ),
    (
        "last",
        {"output": output("last", params=params(0.001, 3))},
        ModelError,
        "puts out the zero point 0",
        "Make it with",
    ),
    ("scores", {"inputs": ("query", "scores")}, ModelError, "which no earlier node puts out", ""),
    (
        "context",
        {"inputs": ("value", "scores")},
        ModelError,
        "takes activations of at most 8 bits",
        "Requantize its input",
    ),
    ("scores", {"op_transpose_a": False}, ModelError, "must be alike", ""),
    ("scores", {"inputs": ("querys", "keys")}, ModelError, "MatMul takes two tensors", ""),
    ("scores", {"op_requantizer": op("querys").requantizer}, ModelError, "12 multipliers for None channels", ""),
    ("querys", {"inputs": ("norm",)}, ModelError, "Conv2d takes activations of at most 8 bits, got 16", "Requantize"),
    (
        "querys",
        {"op_weight": WIDE_WEIGHT},
        ModelError,
        "weights have at most 8 bits, got 16",
        "Quantize them to 8 bits",
    ),
    ("querys", {"inputs": ("ids",)}, ModelError, "querys: Conv2d", ""),
    ("query", {"inputs": ("ids",)}, ModelError, "cannot become", ""),
    ("ids", {"output": Tensor((5,), BYTE, params(1.0), is_index=True)}, ModelError, "an index has no grid", ""),
    ("mask", {"output": INDEX}, ModelError, "An index has no scale", "only an Embedding can take it"),
    ("positions", {"op_values": np.zeros((12, 5), np.int8)}, ModelError, "positions", ""),
]


@pytest.mark.parametrize("case", WRONG, ids=lambda case: f"{case[0]}: {', '.join(case[1])}")
def test_one_wrong_thing_is_refused_and_said(case: tuple[str, dict[str, Any], type[LabkitError], str, str]) -> None:
    name, fields, kind, what, advice = case
    with pytest.raises(kind, match=what) as caught:
        IntGraph(changed(BLOCK, name, **fields), BLOCK.outputs)
    assert name in str(caught.value) or "no scale" in str(caught.value)
    assert advice in str(caught.value)


def test_a_sound_graph_is_none_of_these() -> None:
    assert IntGraph(changed(BLOCK, "shares", op_bits=8), BLOCK.outputs).outputs == BLOCK.outputs


def test_sums_of_a_product_fit_int32_exactly() -> None:
    """255 * 127 * k: 66,311 products are the last that fit."""

    def product(inner: int) -> IntGraph:
        a, b = (
            tensor((1, 1, inner), 0.1, 0, QuantSpec(8, signed=False)),
            tensor((1, inner, 1), 0.1, 0, QuantSpec(8, narrow=True)),
        )
        y = tensor((1, 1, 1), 1e5, 0, BYTE)
        nodes = [IntNode(n, int_ops.Input(t.shape), (), t) for n, t in (("a", a), ("b", b))]
        return IntGraph((*nodes, IntNode("y", int_ops.MatMul(requantizer(1e-7, y)), ("a", "b"), y)), ("y",))

    fits = (INT32 - 1) // (255 * 127)
    graph = product(fits)
    x = {"a": np.full((1, 1, 1, fits), 255, np.uint8), "b": np.full((1, 1, fits, 1), -127, np.int8)}
    assert run_nodes(graph, x, REFERENCE)["y"].tolist() == [[[[0]]]]
    with pytest.raises(BoundError, match="a sum of 66312 products can leave int32. Use fewer bits"):
        product(fits + 1)


def alone(operation: Any, sources: dict[str, Tensor], target: Tensor) -> IntGraph:
    """``operation`` of inputs ``sources``, as the node "y"."""
    entries = [IntNode(name, int_ops.Input(t.shape), (), t) for name, t in sources.items()]
    return IntGraph((*entries, IntNode("y", operation, tuple(sources), target)), ("y",))


def computed(graph: IntGraph, **arrays: Any) -> Any:
    """What the readable tier makes of ``arrays`` of one image."""
    inputs = {name: np.asarray(array, graph[name].output.dtype)[None] for name, array in arrays.items()}
    return run_nodes(graph, inputs, REFERENCE)["y"][0]


def rounded(product: int, shift: int) -> int:
    """``product / 2**shift``, ties up."""
    return (product + (1 << (shift - 1))) >> shift


def within(number: int, limit: int) -> int:
    """``number``, which must lie in -limit..limit - 1."""
    assert -limit <= number < limit
    return number


GRIDS = st.sampled_from([WIDE, FULL_WIDE, BYTE, QuantSpec(8), QuantSpec(3, narrow=True)])


def near_powers(low: int, high: int) -> st.SearchStrategy[int]:
    """Integers of low..high, many of them next to a power of two, where a bound may be off by one."""
    powers = st.builds(lambda k, d, s: s * (2**k + d), st.integers(0, 62), st.integers(-2, 2), st.sampled_from([-1, 1]))
    return st.one_of(st.integers(low, high), powers).filter(lambda n: low <= n <= high)


def big_softmax(q: list[int], mask: list[int], o: int_ops.SoftmaxPolynomial) -> list[int]:
    """Eqs. 46 and 47 in Python's integers; no number on the way may leave int64."""
    s, m = 31 - int(o.multiplier.exponent), int(o.multiplier.mantissa)
    seen = [x for x, takes_part in zip(q, mask, strict=True) if takes_part]
    powers = []
    for x, takes_part in zip(q, mask, strict=True):
        if not takes_part:
            powers.append(0)
            continue
        x = max(x - max(seen), within(30 * o.ln2, INT64))
        z = x // o.ln2
        rest = x - z * o.ln2
        parabola = max(within(within((rest + o.b) * rest, INT64) + o.c, INT64), 0)
        assert parabola < 2**32
        shift = s + z
        if shift > 62:
            within(parabola * m, INT64)
            powers.append(0)
        else:
            powers.append(within(parabola * m + (1 << (shift - 1)), INT64) >> shift)
        assert powers[-1] <= 32767
    factor = 2**32 // max(sum(powers), 1)
    half = 1 << (31 - o.bits)
    return [min(within(e * factor + half, INT64) >> (32 - o.bits), 2**o.bits - 1) for e in powers]


@settings(max_examples=300, deadline=None)
@given(
    spec=GRIDS,
    ln2=near_powers(-(2**40), -1),
    b=near_powers(1, 2**40),
    c=near_powers(1, 2**33),
    mantissa=near_powers(2**29, 2**31 - 1),
    exponent=st.integers(-31, 30),
    bits=st.integers(1, 8),
    data=st.data(),
)
def test_a_softmax_that_is_let_through_never_overflows(
    spec: QuantSpec, ln2: int, b: int, c: int, mantissa: int, exponent: int, bits: int, data: st.DataObject
) -> None:
    o = int_ops.SoftmaxPolynomial(ln2, b, c, multiplier(mantissa, exponent), bits)
    length = data.draw(st.integers(1, 6))
    shape = (1, length)
    target = Tensor(shape, QuantSpec(8, signed=False), params(2.0**-bits))
    sources = {"x": tensor(shape, 0.1, 0, spec), "mask": tensor((length,), 1.0, 0, BYTE)}
    try:
        graph = alone(o, sources, target)
    except BoundError:
        assume(False)
    entries = st.one_of(st.integers(spec.qmin, spec.qmax), st.sampled_from([spec.qmin, spec.qmax]))
    q = data.draw(st.lists(entries, min_size=length, max_size=length))
    mask = data.draw(st.lists(st.integers(0, 1), min_size=length, max_size=length))
    assert computed(graph, x=[q], mask=mask).tolist() == [big_softmax(q, mask, o)]


@settings(max_examples=100, deadline=None)
@given(scale=st.floats(3.4e-5, 0.69), bits=st.integers(1, 8), seed=st.integers(0, 2**32 - 1))
def test_every_scale_from_34_millionths_on_gives_a_softmax(scale: float, bits: int, seed: int) -> None:
    """What the refusal of a polynomial advises is enough, and the result is that of Python's integers."""
    found = exp_constants(scale)
    by = FixedPointMultiplier.from_real(found.scale * 32767)
    o = int_ops.SoftmaxPolynomial(found.ln2, found.b, found.c, by, bits)
    rng = np.random.default_rng(seed)
    q = rng.integers(-32768, 32768, 5).tolist()
    mask = rng.integers(0, 2, 5).tolist()
    target = Tensor((1, 5), QuantSpec(8, signed=False), params(2.0**-bits))
    graph = alone(o, {"x": tensor((1, 5), scale, 0, FULL_WIDE), "mask": tensor((5,), 1.0, 0, BYTE)}, target)
    assert computed(graph, x=[q], mask=mask).tolist() == [big_softmax(q, mask, o)]


def test_the_parabola_of_a_softmax_may_have_32_bits_and_its_product_63() -> None:
    """The largest constant and the largest multiplier that are let through, and the next ones."""
    largest = (2**63 - 1 - 2**61) // (2**32 - 1)  # 2**61 is the half of the longest shift

    def graph(c: int, mantissa: int) -> IntGraph:
        o = int_ops.SoftmaxPolynomial(-1, 1, c, multiplier(mantissa, -17), 8)
        return alone(o, {"x": tensor((1, 3), 0.1, 0, FULL_WIDE)}, tensor((1, 3), 2.0**-8, 0, BYTE))

    sound = graph(2**32 - 1, largest)
    assert computed(sound, x=[[32767, 32767, 32753]]).tolist() == [
        big_softmax([32767, 32767, 32753], [1, 1, 1], sound["y"].op)  # type: ignore[arg-type]
    ]  # the last one is shifted by 62
    with pytest.raises(BoundError, match="more than 32 bits"):
        graph(2**32, largest)
    with pytest.raises(BoundError, match="their product must fit int64"):
        graph(2**32 - 1, largest + 1)


def big_gelu(q: int, o: int_ops.GeluPolynomial) -> int:
    """Eq. 48 in front of its requantization, in Python's integers."""
    near = min(abs(q), -o.b) + o.b
    sign = (q > 0) - (q < 0)
    parabola = within(sign * within(within(near * near, INT64) + o.c, INT64), INT64)
    return within(q * -((parabola >> 14) + o.one), INT32)


@settings(max_examples=300, deadline=None)
@given(
    spec=st.sampled_from([WIDE, FULL_WIDE, QuantSpec(8, narrow=True)]),
    b=near_powers(-(2**31), -1),
    c=near_powers(-(2**62), -1),
    one=near_powers(-(2**31), -1),
    data=st.data(),
)
def test_a_gelu_that_is_let_through_never_leaves_int32(
    spec: QuantSpec, b: int, c: int, one: int, data: st.DataObject
) -> None:
    target = tensor((4, 1), 0.02, 9, BYTE)
    o = int_ops.GeluPolynomial(b, c, one, requantizer(2.0**-23, target))
    try:
        graph = alone(o, {"x": tensor((4, 1), 0.001, 0, spec)}, target)
    except (BoundError, ModelError):
        assume(False)
    ends = [spec.qmin, spec.qmax, 0, 1, -1, *(n for n in (b, -b, b + 1) if spec.qmin <= n <= spec.qmax)]
    entries = st.one_of(st.integers(spec.qmin, spec.qmax), st.sampled_from(ends))
    q = data.draw(st.lists(entries, min_size=4, max_size=4))
    wanted = [min(max(rounded(big_gelu(x, o) * 2**30, 53) + 9, 0), 255) for x in q]
    assert computed(graph, x=[[x] for x in q])[:, 0].tolist() == wanted


@settings(max_examples=100, deadline=None)
@given(scale=st.floats(2.5e-4, 1e-3), seed=st.integers(0, 2**32 - 1))
def test_every_scale_that_the_refusal_advises_gives_a_gelu(scale: float, seed: int) -> None:
    found = gelu_constants(scale)
    target = tensor((9, 1), 0.02, 9, BYTE)
    o = int_ops.GeluPolynomial(found.b, found.c, found.one, requantizer(2.0**-23, target))
    graph = alone(o, {"x": tensor((9, 1), scale, 0, FULL_WIDE)}, target)
    q = [-32768, 32767, *np.random.default_rng(seed).integers(-32768, 32768, 7).tolist()]
    wanted = [min(max(rounded(big_gelu(x, o) * 2**30, 53) + 9, 0), 255) for x in q]
    assert computed(graph, x=[[x] for x in q])[:, 0].tolist() == wanted


def test_the_product_of_a_gelu_reaches_the_end_of_int32() -> None:
    """The constants of the smallest scale that is let through, found by halving: its largest product is next to 2**31."""

    def is_let_through(scale: float) -> bool:
        found = gelu_constants(scale)
        target = tensor((1, 1), 0.02, 9, BYTE)
        o = int_ops.GeluPolynomial(found.b, found.c, found.one, requantizer(2.0**-23, target))
        try:
            alone(o, {"x": tensor((1, 1), scale, 0, WIDE)}, target)
        except BoundError:
            return False
        return True

    low, high = 1e-4, 2.5e-4
    assert not is_let_through(low)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if is_let_through(middle) else (middle, high)
    found = gelu_constants(high)
    o = int_ops.GeluPolynomial(found.b, found.c, found.one, op("gelu").requantizer)
    assert 0.999 * INT32 < abs(big_gelu(32767, o)) < INT32


def big_layer_norm(column: list[int], o: int_ops.LayerNorm) -> list[int]:
    """Eqs. 49 and 50 in Python's integers; no number on the way may leave int64, nor a normalised one 2**30."""
    n = len(column)
    whole, rest = divmod(sum(column), n)
    mean = whole + (2 * rest > n or (2 * rest == n and whole % 2 == 1))
    y = [q - mean for q in column]
    deviation = max(math.isqrt(within(sum(d * d for d in y), 2**62)), 1)
    found = []
    for d, m, a in zip(y, o.multipliers.tolist(), o.addends.tolist(), strict=True):
        normalised = within(d * (2**31 // deviation), INT64) >> 1
        assert abs(normalised) <= 2**30
        total = within(within(normalised * m, INT64) + a, INT64) + (1 << (o.shift - 1))
        found.append(min(max(within(total, INT64) >> o.shift, o.clamp[0]), o.clamp[1]))
    return found


@settings(max_examples=300, deadline=None)
@given(
    spec=st.sampled_from([WIDE, FULL_WIDE, QuantSpec(8), QuantSpec(2, narrow=True)]),
    shift=st.integers(1, 61),
    data=st.data(),
)
def test_a_layer_norm_that_is_let_through_never_overflows(spec: QuantSpec, shift: int, data: st.DataObject) -> None:
    features = data.draw(st.integers(1, 7))

    def drawn(numbers: st.SearchStrategy[int]) -> list[int]:
        return data.draw(st.lists(numbers, min_size=features, max_size=features))

    multipliers = drawn(near_powers(-INT32, INT32 - 1))
    addends = drawn(near_powers(-INT64, INT64 - 1))
    target = tensor((features, 1), 0.01, 0, WIDE)
    o = int_ops.LayerNorm(np.array(multipliers, np.int32), np.array(addends, np.int64), shift, (-32767, 32767))
    largest = max(abs(m) * 2**30 + abs(a) for m, a in zip(multipliers, addends, strict=True)) + (1 << (shift - 1))
    sources = {"x": tensor((features, 1), 0.01, 0, spec)}
    if largest >= 2**62:
        with pytest.raises(BoundError, match="more than 62 bits"):
            alone(o, sources, target)
        return
    column = drawn(st.one_of(st.integers(spec.qmin, spec.qmax), st.sampled_from([spec.qmin, spec.qmax])))
    assert computed(alone(o, sources, target), x=[[q] for q in column])[:, 0].tolist() == big_layer_norm(column, o)


def test_a_layer_norm_of_the_widest_spread() -> None:
    """Half of many features at either end of 16 bits: the largest deviation that a grid allows."""
    features = 4096
    column = [32767 if i % 2 else -32768 for i in range(features)]
    ones = np.full(features, 2**30, np.int32)
    o = int_ops.LayerNorm(ones, np.zeros(features, np.int64), 45, (-32767, 32767))
    graph = alone(o, {"x": tensor((features, 1), 0.01, 0, FULL_WIDE)}, tensor((features, 1), 0.01, 0, WIDE))
    assert computed(graph, x=[[q] for q in column])[:, 0].tolist() == big_layer_norm(column, o)
