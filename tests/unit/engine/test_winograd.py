"""3x3 convolutions by Winograd against the reference: every route, at the bounds of exactness, tolerance 0."""

from __future__ import annotations

import numpy as np
import pytest
from unit.engine.graphs import S4, S8, U4, U8, Builder, affine, images_for

from labkit.arithmetic.affine import PerAxis, QParams, QTensor, QuantSpec
from labkit.arithmetic.requantize import RoundingRule
from labkit.engine.arena import arena_for
from labkit.engine.node_by_node import run_nodes
from labkit.engine.prepare import Dot, Route, prepare
from labkit.engine.run import run, trace
from labkit.kernels.fast.conv import conv2d_kernel
from labkit.kernels.fast.conv3x3 import _groups, conv3x3_kernel
from labkit.kernels.fast.finish import FINISHES
from labkit.kernels.fast.tile import Registers, widest_registers
from labkit.kernels.fast.winograd import F2, F4, Transform, is_exact, pack_planes
from labkit.kernels.kernel_set import REFERENCE

REGISTERS = widest_registers()
SINGLE = RoundingRule.SINGLE
SAME = ((1, 1), (1, 1))
TRANSFORM = {Route.F2: F2, Route.F4: F4}
# Tensors as int16 with their zero point subtracted, and as bytes counted from the lowest number of the grid
STORAGE = {"words": (Dot.PAIRS,), "bytes": (Dot.QUADS, Dot.PAIRS)}


def direct_kernel(prepared, name, registers=REGISTERS):
    """The direct kernel for the convolution ``name`` in the storage that ``prepared`` gave its input."""
    op = prepared.graph[name].op
    dot = Dot.QUADS if stored_as(prepared, name) is np.uint8 else Dot.PAIRS
    rule = op.requantizer.rule if op.requantizer.rule in FINISHES else None
    return conv2d_kernel(registers, dot, -(-len(op.bias) // 16), rule)


def wanted_kernel(prepared, name, route, registers=REGISTERS):
    """The kernel for the convolution ``name`` by ``route``."""
    if route is Route.DIRECT:
        return direct_kernel(prepared, name, registers)
    rule = prepared.graph[name].op.requantizer.rule
    return conv3x3_kernel(registers, TRANSFORM[route], rule if rule in FINISHES else None)


def stored_as(prepared, name):
    """The type of the numbers that the convolution ``name`` reads."""
    place = prepared.exits[prepared.graph[name].inputs[0]].place
    return prepared.buffers[place.buffer].dtype


def kernel_of(prepared, name):
    return next(step.kernel for step in prepared.steps if step.node == name)


def assert_same(graph, route, images=2, seed=0, registers=None, storage="words"):
    inputs = images_for(graph, images, seed)
    expected = run_nodes(graph, inputs, REFERENCE)
    prepared = prepare(graph, route=route, registers=registers, dots=STORAGE[storage])
    for name, array in trace(prepared, inputs).items():
        np.testing.assert_array_equal(array, expected[graph.carriers()[name]], err_msg=f"{name} of\n{graph}")
    for name, array in run(prepared, inputs).items():
        np.testing.assert_array_equal(array, expected[name])
    return prepared


@pytest.mark.parametrize("transform", [F2, F4], ids=["F2", "F4"])
def test_the_transforms_compute_a_convolution(transform: Transform):
    """As bilinear forms, so for every input and kernel: output i is factor i times ``sum_u x[i + u] w[u]``."""
    points = transform.points
    inputs = np.array(transform.input_transform(np.eye(points, dtype=np.int64)))
    outputs = np.array(transform.output_transform(np.eye(points, dtype=np.int64)))
    got = np.einsum("ip,pr,pu->iru", outputs, inputs, transform.weights)
    for i, r, u in np.ndindex(transform.size, points, 3):
        assert got[i, r, u] == (transform.factors[i] if r == i + u else 0)
    for i, j in np.ndindex(transform.size, transform.size):
        assert transform.factors[i] * transform.factors[j] == transform.odd**2 << transform.shift(i, j)
    assert transform.inverse * transform.odd**2 % 2**32 == 1


def test_limits():
    assert (F2.limit, F4.limit) == (2**29 - 1, 2**25 - 1)


@pytest.mark.parametrize("storage", STORAGE)
@pytest.mark.parametrize("route", [Route.F2, Route.F4])
@pytest.mark.parametrize("size", [(2, 2), (2, 9), (3, 4), (4, 4), (5, 6), (7, 7), (8, 4), (9, 11), (13, 5), (16, 17)])
def test_sizes(storage, route, size):
    """Images smaller than a tile go directly; others may end inside a tile."""
    b = Builder(size[0], ties=size[0] % 2 == 0)
    x = b.quantize((5, *size), affine(U8))
    y = b.conv(x, 17, (3, 3), padding=SAME, spec=affine(S8))
    prepared = assert_same(b.graph(), route, 3, storage=storage)
    smallest = {Route.F2: 2, Route.F4: 4}[route]
    taken = route if min(size) >= smallest else Route.DIRECT
    assert kernel_of(prepared, y) is wanted_kernel(prepared, y, taken)


@pytest.mark.parametrize("storage", STORAGE)
@pytest.mark.parametrize("route", [Route.F2, Route.F4])
@pytest.mark.parametrize("padding", [((0, 0), (0, 0)), ((2, 2), (2, 2)), ((1, 0), (0, 1)), ((0, 2), (1, 0))])
def test_paddings_and_padded_consumers(storage, route, padding):
    """The result is written into the interior of a buffer with a border, which must stay zero."""
    b = Builder(1)
    x = b.quantize((17, 7, 9), affine(S8))
    x = b.conv(x, 5, (3, 3), padding=padding, spec=affine(U8))
    y = b.conv(x, 12, (3, 3), padding=SAME, spec=affine(S8))
    z = b.conv(x, 12, (5, 5), padding=((2, 2), (2, 2)), spec=affine(S8))
    prepared = assert_same(b.graph(b.add(y, z)), route, 3, storage=storage)
    assert kernel_of(prepared, y) is wanted_kernel(prepared, y, route)


@pytest.mark.parametrize("storage", STORAGE)
@pytest.mark.parametrize("route", [Route.F2, Route.F4])
@pytest.mark.parametrize("channels", [*range(1, 20), 31, 32, 33, 48, 64, 65, 127, 128, 129, 130])
def test_channels(storage, route, channels):
    b = Builder(channels, extreme=channels % 3 == 0)
    x = b.requantize(b.quantize((channels, 5, 6), affine(U8)), spec=affine(S8))
    y = b.conv(x, 131 - channels, (3, 3), padding=SAME, spec=affine(U8))
    prepared = assert_same(b.graph(), route, storage=storage)
    assert stored_as(prepared, y) is {"words": np.int16, "bytes": np.uint8}[storage]
    assert kernel_of(prepared, y) is wanted_kernel(prepared, y, route)


@pytest.mark.parametrize("storage", STORAGE)
@pytest.mark.parametrize("route", [Route.F2, Route.F4])
@pytest.mark.parametrize("rule", RoundingRule)
@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("ties", [False, True])
def test_rounding_rules(storage, route, rule, inside, ties):
    b = Builder(7, rule=rule, ties=ties, inside=inside)
    x = b.quantize((6, 7, 6), affine(S8))
    y = b.conv(x, 18, (3, 3), padding=SAME, spec=affine(U8))
    z = b.conv(y, 3, (3, 3), padding=SAME, spec=affine(S8), channels=False)
    prepared = assert_same(b.graph(), route, storage=storage)
    for name in (y, z):
        assert kernel_of(prepared, name) is wanted_kernel(prepared, name, route)


@pytest.mark.parametrize("route", [Route.F2, Route.F4, Route.FASTEST])
@pytest.mark.parametrize("count", [1, 2, 5, 31, 32, 33])
@pytest.mark.parametrize("storage", STORAGE)
def test_batches(route, count, storage):
    b = Builder(2)
    x = b.quantize((5, 12, 12), affine(U8))
    x = b.conv(x, 16, (3, 3), padding=SAME, spec=affine(U8))
    x = b.max_pool(b.conv(x, 20, (3, 3), padding=SAME, spec=affine(U8)), (2, 2))
    b.conv(x, 33, (3, 3), padding=SAME, spec=affine(U8))
    assert_same(b.graph(), route, count, storage=storage)


GRIDS = [
    (S8, None),
    (affine(U8), QuantSpec(8, symmetric=False, granularity=PerAxis(0))),
    (affine(S4), QuantSpec(4, granularity=PerAxis(0))),
    (U4, QuantSpec(8, signed=False, symmetric=False)),
    (affine(S8), QuantSpec(1, narrow=True, granularity=PerAxis(0))),
    (QuantSpec(1, narrow=True), QuantSpec(2)),
]


@pytest.mark.parametrize("storage", STORAGE)
@pytest.mark.parametrize("route", [Route.F2, Route.F4])
@pytest.mark.parametrize("index", range(len(GRIDS)))
@pytest.mark.parametrize("extreme", [False, True])
def test_grids(storage, route, index, extreme):
    spec, weights = GRIDS[index]
    b = Builder(index, extreme=extreme)
    y = b.conv(b.quantize((19, 6, 7), spec), 12, (3, 3), padding=SAME, weights=weights, spec=affine(S8))
    prepared = assert_same(b.graph(), route, storage=storage)
    assert kernel_of(prepared, y) is wanted_kernel(prepared, y, route)


@pytest.mark.parametrize(
    ("channels", "size", "route"),
    [
        (16, 32, Route.F4),
        (64, 8, Route.F4),
        (64, 56, Route.F4),
        (160, 14, Route.F2),
        (160, 28, Route.F4),
        (32, 3, Route.F2),
    ],
)
def test_the_choice_by_shape(channels, size, route):
    b = Builder(0)
    y = b.conv(b.quantize((channels, size, size), affine(U8)), channels, (3, 3), padding=SAME)
    for dots in STORAGE.values():
        prepared = prepare(b.graph(), dots=dots)
        assert kernel_of(prepared, y) is wanted_kernel(prepared, y, route)


@pytest.mark.parametrize("size", [8, 32, 56])
def test_vpdpbusd_on_bytes_is_faster_than_any_transform(size):
    """But not where it cannot be used, because the weights need nine bits."""
    b = Builder(0)
    x = b.conv(b.quantize((16, size, size), affine(U8)), 32, (3, 3), padding=SAME, spec=affine(U8))
    nine = QuantSpec(8, symmetric=False, granularity=PerAxis(0))
    y = b.conv(x, 32, (3, 3), padding=SAME, weights=nine)
    prepared = prepare(b.graph(), dots=(Dot.QUADS_VNNI, Dot.PAIRS))
    assert kernel_of(prepared, x) is conv2d_kernel(REGISTERS, Dot.QUADS_VNNI, 2, SINGLE)
    assert kernel_of(prepared, y) is wanted_kernel(prepared, y, Route.F4)


@pytest.mark.parametrize("registers", Registers)
@pytest.mark.parametrize("route", [Route.DIRECT, Route.F2, Route.F4])
@pytest.mark.parametrize("rule", [SINGLE, RoundingRule.FLOAT32_EVEN, RoundingRule.GEMMLOWP])
@pytest.mark.parametrize("count", [1, 7])
@pytest.mark.parametrize("storage", STORAGE)
def test_each_width_of_registers(registers, route, rule, count, storage):
    """A processor without them splits 512-bit vectors and gives the same. Weights of eight bits and of nine.

    Those of nine read words, where the others read bytes.
    """
    b = Builder(3, rule=rule, extreme=count > 1)
    x = b.conv(b.quantize((3, 9, 13), affine(U8)), 5, (5, 5), stride=(1, 2), padding=SAME, spec=affine(U8))
    nine = QuantSpec(8, symmetric=False, granularity=PerAxis(0))
    y = b.conv(x, 17, (3, 3), padding=SAME, weights=nine, spec=affine(S8))
    x = b.conv(y, 33, (1, 1), weights=nine, spec=affine(U8))
    x = b.linear(b.flatten(x), 70, spec=affine(U8))
    b.linear(x, 131, weights=nine, spec=affine(S8))
    prepared = assert_same(b.graph(), route, count, registers=registers, storage=storage)
    assert kernel_of(prepared, y) is wanted_kernel(prepared, y, route, registers)
    assert stored_as(prepared, y) is np.int16


@pytest.mark.parametrize("positions", [6, 12])
def test_products_cover_the_rows(positions):
    for rows in range(1, 60):
        large, fours = _groups(rows, positions)
        assert rows <= large * positions + 4 * fours <= rows + 3


def test_other_convolutions_are_direct():
    b = Builder(0)
    x = b.quantize((16, 9, 9), affine(U8))
    names = [
        b.conv(x, 8, (3, 3), stride=(1, 2)),
        b.conv(x, 8, (3, 3), dilation=(2, 1)),
        b.conv(x, 8, (1, 3)),
        b.conv(x, 8, (5, 5)),
    ]
    for storage in STORAGE:
        prepared = assert_same(b.graph(*names), Route.F4, storage=storage)
        assert all(kernel_of(prepared, name) is direct_kernel(prepared, name) for name in names)


class Given(Builder):
    """One convolution of given integer weights [O, C, 3, 3] over an input with a given zero point, scale 1.

    Its rounding rule is one that the transform does not finish, so that its sums reach memory.
    """

    def __init__(self, values, kind=None, weight_zero_point=0, zero_point=0):
        super().__init__(0, rule=RoundingRule.DYADIC)
        self.values, self.weight_zero_point, self.zero_point = values, weight_zero_point, zero_point
        self.kind = kind or QuantSpec(8, symmetric=False)

    def params(self, spec, scale=None):
        return QParams(np.float32(1), np.int32(0 if spec.symmetric else self.zero_point))

    def weights(self, shape, spec):
        assert self.values.shape == shape
        params = QParams(np.float32(1), np.int32(self.weight_zero_point))
        return QTensor(self.values.astype(self.kind.dtype), params, self.kind)


def assert_exact_sums(builder, spec, images, route, storage, taken=None):
    """``images`` are integers [N, C, H, W], zero point subtracted; ``taken`` is the route that is taken."""
    name = builder.conv(builder.quantize(images.shape[1:], spec), len(builder.values), (3, 3), channels=False)
    prepared = prepare(builder.graph(), route=route, dots=STORAGE[storage])
    step = prepared.steps[0]
    weights = builder.values.astype(np.int64) - builder.weight_zero_point
    is_byte = storage == "bytes" and weights.min() >= -128 and weights.max() <= 127
    assert stored_as(prepared, name) is (np.uint8 if is_byte else np.int16)
    stored = images.astype(np.int64) + (builder.zero_point - spec.qmin if is_byte else 0)
    windows = np.lib.stride_tricks.sliding_window_view(stored, (3, 3), axis=(2, 3))
    expected = np.einsum("nchwuv,ocuv->nhwo", windows, weights, optimize=True)
    for image, sums in zip(images, expected, strict=True):
        run(prepared, {"quantize0": image[None].astype(np.float32)})
        buffer = arena_for(prepared, 1).buffers[step.buffers[1]]
        np.testing.assert_array_equal(buffer[0, :, :, : len(weights)], sums)
    assert step.kernel is wanted_kernel(prepared, name, taken or route)


@pytest.mark.parametrize("route", [Route.F2, Route.F4])
@pytest.mark.parametrize("zero_point", [0, 255, 128, 77])
@pytest.mark.parametrize("weight_zero_point", [0, 127, -128])
@pytest.mark.parametrize("storage", STORAGE)
def test_ends_of_the_grids(route, zero_point, weight_zero_point, storage):
    """The input that makes each point of the transform largest, and smallest, against kernels of the two ends."""
    points = TRANSFORM[route].points
    rows = np.array(TRANSFORM[route].input_transform(np.eye(points, dtype=np.int64)))
    signs = np.sign(np.einsum("pi,qj->pqij", rows, rows)).reshape(-1, points, points)
    images = np.where(np.concatenate([signs, -signs]) > 0, 255 - zero_point, -zero_point)
    corners = np.array(list(np.ndindex(2, 2, 2)))
    kernels = (corners[:, None, :, None] ^ corners[None, :, None, :]).reshape(-1, 1, 3, 3)
    weights = np.where(np.repeat(kernels, 5, axis=1) == 1, 127, -128)
    b = Given(weights, weight_zero_point=weight_zero_point, zero_point=zero_point)
    images = np.repeat(images[:, None], 5, axis=1)
    assert_exact_sums(b, affine(U8), images, route, storage)


def weights_of_sum(total, sign):
    """[1, C, 3, 3] of as few channels as reach ``total``, all of one sign."""
    flat = np.full(-(-total // (9 * 127)) * 9, 127)
    rest = flat.sum() - total
    flat[: rest // 127] = 0
    flat[rest // 127] -= rest % 127
    assert flat.sum() == total
    return sign * flat.reshape(1, -1, 3, 3)


def constant_images(weights, *values):
    return np.array([np.full((weights.shape[1], 6, 6), value) for value in values])


# The largest magnitude of an s8 input as it is stored, and an input that has it
LARGEST = {"words": (128, -128), "bytes": (255, 127)}


@pytest.mark.parametrize("route", [Route.F2, Route.F4])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("storage", STORAGE)
def test_sums_at_the_limit(route, sign, storage):
    """The largest input times the sum of the weights just below the limit, and one above it."""
    largest, _ = LARGEST[storage]
    for extra, taken in ((0, route), (1, Route.DIRECT)):
        weights = weights_of_sum(TRANSFORM[route].limit // largest + extra, sign)
        assert_exact_sums(Given(weights), S8, constant_images(weights, -128, 127), route, storage, taken)


@pytest.mark.parametrize("storage", STORAGE)
def test_the_largest_sum_that_is_exact(storage):
    """31 divides 2**25 - 1: with 5-bit inputs the limit is met, and exceeded by the least that is possible."""
    for extra, route, taken in ((0, Route.F4, Route.F4), (1, Route.F4, Route.DIRECT), (1, Route.FASTEST, Route.F2)):
        weights = weights_of_sum(F4.limit // 31 + extra, 1)
        images = constant_images(weights, 31)
        assert_exact_sums(Given(weights), QuantSpec(5, signed=False), images, route, storage, taken)


@pytest.mark.parametrize("route", [Route.F2, Route.F4])
@pytest.mark.parametrize("storage", STORAGE)
def test_beyond_the_limit_it_would_be_wrong(route, storage, monkeypatch):
    """So the limit is no larger than it must be."""
    largest, value = LARGEST[storage]
    weights = weights_of_sum(TRANSFORM[route].limit // largest + 1, -1 if value < 0 else 1)
    monkeypatch.setattr("labkit.kernels.fast.winograd.is_exact", lambda *arguments: True)
    with pytest.raises(AssertionError, match="Mismatched elements"):
        assert_exact_sums(Given(weights), S8, constant_images(weights, value), route, storage)


def test_exactness_looks_at_the_signs():
    """Weights of both signs cannot all push in one direction when inputs are not negative."""
    weights = np.concatenate([weights_of_sum(F4.limit // 255, 1), weights_of_sum(F4.limit // 255, -1)], axis=1)
    assert is_exact(F4, weights, 0, 255)
    assert not is_exact(F4, weights, -128, 128)
    assert not is_exact(F4, np.abs(weights), 0, 255)


@pytest.mark.parametrize(("transform", "largest"), [(F2, 32767 // 9), (F4, 32767 // 49)])
def test_weights_that_leave_int16_are_not_exact(transform, largest):
    """Nine bits never get there; the check must hold by itself."""
    assert is_exact(transform, np.full((1, 1, 3, 3), largest), 0, 1)
    assert not is_exact(transform, np.full((1, 1, 3, 3), largest + 1), 0, 1)


def test_inputs_that_leave_int16_are_not_exact():
    one = np.ones((1, 1, 3, 3), np.int64)
    assert is_exact(F4, one, 0, 32767 // 68)
    assert not is_exact(F4, one, 0, 32767 // 68 + 1)
    assert is_exact(F4, one, -327, 327)
    assert not is_exact(F4, one, -328, 328)


def test_packed_weights():
    rng = np.random.default_rng(0)
    weights = rng.integers(-255, 256, (17, 5, 3, 3))
    panels = pack_planes(F4, weights, 16)
    assert (panels.shape, panels.dtype) == ((2, 36, 8, 16, 2), np.int16)
    for plane, o, c in np.ndindex(36, 17, 5):
        u, v = divmod(plane, 6)
        expected = F4.weights[u] @ weights[o, c] @ F4.weights[v]
        assert panels[o // 16, plane, c // 2, o % 16, c % 2] == expected
    assert np.abs(panels.astype(int)).sum() == sum(
        abs(F4.weights[u] @ weights[o, c] @ F4.weights[v]) for u, v, o, c in np.ndindex(6, 6, 17, 5)
    )
    assert pack_planes(F2, np.ones((1, 1, 3, 3), int), 16).dtype == np.int16
