"""A net whose borders are integers, or whose source has the channels last: what it takes, returns and refuses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from unit.engine.graphs import S8, U8, Builder, affine
from unit.graph.builders import operations_of_runtimes
from unit.net.inputs import integers_for

from labkit.engine.node_by_node import run_nodes
from labkit.errors import InputError
from labkit.graph import int_ops
from labkit.graph.ir import IntGraph
from labkit.kernels.kernel_set import REFERENCE
from labkit.net import IntegerNet

TIERS = ("numba", "reference")


def classifier(signed: bool = True, last: bool = False, real: bool = False) -> IntegerNet:
    """Integers in and out (``real``: in real numbers): an image, its channels ``last`` or first, to one row of ten."""
    b = Builder(3)
    grid = affine(S8 if signed else U8)
    x = (b.quantize if real else b.input)((3, 6, 5), grid)
    y = b.max_pool(b.conv(x, 8, (3, 3), padding=((1, 1), (1, 1)), spec=grid), (2, 2))
    b.linear(b.flatten(y), 10, spec=grid)
    graph = b.graph()
    if not last:
        return IntegerNet(graph)
    turned = [
        replace(node, output=replace(node.output, channels_last=True)) if len(node.output.shape) == 3 else node
        for node in graph
    ]
    return IntegerNet(IntGraph(tuple(turned), graph.outputs))


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("count", [1, 7, 70])
def test_integers_in_and_out(tier: str, signed: bool, count: int) -> None:
    net = classifier(signed)
    (x,) = integers_for(net, count).values()
    y = net.run(x, kernels=tier)
    assert x.dtype == y.dtype == (np.int8 if signed else np.uint8)
    assert y.shape == (count, 10)
    expected = run_nodes(net.graph, {net.graph.inputs[0]: x}, REFERENCE)
    assert np.array_equal(y, expected[net.graph.outputs[0]])
    trace = net.trace(x, kernels=tier)
    assert all(np.array_equal(trace[node.name], expected[node.name]) for node in net.graph)
    assert np.array_equal(trace[net.graph.inputs[0]], x)


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("real", [False, True])
def test_channels_last_is_the_same_net_turned(tier: str, real: bool) -> None:
    first, last = classifier(real=real), classifier(last=True, real=real)
    (x,) = integers_for(last).values()
    assert x.shape == (5, 6, 5, 3)
    turned = np.moveaxis(x, -1, 1)
    assert np.array_equal(last.run(x, kernels=tier), first.run(turned, kernels=tier))
    traces = last.trace(x, kernels=tier), first.trace(turned, kernels=tier)
    for name, array in traces[0].items():
        assert array.flags.c_contiguous
        other = traces[1][name]
        assert np.array_equal(array, np.moveaxis(other, 1, -1) if other.ndim == 4 else other)
        assert array.dtype == other.dtype
    conv = next(node.name for node in last.graph if isinstance(node.op, int_ops.Conv2d))
    assert traces[0][conv].shape == (5, 6, 5, 8)


@pytest.mark.parametrize("tier", TIERS)
def test_an_output_with_channels_last(tier: str) -> None:
    graph = operations_of_runtimes()
    net = IntegerNet(graph)
    given = integers_for(net)
    results, expected = net.run(given, kernels=tier), net.trace(given, kernels="reference")
    assert set(results) == set(graph.outputs)
    for name, array in results.items():
        assert array.shape == (5, *graph[name].output.source_shape)
        assert np.array_equal(array, expected[name])


@pytest.mark.parametrize("tier", TIERS)
def test_integers_of_any_type_are_taken_if_they_lie_on_the_grid(tier: str) -> None:
    net = classifier()
    (x,) = integers_for(net).values()
    expected = net.run(x, kernels=tier)
    for given in (x.astype(np.int64), x.astype(np.int16), torch.from_numpy(x), x.tolist(), x[:, ::-1][:, ::-1]):
        assert np.array_equal(net.run(given, kernels=tier), expected)


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("last", [False, True])
def test_what_an_integer_input_refuses(tier: str, last: bool) -> None:
    net = classifier(last=last)
    (name,), (x,) = net.graph.inputs, integers_for(net).values()
    refused: list[tuple[Any, str]] = [
        (
            x.astype(np.float32),
            rf"{name}' must hold integers \(int8\), got float32\. Quantize real numbers first: round",
        ),
        (x > 0, "must hold integers .int8., got bool"),
        (x.astype(np.int16) + 200, r"must hold integers of -128\.\.127, got 72\.\.327"),
        (x.astype(np.int64) - 2**40, r"must hold integers of -128\.\.127, got -"),
        (x[0], r"Add a batch axis: x\[None\]"),
        (x[:, :, 1:], r"must have shape \('N', .*Resize the images"),
        (np.zeros((2, 3), np.int8), r"got \(2, 3\)"),
        (np.zeros((0, 3), np.int8), r"got \(0, 3\)"),
    ]
    if last:
        refused.append(
            (np.moveaxis(x, -1, 1), r"must have shape \('N', 6, 5, 3\), got \(5, 3, 6, 5\)\. Here the channel axis")
        )
    for given, words in refused:
        with pytest.raises(InputError, match=words):
            net.run(given, kernels=tier)
        with pytest.raises(InputError, match=words):
            net.trace({name: given}, kernels=tier)


def test_a_grid_of_fewer_bits_refuses_what_it_does_not_hold() -> None:
    b = Builder(0)
    b.lookup(b.input((4,), affine(replace(U8, bits=3))), spec=S8)
    net = IntegerNet(b.graph())
    assert net.run(np.array([[0, 7, 3, 1]])).shape == (1, 4)
    with pytest.raises(InputError, match=r"integers of 0\.\.7, got 0\.\.8"):
        net.run(np.array([[0, 8, 3, 1]]))


@pytest.mark.parametrize("tier", TIERS)
def test_real_numbers_are_still_wanted_where_a_net_quantizes(tier: str) -> None:
    net = classifier(real=True)
    with pytest.raises(InputError, match="must hold real numbers .float32., got int8"):
        net.run(np.zeros((1, 3, 6, 5), np.int8), kernels=tier)


@pytest.mark.parametrize("tier", TIERS)
def test_several_inputs_by_name(tier: str) -> None:
    net = IntegerNet(operations_of_runtimes())
    given = integers_for(net)
    names = net.graph.inputs
    assert len(names) > 1
    expected = net.run(given, kernels=tier)
    turned = net.run(dict(reversed(given.items())), kernels=tier)
    assert all(np.array_equal(turned[name], array) for name, array in expected.items())
    with pytest.raises(InputError, match=f"{names[0]}, {names[1]}.*: give a dict of arrays by these names"):
        net.run(given[names[0]], kernels=tier)
    with pytest.raises(InputError, match=f"takes the inputs {names[0]}, .*, got {names[0]}"):
        net.run({names[0]: given[names[0]]}, kernels=tier)
    with pytest.raises(InputError, match="got .*, other"):
        net.run({**given, "other": given[names[0]]}, kernels=tier)
    with pytest.raises(InputError, match=f"one batch size, got {names[0]}: 4, {names[1]}: 5"):
        net.run({**given, names[0]: given[names[0]][:4]}, kernels=tier)


@pytest.mark.parametrize("tier", TIERS)
def test_no_images(tier: str) -> None:
    net = classifier(last=True)
    y = net.run(np.zeros((0, 6, 5, 3), np.int8), kernels=tier)
    assert (y.shape, y.dtype) == ((0, 10), np.int8)


def test_the_callers_array_is_left_alone_and_not_returned() -> None:
    """A net that puts its input out returns a copy."""
    b = Builder(0)
    x = b.input((3, 4, 4), S8)
    net = IntegerNet(b.graph(x))
    given = np.random.default_rng(0).integers(-128, 128, (3, 3, 4, 4)).astype(np.int8)
    kept = given.copy()
    for tier in TIERS:
        y = net.run(given, kernels=tier)
        assert not np.shares_memory(y, given)
        assert np.array_equal(y, kept)
    assert np.array_equal(given, kept)
