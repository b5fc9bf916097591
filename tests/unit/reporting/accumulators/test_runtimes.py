"""The analysis of a network that computes as other runtimes do: every operation that sums has its row."""

from __future__ import annotations

import json
from itertools import product

import numpy as np
import oracle_arithmetic as oracle
import pytest
from unit.engine.graphs import FULL_S8, S4, S8, U8, Builder, affine
from unit.graph.builders import operations_of_runtimes
from unit.net.inputs import integers_for

from labkit.arithmetic.requantize import RoundingRule
from labkit.net import IntegerNet
from labkit.reporting.accumulators.analyse import analyse
from labkit.reporting.accumulators.plot import bits_figure
from labkit.reporting.accumulators.results import Span
from labkit.reporting.accumulators.tables import analysis_tables
from labkit.reporting.accumulators.worst_case import worst_case

NET = IntegerNet(operations_of_runtimes())


def test_rows_of_a_network_of_other_runtimes():
    """Integers enter by several names with the channels last; what is seen lies inside what is possible."""
    found = analyse(NET, integers_for(NET, 40), "integers")
    names = [layer.name for layer in found.layers]
    assert {"even", "twice", "valid", "fixed", "away", "mean"} <= set(names)
    assert found.images == 40
    for layer in found.layers:
        assert layer.bound >= layer.worst.magnitude
        if layer.observed is not None:
            assert layer.worst.low <= layer.observed.low <= layer.observed.high <= layer.worst.high
    seen = {layer.name for layer in found.layers if layer.observed is not None}
    assert {"even", "twice", "away"} <= seen
    assert {"valid", "fixed", "mean"}.isdisjoint(seen)  # sums inside the operation
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["layers"]
    assert analysis_tables(found) is not None
    assert bits_figure(found).startswith(b"<?xml")


def test_what_is_seen_of_a_sum_with_channels_last():
    given = integers_for(NET, 9)
    trace = NET.trace(given)
    node = NET.graph["away"]
    tensors = NET.graph.inputs_of(node)
    parts = [
        (trace[name].astype(np.int64) - int(tensor.params.zero_point)) * int(multiplier)
        for name, tensor, multiplier in zip(node.inputs, tensors, node.op.multipliers, strict=True)
    ]
    total = parts[0] + parts[1]
    layer = next(layer for layer in analyse(NET, given).layers if layer.name == "away")
    assert layer.observed == Span(int(total.min()), int(total.max()))
    value = np.array([oracle.half_away(oracle.Fraction(int(v), 2**node.op.shift)) for v in total.reshape(-1)]) + 7
    assert layer.landing.cut_high == np.count_nonzero(value > node.op.clamp[1])
    assert layer.landing.at_low == np.count_nonzero(value <= node.op.clamp[0])


@pytest.mark.parametrize("subtracts", [False, True])
@pytest.mark.parametrize("rule", [RoundingRule.GEMMLOWP, RoundingRule.GEMMLOWP_UP])
def test_worst_case_of_a_fixed_point_sum_is_reached(rule, subtracts):
    b = Builder(2)
    x, y = b.input((3,), affine(S4)), b.input((3,), affine(U8))
    b.add_fixed_point(x, y, rule=rule, subtracts=subtracts)
    graph, op = b.graph(), b.nodes[-1].op
    round_ = oracle.gemmlowp if rule is RoundingRule.GEMMLOWP else oracle.gemmlowp_up
    sums = []
    for q in product(*(range(b[name].spec.qmin, b[name].spec.qmax + 1) for name in (x, y))):
        first, second = (
            round_((v - int(b[name].params.zero_point)) * 2**20, int(op.inputs.mantissa[i]), int(op.inputs.exponent[i]))
            for i, (v, name) in enumerate(zip(q, (x, y), strict=True))
        )
        sums.append(first - second if subtracts else first + second)
    assert worst_case(graph, graph.nodes[-1]).worst == Span(min(sums), max(sums))


@pytest.mark.parametrize("offset", [0, 128])
@pytest.mark.parametrize("spec", [FULL_S8, affine(U8), affine(S4)], ids=str)
def test_worst_case_of_raw_sums(spec, offset):
    b = Builder(1)
    x = b.input((2, 5, 5), spec)
    graph = b.graph(b.pool_of_valid(x, (3, 3), stride=(2, 2), padding=((1, 1), (1, 1)), offset=offset))
    found = worst_case(graph, graph.nodes[-1])
    ends = [count * (end - offset) for count in range(10) for end in (spec.qmin, spec.qmax)]
    assert (found.worst, found.products) == (Span(min(ends), max(ends)), 9)


def test_an_input_of_few_channels_is_paired_as_it_is_stored():
    """Like an image that is quantized: three channels without a filling lane, so that pairs cross pixels."""
    rows = []
    for border in ("quantize", "input"):
        b = Builder(5)
        x = getattr(b, border)((3, 6, 6), affine(U8))
        b.rng = np.random.default_rng(7)
        b.conv(x, 4, (3, 3), spec=S8)
        rows.append(worst_case(b.graph(), b.nodes[-1]).pairs)
    assert rows[0] == rows[1]
