"""Graphs drawn at random from all operations: the fast tier against the reference tier, every node, tolerance 0."""

from __future__ import annotations

import math
import re
from collections import Counter

import numpy as np
import pytest
from unit.engine.graphs import S4, S8, S16, U4, U8, WAYS, Builder, affine
from unit.engine.test_run import assert_same

from labkit.arithmetic.affine import PerAxis, QuantSpec
from labkit.arithmetic.requantize import RoundingRule
from labkit.engine.prepare import Route, prepare
from labkit.graph import int_ops

GRIDS = [S8, affine(S8), affine(U8), S4, affine(S4), affine(U4)]
# Of eight bits, of four, which nibbles take too, and of nine, which need words
WEIGHTS = [QuantSpec(4, granularity=PerAxis(0)), QuantSpec(4), None, None, QuantSpec(8, symmetric=False)]
LARGEST = 1200  # elements of a tensor, so that the reference tier is quick
RULES = [
    *(RoundingRule.SINGLE, RoundingRule.GEMMLOWP, RoundingRule.DYADIC, RoundingRule.FLOAT32_EVEN),
    *(RoundingRule.FLOAT32_TWICE, RoundingRule.SINGLE, RoundingRule.GEMMLOWP_UP),
]


def _one_of(choices, rng):
    return choices[int(rng.integers(len(choices)))]


def _edge(rng, most=2):
    return int(rng.integers(0, most + 1)), int(rng.integers(0, most + 1))


def _window(b, x, rng):
    """A kernel, stride and padding that fit the image or sequence ``x``; padding is smaller than the kernel."""
    is_image = len(b[x].shape) == 3
    size = b[x].shape[1:] if is_image else (1, b[x].shape[1])
    kernel = tuple(int(rng.integers(1, min(3, length) + 1)) for length in size)
    stride = (int(rng.integers(1, 3)) if is_image else 1, int(rng.integers(1, 3)))
    return kernel, stride, tuple(_edge(rng, k - 1) for k in kernel)


def _convolution(b, x, rng, spec):
    kernel, stride, padding = _window(b, x, rng)
    channels = b[x].shape[0]
    groups = int(rng.choice([1, channels, math.gcd(channels, 2)]))
    outputs = groups * int(rng.integers(1, 4)) if groups > 1 else int(rng.integers(1, 20))
    weights = _one_of(b.kinds, rng)
    return b.conv(x, outputs, kernel, stride=stride, padding=padding, groups=groups, weights=weights, spec=spec)


def _max_pool(b, x, rng, spec):
    kernel, stride, padding = _window(b, x, rng)
    return b.max_pool(x, kernel, stride=stride, padding=padding)


def _average_pool(b, x, rng, spec):
    kernel, stride, padding = _window(b, x, rng)
    return b.average_pool(x, kernel, stride=stride, padding=padding, spec=spec)


def _adaptive(b, x, rng, spec):
    size = b[x].shape[1:] if len(b[x].shape) == 3 else (1, b[x].shape[1])
    return b.adaptive_average_pool(x, tuple(int(rng.integers(1, length + 1)) for length in size), spec=spec)


def _pad(b, x, rng, spec):
    return b.pad(x, (_edge(rng) if len(b[x].shape) == 3 else (0, 0), _edge(rng)))


def _upsample(b, x, rng, spec):
    return b.upsample(x, (int(rng.integers(1, 4)) if len(b[x].shape) == 3 else 1, int(rng.integers(1, 4))))


def _reshape(b, x, rng, spec):
    left, shape = math.prod(b[x].shape), []
    while left > 1 and len(shape) < 4:
        divisors = [d for d in range(2, left + 1) if left % d == 0]
        shape.append(int(rng.choice(divisors)))
        left //= shape[-1]
    return b.reshape(x, (*shape, left) if left > 1 or not shape else shape)


def _transpose(b, x, rng, spec):
    return b.transpose(x, [int(axis) for axis in rng.permutation(len(b[x].shape))])


def _softmax(b, x, rng, spec):
    return b.softmax(x, int(rng.integers(len(b[x].shape))), spec=affine(U8), bits=int(rng.integers(1, 9)))


def _softmax_of_runtime(b, x, rng, spec):
    axis, eight = int(rng.integers(len(b[x].shape))), affine(_one_of([S8, U8], rng))
    made = _one_of([b.softmax_fixed_point, b.softmax_by_reciprocal, b.softmax_float32], rng)
    return made(x, axis, spec=eight)


def _mean(b, x, rng, spec):
    axes = [axis for axis in range(len(b[x].shape)) if rng.random() < 0.6]
    return b.mean_float32(x, axes or [0], spec=spec)


def _pool_of_valid(b, x, rng, spec):
    kernel, stride, padding = _window(b, x, rng)
    return b.pool_of_valid(x, kernel, stride=stride, padding=padding, offset=int(rng.choice([0, 128])))


def _pool_float32(b, x, rng, spec):
    kernel, stride, padding = _window(b, x, rng)
    return b.pool_float32(x, kernel, stride=stride, padding=padding, spec=spec, counts_padding=bool(rng.integers(2)))


def _argmax(b, x, rng, spec):
    return b.argmax(x, int(rng.integers(len(b[x].shape))), keepdims=bool(rng.integers(2)))


def _partner(b, x, rng, like, bits=8):
    """Another tensor of the shape ``like`` and of at most so many ``bits``: one that is there already, or a new input."""
    outputs = ((node.name, node.output) for node in b.nodes if not node.output.is_index)
    same = [name for name, output in outputs if output.shape == like and output.spec.bits <= bits]
    if same and rng.random() < 0.8:
        return str(rng.choice(same))
    return b.constant(like, _one_of(b.grids, rng)) if rng.random() < 0.2 else _border(b, like, rng)


def _border(b, shape, rng):
    """A new tensor from outside."""
    ways = [b.quantize, b.quantize, b.input, b.input, b.quantize_by_reciprocal, b.quantize_away_from_zero]
    return _one_of(ways, rng)(shape, _one_of(b.grids, rng))


def _multiply(b, x, rng, spec):
    shape = b[x].shape
    like = (shape[0], *(1 for _ in shape[1:])) if len(shape) in (2, 3) and rng.random() < 0.5 else shape
    pair = [x, _partner(b, x, rng, like)]
    return b.multiply(*(pair if rng.random() < 0.5 else pair[::-1]), spec=spec)


def _add(b, x, rng, spec):
    return b.add(x, _partner(b, x, rng, b[x].shape, 16), spec=spec, shift=int(rng.choice([30, 30, 20, 12])))


def _add_of_runtime(b, x, rng, spec):
    pair = x, _partner(b, x, rng, b[x].shape)
    if rng.random() < 0.3:
        rule = _one_of([RoundingRule.GEMMLOWP, RoundingRule.GEMMLOWP_UP], rng)
        return b.add_fixed_point(*pair, spec=spec, rule=rule, subtracts=bool(rng.integers(2)))
    return _one_of([b.add_float32, b.add_away_from_zero, b.add_dequantized], rng)(*pair, spec=spec)


def _concat(b, x, rng, spec):
    return b.concat(x, _partner(b, x, rng, b[x].shape), x, spec=spec)


def _linear(b, x, rng, spec):
    return b.linear(b.flatten(x), int(rng.integers(1, 24)), weights=_one_of(b.kinds, rng), spec=spec)


def _requantize(b, x, rng, spec):
    return b.requantize(x, spec=spec, gain=2.0 ** (spec.bits - b[x].spec.bits))


def _flatten(b, x, rng, spec):
    return b.flatten(x)


def _centred(b, x):
    """``x``, or its numbers at 16 bits, with the zero point 0."""
    return b.requantize(x, spec=S16, gain=2.0 ** (16 - b[x].spec.bits)) if b[x].params.zero_point else x


def _embedding(b, x, rng, spec):
    """It has nothing to do with ``x``; indices are from outside, or those of the largest of a tensor."""
    if len(b[x].shape) == 2 and rng.random() < 0.5:
        indices, rows = b.argmax(x, 0), b[x].shape[0]
    else:
        indices, rows = b.index(int(rng.integers(1, 24))), int(rng.integers(1, 40))
    wide = S16 if rng.random() < 0.7 else spec
    return b.embedding(indices, rows, int(rng.integers(1, 40)), spec=wide, per_row=bool(rng.integers(2)))


def _layer_norm(b, x, rng, spec):
    shape = b[x].shape
    if len(shape) != 2:
        x = b.reshape(x, (shape[0], math.prod(shape[1:])))
    return b.layer_norm(_centred(b, x), spec=S16 if rng.random() < 0.7 else S8)


def _gelu(b, x, rng, spec):
    return b.gelu(_centred(b, x), spec=S16 if rng.random() < 0.2 else spec)


def _mask(b, length, rng):
    return b.input((length,), affine(U8)) if rng.random() < 0.5 else b.input((length,), U4)


def _softmax_polynomial(b, x, rng, spec):
    mask = _mask(b, b[x].shape[-1], rng) if rng.random() < 0.6 else None
    return b.softmax_polynomial(x, mask, spec=_one_of([U8, S8, U4, S16], rng), bits=int(rng.integers(1, 9)))


def _matrices(b, x, rng):
    """``x`` with three axes: some matrices."""
    shape = b[x].shape
    if len(shape) == 3:
        return x
    batch = int(rng.choice([d for d in range(1, shape[0] + 1) if shape[0] % d == 0]))
    return b.reshape(x, (batch, shape[0] // batch, math.prod(shape[1:])))


def _matmul(b, x, rng, spec):
    x = _matrices(b, x, rng)
    batch, rows, columns = b[x].shape
    turns, turns_other, is_first = (bool(rng.integers(2)) for _ in range(3))
    inner, free = (rows if turns == is_first else columns), int(rng.integers(1, 20))
    is_inner_first = is_first != turns_other
    other = _partner(b, x, rng, (batch, inner, free) if is_inner_first else (batch, free, inner))
    if is_first:
        return b.matmul(x, other, transpose_a=turns, transpose_b=turns_other, spec=spec)
    return b.matmul(other, x, transpose_a=turns_other, transpose_b=turns, spec=spec)


def _attention(b, x, rng, spec):
    """As in a transformer, with heads of any size."""
    shape = b[x].shape
    if len(shape) != 2:
        x = b.reshape(x, (shape[0], math.prod(shape[1:])))
    length, heads, width = b[x].shape[1], int(rng.integers(1, 5)), int(rng.choice([1, 3, 8, 16]))
    split = heads, width, length
    query, key, value = (b.reshape(b.conv(x, heads * width, (1, 1), spec=spec), split) for _ in range(3))
    scores = b.matmul(query, key, transpose_a=True, spec=_one_of([S16, S8], rng))
    shares = b.softmax_polynomial(scores, _mask(b, length, rng) if rng.random() < 0.7 else None)
    context = b.matmul(value, shares, transpose_b=True, spec=spec, gain=8.0)
    return b.reshape(context, (heads * width, length))


ANY = [_reshape, _reshape, _transpose, _softmax, _argmax, _multiply, _add, _linear, _flatten, _requantize]
ANY += [_add_of_runtime, _add_of_runtime, _softmax_of_runtime, _softmax_of_runtime, _mean]
ANY += [lambda b, x, rng, spec: b.lookup(x, spec=spec)]
ANY += [_embedding, _gelu, _layer_norm, _softmax_polynomial, _matmul, _attention]
OF_WORDS = [_reshape, _transpose, _flatten, _add, _requantize, _requantize, _gelu, _layer_norm, _softmax_polynomial]
TO_WORDS = [_requantize, _add, _linear, _matmul]  # and convolutions
WITH_WINDOW = [_convolution, _convolution, _max_pool, _average_pool, _adaptive, _pad, _upsample, _concat, _multiply]
WITH_WINDOW += [_pool_of_valid, _pool_float32]


def random_graph(seed, small=False):
    """``small`` : all of four bits, but a fifth of the weights."""
    rng = np.random.default_rng(seed)
    kind = {"ties": seed % 3 == 0, "extreme": seed % 3 == 1, "inside": seed % 4 == 0, "biased": seed % 2 == 0}
    b = Builder(seed, rule=RULES[seed % len(RULES)], **kind)
    b.grids, b.kinds = (GRIDS[3:], 2 * WEIGHTS[:2] + [None]) if small else (GRIDS, WEIGHTS)
    shape = [(3, 7, 6), (4, 20), (30,), (17, 4, 4), (2, 3, 2, 3)][seed % 5]
    tensors = [_border(b, shape, rng)]
    for _ in range(15):
        x = str(rng.choice(tensors[-4:]))
        choices = ANY + (2 * WITH_WINDOW if len(b[x].shape) in (2, 3) else [])
        step = _one_of(OF_WORDS if b[x].spec.is_wide else choices, rng)
        makes_words = step in (*TO_WORDS, _convolution) and rng.random() < 0.2
        name = step(b, x, rng, S16 if makes_words else _one_of(b.grids, rng))
        if not b[name].is_index and math.prod(b[name].shape) <= LARGEST:
            tensors.append(name)
    ends = [node.name for node in b.nodes if rng.random() < 0.3 or node.output.is_index]
    return b.graph(*ends, b.dequantize(tensors[-1]))


@pytest.mark.parametrize("seed", range(80))
def test_random_graph(seed):
    assert_same(random_graph(seed), images=1 + seed % 5, seed=seed)


def way_of(seed):
    """One of all ways to multiply, each with every route in turn."""
    registers, dots = WAYS[seed % len(WAYS)]
    return {"registers": registers, "dots": dots, "route": list(Route)[seed // len(WAYS) % len(Route)]}


def graph_for_way(seed):
    return random_graph(seed, small=way_of(seed)["dots"][0].sums_int16)


@pytest.mark.parametrize("seed", range(80, 160))
def test_random_graph_by_every_way_to_multiply(seed):
    assert_same(graph_for_way(seed), images=1 + seed % 5, seed=seed, **way_of(seed))


def test_every_way_multiplies_in_random_graphs():
    used = Counter()
    for seed in range(80, 160):
        for step in prepare(graph_for_way(seed), **way_of(seed)).steps:
            used.update({f"_{r.value}_{dots[0].value}_" for r, dots in WAYS} & {part_of(step.kernel.__name__)})
    assert len(used) == len(WAYS), used
    assert min(used.values()) >= 3, used


def part_of(kernel):
    """From conv2d_512_quads_vnni_wide_single the part _512_quads_vnni_."""
    name = re.fullmatch("conv2d(_[0-9]+_[a-z0-9_]+_)(narrow|wide|threes)_.*", kernel)
    return name and name[1]


def test_every_operation_is_drawn():
    drawn = Counter(type(node.op).__name__ for seed in range(80) for node in random_graph(seed))
    assert min(drawn.values()) >= 10, drawn
    assert {*drawn, "IntOp"} == {*int_ops.__all__}
