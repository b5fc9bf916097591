"""``labkit quantize --analyse``: what is printed and written, and what is refused before any work."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from unit.graph.transformer_block import block, sentences

import labkit
from labkit.net import IntegerNet
from labkit.reporting.accumulators.analyse import analyse

Run = Callable[..., tuple[int, str, str]]

LAYERS = ("conv1", "conv2", "fc1", "fc2", "fc3")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, labkit_command: Run, tmp_path: Path) -> Run:
    """Quantize LeNet in an empty folder, a terminal of 100 columns: exit status, standard output, standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")

    def call(*arguments: object) -> tuple[int, str, str]:
        return labkit_command("quantize", "lenet", "--images", "24", "-o", "net.lab", *arguments)

    return call


def rows(out: str) -> list[list[str]]:
    """The words of each row of the two tables; the ledger comes after them."""
    lines = out.split("Ledger of bit widths")[0].splitlines()
    return [words for line in lines if (words := line.split()) and words[0] in LAYERS and "=" not in words]


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_analyse_shows_every_layer_on_the_calibration_images(run: Run, tmp_path: Path) -> None:
    code, out, err = run("--data", "mnist5k", "--analyse", "--analyse-json", "there/sums.json")
    assert code == 0, err
    assert [row[0] for row in rows(out)] == [*LAYERS, *LAYERS]
    assert max(len(line) for line in out.splitlines() if line.startswith((" conv", " fc"))) <= 100
    net = labkit.load(tmp_path / "net.lab")
    calibration = labkit.data.load("mnist5k").calibration(24)
    expected = analyse(net, calibration, "calibration images of mnist5k")
    assert json.loads((tmp_path / "there" / "sums.json").read_text()) == expected.to_json()
    for row, layer in zip(rows(out), expected.layers, strict=False):
        assert layer.observed is not None
        assert row[1:7] == [
            f"{number:,}"
            for number in (
                layer.products,
                layer.worst.magnitude,
                layer.worst.bits,
                layer.spare_bits,
                layer.observed.low,
                layer.observed.high,
            )
        ]
    assert "24 images (calibration images of mnist5k)" in out
    assert f"Ledger of bit widths: {len(expected.ledger)} intermediates, 5 of them in int64" in out


@pytest.mark.parametrize("count", [5, 300])
def test_test_images_are_taken_where_they_are_asked_for(run: Run, tmp_path: Path, count: int) -> None:
    code, out, err = run("--data", "mnist5k", "--analyse-images", count, "--analyse-json", "sums.json")
    assert code == 0, err
    assert f"{count} images (test images of mnist5k)" in out
    x = labkit.data.load("mnist5k").test(count)[0]
    expected = analyse(labkit.load(tmp_path / "net.lab"), x, "test images of mnist5k")
    assert json.loads((tmp_path / "sums.json").read_text()) == expected.to_json()


def test_images_of_the_users_own(run: Run, tmp_path: Path) -> None:
    np.save(tmp_path / "mine.npy", labkit.data.load("mnist5k").test(12)[0])
    code, out, err = run("--data", "mine.npy", "--analyse-images", 7, "--analyse-plot", "bits.svg")
    assert code == 0, err
    assert "7 images (the first images of mine.npy)" in out
    assert (tmp_path / "bits.svg").read_text().count("<svg") == 1


def test_nothing_is_analysed_unless_asked_for(run: Run, tmp_path: Path) -> None:
    code, out, _ = run("--data", "mnist5k")
    assert code == 0
    assert rows(out) == []
    assert files(tmp_path) == ["net.lab"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--analyse-images", 1001), "--analyse-images must be in 1..1000, the test images of mnist5k, got 1001"),
        (("--analyse-plot", "figure.pdf"), "draws a .svg or a .png file, got figure.pdf"),
        (("--analyse-json", "net.lab"), "need a file each"),
        (("--analyse-json", "a/x.svg", "--analyse-plot", "a/x.svg"), "need a file each"),
    ],
    ids=["too many images", "kind of figure", "over the net", "over each other"],
)
def test_what_cannot_be_done_is_refused_before_the_work(
    run: Run, tmp_path: Path, options: tuple[object, ...], message: str
) -> None:
    code, _, err = run("--data", "mnist5k", *options)
    assert code == 2
    assert message in " ".join(err.split())
    assert files(tmp_path) == []


def test_an_unusable_place_for_the_analysis_is_found_before_the_work(run: Run, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    code, _, err = run("--data", "mnist5k", "--analyse-json", "taken/sums.json")
    assert code == 2
    assert "Cannot write to the folder taken" in " ".join(err.split())
    assert files(tmp_path) == ["taken"]


def test_a_net_in_a_file_is_analysed_alone_and_on_arrays(labkit_command: Run, tmp_path: Path) -> None:
    graph = block()
    net, inputs = IntegerNet(graph), sentences(graph, 9)
    net.save(tmp_path / "net.lab")
    np.savez(tmp_path / "x.npz", **inputs)
    code, out, err = labkit_command("analyse", tmp_path / "net.lab", "--json", tmp_path / "alone.json")
    assert code == 0, err
    assert json.loads((tmp_path / "alone.json").read_text()) == analyse(net).to_json()
    assert "at worst and on" not in out
    options = ("--input", tmp_path / "x.npz", "--json", tmp_path / "seen.json", "--plot", tmp_path / "bits.svg")
    code, out, err = labkit_command("analyse", tmp_path / "net.lab", *options)
    assert code == 0, err
    assert json.loads((tmp_path / "seen.json").read_text()) == analyse(net, inputs, "x.npz").to_json()
    assert "at worst and on 9 images (x.npz)" in out
    assert (tmp_path / "bits.svg").read_text().count("LayerNorm") == 0  # names of nodes, not of operations
    assert "norm" in (tmp_path / "bits.svg").read_text()
    code, _, err = labkit_command("analyse", tmp_path / "net.lab", "--json", tmp_path / "net.lab")
    assert (code, "are not all different" in err.replace("\n", " ")) == (2, True)
