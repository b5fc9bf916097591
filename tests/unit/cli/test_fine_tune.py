"""`labkit fine-tune`, as a user calls it, on a few digits."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import labkit
from labkit import data
from labkit.cli import main
from labkit.quantization.plan import BitPlan


@pytest.fixture(autouse=True)
def few_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    """200 images to train with and 100 to test on."""
    whole = data.load("mnist5k")
    few = replace(
        whole,
        train_images=whole.train_images[:200],
        train_labels=whole.train_labels[:200],
        test_images=whole.test_images[:100],
        test_labels=whole.test_labels[:100],
    )
    monkeypatch.setattr(data, "load", lambda name, data_dir=None, download=None: few)


def fine_tune(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    """Run `labkit fine-tune lenet` for one epoch; its exit status."""
    return command(monkeypatch, "fine-tune", "lenet", "--data", "mnist5k", "--epochs", 1, *words)


def command(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["labkit", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_it_writes_a_certified_net_and_its_weights(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "net.lab"
    assert fine_tune(monkeypatch, "-o", out, "-w", 2, "-a", 4) == 0
    printed = capsys.readouterr().out
    assert "epoch 1/1: loss" in printed
    assert " elements differ" in printed
    assert "0 of" in printed
    net = labkit.load(out)
    assert net.graph["fc1"].op.weight.spec.bits == 2  # type: ignore[union-attr]
    assert net.graph.notes["recipe"] == "labkit"
    assert "fc1.weight" in load_file(tmp_path / "net.safetensors")
    assert not (tmp_path / "net.progress.safetensors").exists()
    weights = ("--model", "lenet", "--weights", tmp_path / "net.safetensors")
    assert command(monkeypatch, "verify", out, *weights, "--images", 20) == 0
    assert command(monkeypatch, "verify", out, "--model", "lenet", "--images", 20) != 0  # the weights before training
    assert "Traceback" not in capsys.readouterr().err


def test_a_plan_and_a_recipe_are_obeyed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plan, out = tmp_path / "plan.json", tmp_path / "net.lab"
    layers = dict(zip(("conv1", "conv2", "fc1", "fc2", "fc3"), (8, 4, 3, 5, 6), strict=True))
    BitPlan(layers, {"x": 8, **dict.fromkeys(("conv1", "conv2", "fc1", "fc2"), 4), "fc3": 8}).save(plan)
    assert (
        fine_tune(
            monkeypatch, "-o", out, "--plan", plan, "--recipe", "jacob", "--save-weights", tmp_path / "w.safetensors"
        )
        == 0
    )
    graph = labkit.load(out).graph
    assert {name: graph[name].op.weight.spec.bits for name in layers} == layers  # type: ignore[union-attr]
    assert graph.notes["fine_tuning"]["activation_scales"] == "ema"
    assert (tmp_path / "w.safetensors").exists()


def test_the_same_command_gives_the_same_integers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert fine_tune(monkeypatch, "-o", tmp_path / f"{name}.lab", "--recipe", "lsq", "--seed", 3) == 0
    first, second = (labkit.load(tmp_path / f"{name}.lab") for name in ("a", "b"))
    x = data.load("mnist5k").test(20)[0]
    assert np.array_equal(first.run(x), second.run(x))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--data", "pictures"), "Fine-tuning needs labelled training images: --data"),
        (("--recipe", "hawq"), "The recipe must be one of labkit, mpqco, jacob, pact, lsq, got 'hawq'"),
        (("--images", 5000), "mnist5k has 200 training images, got --images 5000"),
        (("--plan", "p.json", "-w", 3), "give either --plan, or -w and -a"),
        (("-w", 9), "weights bits must be an integer in 1..8, got 9|weight bits must be"),
        (("--freeze-at", 2), "freeze_at must be in 0..1, got 2.0"),
        (("--weight-scales", "minmax"), 'start="best" brings scales of its own'),
    ],
)
def test_mistakes_get_an_error_and_no_traceback(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: tuple[object, ...],
    message: str,
) -> None:
    assert fine_tune(monkeypatch, "-o", tmp_path / "net.lab", *words) != 0
    shown = " ".join(capsys.readouterr().err.split())
    assert any(part in shown for part in message.split("|")), shown
    assert "Traceback" not in shown
    assert not (tmp_path / "net.lab").exists()
