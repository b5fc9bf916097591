"""The bench of speech: what it reads against networks run by hand; the study's verdicts on planted readings."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import labkit
from labkit.cli.app import app
from labkit.data.spoken_tones import spoken_tones
from labkit.errors import InputError
from labkit.models.ctc import edits, read_greedily
from labkit.models.quartznet import Transcriber, frames_out, load_quartznet
from labkit.models.speech_training import SpeechRecipe, test_strings
from labkit.studies.registry import find
from labkit.studies.run import read_study
from labkit.studies.speech import word_errors
from labkit.studies.speech.bench import WAYS, Bench, Reading, open_bench, train_bench
from labkit.studies.speech.word_errors import run
from labkit.studies.study import Finding, Settings

TONES = spoken_tones(2, 2)


@pytest.fixture(scope="module")
def bench() -> Bench:
    return open_bench(load_quartznet(), TONES, "voice-1", 6, 8)


def test_the_bench_reads_what_the_networks_say(bench: Bench) -> None:
    module = Transcriber(load_quartznet()).eval()
    with torch.inference_mode():
        best = module(torch.from_numpy(bench.test.x)).numpy()
    said = read_greedily(best, frames_out(bench.test.frames))
    assert bench.heard == said
    words = sum(map(len, bench.test.digits))
    assert bench.reference.errors == pytest.approx(100 * sum(map(edits, said, bench.test.digits)) / words)
    assert bench.reference.same == 100
    net = labkit.quantize(module, bench.calibration.x, weights=4, ranges="percentile")
    heard = read_greedily(net.run(bench.test.x), frames_out(bench.test.frames))
    reading = bench.integers(ranges="percentile", weights=4)
    assert reading.errors == pytest.approx(100 * sum(map(edits, heard, bench.test.digits)) / words)
    assert reading.same == pytest.approx(100 * sum(a == b for a, b in zip(heard, said, strict=True)) / 6)
    assert reading.certificate is None


def test_strings_of_the_test_are_of_the_held_out_speaker(bench: Bench) -> None:
    wanted = test_strings(TONES, "voice-1", 6)
    assert bench.test.digits == wanted.digits
    assert bench.test.x.shape[2] == bench.calibration.x.shape[2] >= wanted.x.shape[2]
    np.testing.assert_array_equal(bench.test.x[:, :, : wanted.x.shape[2]], wanted.x)
    of_both = {one.tobytes() for one in bench.test.x} & {one.tobytes() for one in bench.calibration.x}
    assert not of_both
    assert open_bench(load_quartznet(), TONES, "voice-1", 6, 8, seed=1).calibration.digits != bench.calibration.digits


@pytest.mark.parametrize("way", WAYS)
def test_every_way_is_certified(bench: Bench, way: str) -> None:
    certificate = bench.integers(2, **WAYS[way]).certificate
    assert certificate is not None
    assert certificate.passed
    assert certificate.images == 2


def test_features_are_cut_off_where_the_integers_end(bench: Bench) -> None:
    module = Transcriber(load_quartznet()).eval()
    loud = replace(bench, test=replace(bench.test, x=4 * bench.test.x))
    net = labkit.quantize(module, bench.calibration.x, ranges="minmax")
    low, high = _ends(net, bench.calibration.x)
    assert loud.test.x.min() < low < high < loud.test.x.max()
    with torch.inference_mode():
        best = module(torch.from_numpy(loud.test.x).clamp(low, high)).numpy()
        assert (best != module(torch.from_numpy(loud.test.x)).numpy()).any()
    heard = read_greedily(best, frames_out(bench.test.frames))
    wanted = 100 * sum(map(edits, heard, bench.test.digits)) / sum(map(len, bench.test.digits))
    assert loud.limited("minmax").errors == pytest.approx(wanted)
    counts = [
        (np.count_nonzero((one[:, :end] < low) | (one[:, :end] > high)), one[:, :end].size)
        for one, end in zip(loud.test.x, loud.test.frames, strict=True)
    ]
    outside, features = np.sum(counts, axis=0)
    assert loud.limited("minmax").cut == pytest.approx(100 * outside / features)
    assert 0 < bench.limited("mse").cut < loud.limited("mse").cut < 100


def _ends(net: labkit.IntegerNet, x: np.ndarray) -> tuple[float, float]:
    """The real numbers that the input's lowest and highest integer stand for, found by features far outside."""
    wide = np.zeros_like(x[:1])
    wide[0, 0, :2] = (-1000, 1000)
    step = net.graph["x"].output.quantized[1]
    levels = net.trace(wide)["x"][0, 0, :2].astype(float)
    low, high = (levels - float(step.zero_point)) * float(step.scale)
    return low, high


def test_a_trained_bench_is_the_trained_network(tmp_path) -> None:  # type: ignore[no-untyped-def]
    told: list[tuple[int, int]] = []
    recipe = SpeechRecipe("voice-0", 2, 2, test_strings=2)
    for _ in range(2):  # the second time it is read
        bench = train_bench(recipe, TONES, tmp_path, 3, 4, lambda done, steps: told.append((done, steps)))
    assert told == [(2, 2)]
    (weights,) = tmp_path.glob("*.safetensors")
    wanted = Transcriber(load_quartznet(weights)).eval()
    for name, tensor in wanted.state_dict().items():
        assert torch.equal(bench.module.state_dict()[name], tensor)


# ---- verdicts


def found(points: Mapping[str, Mapping[str, float]]) -> word_errors._Found:
    """Readings of two seeds: ``points`` above a float error rate of 10, by speaker and way; seed 1 has 0.1 more."""
    readings = {
        (name, seed): {"float": Reading(10.0, 100.0), word_errors._LIMITED: Reading(9.5, 99.0)}
        | {way: Reading(10 + points[name].get(way, 0.0) + 0.1 * seed, 99.0) for way in WAYS}
        for name in points
        for seed in range(2)
    }
    return word_errors._Found(readings, {})


def verdict(points: Mapping[str, Mapping[str, float]], claim: str) -> Finding:
    (finding,) = [one for one in word_errors._findings(found(points), WAYS) if claim in one.claim]
    return finding


@pytest.mark.parametrize(("worst", "agrees"), [(0.35, "yes"), (0.42, "partly"), (0.5, "no"), (-3.0, "yes")])
def test_the_target_is_held_by_each_network(worst: float, agrees: str) -> None:
    finding = verdict({"one": {"W8A8": 0.0}, "two": {"W8A8": worst}}, "on every split")
    assert finding.agrees == agrees
    if worst > 0:
        assert f"the largest of 4 networks {worst + 0.1:+.2f} (two, seed 1)" in finding.measured


@pytest.mark.parametrize(("worst", "agrees"), [(0.4, "yes"), (-0.4, "yes"), (-0.7, "partly"), (0.7, "no")])
def test_being_better_by_much_is_not_being_near(worst: float, agrees: str) -> None:
    finding = verdict({"one": {"W8A8": 0.0}, "two": {"W8A8": worst}}, "in either direction")
    assert finding.agrees == agrees
    far = "all" if agrees == "yes" else f"all but two ({worst + 0.05:+.2f})"
    ends = sorted([0.55, worst + 0.55])  # the float network with features cut off is 0.5 better
    assert finding.measured.startswith(f"{far}; ")
    assert finding.measured.endswith(f"{ends[0]:+.2f} to {ends[1]:+.2f}")


@pytest.mark.parametrize(("mean", "agrees"), [(0.2, "yes"), (0.4, "partly"), (0.7, "no")])
def test_the_paper_is_compared_by_the_mean(mean: float, agrees: str) -> None:
    points = {"one": {"W8A8": mean - 0.15}, "two": {"W8A8": mean + 0.05}}
    assert verdict(points, "costs QuartzNet").agrees == agrees


@pytest.mark.parametrize(
    ("nearest", "agrees"), [((1.0, 1.2), "yes"), ((3.0, 0.1), "partly"), ((0.05, 0.05), "partly"), ((-1.0, 0.5), "no")]
)
def test_best_rounding_is_compared_by_networks(nearest: tuple[float, float], agrees: str) -> None:
    points = {name: {"W4A8, nearest": value} for name, value in zip(("one", "two"), nearest, strict=True)}
    finding = verdict(points, "best rounding loses less")
    assert finding.agrees == agrees
    assert f"{np.mean(nearest) + 0.05:+.2f}" in finding.measured


@pytest.mark.parametrize(("points", "agrees"), [((-0.2, 0.7), "yes"), ((0.3, 0.5), "partly"), ((0.6, 0.6), "no")])
def test_ranges_without_speech_have_a_verdict(points: tuple[float, float], agrees: str) -> None:
    ranges = {"mse": [0.1, 0.3], word_errors._HUMMED: list(points)}
    planted = word_errors._Found(found({"one": {}, "two": {}}).readings, ranges)
    (finding,) = [one for one in word_errors._findings(planted, WAYS) if "without any speech" in one.claim]
    assert finding.agrees == agrees
    assert f"{max(points):+.2f} at most; ranges of speech +0.20 and +0.30" in finding.measured


def test_a_network_without_a_certificate_proves_nothing() -> None:
    assert verdict({"one": {}}, "integers are those of the emulation").agrees == "no"


def test_the_command_takes_spoken_digits(tmp_path: Path) -> None:
    assert find("speech-quartznet").data_called(None) == "fsdd"
    listed = CliRunner().invoke(app, ["study", "--list"], env={"COLUMNS": "400"}).output
    assert re.search(r"speech-quartznet .* fsdd +50\n", listed)
    given = ["study", "speech-quartznet", "--data", "cifar10", "--out", str(tmp_path)]
    refused = CliRunner().invoke(app, given).exception
    assert isinstance(refused, InputError)
    assert "speech-quartznet runs on fsdd, got --data cifar10" in str(refused)
    assert not list(tmp_path.iterdir())


def test_pictures_are_refused() -> None:
    with pytest.raises(InputError, match="leave --data out or say --data fsdd, got 'mnist5k'"):
        run(Settings("mnist5k"), lambda *_: None)


def test_what_the_document_quotes_is_what_the_study_found() -> None:
    docs = Path(labkit.__file__).parents[1] / "docs"
    text = " ".join((docs / "speech.md").read_text("utf-8").split())
    result = read_study(docs / "studies" / "speech-quartznet")
    networks = [dict(zip(result["tables"][-1]["columns"], row, strict=True)) for row in result["tables"][-1]["rows"]]
    points = {way: [float(one[way]) - float(one["float"]) for one in networks] for way in WAYS}
    nicolas = [one for one in networks if one["speaker held out"] == "nicolas"]
    better, rest = (
        np.mean([float(one["W8A8"]) - float(one[other]) for one in nicolas])
        for other in ("float", word_errors._LIMITED)
    )
    (cut,) = [row[-1] for row in result["tables"][0]["rows"] if row[0] == "nicolas"]
    proof = next(one["measured"] for one in result["findings"] if "emulation" in one["claim"])
    assert f"three seeds make {len(networks)} networks" in text
    for sentence in (
        f"never costs more than {max(points['W8A8']):.2f} points",
        f"is {-np.mean(points['W8A8']):.2f} points better than float",
        f"nicolas ({better:+.2f} points). {float(cut.split()[0]):.1f} % of his features",
        f"W8A8 is {rest:+.2f} points from it",
        f"{np.mean(points['W4A8, nearest']):+.2f} points with rounding to nearest, {np.mean(points['W4A8, best']):+.2f} with the",
        f"{proof}.",
    ):
        assert sentence in text, sentence


def test_the_python_of_the_document_runs(capsys: pytest.CaptureFixture[str]) -> None:
    text = (Path(labkit.__file__).parents[1] / "docs" / "speech.md").read_text("utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", text, re.S)
    exec(compile(block, "docs/speech.md", "exec"), {})  # its last line asserts
    assert float(capsys.readouterr().out) > 0
