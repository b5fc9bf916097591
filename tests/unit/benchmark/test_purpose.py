"""labkit against itself: few bytes against speed, four bits against eight, and rows as without VNNI."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from labkit.benchmark import own
from labkit.benchmark.bench import Settings, run_bench
from labkit.benchmark.results import BenchResult
from labkit.benchmark.tables import markdown, own_table
from labkit.data.dataset import DataSet
from labkit.engine.prepare import Dot, Prepared, Registers
from labkit.kernels.fast.tile import fastest_dots, widest_registers

QUICK = Settings(("lenet",), bits=("w8a8", "w4a4"), batches=(1, 3), against=(), rounds=1, seconds=0.1)
WIDTHS = [r for r in Registers if r.value <= widest_registers().value and fastest_dots(r)[0].is_native]
LINEAR = ["linear 1024 x 512, batch 1, int4", "linear 1024 x 512, batch 1, int4, 8 layers in turns"]


def silent(step: str, done: int, total: int) -> None:
    assert 0 <= done <= total


@pytest.fixture(scope="module")
def result(digits: DataSet) -> BenchResult:
    return run_bench(QUICK, digits, "labkit bench", silent)


def test_both_purposes_of_each_net_are_there(result: BenchResult) -> None:
    assert [(found.bits, found.batch) for found in result.purposes] == [("w8a8", 1), ("w4a4", 1)]
    for found, case in zip(result.purposes, (result.cases[0], result.cases[2]), strict=True):
        assert found.speed == (case.resident_bytes, case.arena_bytes)
        assert sum(found.memory) <= sum(found.speed)
        assert found.time.ratio > 0
    assert result.purposes[1].memory[0] < result.purposes[0].memory[0] * 0.6


def test_four_bits_are_compared_in_a_layer_and_without_vnni(result: BenchResult) -> None:
    whats = [pair.what for pair in result.own]
    assert whats[-2:] == LINEAR
    assert len(whats) == 2 + 2 * len(WIDTHS)
    assert all("without VNNI" in what and what.startswith("lenet w4a4, batch 1, AVX") for what in whats[:-2])
    assert [pair.rival for pair in result.own[:-2]] == ["labkit w8a8, likewise", "labkit w8a8 direct, likewise"] * len(
        WIDTHS
    )
    assert result.is_right


def test_no_vpdpbusd_in_the_rows_without_vnni(result: BenchResult, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[Dot, ...]] = []
    right = own.prepare

    def noting(graph: Any, **options: Any) -> Prepared:
        given.append(options["dots"])
        return right(graph, **options)

    monkeypatch.setattr(own, "prepare", noting)
    graph = own._linear_layers(1, own.QuantSpec(4, granularity=own.PerAxis(0)))
    batch = np.zeros((1, 1024), np.float32)
    wanted = [own.run_nodes(graph, {"x": batch}, own.REFERENCE)["fc0"]] * 2
    pairs = list(own.pairs_without_vnni("net", graph, graph, batch, wanted, 1, 1, 0.0))
    assert len(pairs) == 2 * len(WIDTHS)
    assert all(pair.time is not None for pair in pairs)
    assert {dot for dots in given for dot in dots} <= {Dot.NIBBLES_AVX2, Dot.PAIRS}


@pytest.mark.skipif(not WIDTHS, reason="these rows need AVX2")
def test_wrong_answer_is_not_timed(result: BenchResult, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = own._linear_layers(1, own.QuantSpec(4, granularity=own.PerAxis(0)))
    batch = np.zeros((1, 1024), np.float32)
    exact = own.run_nodes(graph, {"x": batch}, own.REFERENCE)["fc0"]
    monkeypatch.setattr(own, "time_pair", lambda *_: pytest.fail("timed"))
    pairs = tuple(own.pairs_without_vnni("net", graph, graph, batch, [exact, exact + 1], 1, 1, 0.0))
    assert [pair.time for pair in pairs] == [None] * len(pairs)
    wrong = replace(result, own=pairs)
    assert not wrong.is_right
    assert markdown(wrong).count("refused: a wrong answer") == len(pairs)


def test_wrong_result_for_few_bytes_refuses_the_case(digits: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    from labkit.net import IntegerNet

    right = IntegerNet.run

    def wrong(net: IntegerNet, x: Any, *arguments: Any, **options: Any) -> Any:
        return right(net, x, *arguments, **options) + (options.get("purpose") == "memory")

    monkeypatch.setattr(IntegerNet, "run", wrong)
    found = run_bench(replace(QUICK, bits=("w8a8",), batches=(1,)), digits, "labkit bench", silent)
    assert [case.refused for case in found.cases] == ["prepared for few bytes it differs"]
    assert found.purposes == ()


def test_tables_and_json_tell_all(result: BenchResult) -> None:
    page = markdown(result)
    values = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert [found["bits"] for found in values["purposes"]] == ["w8a8", "w4a4"]
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(own_table(result))
    shown = console.export_text()
    for pair in result.own:
        assert f"| {pair.what} | {pair.rival} |" in page
        assert pair.time is not None
        assert f"[{pair.time.p10:.2f}, {pair.time.p90:.2f}]" in shown
    for found in result.purposes:
        assert f"| {found.speed[0]:,} | {found.speed[1]:,} | {found.memory[0]:,} | {found.memory[1]:,} |" in page
        assert f"{sum(found.memory) / 1e6:.2f} / {sum(found.speed) / 1e6:.2f}" in shown
