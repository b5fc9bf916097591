"""Seconds on one core: the whole way from a module to its integer network, the searches alone, and KL calibration."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from labkit.benchmark.onnx_models import float_model
from labkit.frontends.torch_threads import torch_threads
from labkit.graph.ir import FloatGraph
from labkit.models import load as load_model
from labkit.quantization.calibration import calibrate, choose_ranges
from labkit.quantization.pipeline import quantize
from labkit.quantization.weight_rounding.best import BEST, BEST_METHOD
from labkit.quantization.weight_rounding.options import RoundingOptions
from labkit.studies.lab import Lab, open_lab
from labkit.studies.study import Finding, Settings, StudyResult, Table, Tell, mean_and_spread

__all__ = ["run"]

_PIPELINE_LIMIT = 25.0  # seconds
_SEARCH_LIMITS = {"descent": 2.0, "adaround": 40.0}
_KL_SHARE = 0.5
_BINS, _LEVELS = 2048, 128
_SEARCHES = ("descent", "gptq", BEST_METHOD, "adaround")


def run(settings: Settings, tell: Tell) -> StudyResult:
    """Time ResNet-20 at W4A8 (LeNet in the smoke form), each figure ``settings.seeds`` times.

    ``settings`` say how much of it; ``tell`` is called with (step, done, steps).
    """
    net = "lenet" if settings.smoke else "resnet20"
    with torch_threads(1):
        lab = open_lab(net, settings)
        module = load_model(net, lab.data.name)
        rounds = range(settings.seeds)
        quantize(module, lab.images[:32], 4, 8, method="best")  # everything that is compiled once is compiled
        steps = len(_SEARCHES) + 3
        whole = [_seconds(lambda: quantize(module, lab.images, 4, 8, method="best")) for _ in rounds]
        tell("whole pipeline", 1, steps)
        searches, whole_rounds = {}, {}
        for index, method in enumerate(_SEARCHES):
            options = BEST if method == BEST_METHOD else RoundingOptions(iterations=5 if settings.smoke else None)
            runs = [lab.round(lab.plan(4, 8), method, options, seed) for seed in rounds]
            searches[method] = [one.search_seconds for one in runs]
            whole_rounds[method] = [one.seconds for one in runs]
            tell(f"round by {method}", 2 + index, steps)
        ours = {name: [_seconds(partial(_kl, lab, name)) for _ in rounds] for name in ("toolkit", "onnxruntime")}
        tell("KL calibration", steps - 1, steps)
        theirs = _onnxruntime_seconds(lab.graph, lab.images, settings)
        tell("KL calibration by onnxruntime", steps, steps)
    return _result(net, settings, whole, searches, whole_rounds, ours, theirs)


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _kl(lab: Lab, variant: str) -> None:
    seen = calibrate(lab.graph, lab.images, histograms=True)
    choose_ranges(seen, lab.graph, lab.plan(8, 8), "kl", variant=variant)


def _onnxruntime_seconds(graph: FloatGraph, images: NDArray[np.float32], settings: Settings) -> float | None:
    """What onnxruntime's entropy calibrator takes for the same images on one thread; None where it is not installed."""
    if importlib.util.find_spec("onnxruntime") is None:
        return None
    import onnxruntime
    from onnxruntime.quantization.calibrate import CalibrationDataReader, EntropyCalibrater

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        """The images, in the batches that our own calibration makes of them."""

        def __init__(self) -> None:
            self.starts = iter(range(0, len(images), 128))

        def get_next(self) -> dict[str, Any] | None:
            start = next(self.starts, None)
            return None if start is None else {graph.inputs[0]: images[start : start + 128]}

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        path = Path(folder) / "net.onnx"
        onnx.save(float_model(graph), path)
        bins = _LEVELS if settings.smoke else _BINS
        start = time.perf_counter()
        calibrator = EntropyCalibrater(path, num_bins=bins, num_quantized_bins=_LEVELS)
        calibrator.augmented_model_path = str(Path(folder) / "augmented.onnx")
        calibrator.augment_graph()
        calibrator.execution_providers = ["CPUExecutionProvider"]
        one = onnxruntime.SessionOptions()
        one.intra_op_num_threads = 1
        calibrator.infer_session = onnxruntime.InferenceSession(
            calibrator.augmented_model_path, one, providers=["CPUExecutionProvider"]
        )
        calibrator.collect_data(Reader())
        calibrator.compute_data()
        return time.perf_counter() - start


def _result(
    net: str,
    settings: Settings,
    whole: list[float],
    searches: dict[str, list[float]],
    whole_rounds: dict[str, list[float]],
    ours: dict[str, list[float]],
    theirs: float | None,
) -> StudyResult:
    rounding = Table(
        f"{net} at W4A8, {settings.calibration} images, seconds on one thread, {settings.seeds} runs",
        ("rounding", "with its quadratic forms", "search alone"),
        tuple((name, mean_and_spread(whole_rounds[name]), mean_and_spread(searches[name])) for name in searches),
    )
    rows = [(f"labkit, {name} variant", mean_and_spread(seconds)) for name, seconds in ours.items()]
    rows.append((f"onnxruntime, {_BINS:,} bins", "not installed" if theirs is None else f"{theirs:.2f}"))
    kl = Table(
        f"{net}, KL calibration: images through the network, histograms, thresholds; seconds on one thread",
        ("calibrator", "seconds"),
        tuple(rows),
    )
    findings = [
        _within(
            f"{net}, from the module to the integer network at W4A8 by the best rounding (fold, calibrate, gather quadratic "
            f"forms, round, convert): under {_PIPELINE_LIMIT:g} s",
            whole,
            _PIPELINE_LIMIT,
        )
    ]
    findings += [
        _within(f"{net}, search by {name} alone: under {limit:g} s", searches[name], limit)
        for name, limit in _SEARCH_LIMITS.items()
    ]
    if theirs is not None:
        shares = [seconds / theirs for seconds in ours["toolkit"] + ours["onnxruntime"]]
        findings.append(
            Finding(
                f"{net}, KL calibration: at most half the time of onnxruntime's entropy calibrator with {_BINS:,} bins",
                f"{min(shares):.2f} to {max(shares):.2f} of it",
                "yes" if max(shares) <= _KL_SHARE else "partly" if median(shares) <= _KL_SHARE else "no",
            )
        )
    return StudyResult(
        (rounding, kl),
        tuple(findings),
        (),
        (
            "Wall time with everything compiled and loaded; other processes on the machine make it longer, never shorter.",
            "AdaRound runs its 1,000 steps on the quadratic form; without images, so their number does not count.",
        ),
    )


def _within(claim: str, seconds: list[float], limit: float) -> Finding:
    agrees = sum(one <= limit for one in seconds)
    return Finding(
        claim,
        f"{mean_and_spread(seconds)} s",
        "yes" if agrees == len(seconds) else "partly" if agrees else "no",
    )
