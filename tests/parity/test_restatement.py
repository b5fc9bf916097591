"""A net's own integers in PyTorch: every rounding rule, every operation; and each planted error is found where it is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from unit.engine.graphs import images_for
from unit.engine.test_random_graphs import random_graph
from unit.graph.builders import every_operation, operations_of_runtimes
from unit.net.inputs import integers_for

import labkit
from labkit.arithmetic.requantize import RoundingRule
from labkit.errors import InputError
from labkit.graph import int_ops
from labkit.graph.check_sequences import OPERATIONS_ON_SEQUENCES
from labkit.graph.ir import IntGraph
from labkit.kernels import reference
from labkit.kernels.kernel_set import REFERENCE, KernelSet
from labkit.net import IntegerNet
from labkit.parity.compare import parameters_of
from labkit.parity.torch_rules import double_rounded, half_away, real_away
from labkit.parity.torch_runtimes import border_by_reciprocal

OTHERS = IntegerNet(operations_of_runtimes())


@pytest.mark.parametrize("seed", range(60))
def test_random_nets(seed: int) -> None:
    """Graphs of all operations under all rules, with rounding ties in a third of them."""
    graph = random_graph(seed)
    report = labkit.verify(IntegerNet(graph), None, images_for(graph, 7, seed), kernels="reference")
    assert report.passed, report
    assert {c.name for c in report.comparisons} == {node.name for node in graph}


@pytest.mark.parametrize("tier", ["numba", "reference"])
@pytest.mark.parametrize("rule", RoundingRule)
def test_every_rule(rule: RoundingRule, tier: str) -> None:
    net = IntegerNet(every_operation(rule))
    assert labkit.verify(net, None, integers_for(net, 30), kernels=tier).passed


@pytest.mark.parametrize("tier", ["numba", "reference"])
def test_every_operation_of_other_runtimes(tier: str) -> None:
    """Several inputs by name, some of them integers, in the layout of the source."""
    given = integers_for(OTHERS, 30)
    report = labkit.verify(OTHERS, None, given, kernels=tier)
    assert report.passed, report
    assert report.images == 30
    parts = [{name: array[at : at + 11] for name, array in given.items()} for at in range(0, 30, 11)]
    assert labkit.verify(OTHERS, None, parts, kernels=tier).elements == report.elements


def spoiled(operation: str) -> KernelSet:
    """The reference kernels, the last element of the results of ``operation`` off by one."""

    def wrong(*arrays: Any, **options: Any) -> Any:
        result = np.array(getattr(reference, operation)(*arrays, **options), order="C")
        last = result.reshape(-1)[-1:]
        last += np.where(last > 0, -1, 1).astype(result.dtype)
        return result

    return REFERENCE.with_override(operation, wrong)


NEW = {
    "fixed": "add_fixed_point",
    "float": "add_float32",
    "torch": "add_dequantized",
    "away": "add_away_from_zero",
    "valid": "average_pool_of_valid",
    "real": "average_pool_float32",
    "looked": "lookup",
    "shares": "softmax_fixed_point",
    "quotients": "softmax_by_reciprocal",
    "exponentials": "softmax_float32",
    "mean": "mean_float32",
    "r": "quantize_by_reciprocal",
    "border": "quantize_away_from_zero",
}


@pytest.mark.parametrize("name", NEW)
def test_one_wrong_element_is_found(name: str) -> None:
    report = labkit.verify(OTHERS, None, integers_for(OTHERS, 5), kernels=spoiled(NEW[name]))
    assert report.first is not None
    assert report.first.where == f"tensor {name}"
    shape = OTHERS.graph[name].output.source_shape
    assert report.first.index == (4, *(size - 1 for size in shape))  # in the layout of the source
    assert abs(int(report.first.got) - int(report.first.expected)) == 1


def test_every_new_operation_has_a_spoiled_kernel() -> None:
    covered = {type(OTHERS.graph[name].op) for name in NEW}
    older = {type(node.op) for node in every_operation()}
    others = {int_ops.Input, int_ops.Constant, *OPERATIONS_ON_SEQUENCES}  # of these in test_encoders.py
    assert covered | older | others == {getattr(int_ops, name) for name in int_ops.__all__ if name != "IntOp"}


def test_numbers_of_each_operation_are_named() -> None:
    """What decides a result, and nothing that an operation of today had under another name."""
    names = {node.name: set(parameters_of(node)) - {"scale", "zero_point", "grid"} for node in OTHERS.graph}
    assert names["fixed"] == {
        "left_shift",
        "inputs_mantissa",
        "inputs_exponent",
        "output_mantissa",
        "output_exponent",
        "clamp",
    }
    assert names["float"] == {"multipliers", "addend", "clamp"}
    assert names["torch"] == {"scales", "reciprocal", "clamp", "fused"}
    assert names["even"] >= {"weight", "bias", "multiplier", "clamp"}
    assert names["twice"] >= {"multiplier", "second", "bias"}
    assert names["looked"] == {"table"}
    assert names["shares"] == {"mantissa", "exponent", "lowest_difference", "clamp"}
    assert names["valid"] == {"clamp", "offset"}
    assert names["real"] == {"clamp"}
    assert names["constant"] == {"values"}
    assert names["x"] == names["r"] == set()
    known = [node for node in every_operation() if node.name != "output"]
    old = {node.name: set(parameters_of(node)) - {"scale", "zero_point", "grid"} for node in known}
    assert old["add"] == {"multipliers", "shift", "clamp"}
    assert old["cat"] == old["act"] == old["mean"] == {"mantissa", "exponent", "clamp"}
    assert old["shares"] == {"table", "bits", "clamp"}
    assert old["pool"] == old["padded"] == old["larger"] == old["moved"] == old["class"] == set()


def test_what_verify_refuses_without_a_module() -> None:
    given = integers_for(OTHERS, 2)
    with pytest.raises(InputError, match="or an iterable of these, got int"):
        labkit.verify(OTHERS, None, 5)
    with pytest.raises(InputError, match="give a dict of arrays"):
        labkit.verify(OTHERS, None, given["x"])
    with pytest.raises(InputError, match="There are no images"):
        labkit.verify(OTHERS, None, {name: array[:0] for name, array in given.items()})


def test_one_array_of_integers_is_enough_for_one_input() -> None:
    graph = OTHERS.graph
    net = IntegerNet(IntGraph(graph.nodes[:5], ("valid", "real")))
    x = integers_for(OTHERS, 6)["x"]
    assert labkit.verify(net, None, x).passed
    assert labkit.verify(net, None, [x[:1], torch.from_numpy(x[1:])]).images == 6


# The restatement's own rounding, at hand-picked numbers


def test_divisions_of_the_restatement() -> None:
    assert half_away(torch.tensor([5, -5, 4, -4, 1, -1, 0]), 2).tolist() == [3, -3, 2, -2, 1, -1, 0]
    half = torch.tensor(2**30), torch.tensor(-1)  # 1/4
    sums = torch.tensor([1, -1, 2, -2, 6, -6])
    assert double_rounded(sums, *half, upwards=False).tolist() == [1, 0, 1, -1, 2, -2]
    assert double_rounded(sums, *half, upwards=True).tolist() == [1, 0, 1, 0, 2, -1]
    below = torch.tensor(np.nextafter(0.5, 0))
    assert real_away(torch.tensor([1, -1, 3, -5]), below, 0).tolist() == [0, 0, 1, -2]


@pytest.mark.parametrize(("grid", "lowest"), [((-128, 127), -128), ((0, 255), 0), ((-8, 7), -128)])
def test_a_border_by_reciprocal_next_to_its_ties(grid: tuple[int, int], lowest: int) -> None:
    """Every half of the grid, exactly and up to three float32 steps aside: the reference kernel gets there by another way."""
    for scale in np.array([1.0, 0.1, 0.0123, 3.7], np.float32):
        for zero_point in (grid[0], 0, 3, grid[1]):
            steps = np.arange(2 * grid[0] - 5, 2 * grid[1] + 6).astype(np.float32) / 2 * scale
            reals = [steps]
            for _ in range(3):
                reals += [np.nextafter(reals[-1], np.float32(np.inf))]
            reals += [-part for part in reals]
            x = np.concatenate(reals)
            spec, params = OTHERS.graph["r"].output.quantized
            spec = replace(spec, bits=4 if grid[1] == 7 else 8, signed=grid[0] < 0)
            params = replace(params, scale=scale, zero_point=np.int32(zero_point))
            for inside in (True, False):
                wanted = reference.quantize_by_reciprocal(x, params, spec, inside)
                got = border_by_reciprocal(torch.from_numpy(x), torch.tensor(scale), zero_point, grid, inside)
                assert got.tolist() == wanted.tolist()
