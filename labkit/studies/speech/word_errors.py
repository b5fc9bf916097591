"""Word error rates of a small QuartzNet in integers, speaker by speaker, each unknown to the network that reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from labkit.data.digit_strings import draw_strings
from labkit.data.spoken_digits import SpokenDigits, load_fsdd
from labkit.data.spoken_tones import spoken_tones
from labkit.errors import InputError
from labkit.files import user_cache
from labkit.models.quartznet import load_quartznet, quartznet_recipe
from labkit.models.speech_training import SpeechRecipe
from labkit.studies.speech.bench import CALIBRATION_SEED, WAYS, Bench, Reading, open_bench, train_bench
from labkit.studies.study import Figure, Finding, Series, Settings, StudyResult, Table, Tell, mean_and_spread

__all__ = ["run"]

_TESTS, _CALIBRATION, _VERIFIED = 2000, 512, 100
_WITHIN = 0.5  # points of word error rate: W8A8's target
_RANGES = ("mse", "minmax", "percentile", "kl")
_HUMMED = "mse, on tones made in code"
_FLOAT, _LIMITED = "float", "float, features cut off"
_BEST, _NEAREST = "W4A8, best", "W4A8, nearest"
_Q_ASR_MOST = 0.29  # points lost, in the abstract
_Q_ASR = (("QuartzNet-15x5 (Q-ASR)", 3.82, 4.04), ("JasperDR-10x5 (Q-ASR)", 3.68, 3.68))


Ways = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, eq=False)
class _Found:
    """readings : by (speaker, seed), then by way, `_FLOAT` among them. ranges : W8A8's error rates by rule, a speaker each."""

    readings: Mapping[tuple[str, int], Mapping[str, Reading]]
    ranges: Mapping[str, list[float]]

    def of(self, speaker: str, way: str) -> list[float]:
        """Error rates of ``speaker`` by ``way``, one a seed."""
        return [found[way].errors for (name, _), found in self.readings.items() if name == speaker]

    def cut(self, speaker: str) -> list[float]:
        """Shares of the features of ``speaker`` that lie beyond the range of the 8-bit input, per cent, one a seed."""
        return [found[_LIMITED].cut for (name, _), found in self.readings.items() if name == speaker]

    def changes(self, way: str) -> dict[tuple[str, int], float]:
        """Points above float."""
        return {key: found[way].errors - found[_FLOAT].errors for key, found in self.readings.items()}

    def by_speaker(self, way: str) -> dict[str, float]:
        """Points above float, mean over seeds."""
        changes = self.changes(way)
        return {
            name: fmean(points for (other, _), points in changes.items() if other == name)
            for name in dict.fromkeys(name for name, _ in changes)
        }


def run(settings: Settings, tell: Tell) -> StudyResult:
    """Train without one speaker, quantize, and read strings of that speaker's digits; each speaker in turn, each seed.

    Trainings that are found in labkit's cache are not repeated. ``settings`` say how much of it; the data are FSDD, whatever
    their name there is, and for a smoke run tones made in code. ``tell`` is called with (step, done, steps).

    Raises
    ------
    InputError
        The settings ask for pictures of digits.
    """
    if settings.smoke:
        with TemporaryDirectory() as folder:
            return _run(settings, tell, spoken_tones(2, 2), Path(folder))
    if settings.data != "fsdd":
        raise InputError(f"This study needs spoken digits: leave --data out or say --data fsdd, got {settings.data!r}.")
    return _run(settings, tell, load_fsdd(settings.data_dir), user_cache() / "speech")


def _run(settings: Settings, tell: Tell, data: SpokenDigits, folder: Path) -> StudyResult:
    tests = 4 if settings.smoke else min(settings.images or _TESTS, _TESTS)
    calibration = 4 if settings.smoke else min(settings.calibration, _CALIBRATION)
    verified = min(tests, _VERIFIED)
    ways = {name: how for name, how in WAYS.items() if not settings.smoke or name != _BEST}
    recipes = [
        SpeechRecipe(name, 2, 2, seed=seed, test_strings=2) if settings.smoke else SpeechRecipe(name, seed=seed)
        for seed in range(settings.seeds)
        for name in data.speakers
    ]
    readings: dict[tuple[str, int], dict[str, Reading]] = {}
    ranges: dict[str, list[float]] = {}
    for done, recipe in enumerate(recipes):
        assert recipe.held_out is not None
        words = f"without {recipe.held_out}, seed {recipe.seed}"
        tell(words, done, len(recipes))
        bench = train_bench(recipe, data, folder, tests, calibration, lambda step, steps: None)
        readings[recipe.held_out, recipe.seed] = _read(bench, ways, verified)
        if recipe.seed == 0:
            for rule, points in _by_rule(bench, _RANGES[:1] if settings.smoke else _RANGES).items():
                ranges.setdefault(rule, []).append(points)
    found = _Found(readings, ranges)
    shipped = None
    if not settings.smoke:
        shipped = _read(open_bench(load_quartznet(), data, None, tests, calibration), ways, verified)
    tell("all speakers", len(recipes), len(recipes))
    words_said = sum(map(len, bench.test.digits))
    return StudyResult(
        (
            _table(found, data.speakers, ways),
            _beside(found),
            _certificates(found, shipped, ways),
            _ranges_table(found),
            *(() if shipped is None else (_shipped_table(shipped, ways),)),
            _all(found, ways),
        ),
        _findings(found, ways),
        (_bars(found, data.speakers, ways),),
        _notes(data, recipes[0], tests, words_said, calibration),
    )


def _read(bench: Bench, ways: Ways, verified: int) -> dict[str, Reading]:
    floats = {_FLOAT: bench.reference, _LIMITED: bench.limited()}
    return floats | {name: bench.integers(verified, **how) for name, how in ways.items()}


def _either_way(found: _Found) -> Finding:
    """Whether W8A8 is near float also where it reads better, and near the float network that its input's range explains."""
    eight = found.by_speaker("W8A8")
    far = [f"{name} ({points:+.2f})" for name, points in eight.items() if abs(points) > _WITHIN]
    rest = {name: fmean(found.of(name, "W8A8")) - fmean(found.of(name, _LIMITED)) for name in eight}
    return Finding(
        f"W8A8 within {_WITHIN} points of float in either direction, for every speaker",
        (f"all but {' and '.join(far)}" if far else "all")
        + f"; against the float network whose features are cut off where the 8-bit input ends: {min(rest.values()):+.2f} to "
        f"{max(rest.values()):+.2f}",
        "yes" if not far else "partly" if max(eight.values()) <= _WITHIN else "no",
    )


def _by_rule(bench: Bench, rules: Sequence[str]) -> dict[str, float]:
    """Points of W8A8 above float by rule; and, as in Q-ASR, with ranges of sounds that are no speech at all."""
    errors = {rule: bench.integers(ranges=rule).errors for rule in rules}
    tones = spoken_tones(4, 2)
    hummed = draw_strings(tones, np.arange(len(tones.sounds)), len(bench.calibration), CALIBRATION_SEED)
    errors[_HUMMED] = bench.integers(calibration=hummed).errors
    return {rule: found - bench.reference.errors for rule, found in errors.items()}


def _table(found: _Found, speakers: Sequence[str], ways: Ways) -> Table:
    rows = []
    for name in speakers:
        reference = found.of(name, _FLOAT)
        cells = [
            f"{mean_and_spread(found.of(name, way))} ({fmean(found.of(name, way)) - fmean(reference):+.2f})"
            for way in (_LIMITED, *ways)
        ]
        rows.append((name, mean_and_spread(reference), *cells, mean_and_spread(found.cut(name))))
    means = {way: fmean(fmean(found.of(name, way)) for name in speakers) for way in (_FLOAT, _LIMITED, *ways)}
    cells = [f"{means[way]:.2f} ({means[way] - means[_FLOAT]:+.2f})" for way in (_LIMITED, *ways)]
    rows.append(("mean", f"{means[_FLOAT]:.2f}", *cells, f"{fmean(fmean(found.cut(name)) for name in speakers):.2f}"))
    return Table(
        "Word error rate, %, of a speaker whom the network has never heard (and points above float), mean and deviation over "
        "seeds",
        ("speaker held out", _FLOAT, _LIMITED, *ways, "features cut off, %"),
        tuple(rows),
    )


def _beside(found: _Found) -> Table:
    here = [fmean(one[way].errors for one in found.readings.values()) for way in (_FLOAT, "W8A8")]
    beside = (*_Q_ASR, ("here, all speakers", here[0], here[1]))
    rows = [(name, f"{a:.2f}", f"{b:.2f}", f"{b - a:+.2f}") for name, a, b in beside]
    return Table("Beside Q-ASR (LibriSpeech): word error rate, %", ("network", _FLOAT, "W8A8", "points"), tuple(rows))


def _certificates(found: _Found, shipped: Mapping[str, Reading] | None, ways: Ways) -> Table:
    rows = []
    for way in ways:
        reports = [one[way].certificate for one in (*found.readings.values(), *([shipped] if shipped else []))]
        kept = [report for report in reports if report is not None]
        images = {report.images for report in kept}
        elements, differing = (sum(getattr(report, name) for report in kept) for name in ("elements", "differing"))
        passed = sum(report.passed for report in kept)
        rows.append((way, f"{passed} of {len(kept)}", max(images), f"{elements:,}", differing))
    return Table(
        "Every parameter and every node's integers, argmax included, against an integer emulation in PyTorch, tolerance 0",
        ("bits and rounding", "networks that pass", "strings for each", "integers compared", "differing"),
        tuple(rows),
    )


def _ranges_table(found: _Found) -> Table:
    rows = [(rule, f"{fmean(points):+.2f}", f"{max(points):+.2f}") for rule, points in found.ranges.items()]
    return Table(
        "W8A8 by the rule for the activations' ranges: points above float over the speakers, seed 0",
        ("rule", "mean", "largest"),
        tuple(rows),
    )


def _shipped_table(shipped: Mapping[str, Reading], ways: Ways) -> Table:
    rows = [(way, f"{shipped[way].errors:.2f}", f"{shipped[way].same:.1f}") for way in (_FLOAT, _LIMITED, *ways)]
    return Table(
        "The shipped network, trained on takes 5 to 49 of all speakers, on strings of takes 0 to 4",
        ("bits and rounding", "word error rate, %", "strings read as in float, %"),
        tuple(rows),
    )


def _all(found: _Found, ways: Ways) -> Table:
    rows: list[tuple[str | int, ...]] = [
        (name, seed, *(f"{one[way].errors:.2f}" for way in (_FLOAT, _LIMITED, *ways)), f"{one['W8A8'].same:.1f}")
        for (name, seed), one in found.readings.items()
    ]
    return Table(
        "Word error rate, %, of each network",
        ("speaker held out", "seed", _FLOAT, _LIMITED, *ways, "strings that W8A8 reads as float does, %"),
        tuple(rows),
    )


def _findings(found: _Found, ways: Ways) -> tuple[Finding, ...]:
    eight, by_speaker = found.changes("W8A8"), found.by_speaker("W8A8")
    worst = max(eight, key=lambda key: eight[key])
    mean = fmean(eight.values())
    findings = [
        Finding(
            f"W8A8, all layers in integers, loses at most {_WITHIN} points of word error rate on every split",
            f"{mean:+.2f} points on average; by speaker {min(by_speaker.values()):+.2f} to {max(by_speaker.values()):+.2f}; "
            f"the largest of {len(eight)} networks {eight[worst]:+.2f} ({worst[0]}, seed {worst[1]})",
            "yes" if max(eight.values()) <= _WITHIN else "partly" if max(by_speaker.values()) <= _WITHIN else "no",
        ),
        _either_way(found),
        Finding(
            f"INT8-only costs QuartzNet 0.22 points, Jasper none (abstract: at most {_Q_ASR_MOST})",
            f"{mean_and_spread(list(by_speaker.values()))} points over the speakers",
            "yes" if mean <= _Q_ASR_MOST else "partly" if mean <= _WITHIN else "no",
        ),
    ]
    if hummed := found.ranges.get(_HUMMED):
        findings.append(
            Finding(
                "Ranges of synthetic data, without any speech, cost no more (W8A8, seed 0)",
                f"{fmean(hummed):+.2f} points on average, {max(hummed):+.2f} at most; ranges of speech "
                f"{fmean(found.ranges['mse']):+.2f} and {max(found.ranges['mse']):+.2f}",
                "yes" if fmean(hummed) <= _Q_ASR_MOST else "partly" if fmean(hummed) <= _WITHIN else "no",
            )
        )
    six = found.by_speaker("W6A8")
    findings.append(
        Finding(
            "Weights of 6 bits compress more than four times with a small loss (here: at most 1 point)",
            f"{fmean(six.values()):+.2f} points on average, {min(six.values()):+.2f} to {max(six.values()):+.2f} by speaker, "
            f"at {32 / 6:.1f} times fewer bits a weight",
            "yes" if max(six.values()) <= 1 else "partly" if fmean(six.values()) <= 1 else "no",
        )
    )
    if _BEST in ways:
        best, nearest = found.changes(_BEST), found.changes(_NEAREST)
        gains = [nearest[key] - best[key] for key in best]
        error = stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else 0.0
        findings.append(
            Finding(
                "At W4A8 the best rounding loses less than rounding to nearest (not in the paper)",
                f"{fmean(best.values()):+.2f} points against {fmean(nearest.values()):+.2f}: "
                f"{fmean(gains):.2f} ± {error:.2f} (standard error over networks) gained",
                "yes" if fmean(gains) > max(2 * error, 0.1) else "partly" if fmean(gains) > 0 else "no",
            )
        )
        findings.append(
            Finding(
                f"W4A8 by the best rounding within {_WITHIN} points of float (not in the paper)",
                f"{fmean(best.values()):+.2f} points on average; by speaker {min(found.by_speaker(_BEST).values()):+.2f} to "
                f"{max(found.by_speaker(_BEST).values()):+.2f}",
                "yes"
                if max(found.by_speaker(_BEST).values()) <= _WITHIN
                else "partly"
                if fmean(best.values()) <= _WITHIN
                else "no",
            )
        )
    reports = [one[way].certificate for one in found.readings.values() for way in ways]
    differing = sum(report.differing for report in reports if report is not None)
    findings.append(
        Finding(
            "Every node's integers are those of the emulation in PyTorch (not in the paper)",
            f"{differing} of {sum(report.elements for report in reports if report is not None):,} differ",
            "yes" if all(report is not None and report.passed for report in reports) else "no",
        )
    )
    return tuple(findings)


def _bars(found: _Found, speakers: Sequence[str], ways: Ways) -> Figure:
    series = []
    for way in (_FLOAT, *ways):
        values = [found.of(name, way) for name in speakers]
        errors = tuple(stdev(one) for one in values) if len(values[0]) > 1 else ()
        series.append(Series(way, tuple(speakers), tuple(map(fmean, values)), errors))
    return Figure("word-errors", "An unknown speaker's digits", "bar", "held out", "word error rate, %", tuple(series))


def _notes(data: SpokenDigits, recipe: SpeechRecipe, tests: int, words: int, calibration: int) -> tuple[str, ...]:
    shipped = quartznet_recipe()
    return (
        f"{data.reason} sha256 of all samples and labels: {data.sha256}. A string has 3 to 7 recordings of the held-out speaker "
        f"with pauses of up to 70 ms; {tests:,} strings ({words:,} words for the last speaker) for each network.",
        "Q-ASR's networks read English sentences (LibriSpeech) with 15 blocks of 5 layers; here a network of "
        f"{shipped['parameters']:,} parameters of the same make (separable convolutions along time, shortcuts, CTC read "
        "greedily) tells ten words apart. Their error rates and these cannot be compared, only the change by quantization. Q-ASR "
        "calibrates on synthetic data without any speech; here calibration strings are of the training speakers, and the last "
        "row of the table of rules has ranges of tones made in code (`labkit.data.spoken_tones`), unknown to the network too.",
        f"Each network was trained here, on one thread: `{recipe.command}` for the first; speakers and seeds follow. The "
        "log-mel front end (40 bands, windows of 25 ms every 10 ms, each band of a string with mean 0 and deviation 1) computes "
        "in real numbers; from the quantized features to each frame's class, the argmax included, all is integer.",
        "All layers have the bits of the column, first and last included; weights have one scale a channel, activations 8 bits, "
        f"with ranges of least squared error on {calibration} strings of the training speakers. That rule was chosen beforehand, "
        "with one network of a shorter training, as the one that changes the fewest frames of training speakers; the table of "
        "rules has the others.",
        '"Features cut off": an unknown speaker\'s features go farther than those of the training speakers, and the 8 bits of '
        "the input cut them off. That alone can help, so the float network was also given features that end where the range of "
        "the input ends; the last column of the first table counts what was cut off.",
        "Strings are padded with zeros to the longest one, and frames after a string's end are not read.",
        "The weights that the best rounding decided are taken as decided: the certificates of that row cover all but these.",
    )
