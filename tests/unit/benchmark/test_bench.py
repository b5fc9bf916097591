"""`labkit bench`: valid figures from a short run, wrong answers refused, absent peers told of."""

from __future__ import annotations

import json
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from labkit.benchmark import bench as bench_module
from labkit.benchmark.bench import Settings, run_bench
from labkit.benchmark.limits import MEMORY
from labkit.benchmark.nets import Subject, subject
from labkit.benchmark.peers import Peer, PeerMissing, peers_from
from labkit.benchmark.results import SCHEMA, BenchResult
from labkit.benchmark.roofline import roofline
from labkit.benchmark.tables import bench_table, markdown
from labkit.cli import main
from labkit.data.dataset import DataSet
from labkit.engine.prepare import Dot
from labkit.errors import InputError
from labkit.graph.ir import IntGraph
from labkit.kernels.fast.tile import fastest_dots, widest_registers
from labkit.net import IntegerNet

# Where there is vpdpbusd the fastest way for LeNet is direct already
WITHOUT_WINOGRAD = [] if fastest_dots(widest_registers())[0] is Dot.QUADS_VNNI else ["labkit w8a8 direct"]
QUICK = Settings(("lenet",), batches=(1, 3), against=("torch",), rounds=2, seconds=0.1)


def silent(step: str, done: int, total: int) -> None:
    assert 0 <= done <= total


@pytest.fixture(scope="module")
def result(digits: DataSet) -> BenchResult:
    return run_bench(replace(QUICK, bits=("w8a8", "w4a4"), roofline=True), digits, "labkit bench", silent)


@pytest.fixture
def wrong_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fast kernels that add one too many to a sum: what they were prepared from has another bias."""
    from labkit.engine import prepare as module

    right = module.prepare

    def wrong(graph: IntGraph, **route: Any) -> Any:
        return right(with_other_bias(graph), **route)

    monkeypatch.setattr(module, "prepare", wrong)


def with_other_bias(graph: IntGraph) -> IntGraph:
    nodes = []
    for node in graph:
        if node.name == "fc2":
            node = replace(node, op=replace(node.op, bias=node.op.bias + 5_000))
        nodes.append(node)
    return replace(graph, nodes=tuple(nodes))


def test_every_case_has_ratios(result: BenchResult) -> None:
    assert [(case.bits, case.batch) for case in result.cases] == [("w8a8", 1), ("w8a8", 3), ("w4a4", 1), ("w4a4", 3)]
    for case in result.cases:
        assert case.refused is None
        fewer = ["labkit w8a8", *WITHOUT_WINOGRAD, "torch int8"]
        assert [pair.peer for pair in case.pairs] == (fewer if case.bits == "w4a4" else ["torch int8", "torch fp32"])
        for pair in case.pairs:
            assert 0 < pair.time.p10 <= pair.time.ratio <= pair.time.p90
            assert 0 < pair.time.ours_ms < 1000
        assert case.resident_bytes >= case.file_bytes
    assert result.cases[0].macs == result.cases[2].macs
    assert result.cases[0].file_bytes > 1.9 * result.cases[2].file_bytes
    answer = result.cases[0].pairs[0].answer
    assert answer is not None
    assert answer.elements == 320


def test_json_is_valid_and_whole(result: BenchResult) -> None:
    values = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert values["schema"] == SCHEMA
    assert values["machine"]["processor"]
    assert values["versions"]["torch"]
    assert values["cases"][0]["pairs"][0]["time"]["ratio"] == result.cases[0].pairs[0].time.ratio
    assert {layer["layer"] for layer in values["layers"]} == {"conv1", "conv2", "fc1", "fc2", "fc3"}
    assert all(layer["gmacs"] > 0 for layer in values["layers"])


def test_limits_are_those_of_a_processor(result: BenchResult) -> None:
    assert 0.5 < result.limits[MEMORY] < 1000
    for name, rate in result.limits.items():
        assert 2 < rate < 10_000, f"{name}: an impossible rate says that the loop was optimised away"


def test_roofline_is_one_drawing_with_every_layer(result: BenchResult) -> None:
    drawn = roofline(result.layers, result.limits, "a processor")
    assert drawn == roofline(result.layers, result.limits, "a processor")
    text = "".join(ElementTree.fromstring(drawn).itertext())
    for word in ("lenet", "linear", "GMAC/s, one thread", "a processor", "memory, "):
        assert word in text


def test_page_and_table_tell_all(result: BenchResult) -> None:
    page = markdown(result, "roofline.svg")
    assert "![" in page
    assert "](roofline.svg)" in page
    assert page.count("| torch int8 |") == 5  # a column of the first table, four rows of the second
    for version in result.versions.values():
        assert version in page
    ratio = result.cases[0].pairs[0].time
    assert f"{ratio.ratio:.2f} [{ratio.p10:.2f}, {ratio.p90:.2f}]" in page
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(bench_table(result))
    shown = console.export_text()
    assert "lenet w4a4, batch 3" in shown
    assert f"[{ratio.p10:.2f}, {ratio.p90:.2f}]" in shown
    assert "…" not in shown


@pytest.mark.usefixtures("wrong_kernels")
def test_wrong_answer_of_ours_is_not_timed(digits: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*arguments: object) -> object:
        raise AssertionError("timed")

    monkeypatch.setattr(bench_module, "time_pair", never)
    result = run_bench(QUICK, digits, "labkit bench", silent)
    assert len(result.refused) == len(result.cases) == 2
    for case in result.cases:
        assert case.pairs == ()
        assert case.refused is not None
        assert case.refused.startswith("fc2[0, ")
    assert "refused: fc2[0, " in markdown(result)


def test_wrong_rival_of_our_own_is_not_timed(digits: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    right = bench_module.prepare

    def wrong_if_direct(graph: IntGraph, **route: Any) -> Any:
        """On words, where LeNet's second layer goes by Winograd unless told otherwise, on any processor."""
        return right(with_other_bias(graph) if route else graph, dots=(Dot.PAIRS,), **route)

    monkeypatch.setattr(bench_module, "prepare", wrong_if_direct)
    result = run_bench(replace(QUICK, bits=("w4a4",), batches=(1,), against=()), digits, "labkit bench", silent)
    assert [case.refused for case in result.cases] == ["labkit w8a8 direct differs from the reference"]
    assert result.cases[0].pairs == ()


@pytest.mark.parametrize(
    ("dots", "offered"),
    [((Dot.PAIRS,), ["labkit w8a8", "labkit w8a8 direct"]), ((Dot.QUADS_VNNI, Dot.PAIRS), ["labkit w8a8"])],
)
def test_direct_rival_is_offered_where_it_differs(
    dots: tuple[Dot, ...], offered: list[str], digits: DataSet, lenet_net: IntegerNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = bench_module.prepare
    monkeypatch.setattr(bench_module, "prepare", lambda graph, **route: right(graph, dots=dots, **route))
    bench = bench_module._NetBench(subject("lenet", digits), QUICK, silent)
    assert [peer.name for peer in bench._rivals("w4a4", lenet_net, [])] == offered


def test_every_run_of_ours_has_the_threads(digits: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are checked and those that are timed, our own rivals included."""
    given: list[int] = []
    right = bench_module.engine.run

    def noting(prepared: Any, inputs: Any, threads: int = 1) -> Any:
        given.append(threads)
        return right(prepared, inputs, threads)

    monkeypatch.setattr(bench_module.engine, "run", noting)
    words = bench_module.prepare  # so that there is a direct rival
    monkeypatch.setattr(bench_module, "prepare", lambda graph, **route: words(graph, dots=(Dot.PAIRS,), **route))
    settings = replace(QUICK, bits=("w4a4",), batches=(3,), against=(), rounds=1, threads=2)
    (case,) = run_bench(settings, digits, "labkit bench", silent).cases
    assert [pair.peer for pair in case.pairs] == ["labkit w8a8", "labkit w8a8 direct"]
    assert len(given) > 6
    assert set(given) == {2}


def test_wrong_peer_shows_its_share(digits: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong_peer(library: str, subject: Subject, graph: object, threads: int) -> list[Peer]:
        (right, _) = peers_from(library, subject, graph, threads)  # type: ignore[arg-type]

        def trace(x: object) -> dict[str, object]:
            assert right.trace is not None
            found = dict(right.trace(x))  # type: ignore[arg-type]
            last = found["fc3"].copy()
            last[:16] = last[:16] ^ 0x40  # half of the images, and by far more than one
            return {**found, "fc3": last}

        return [replace(right, trace=trace)]  # type: ignore[arg-type]

    monkeypatch.setattr(bench_module.all_peers, "peers_from", wrong_peer)
    result = run_bench(replace(QUICK, batches=(1,)), digits, "labkit bench", silent)
    (pair,) = result.cases[0].pairs
    assert pair.answer is not None
    assert pair.answer.beyond_one == 0.5
    assert pair.answer.differ >= 0.5
    assert (pair.answer.worst_layer, pair.answer.worst_share) == ("fc3", 0.5)
    assert pair.time.ratio > 0, "a wrong peer is timed all the same; its share stands beside it"
    assert f"| {pair.answer.differ:.2%} | {pair.answer.wrong_sums:.2%} |" in markdown(result)


def test_absent_peer_is_a_message(digits: DataSet, lenet: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.delitem(sys.modules, "labkit.benchmark.peer_onnxruntime", raising=False)
    with pytest.raises(PeerMissing, match="pip install onnx onnxruntime"):
        peers_from("onnxruntime", lenet, None, 1)  # type: ignore[arg-type]
    result = run_bench(replace(QUICK, against=("onnxruntime", "torch"), batches=(1,)), digits, "labkit bench", silent)
    assert len(result.missing) == 1
    assert [pair.peer for pair in result.cases[0].pairs] == ["torch int8", "torch fp32"]
    assert result.missing[0] in markdown(result)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"nets": ("alexnet",)}, "There is no net 'alexnet'"),
        ({"bits": ("w9a8",)}, "got 'w9a8'"),
        ({"bits": ("8",)}, "w8a8 or w4a4"),
        ({"against": ("tvm",)}, "onnxruntime and torch, got 'tvm'"),
        ({"batches": (0,)}, "1 or more"),
        ({"threads": 0}, "1 or more"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        replace(QUICK, **settings)


Run = Callable[..., int]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> int:
        quick = ["--net", "lenet", "--data", "mnist5k", "--batch", "1", "--bits", "w8a8", "--rounds", "1"]
        monkeypatch.setattr("sys.argv", ["labkit", "bench", *quick, *arguments])
        try:
            main()
        except SystemExit as stop:
            return int(stop.code or 0)
        return 0

    return call


def test_command_writes_its_files(command: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = ["--json", "out/b.json", "--markdown", "out/b.md", "--roofline", "out/figures/b.png"]
    assert command("--against", "torch", *files) == 0
    assert json.loads((tmp_path / "out/b.json").read_text())["cases"][0]["net"] == "lenet"
    assert "](figures/b.png)" in (tmp_path / "out/b.md").read_text()
    assert (tmp_path / "out/figures/b.png").read_bytes().startswith(b"\x89PNG")
    assert "torch int8" in capsys.readouterr().out


@pytest.mark.usefixtures("wrong_kernels")
def test_command_fails_on_a_wrong_answer(command: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("--against", "none") == 1
    assert "labkit's own answer is wrong: fc2" in capsys.readouterr().out


def test_command_explains_mistakes(command: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("--batch", "one") == 2
    assert "Batches are numbers" in capsys.readouterr().err
    assert command("--roofline", "a.gif") == 2
    assert ".svg or .png" in capsys.readouterr().err


def test_layer_bytes_follow_the_net(lenet_net: IntegerNet, lenet: Subject) -> None:
    from labkit.benchmark.layers import layer_rates

    one, three = (layer_rates("lenet", lenet_net.graph, lenet.batch(size)) for size in (1, 3))
    first, alike = one[1], three[1]
    assert first.layer == "conv2"
    assert alike.macs == 3 * first.macs
    weights = lenet_net.graph["conv2"].op.weight.values.size
    assert alike.bytes - weights == 3 * (first.bytes - weights)
