"""The main job from end to end, through the command line, on a part of the digits."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import labkit
from labkit.cli import main
from labkit.graph import int_ops
from labkit.graph.ir import IntGraph
from labkit.reporting import demo as demo_module

IMAGES = 200


def run_demo(out: Path) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "sys.argv",
            ["labkit", "demo", "--data", "mnist5k", "--images", str(IMAGES), "--calibration", "64", "--out", str(out)],
        )
        try:
            main()
        except SystemExit as stop:
            return int(stop.code or 0)
    return 0


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    assert run_demo(folder) == 0
    return folder


@pytest.fixture(scope="module")
def report(out: Path) -> dict:
    return json.loads((out / "report.json").read_text())


def test_every_row_is_what_its_net_computes(out: Path, report: dict) -> None:
    x, labels = labkit.data.load("mnist5k").test(IMAGES)
    rows = {row["label"]: row for row in report["rows"] if row["section"] == "integer engine"}
    assert list(rows) == ["W8A8", "W4A8", "W4A4"]
    for label, row in rows.items():
        logits = labkit.load(out / f"lenet-mnist5k-{label.lower()}.lab").run(x)
        assert row["accuracy"] == pytest.approx(100 * np.mean(logits.argmax(1) == labels))
        assert row["images"] == IMAGES
    with torch.inference_mode():
        logits = labkit.models.load("lenet", data="mnist5k")(torch.from_numpy(x)).numpy()
    float_row = next(row for row in report["rows"] if row["section"] == "float")
    assert float_row["accuracy"] == pytest.approx(100 * np.mean(logits.argmax(1) == labels))


def test_rows_cover_the_lab(report: dict) -> None:
    sections = [row["section"] for row in report["rows"]]
    assert sections == ["float", *["simulated"] * 2, *["bias"] * 3, *["integer engine"] * 3]


def test_costs_are_those_of_the_network(report: dict) -> None:
    # 28*28*12*75 + 12*12*32*108 + 1152*256 + 256*64 + 64*10, by hand
    macs = 705_600 + 497_664 + 294_912 + 16_384 + 640
    weights = 900 + 3_456 + 294_912 + 16_384 + 640
    rows = {row["label"]: row for row in report["rows"]}
    assert rows["Float network"]["macs"] == macs
    assert rows["Float network"]["bops"] == macs * 32 * 32
    assert rows["Float network"]["size_bytes"] == weights * 4
    assert rows["W8A8"]["bops"] == macs * 64
    assert rows["W8A8"]["size_bytes"] == weights
    assert rows["W4A8"]["bops"] == macs * 32
    assert rows["W4A8"]["size_bytes"] == weights // 2
    assert rows["W4A4"]["bops"] == (macs - 705_600) * 16 + 705_600 * 32  # the image keeps 8 bits


def test_certificates(report: dict) -> None:
    assert set(report["certificates"]) == {"W8A8", "W4A8", "W4A4", "W8A8, readable kernels"}
    names = {"x", "conv1", "pool1", "conv2", "pool2", "flatten", "fc1", "fc2", "fc3", "output"}
    for certificate in report["certificates"].values():
        assert certificate["passed"] is True
        assert certificate["differing"] == 0
        tensors = {c["name"]: c["elements"] for c in certificate["comparisons"] if c["kind"] == "tensor"}
        assert set(tensors) == names
        assert tensors["conv1"] == certificate["images"] * 12 * 28 * 28


def test_page(out: Path) -> None:
    page = (out / "report.html").read_text()
    for text in ("W4A4", "conv2", "Bit for bit", "3σ"):
        assert text.lower() in page.lower()


def test_a_wrong_net_is_not_certified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def off_by_one(*arguments: object) -> IntGraph:
        graph = original(*arguments)
        nodes = []
        for node in graph.nodes:
            if isinstance(node.op, int_ops.Linear) and node.name == "fc2":
                bias = node.op.bias.copy()
                bias[17] += 1
                node = replace(node, op=replace(node.op, bias=bias))
            nodes.append(node)
        return IntGraph(tuple(nodes), graph.outputs, graph.notes)

    original = demo_module.convert
    monkeypatch.setattr(demo_module, "convert", off_by_one)
    assert run_demo(tmp_path) == 1
    certificates = json.loads((tmp_path / "report.json").read_text())["certificates"]
    assert certificates["W8A8"]["passed"] is False
    assert certificates["W8A8"]["first"]["where"] == "fc2.bias"
    assert certificates["W8A8"]["first"]["index"] == [17]


def test_eight_bits_cost_next_to_nothing_on_the_whole_test_set() -> None:
    data = labkit.data.load("mnist5k")
    x, labels = data.test()
    module = labkit.models.load("lenet", data="mnist5k")
    with torch.inference_mode():
        real = 100 * np.mean(module(torch.from_numpy(x)).numpy().argmax(1) == labels)
    integer = 100 * np.mean(labkit.quantize(module, data.calibration(512)).run(x).argmax(1) == labels)
    assert real >= 97.5
    assert abs(real - integer) <= 0.2
