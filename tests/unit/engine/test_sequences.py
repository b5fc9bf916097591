"""Transformers in the fast tier: the same integers as the readable tier, node by node, and what is refused."""

from __future__ import annotations

import inspect
import re
from dataclasses import replace

import numpy as np
import pytest
from unit.engine.graphs import FULL_S8, S8, S16, U4, U8, WAYS, Builder, affine, encoder, images_for, way_name
from unit.engine.test_run import assert_same

from labkit.arithmetic.affine import QuantSpec
from labkit.arithmetic.fixedpoint import FixedPointMultiplier
from labkit.arithmetic.ibert import ExpConstants
from labkit.arithmetic.requantize import RoundingRule
from labkit.engine.node_by_node import run_nodes
from labkit.engine.prepare import Dot, Purpose, Registers, prepare
from labkit.engine.run import run, trace
from labkit.errors import BoundError, InputError
from labkit.graph import int_ops
from labkit.graph.ir import IntGraph
from labkit.kernels.fast import (
    embedding,
    factors,
    gelu,
    matmul,
    normalise,
    softmax_polynomial,
    softmax_rows,
)
from labkit.kernels.kernel_set import REFERENCE
from labkit.net import IntegerNet

FULL_S16 = QuantSpec(16)  # with -32768

# tokens, features, heads, features of the inner layer
ENCODERS = [
    (7, 48, 3, 40),
    (1, 48, 3, 17),
    (24, 64, 4, 64),
    (16, 32, 1, 33),
    (5, 15, 3, 7),
    (33, 1, 1, 1),
    (17, 20, 5, 48),
]


@pytest.mark.parametrize("index", range(len(ENCODERS)))
@pytest.mark.parametrize("kind", [{}, {"ties": True}, {"extreme": True}], ids=["", "ties", "extreme"])
def test_encoder(index, kind):
    length, features, heads, inner = ENCODERS[index]
    assert_same(encoder(index, length, features=features, heads=heads, inner=inner, **kind), seed=index)


@pytest.mark.parametrize("rule", RoundingRule)
def test_every_rule(rule):
    assert_same(encoder(3, 9, features=18, heads=3, rule=rule, ties=True), seed=1)


@pytest.mark.parametrize("way", WAYS, ids=way_name)
def test_every_way_to_multiply(way):
    registers, dots = way
    assert_same(encoder(4, 19, layers=2), registers=registers, dots=dots)
    assert_same(encoder(4, 19, layers=2), registers=registers, dots=dots, purpose=Purpose.MEMORY)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 16, 31, 32, 33])
def test_batches_of_any_size_and_threads(count):
    graph = encoder(5, 11)
    prepared, inputs = prepare(graph), images_for(graph, count)
    expected = run_nodes(graph, inputs, REFERENCE)
    for name in graph.outputs:
        for threads in (1, 2):
            np.testing.assert_array_equal(run(prepared, inputs, threads)[name], expected[name])


def test_everything_that_has_16_bits_is_stored_so():
    graph = encoder(6, 10)
    prepared = prepare(graph)
    wide = [node.name for node in graph if node.output.spec is not None and node.output.spec.is_wide]
    assert len(wide) > 8
    for name in wide:
        assert prepared.buffers[prepared.exits[name].place.buffer].dtype is np.int16
        assert prepared.exits[name].dtype == np.int16


def test_attention_moves_nothing():
    """Heads lie where the sequence lies, and the last transposition is left to who reads the result."""
    kernels = {step.node for step in prepare(encoder(7, 16, features=64, heads=4)).steps}
    assert not {name for name in kernels if name.startswith(("reshape", "transpose"))}


# --- products of two tensors ------------------------------------------------------------------------------------------

TURNS = [(False, False), (True, False), (False, True), (True, True)]


@pytest.mark.parametrize(("transpose_a", "transpose_b"), TURNS)
@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (3, 5, 7, 4), (2, 17, 33, 16), (16, 3, 2, 33), (1, 61, 1, 40)])
@pytest.mark.parametrize("grids", [(U8, affine(U8)), (affine(S8), S8), (affine(U4), FULL_S8)], ids=str)
def test_matmul(transpose_a, transpose_b, sizes, grids):
    batch, rows, inner, columns = sizes
    b = Builder(sum(sizes), ties=rows % 2 == 0)
    x = b.input((batch, inner, rows) if transpose_a else (batch, rows, inner), grids[0])
    y = b.quantize((batch, columns, inner) if transpose_b else (batch, inner, columns), grids[1])
    b.matmul(x, y, transpose_a=transpose_a, transpose_b=transpose_b, spec=S16)
    b.matmul(x, y, transpose_a=transpose_a, transpose_b=transpose_b, spec=affine(S8))
    assert_same(b.graph())
    assert_same(b.graph(), dots=(Dot.PAIRS,), registers=Registers.BITS_256)


@pytest.mark.parametrize("rule", RoundingRule)
def test_matmul_in_an_order_without_vectors(rule):
    """The result is taken by a convolution, for which it must lie as an image."""
    b = Builder(2, rule=rule, ties=True)
    x, y = b.input((5, 3, 6), affine(U8)), b.input((5, 6, 4), affine(S8))
    b.conv(b.matmul(x, y, spec=affine(U8)), 7, (3, 3), padding=((1, 1), (1, 1)))
    assert_same(b.graph())


def test_matmul_of_heads_whose_features_do_not_fill_vectors():
    """The results of two heads share a vector, so that none may write all of it."""
    b = Builder(3)
    x, y = b.input((4, 5, 9), affine(U8)), b.input((4, 9, 9), U8)
    b.conv(
        b.reshape(b.matmul(x, y, transpose_b=True, spec=affine(U8), gain=3.0), (20, 9)),
        6,
        (1, 3),
        padding=((0, 0), (1, 1)),
    )
    assert_same(b.graph())


def test_matmul_of_a_tensor_with_itself():
    b = Builder(4)
    x = b.reshape(b.input((12, 9), affine(U8)), (3, 4, 9))
    b.matmul(x, x, transpose_a=True, spec=S16)
    b.matmul(x, x, transpose_b=True, spec=S8)
    assert_same(b.graph("reshape1", "matmul2", "matmul3"))


def test_a_multiplier_far_above_one_saturates():
    b = Builder(5)
    x, y = b.input((2, 3, 4), affine(U8)), b.input((2, 4, 3), affine(S8))
    b.matmul(x, y, spec=S16, gain=2.0**20)
    assert set(np.unique(np.abs(assert_same(b.graph())["matmul2"]))) <= {0, 32767}


def test_gemmlowp_refuses_a_product_that_it_would_shift_out_of_int32():
    b = Builder(6, rule=RoundingRule.GEMMLOWP)
    x, y = b.input((2, 3, 4), affine(U8)), b.input((2, 4, 3), affine(S8))
    b.matmul(x, y, spec=S16, gain=2.0**25)
    graph = b.graph()
    with pytest.raises(BoundError, match="matmul2"):
        run(prepare(graph), images_for(graph, 1))


# --- softmax ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1,), (23,), (3, 17), (2, 5, 6), (1, 1, 40), (2, 2, 3, 5)], ids=str)
@pytest.mark.parametrize("spec", [S16, FULL_S16, affine(S8), U8], ids=str)
@pytest.mark.parametrize("has_mask", [False, True])
def test_softmax(shape, spec, has_mask):
    b = Builder(len(shape), ties=has_mask)
    x = b.constant(shape, spec) if spec.is_wide else b.input(shape, spec)
    if spec.is_wide:
        x = b.add(x, b.input(shape, affine(U8)), spec=spec)
    mask = b.input((shape[-1],), affine(U8)) if has_mask else None
    for bits, grid in [(8, U8), (1, S8), (7, S8), (8, S16), (4, U4)]:
        b.softmax_polynomial(x, mask, bits=bits, spec=grid)
    b.input((1,))
    assert_same(b.graph())


@pytest.mark.parametrize("scale", [1e-4, 3e-4, 5e-3, 0.6])
def test_softmax_at_scales_where_exponentials_vanish_soon_or_never(scale):
    b = Builder(7)
    x = b.requantize(b.input((4, 30), affine(S8)), spec=S16, gain=256.0)
    b.softmax_polynomial(x, scale=scale)
    assert_same(b.graph())
    op = b.nodes[-1].op
    table = softmax_polynomial.exponentials(ExpConstants(op.ln2, op.b, op.c, 0.0), op.multiplier, 65534)
    assert table.max() == table[0] <= 32768
    assert table[-1] == 0
    assert len(table) == 65536 if scale == 1e-4 else len(table) < 65536


@pytest.mark.parametrize("length", [65536, 65537, 70000])
def test_softmax_of_rows_whose_exponentials_sum_beyond_int32(length):
    """All scores are equal, so that each exponential is the largest."""
    b = Builder(8)
    x, y = b.input((1, 1, 1), S8), b.input((1, 1, length), S8)
    shares = b.softmax_polynomial(b.matmul(x, y, spec=S16), spec=S16)
    graph = b.graph()
    given = {name: np.zeros((1, *graph[name].output.shape), np.int8) for name in (x, y)}
    got = run(prepare(graph), given)[shares]
    np.testing.assert_array_equal(got, run_nodes(graph, given, REFERENCE)[shares])


def test_who_is_left_out_gets_nothing_and_without_any_all_get_nothing():
    b = Builder(8)
    x, mask = b.input((2, 3, 9), S8), b.input((9,), U8)
    b.softmax_polynomial(x, mask)
    graph = b.graph()
    zero = int(graph[mask].output.quantized[1].zero_point)
    rng = np.random.default_rng(0)
    given = {x: rng.integers(-128, 128, (3, 2, 3, 9)).astype(np.int8), mask: np.full((3, 9), zero, np.uint8)}
    given[mask][0, [2, 5]] = zero + 1
    given[mask][1] = zero + 7
    got = run(prepare(graph), given)[graph.outputs[0]]
    np.testing.assert_array_equal(got, run_nodes(graph, given, REFERENCE)[graph.outputs[0]])
    assert np.all(np.delete(got[0], [2, 5], axis=-1) == 0)
    assert np.all(got[0, ..., [2, 5]].sum(axis=0) >= 254)
    assert np.all(got[2] == 0)


# --- GELU and layer norm ----------------------------------------------------------------------------------------------

EVERY = np.arange(-32768, 32768).astype(np.int16)


@pytest.mark.parametrize("scale", [2.5e-4, 5e-4, 1e-3])
@pytest.mark.parametrize("rule", RoundingRule)
@pytest.mark.parametrize("spec", [affine(U8), S16], ids=str)
def test_gelu_of_every_number(scale, rule, spec):
    b = Builder(9, rule=rule, inside=True)
    b.input((1, 1), S8)
    b._add(int_ops.Constant(EVERY[1:].reshape(5, 13107)), (), (5, 13107), S16, b.params(S16))
    b.gelu(b.nodes[-1].name, spec=spec, scale=scale)
    assert_same(b.graph(), images=1)


def test_gelu_of_eight_bits():
    b = Builder(10)
    b.gelu(b.input((3, 4, 7), S8), scale=1e-3)
    b.gelu(b.input((40,), U8), scale=1e-3)
    assert_same(b.graph(b.nodes[1].name, b.nodes[-1].name))


def test_gelu_beyond_int32_is_computed_in_int64_or_refused():
    """Constants that no scale has, but that a file may: the square needs 60 bits."""
    b = Builder(11)
    x = b.gelu(b.input((6,), S8), spec=S16, scale=1e-3)
    node = b.nodes[-1]
    for constants, is_refused in [((-(2**29), -1, -(2**20)), True), ((-(2**29), -(2**58), -(2**20)), False)]:
        b.nodes[-1] = replace(node, op=replace(node.op, b=constants[0], c=constants[1], one=constants[2]))
        assert not gelu.stays_in_int32(gelu.Polynomial(*constants), 128)
        if is_refused:
            with pytest.raises(BoundError, match="the product of i-GELU can reach"):
                b.graph()
            continue
        graph = b.graph()
        given = {b.nodes[0].name: np.array([[-128, -7, 0, 1, 90, 127]], np.int8)}
        np.testing.assert_array_equal(run(prepare(graph), given)[x], run_nodes(graph, given, REFERENCE)[x])


def test_gelu_whose_parabola_exceeds_its_one_saturates():
    """Constants that a file may hold: what is requantized reaches far more than twice ``one`` times the input."""
    b = Builder(19)
    x = b.input((20, 7), S8)
    b.gelu(x, spec=S16)
    node = b.nodes[-1]
    multiplier = FixedPointMultiplier.from_real(900.0)
    op = replace(node.op, b=-33343, c=-1423, one=-100, requantizer=replace(node.op.requantizer, multiplier=multiplier))
    b.nodes[-1] = replace(node, op=op)
    assert set(np.unique(np.abs(assert_same(b.graph())[node.name]))) <= {0, 32767}


@pytest.mark.parametrize("shape", [(1, 1), (2, 9), (15, 3), (16, 5), (33, 1), (384, 2)], ids=str)
@pytest.mark.parametrize("spec", [S8, U8, S16], ids=str)
def test_layer_norm(shape, spec):
    b = Builder(shape[0])
    x = b.input(shape, spec if not spec.is_wide else affine(U8))
    x = b.requantize(x, spec=S16, gain=200.0) if spec.is_wide else x
    b.layer_norm(x)
    b.layer_norm(x, spec=S8)
    assert_same(b.graph(*(node.name for node in b.nodes[-2:])), images=5)


def test_layer_norm_of_columns_with_means_on_ties_and_small_deviations():
    """Equal numbers (deviation 0), one that differs by 1 (deviation 1), means of a half above even and odd numbers."""
    columns = [
        [7, 7, 7, 7],
        [7, 7, 7, 8],
        [1, 2, 1, 2],
        [2, 3, 2, 3],
        [-1, -2, -1, -2],
        [-2, -3, -3, -2],
        [-1, 0, 0, 0],
    ]
    columns += [[127, -128, 127, -128], [0, 0, 0, 0], [-128, -128, -128, -128], [1, -1, 0, 0]]
    for grid in (S8, QuantSpec(8, narrow=True)):  # as bytes 0 is 128, and an odd number, 127
        b = Builder(12)
        x = b.input((4, len(columns)), grid)
        b.layer_norm(x)
        numbers = np.array(columns, np.int8).T[None].clip(grid.qmin, grid.qmax)
        graph, given = b.graph(), {x: np.ascontiguousarray(numbers)}
        for dots in ((Dot.PAIRS,), None):
            got = trace(prepare(graph, dots=dots), given)
            for name, expected in run_nodes(graph, given, REFERENCE).items():
                np.testing.assert_array_equal(got[name], expected)


# --- sums and moves of 16 bits ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [1, 15, 16, 20, 30])
@pytest.mark.parametrize("other", [S8, affine(U8), FULL_S16], ids=str)
def test_add_of_16_bits(shift, other):
    """Numbers at both ends of their grids times multipliers at both ends of theirs."""
    b = Builder(shift)
    b.input((1,))
    ends = np.array([-32768, -32767, -1, 0, 1, 32767] * 6, np.int16)
    x = b._add(int_ops.Constant(ends.reshape(18, 2)), (), (18, 2), FULL_S16, b.params(FULL_S16))
    y = b.constant((18, 2), other) if other.is_wide else b.input((18, 2), other)
    for multipliers in [(1, 2**31 - 1), (2**31 - 1, 2**31 - 1), (2**30, 2**29), (3, 5), (2**25 + 7, 2**24 - 1)]:
        op = int_ops.Add(np.array(multipliers, np.int32), shift, 0, (-32767, 32767))
        b._add(op, (x, y), (18, 2), S16, b.params(S16))
    grid = affine(U8)
    params = b.params(grid)
    b._add(
        int_ops.Add(np.array([2**20, 2**28], np.int32), 30, int(params.zero_point), (3, 250)),
        (x, y),
        (18, 2),
        grid,
        params,
    )
    assert_same(b.graph(), images=2)


@pytest.mark.parametrize("gain", [2.0**-9, 2.0**-7, 0.9, 3.0, 2.0**12])
@pytest.mark.parametrize("rule", RoundingRule)
def test_requantize_every_number_of_16_bits(gain, rule):
    b = Builder(13, rule=rule)
    b.input((1, 1), S8)
    x = b._add(int_ops.Constant(EVERY.reshape(4, 16384)), (), (4, 16384), FULL_S16, b.params(FULL_S16))
    for spec in (affine(U8), affine(S8), U4, S16, FULL_S16):
        b.requantize(x, spec=spec, gain=gain)
    assert_same(b.graph(), images=1)


def test_moves_of_16_bits():
    b = Builder(14)
    x = b.requantize(b.input((6, 4, 5), affine(U8)), spec=S16, gain=150.0)
    b.flatten(x)
    y = b.transpose(b.reshape(x, (8, 15)), (1, 0))
    b.requantize(b.reshape(b.transpose(x, (2, 0, 1)), (60, 2)), spec=S8, gain=0.01)
    b.dequantize(y)
    b.dequantize(b.transpose(b.reshape(x, (24, 5)), (1, 0)))
    assert_same(b.graph(*(node.name for node in b.nodes)))


# --- indices ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RoundingRule)
@pytest.mark.parametrize("signed", [False, True])
def test_embedding(rule, signed):
    b = Builder(15, rule=rule, ties=signed)
    ids = b.index(9)
    b.embedding(ids, 13, 21, spec=S16, signed=signed)
    b.embedding(ids, 5, 40, spec=affine(U8), signed=signed, per_row=False)
    b.conv(b.nodes[-1].name, 4, (1, 3), padding=((0, 0), (1, 1)))
    assert_same(b.graph())


@pytest.mark.parametrize("bad", [-1, 13, 2**31 - 1, -(2**31)])
@pytest.mark.parametrize("purpose", list(Purpose))
def test_indices_outside_the_table_are_refused_and_never_read(bad, purpose):
    b = Builder(16)
    b.embedding(b.index(9), 13, 21)
    graph = b.graph()
    for count, at in [(1, (0, 4)), (40, (37, 8))]:
        given = {"input0": np.random.default_rng(0).integers(0, 13, (count, 9)).astype(np.int32)}
        given["input0"][at] = bad
        low, high = given["input0"].min(), given["input0"].max()
        for threads in (1, 2):
            with pytest.raises(BoundError, match=rf"0\.\.12, got {low}\.\.{high}.*input0"):
                run(prepare(graph, purpose=purpose), given, threads)
        with pytest.raises(BoundError, match=r"0\.\.12"):
            run_nodes(graph, given, REFERENCE)


def test_a_net_refuses_them_too():
    b = Builder(17)
    b.embedding(b.index(9), 13, 21)
    net = IntegerNet(b.graph())
    for kernels in ("numba", "reference"):
        with pytest.raises(InputError, match="input0"):
            net.run(np.full((1, 9), -1), kernels)
        with pytest.raises((BoundError, InputError), match=r"0\.\.12"):
            net.run(np.full((2, 9), 13), kernels)
        assert net.run(np.full((2, 9), 12), kernels).shape == (2, 21, 9)


def test_indices_of_an_argmax():
    b = Builder(18)
    x = b.argmax(b.input((5, 8), affine(U8)), 0)
    b.embedding(x, 5, 6)
    assert_same(b.graph())
    assert_same(b.graph(x, b.nodes[-1].name))
    node = b.nodes[-1]
    table = node.op.weight
    fewer = replace(table, values=table.values[:3], params=replace(table.params, **_first_rows(table.params, 3)))
    multiplier = node.op.requantizer.multiplier
    own = replace(multiplier, mantissa=multiplier.mantissa[:3], exponent=multiplier.exponent[:3])
    op = replace(node.op, weight=fewer, requantizer=replace(node.op.requantizer, multiplier=own))
    graph = IntGraph((*b.nodes[:-1], replace(node, op=op)), (node.name,))
    given = {"input0": np.zeros((1, 5, 8), np.uint8)}
    given["input0"][0, 4] = 1
    with pytest.raises(BoundError, match=r"0\.\.2"):
        run(prepare(graph), given)


def _first_rows(params, count):
    return {"scale": params.scale[:count], "zero_point": params.zero_point[:count]}


_OF_TRANSFORMERS = (embedding, factors, gelu, matmul, normalise, softmax_polynomial, softmax_rows)


@pytest.mark.parametrize("module", _OF_TRANSFORMERS, ids=lambda module: module.__name__.rpartition(".")[2])
def test_kernels_of_transformers_do_not_compute_in_floating_point(module):
    """Float rules reach them only through `requantize.RULES` and `finish`, which labkit's own rule does not use."""
    real = r"np\.float\w+|np\.sqrt|\bfloat\(|\.f(?:add|sub|mul|div|ptosi)\(|\.sitofp\(|\bF(?:32|64)\b"
    found = re.findall(real, inspect.getsource(module))
    assert not found
