"""Operations as other runtimes compute them, and borders that take integers: the fast tier against the reference tier."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import oracle_arithmetic as oracle
import pytest
from unit.engine.graphs import FULL_S8, S4, S8, U4, U8, Builder, affine, images_for
from unit.engine.test_epilogue import DOTS, REGISTERS, finished, product_kernel, sums_within
from unit.engine.test_run import assert_same

from labkit.arithmetic.affine import QuantSpec
from labkit.arithmetic.fixedpoint import FixedPointMultiplier
from labkit.arithmetic.requantize import Requantizer, RoundingRule
from labkit.engine.node_by_node import run_nodes
from labkit.engine.prepare import Dot, Purpose, prepare
from labkit.engine.run import run
from labkit.errors import QuantizationError
from labkit.graph import int_ops
from labkit.kernels.fast import sums as sums_kernels
from labkit.kernels.fast import tables
from labkit.kernels.fast.conv import linear_one_kernel
from labkit.kernels.kernel_set import REFERENCE

# Every grid: 1 to 8 bits, unsigned, signed, symmetric, narrow, with any zero point
GRIDS = [
    *(QuantSpec(bits, signed=False, symmetric=False) for bits in range(1, 9)),
    *(QuantSpec(bits, symmetric=False) for bits in range(2, 9)),
    *(QuantSpec(bits, narrow=True) for bits in (1, 2, 4, 8)),
]
U, S = affine(U8), affine(S8)


# Finishes with a float bias and with two factors


def _twice(real, bias, second, zero_point, inside):
    parts = [np.asarray(value, np.float32) for value in (real, bias, second)]
    fields = {"bias": parts[1], "second": parts[2]}
    return Requantizer(RoundingRule.FLOAT32_TWICE, parts[0], zero_point, (-128, 127), inside, **fields)


def _biased(real, bias, zero_point, inside):
    return Requantizer(
        RoundingRule.FLOAT32_EVEN,
        np.asarray(real, np.float32),
        zero_point,
        (-128, 127),
        inside,
        bias=np.asarray(bias, np.float32),
    )


def _clamped(values):
    return [min(max(value, -128), 127) for value in values]


@pytest.mark.parametrize("images", [1, 7])
@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("real", [0.5, 0.25, 2.0**-9, 0.0123, 3.3e-7])
@pytest.mark.parametrize("dot", DOTS)
def test_float_biases_and_two_factors_in_registers(inside, real, dot, images):
    rng = np.random.default_rng(1)
    sums = sums_within(2**31, rng)
    added, spread = (-3 if inside else 0), 20 / real
    biases = np.round(rng.normal(0, spread, len(sums)).astype(np.float32) * 2) / 2
    got, (step,) = finished(sums, _biased(real, biases, -3, inside), images, dot)
    single = float(np.float32(real))
    expected = [
        oracle.float32_biased(v, single, float(b), added) - 3 - added for v, b in zip(sums, biases, strict=True)
    ]
    assert got == _clamped(expected)
    assert step.kernel is product_kernel(sums, dot, RoundingRule.FLOAT32_TWICE)
    assert step.kernel_for_one is linear_one_kernel(REGISTERS, dot, RoundingRule.FLOAT32_TWICE)
    for second in (0.5, 0.37, 8.0):
        biases = np.round(rng.normal(0, 20 / second, len(sums)).astype(np.float32) * 4) / 4
        got, (step,) = finished(sums, _twice(real / second, biases, second, -3, inside), images, dot)
        factors = float(np.float32(real / second)), float(np.float32(second))
        expected = [
            oracle.float32_twice(v, factors[0], float(b), factors[1], added) - 3 - added
            for v, b in zip(sums, biases, strict=True)
        ]
        assert got == _clamped(expected)
        assert step.kernel is product_kernel(sums, dot, RoundingRule.FLOAT32_TWICE)


# a sum, first factor, float bias, second factor: product and sum with one rounding would give 2 for 0
FUSED = (27, 1 / 3, -9.0, 2.0**23)


@pytest.mark.parametrize("dot", DOTS)
def test_a_finish_does_not_fuse_product_and_sum(dot):
    total, first, bias, second = FUSED
    assert oracle.float32_twice(total, float(np.float32(first)), bias, second) == 0
    exact = (oracle.Fraction(float(np.float32(first))) * total + oracle.Fraction(bias)) * oracle.Fraction(second)
    assert oracle.half_even(oracle.float32(exact)) == 2
    assert finished([total] * 40, _twice(first, bias, second, 0, False), dot=dot)[0] == [0] * 40


@pytest.mark.parametrize("rule", [RoundingRule.FLOAT32_EVEN, RoundingRule.FLOAT32_TWICE])
@pytest.mark.parametrize("dot", DOTS)
def test_huge_float_biases_saturate(rule, dot):
    """Infinite before the clamp, both signs; in registers and, behind a pool, in the pass of its own."""
    huge = np.array([3e38, -3e38, 1e20, -1e20, 0] * 4, np.float32)
    fields = {"second": np.array(2.0**20, np.float32)} if rule is RoundingRule.FLOAT32_TWICE else {}
    made = Requantizer(rule, np.array(2.0**20, np.float32), 0, (-128, 127), bias=huge, **fields)
    assert finished([0] * 20, made, dot=dot)[0] == [127, -128, 127, -128, 0] * 4
    for bias, end in ((3e38, 127), (-3e38, -128)):
        b = Builder(0, rule=RoundingRule.SINGLE)
        x = b.quantize((3, 4, 4), S)
        b.average_pool(x, (2, 2), spec=FULL_S8)
        one = replace(made, bias=np.array(bias, np.float32), zero_point=int(b.nodes[-1].output.params.zero_point))
        b.nodes[-1] = replace(b.nodes[-1], op=replace(b.nodes[-1].op, requantizer=one))
        got = assert_same(b.graph(), dots=(dot, Dot.PAIRS))
        assert np.unique(got[b.nodes[-1].name]).tolist() == [end]


@pytest.mark.parametrize("rule", RoundingRule)
@pytest.mark.parametrize("seed", range(4))
def test_rules_with_float_biases_and_short_mantissas(rule, seed):
    """Every way from sums to integers: tile, depthwise, pools, concat, requantize, multiply, linear; 16 channels and fewer."""
    b = Builder(seed, rule=rule, ties=seed % 2 == 0, inside=seed > 1, biased=True)
    x = b.input((3, 8, 8), S)
    a = b.conv(x, 12 + 4 * (seed % 2), (3, 3), padding=((1, 1), (1, 1)), spec=U)
    channels = b[a].shape[0]
    c = b.conv(a, channels, (3, 3), padding=((1, 1), (1, 1)), groups=channels, spec=S, channels=seed != 3)
    d = b.multiply(b.concat(b.requantize(a, spec=U), c, spec=S), b.concat(c, a, spec=affine(U4)), spec=S)
    e = b.average_pool(d, (2, 2), spec=S)
    f = b.adaptive_average_pool(e, (3, 2), spec=U)
    b.linear(b.flatten(f), 10, spec=S)
    assert_same(b.graph(), seed=seed)
    assert_same(b.graph(), seed=seed, purpose=Purpose.MEMORY)


@pytest.mark.parametrize(
    "rule", [RoundingRule.SINGLE, RoundingRule.GEMMLOWP, RoundingRule.GEMMLOWP_UP, RoundingRule.DYADIC]
)
@pytest.mark.parametrize("exponent", [-31, -20, -7, -1, 0])
@pytest.mark.parametrize("dot", DOTS)
def test_mantissas_of_thirty_bits(rule, exponent, dot):
    """LiteRT's MEAN leaves them so; they run from 2**29 on."""
    rng = np.random.default_rng(exponent + 31)
    sums = sums_within(2**31, rng)
    exact = {
        RoundingRule.SINGLE: oracle.single,
        RoundingRule.GEMMLOWP: oracle.gemmlowp,
        RoundingRule.GEMMLOWP_UP: oracle.gemmlowp_up,
        RoundingRule.DYADIC: oracle.dyadic,
    }[rule]
    for mantissa in (2**29, 2**29 + 1, 2**30 - 1, int(rng.integers(2**29, 2**30))):
        multiplier = FixedPointMultiplier(np.int32(mantissa), np.int32(exponent))
        got, _ = finished(sums, Requantizer(rule, multiplier, -3, (-128, 127)), dot=dot)
        assert got == _clamped(exact(value, mantissa, exponent) - 3 for value in sums)


# Integers in, integers out


@pytest.mark.parametrize("spec", GRIDS, ids=str)
@pytest.mark.parametrize("shape", [(3, 5, 20), (17, 4, 4), (30,), (4, 9), (2, 3, 2, 3)], ids=str)
def test_integers_enter_and_leave(spec, shape):
    """Every integer of the grid, few channels and many, with a border and without; the network is nothing else."""
    b = Builder(1)
    x = b.input(shape, spec)
    if len(shape) == 3:
        b.conv(x, 5, (3, 3), padding=((2, 1), (0, 2)))
        b.conv(x, 3, (2, 1), spec=U)
    graph = b.graph(*dict.fromkeys((x, b.nodes[-1].name)))
    inputs = images_for(graph, 37)
    every = np.arange(spec.qmin, spec.qmax + 1).astype(spec.dtype)
    first = inputs[x].reshape(-1)
    first[: every.size] = every[: first.size]
    expected = run_nodes(graph, inputs, REFERENCE)
    for options in ({}, {"purpose": Purpose.MEMORY}, {"dots": (Dot.PAIRS,)}):
        for threads in (1, 2):
            got = run(prepare(graph, **options), inputs, threads)
            for name, array in got.items():
                assert array.dtype == expected[name].dtype == graph[name].output.dtype
                np.testing.assert_array_equal(array, expected[name])
    np.testing.assert_array_equal(expected[x], inputs[x])


def test_several_borders_of_every_kind():
    b = Builder(4)
    kinds = [b.quantize, b.input, b.quantize_by_reciprocal, b.quantize_away_from_zero, b.constant]
    parts = [kind((3, 6, 6), spec) for kind, spec in zip(kinds, (S, U, S, U, affine(S4)), strict=True)]
    both = b.concat(*parts, spec=S)
    b.conv(both, 5, (3, 3), padding=((1, 1), (1, 1)))
    assert_same(b.graph(*parts, both, b.nodes[-1].name), images=40)


@pytest.mark.parametrize("kind", ["quantize_by_reciprocal", "quantize_away_from_zero"])
def test_a_nan_at_a_border_of_another_runtime_is_refused(kind):
    b = Builder(4)
    x = getattr(b, kind)((2, 3, 3), S)
    graph = b.graph(b.conv(x, 2, (1, 1)))
    inputs = images_for(graph, 3)
    inputs[x][1, 1, 2, 0] = np.nan
    with pytest.raises(QuantizationError, match="NaN: 1 of 54"):
        run(prepare(graph), inputs)
    inputs[x][1, 1, 2, 0] = np.inf
    assert_equal_tiers(graph, inputs)


def assert_equal_tiers(graph, inputs, **options):
    expected = run_nodes(graph, inputs, REFERENCE)
    for name, array in run(prepare(graph, **options), inputs).items():
        np.testing.assert_array_equal(array, expected[name])


# Functions of one integer and of two, for every integer and every pair


def _all_pairs(a, b):
    """Every pair of integers of two grids, as an image of one channel or of sixteen, filled up with the last one."""
    first, second = (np.arange(spec.qmin, spec.qmax + 1) for spec in (a, b))
    return [grid.reshape(-1) for grid in np.meshgrid(first, second, indexing="ij")]


def _sum_of(b, kind, pair, spec):
    if kind in ("fixed", "fixed up", "difference"):
        rule = RoundingRule.GEMMLOWP_UP if kind == "fixed up" else RoundingRule.GEMMLOWP
        return b.add_fixed_point(*pair, spec=spec, rule=rule, subtracts=kind == "difference")
    return {
        "float": b.add_float32,
        "away": b.add_away_from_zero,
        "dequantized": b.add_dequantized,
        "in vectors": lambda *pair, spec: b.add_dequantized(*pair, spec=spec, fused=int(np.prod(b[pair[0]].shape))),
        "after vectors": lambda *pair, spec: b.add_dequantized(*pair, spec=spec, fused=0),
    }[kind](*pair, spec=spec)


SUMS = ["fixed", "fixed up", "difference", "float", "away", "dequantized", "in vectors", "after vectors"]


@pytest.mark.parametrize("kind", SUMS)
@pytest.mark.parametrize("index", range(len(GRIDS)))
@pytest.mark.parametrize("ties", [False, True])
def test_sums_of_every_pair(kind, index, ties):
    first, second = GRIDS[index], GRIDS[(5 * index + 3) % len(GRIDS)]
    if kind in ("dequantized", "in vectors", "after vectors"):
        second = replace(first, symmetric=False) if not first.is_binary else first  # PyTorch has one type for both
    a, b = _all_pairs(first, second)
    shape = (3, 7, -(-len(a) // 21))
    build = Builder(index, ties=ties)
    pair = build.input(shape, first), build.input(shape, second)
    total = _sum_of(build, kind, pair, GRIDS[(7 * index + 1) % len(GRIDS)])
    graph = build.graph(total)
    filled = [np.resize(x, (1, *shape)).astype(t.dtype) for x, t in zip((a, b), (build[n] for n in pair), strict=True)]
    inputs = dict(zip(pair, filled, strict=True))
    for options in ({}, {"dots": (Dot.PAIRS,)}):
        assert_equal_tiers(graph, inputs, **options)
    kernel = prepare(graph).steps[-1].kernel
    by_place = kind == "dequantized" and 0 < graph[total].op.fused < int(np.prod(shape))
    wanted = tables.tables_of_two if by_place else tables.table_of_two
    assert kernel is (sums_kernels.add_float32 if kind == "float" else wanted)


@pytest.mark.parametrize("kind", SUMS)
@pytest.mark.parametrize("shape", [(5, 6, 7), (16, 4, 4), (3, 40), (70,), (2, 3, 5, 7)], ids=str)
def test_sums_beside_borders(kind, shape):
    """Operands with borders of their own, results that others read with padding, images, sequences, rows and more axes."""
    b = Builder(len(shape), ties=shape[0] == 5)
    x, y = b.input(shape, S), b.quantize(shape, S)
    total = _sum_of(b, kind, (x, y), U)
    again = _sum_of(b, kind, (total, total), S)
    ends = [total, again]
    if len(shape) == 3:
        ends += [b.conv(name, 4, (3, 3), padding=((1, 1), (1, 1))) for name in (x, y, total, again)]
    graph = b.graph(*ends)
    for options in ({}, {"dots": (Dot.PAIRS,)}, {"purpose": Purpose.MEMORY}):
        assert_same(graph, images=5, **options)


@pytest.mark.parametrize("dot", DOTS)
def test_a_float32_sum_fuses(dot):
    """See `test_reference_runtimes`: a rounding for the product, too, would give 0."""
    b = Builder(0)
    x = b.input((40,), FULL_S8)
    b.add_float32(x, x, spec=FULL_S8)
    numbers = {"multipliers": np.array([0.333333343, 2.0**-30], np.float32), "addend": np.array(-8.5, np.float32)}
    b.nodes[-1] = replace(b.nodes[-1], op=int_ops.AddFloat32(**numbers, clamp=(-128, 127)))
    graph = b.graph()
    got = run(prepare(graph, dots=(dot, Dot.PAIRS)), {x: np.full((3, 40), 27, np.int8)})
    assert np.unique(got[b.nodes[-1].name]).tolist() == [1]


@pytest.mark.parametrize("spec", GRIDS, ids=str)
def test_lookup_of_every_integer(spec):
    b = Builder(spec.bits)
    x = b.input((5, 8, 8), spec)
    one, two = b.lookup(x, spec=S), b.lookup(x, spec=affine(U4))
    b.conv(b.concat(one, two, spec=U), 3, (3, 3), padding=((1, 1), (1, 1)))
    b.conv(x, 3, (3, 3), padding=((1, 1), (1, 1)))
    assert_same(b.graph(*(node.name for node in b.nodes)), images=3)


@pytest.mark.parametrize("rule", RoundingRule)
@pytest.mark.parametrize("spec", GRIDS, ids=str)
def test_requantize_of_every_integer(rule, spec):
    """In vectors where the rule allows it, else by a table of all integers."""
    b = Builder(spec.bits, rule=rule, ties=spec.signed, biased=True)
    x = b.input((5, 8, 8), spec)
    y = b.requantize(x, spec=S, gain=2.0 ** (8 - spec.bits))
    b.concat(y, x, x, spec=U)
    assert_same(b.graph(*(node.name for node in b.nodes)), images=3)
    in_vectors = rule in (RoundingRule.SINGLE, RoundingRule.FLOAT32_EVEN, RoundingRule.FLOAT32_TWICE)
    if rule in (RoundingRule.GEMMLOWP, RoundingRule.GEMMLOWP_UP):
        in_vectors = bool(np.all(b.nodes[1].op.requantizer.multiplier.exponent <= 0))
    assert (prepare(b.graph(y)).steps[0].kernel is tables.lookup) == (not in_vectors)


# Means and softmaxes

POOLS = [
    ((2, 2), (2, 2), ((0, 0), (0, 0))),
    ((3, 3), (1, 2), ((1, 1), (0, 1))),
    ((3, 2), (2, 1), ((2, 0), (1, 0))),
    ((9, 7), (1, 1), ((0, 0), (0, 0))),
    ((1, 1), (2, 3), ((0, 0), (0, 0))),
]


@pytest.mark.parametrize("index", range(len(POOLS)))
@pytest.mark.parametrize("channels", [1, 3, 17])
@pytest.mark.parametrize("spec", [S, U, affine(S4), affine(U4), QuantSpec(1, signed=False, symmetric=False)], ids=str)
def test_pools(index, channels, spec):
    kernel, stride, padding = POOLS[index]
    b = Builder(index, ties=index % 2 == 0)
    x = b.input((channels, 9, 7), spec)
    options = {"stride": stride, "padding": padding}
    ends = [b.pool_of_valid(x, kernel, **options, offset=offset) for offset in (0, 128)]
    ends += [b.pool_float32(x, kernel, **options, spec=S, counts_padding=counts) for counts in (False, True)]
    ends += [b.conv(end, 3, (3, 3), padding=((2, 2), (2, 2))) for end in ends]
    b.conv(x, 3, (3, 3), padding=((2, 1), (1, 2)))  # the pools' source has a border that they must not see
    for dots in ({}, {"dots": (Dot.PAIRS,)}):
        assert_same(b.graph(*ends, b.nodes[-1].name), images=4, **dots)


def test_pools_of_sequences_and_the_largest_sums():
    b = Builder(0)
    x = b.input((3, 40), FULL_S8)
    ends = [b.pool_of_valid(x, (1, 5), stride=(1, 2), padding=((0, 0), (2, 2))), b.pool_float32(x, (1, 4), spec=S)]
    y = b.input((2, 120, 120), FULL_S8)
    ends += [b.pool_of_valid(y, (120, 120)), b.pool_of_valid(y, (120, 120), offset=128), b.pool_float32(y, (120, 120))]
    graph = b.graph(*ends)
    for value in (-128, 127):
        full = {name: np.full((2, *b[name].shape), value, np.int8) for name in graph.inputs}
        assert_equal_tiers(graph, full)
    assert_same(graph, images=2)


@pytest.mark.parametrize("shape", [(5, 6, 7), (17, 3, 3), (4, 30), (200,), (2, 3, 4, 5)], ids=str)
@pytest.mark.parametrize("spec", [S, affine(U4)], ids=str)
def test_means_along_any_axes(shape, spec):
    b = Builder(len(shape), ties=spec is S)
    x = b.input(shape, spec)
    every = [[a for a in range(len(shape)) if bits >> a & 1] for bits in range(1, 2 ** len(shape))]
    ends = [b.mean_float32(x, axes, spec=U) for axes in every]
    if len(shape) == 3:
        b.conv(x, 3, (3, 3), padding=((1, 2), (2, 1)))
    assert_same(b.graph(*dict.fromkeys((*ends, b.nodes[-1].name))), images=3)


@pytest.mark.parametrize("kind", ["softmax_fixed_point", "softmax_by_reciprocal", "softmax_float32"])
@pytest.mark.parametrize("shape", [(10,), (1000,), (1,), (7, 3, 4), (3, 20)], ids=str)
@pytest.mark.parametrize("scale", [0.002, 0.05, 0.25, 1.0])
def test_softmaxes(kind, shape, scale):
    b = Builder(shape[0])
    for spec in (S, U, affine(S4), affine(U4)):
        x = b._add(int_ops.Input(shape), (), shape, spec, b.params(spec, scale))
        for axis in range(len(shape)):
            for to in (FULL_S8, replace(FULL_S8, signed=False)):
                getattr(b, kind)(x, axis, spec=to)
    graph = b.graph(*(node.name for node in b.nodes))
    assert_same(graph, images=6)
    flat = {name: np.full((2, *b[name].shape), b[name].spec.qmax, b[name].dtype) for name in graph.inputs}
    assert_equal_tiers(graph, flat)  # all elements equally large: the largest sum


# Subtraction, and what remains of Add


@pytest.mark.parametrize(
    "multipliers", [(2**29, -(2**29)), (2**30 - 1, -1), (-3, -(2**30)), (2**31 - 1, -(2**31)), (0, -5)]
)
@pytest.mark.parametrize("shift", [1, 15, 30, 45, 62])
@pytest.mark.parametrize("channels", [3, 16, 40])
def test_add_with_a_negative_multiplier_subtracts(multipliers, shift, channels):
    a, b = _all_pairs(S8, U8)
    shape = (channels, 8, -(-len(a) // (8 * channels)))
    build = Builder(shift)
    pair = build.input(shape, S), build.input(shape, U)
    build.add(*pair, spec=S)
    op = replace(build.nodes[-1].op, multipliers=np.array(multipliers, np.int64).astype(np.int32), shift=shift)
    build.nodes[-1] = replace(build.nodes[-1], op=op)
    build.conv(build.nodes[-1].name, 2, (3, 3), padding=((1, 1), (1, 1)))
    graph = build.graph(build.nodes[-2].name, build.nodes[-1].name)
    inputs = {name: np.resize(x, (1, *shape)).astype(build[name].dtype) for name, x in zip(pair, (a, b), strict=True)}
    expected = run_nodes(graph, inputs, REFERENCE)
    zeros = [int(build[name].params.zero_point) for name in pair]
    some = np.random.default_rng(0).integers(0, a.size, 300)
    flat = [inputs[name].reshape(-1) for name in pair]
    got = expected[graph.outputs[0]].reshape(-1)
    for at in some:
        total = sum((int(x[at]) - z) * int(m) for x, z, m in zip(flat, zeros, multipliers, strict=True))
        value = oracle.half_up(oracle.Fraction(total, 2**shift)) + op.zero_point
        assert got[at] == min(max(value, op.clamp[0]), op.clamp[1])
    for options in ({}, {"dots": (Dot.PAIRS,)}):
        assert_equal_tiers(graph, inputs, **options)
