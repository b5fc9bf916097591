"""`labkit run --purpose`: the same result in fewer bytes, and how many they are."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from unit.engine.graphs import images_for, lenet

from labkit.arithmetic.affine import PerAxis, QuantSpec
from labkit.cli import main
from labkit.net import IntegerNet


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["labkit", "run", *arguments])
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_few_bytes_change_no_number(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    graph = lenet(1, weights=QuantSpec(4, granularity=PerAxis(0)))
    (x,) = images_for(graph, 3).values()
    IntegerNet(graph).save("net.lab")
    np.save("x.npy", x)
    bytes_of = {}
    for purpose in ("speed", "memory"):
        assert call(monkeypatch, "net.lab", "--input", "x.npy", "--output", f"{purpose}.npy", "--purpose", purpose) == 0
        counts = re.findall(r"([\d,]+) bytes", capsys.readouterr().out)
        bytes_of[purpose] = [int(count.replace(",", "")) for count in counts]
    expected = IntegerNet(graph).run(x, kernels="reference")
    for purpose in ("speed", "memory"):
        np.testing.assert_array_equal(np.load(f"{purpose}.npy"), expected)
    assert bytes_of["memory"][0] == IntegerNet(graph).prepared("memory").resident_bytes
    assert bytes_of["memory"][0] < bytes_of["speed"][0]
    assert bytes_of["memory"][1] < bytes_of["speed"][1]


def test_unknown_purpose(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    graph = lenet(1)
    IntegerNet(graph).save("net.lab")
    np.save("x.npy", next(iter(images_for(graph, 1).values())))
    assert call(monkeypatch, "net.lab", "--input", "x.npy", "--output", "y.npy", "--purpose", "size") != 0
    assert "purpose must be" in capsys.readouterr().err
    assert not Path("y.npy").exists()
