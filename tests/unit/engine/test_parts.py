"""Every kernel divides its work: parts 0 .. p - 1 of p, in any order, leave what part 0 of 1 leaves, and none can be left out."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from unit.engine.graphs import S8, S16, U4, U8, WAYS, Builder, affine, encoder, images_for, way_name
from unit.engine.test_random_graphs import random_graph

from labkit.arithmetic.affine import PerAxis, QuantSpec
from labkit.arithmetic.requantize import RoundingRule
from labkit.engine.arena import arena_for, exit_call
from labkit.engine.prepare import Dot, Purpose, Registers, Route, prepare
from labkit.engine.run import trace
from labkit.errors import BoundError
from labkit.kernels import fast

W4 = QuantSpec(4, granularity=PerAxis(0))
SAME = ((1, 1), (1, 1))
PARTS = [2, 3, 5, 7, 64]


def assert_parts_agree(call, target, kept, scratch=(), seed=0):
    """Compare ``target`` after ``call(part, parts)`` for all parts with what part 0 of 1 leaves.

    target : array that the call writes; it holds the result, and other things where the call leaves them alone
    kept : arrays that the call reads and must leave alone
    scratch : arrays that hold nothing from one part to the next
    """
    rng, right, before = np.random.default_rng(seed), target.copy(), [array.copy() for array in kept]
    empty = -1 - target if target.dtype == np.float32 else ~target  # every element other than it will be

    def ran(parts, order):
        target[...] = empty
        outcome = 0
        for part in order:
            for array in scratch:
                array[...] = 85
            outcome += call(part, parts)
        return outcome

    outcome = ran(1, [0])
    whole = target.copy()
    assert not np.array_equal(whole, empty)
    for parts in PARTS:
        assert ran(parts, rng.permutation(parts).tolist()) == outcome
        np.testing.assert_array_equal(target, whole, err_msg=f"{parts} parts")
        ran(parts, range(parts - 1))
        assert not np.array_equal(target, whole), f"the last of {parts} parts does nothing"
    target[...] = right
    for array, old in zip(kept, before, strict=True):
        np.testing.assert_array_equal(array, old)


def assert_steps_agree(prepared, count):
    """For every kernel call of a run of ``count`` images, at most a chunk; return the names of the kernels."""
    inputs = images_for(prepared.graph, count)
    traced = trace(prepared, inputs)  # so that every buffer holds its tensor
    arena = arena_for(prepared, count, keeps_all=True)
    names = set()
    for entry in prepared.entries:
        place, real = entry.place, inputs[entry.node.name].reshape(count, *entry.place.image)
        names.add(entry.kernel.__name__)

        def enter(part, parts, entry=entry, place=place, real=real):
            return entry.kernel(part, parts, count, real, arena.buffers[place.buffer], entry.numbers, place.corner)

        assert_parts_agree(enter, arena.buffers[place.buffer][:count], [real])
    for step, (_, kernel, whole, arguments) in zip(prepared.steps, arena.calls, strict=True):
        chosen = step.kernel_for_one if count == 1 and step.kernel_for_one else step.kernel
        names.add(chosen.__name__)
        assert whole == (0, 1)
        numbers = [number for number in step.buffers if number >= 0]
        *sources, target = (number for number in numbers if prepared.buffers[number].is_per_image)
        scratch = [arena.buffers[number] for number in numbers if not prepared.buffers[number].is_per_image]

        def run_step(part, parts, kernel=kernel, arguments=arguments):
            return kernel(part, parts, count, *arguments)

        kept = [arena.buffers[number] for number in sources if number != target]
        assert_parts_agree(run_step, arena.buffers[target][:count], kept, scratch, len(names))
    for way in prepared.exits.values():
        if way.scale is None and (way.node.name not in prepared.graph.outputs or way.node.output.is_index):
            continue
        buffer, result = arena.buffers[way.place.buffer], traced[way.node.name].reshape(count, *way.place.image).copy()
        kernel, arguments = exit_call(way, buffer, result)
        names.add(kernel.__name__)

        def leave(part, parts, kernel=kernel, arguments=arguments):
            return kernel(part, parts, count, *arguments)

        assert_parts_agree(leave, result, [buffer])
    return names


def layers(weights, grid):
    """A convolution of some panels, one of a single panel, and Linear layers of as many panels as a tile takes and more."""
    b = Builder(3)
    x = b.conv(b.quantize((5, 9, 8), affine(grid)), 48, (3, 3), weights=weights, spec=affine(grid), padding=SAME)
    x = b.conv(b.max_pool(x, (2, 2)), 9, (1, 1), weights=weights, spec=affine(grid))
    x = b.linear(b.flatten(x), 112, weights=weights, spec=affine(grid))
    return b.graph(b.dequantize(b.linear(x, 10, weights=weights, spec=affine(S8))))


def grouped():
    b = Builder(4)
    x = b.quantize((20, 8, 9), affine(U8))
    x = b.conv(x, 20, (3, 3), groups=20, spec=affine(U8), padding=SAME)
    x = b.conv(x, 20, (3, 3), groups=20, spec=affine(U8), padding=SAME, stride=(2, 2))
    x = b.conv(x, 20, (2, 2), groups=20, spec=affine(U8))
    x = b.conv(x, 10, (1, 1), groups=2, spec=affine(U8))
    return b.graph(b.dequantize(b.flatten(x)))


@cache
def nets():
    """Name to what is prepared and with how many images it runs."""
    found = {}
    for registers, dots in WAYS:
        weights, grid = (W4, U4) if dots[0].sums_int16 else (None, U8)
        ready = prepare(layers(weights, grid), registers=registers, dots=dots, route=Route.DIRECT)
        found[way_name((registers, dots))] = ready, (1, 2, 19)
    for route in (Route.F2, Route.F4):
        for dots in ((Dot.PAIRS,), (Dot.QUADS, Dot.PAIRS)):
            b = Builder(5)
            x = b.conv(b.quantize((5, 19, 13), affine(U8)), 33, (3, 3), spec=affine(U8), padding=SAME)
            b.conv(x, 10, (3, 3), spec=affine(U8))
            found[f"{route.value}-{dots[0].value}"] = prepare(b.graph(), route=route, dots=dots), (1, 2, 11)
    for dots in ((Dot.PAIRS,), (Dot.QUADS, Dot.PAIRS)):
        found[f"grouped-{dots[0].value}"] = prepare(grouped(), registers=Registers.BITS_512, dots=dots), (1, 3)
    for rule in RoundingRule:
        found[f"grouped-{rule.value}"] = prepare(with_rule(rule)), (1, 3)
    for index, rule in enumerate([RoundingRule.SINGLE, RoundingRule.DYADIC, RoundingRule.FLOAT32_EVEN]):
        registers = list(Registers)[index % 2]
        sentences = encoder(index, 5 + 20 * index, features=(9, 32, 48)[index], heads=(3, 2, 3)[index], rule=rule)
        found[f"sentences-{rule.value}"] = prepare(sentences, registers=registers), (1, 3)
    found["attention"] = prepare(attention()), (1, 3)
    found["signs"] = prepare(signs_and_sums()), (1, 3)
    found["four bits"] = prepare(layers(W4, U8), purpose=Purpose.MEMORY), (1,)
    found["four bits of a large layer"] = prepare(large(), dots=(Dot.QUADS, Dot.PAIRS), purpose=Purpose.MEMORY), (1,)
    for registers, dots in WAYS:
        found[f"large {way_name((registers, dots))}"] = prepare(large(), registers=registers, dots=dots), (1, 9)
    for seed in range(24):
        found[f"random {seed}"] = prepare(random_graph(seed)), (1 + seed % 4,)
    return found


def with_rule(rule):
    b = Builder(6, rule=rule)
    x = b.conv(b.quantize((3, 8, 7), affine(S8)), 20, (3, 3), spec=affine(U8), padding=SAME)
    y = b.conv(x, 20, (3, 3), groups=20, spec=affine(U8), padding=SAME)
    y = b.conv(y, 20, (1, 2), groups=20, spec=affine(U8), padding=((0, 0), (0, 1)))
    x = b.multiply(b.concat(x, y, spec=affine(S8)), b.requantize(b.concat(y, x)))
    x = b.adaptive_average_pool(b.average_pool(x, (2, 2)), (2, 2))
    return b.graph(b.dequantize(b.linear(b.flatten(x), 20)))


def signs_and_sums():
    """Binary inputs, and an addition whose multipliers do not split; inputs wide enough to be taken some pixels at a time."""
    b = Builder(8)
    x = b.conv(b.quantize((3, 8, 40), QuantSpec(1, narrow=True)), 5, (3, 3), spec=affine(U8), padding=SAME)
    y = b.conv(b.quantize((1, 8, 40), affine(U8)), 5, (1, 1), spec=affine(U8))
    z = b.conv(b.quantize((3, 8, 40), affine(U8)), 5, (1, 1), spec=affine(U8))
    return b.graph(b.dequantize(b.add(b.add(x, y, shift=12), z)))


def attention():
    """Results whose rows lie side by side leave the network, as integers and as real numbers; constants beyond int32."""
    b = Builder(9)
    x = b.reshape(b.input((12, 9), affine(U8)), (3, 4, 9))
    scores = b.matmul(x, x, transpose_a=True, spec=S16)
    shares = b.softmax_polynomial(scores)
    gelu = b.gelu(scores, scale=1e-3)
    node = b.nodes[-1]
    b.nodes[-1] = replace(node, op=replace(node.op, b=-40_000, c=-(10**9), one=-100))
    lone = b.softmax_polynomial(b.requantize(b.reshape(gelu, (27, 9)), spec=S16), b.input((9,), U8))
    return b.graph(scores, shares, gelu, b.dequantize(scores), b.dequantize(shares), lone)


def large():
    b = Builder(7)
    return b.graph(b.linear(b.quantize((1100,), affine(U8)), 130, weights=W4, spec=affine(U8)))


@cache
def names_of(net):
    prepared, counts = nets()[net]
    return set.union(*(assert_steps_agree(prepared, count) for count in counts if count <= prepared.chunk))


@pytest.mark.parametrize("net", nets())
def test_parts_leave_what_the_whole_leaves(net):
    assert names_of(net)


def kernels_of_modules():
    """Names of all kernels that are made when their module is imported."""
    found = set()
    for info in pkgutil.iter_modules(fast.__path__):
        for value in vars(importlib.import_module(f"{fast.__name__}.{info.name}")).values():
            for kernel in value.values() if isinstance(value, Mapping) else [value]:
                function = getattr(kernel, "py_func", None)
                if function is not None and {"parts", "images"} <= inspect.signature(function).parameters.keys():
                    found.add(kernel.__name__)
    return found


def test_every_kernel_was_divided():
    """Those of the modules by name, and of those that are made on demand each way to multiply and each kind."""
    divided = set().union(*(names_of(net) for net in nets()))
    assert len(kernels_of_modules()) > 20
    assert kernels_of_modules() <= divided
    for registers, dots in WAYS:
        for kind in ("conv2d", "linear_one"):
            assert any(name.startswith(f"{kind}_{registers.value}_{dots[0].value}_") for name in divided)
    for kind in (
        "conv2d_nibbles conv3x3_f2 conv3x3_f4 depthwise_rows linear_nibbles quantize_1 quantize_3 conv2d.*_wide conv2d.*_sums "
        "embedding_single gelu_256 matmul_.*_wide matmul_.*_narrow matmul_sums"
    ).split():
        assert any(re.match(kind, name) for name in divided), kind


def test_the_bound_that_is_broken_is_counted_once():
    """GEMMLOWP shifts left by more than these sums bear; the parts tell of as many elements as the whole."""
    b = Builder(8, rule=RoundingRule.GEMMLOWP)
    b.conv(b.quantize((3, 5, 5), affine(S8)), 5, (3, 3), gain=2.0**30)
    prepared = prepare(b.graph())
    with pytest.raises(BoundError):
        trace(prepared, images_for(prepared.graph, 2))
    arena = arena_for(prepared, 2, keeps_all=True)
    _, kernel, _, arguments = arena.calls[-1]
    whole = kernel(0, 1, 2, *arguments)
    assert whole > 1
    for parts in PARTS:
        assert sum(kernel(part, parts, 2, *arguments) for part in range(parts)) == whole


def test_a_part_that_does_too_little_is_noticed():
    source, target = np.arange(40), np.arange(40)

    def forgets_the_rest(part, parts):
        length = len(source) // parts  # 40 does not divide by 3
        target[part * length : (part + 1) * length] = source[part * length : (part + 1) * length]
        return 0

    with pytest.raises(AssertionError, match="3 parts"):
        assert_parts_agree(forgets_the_rest, target, [source])
