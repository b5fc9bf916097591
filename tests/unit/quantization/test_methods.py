"""Every way to choose ranges and to round weights, through `labkit.quantize` to a certified integer network."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import labkit
from labkit.data import load
from labkit.errors import QuantizationError
from labkit.models import load as load_model
from labkit.quantization.pipeline import METHODS, ROUNDINGS
from labkit.quantization.ranges import ALL_RANGES
from labkit.quantization.weight_rounding.options import RoundingOptions

RNG = np.random.default_rng(5)
X = RNG.normal(0, 0.4, (96, 3, 8, 8)).astype(np.float32)
QUICK = RoundingOptions(images=48, samples=600, iterations=12, batch_size=16)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        self.depthwise = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8))
        self.pool, self.flatten, self.fc = nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.stem(x)
        result: torch.Tensor = self.fc(self.flatten(self.pool(torch.relu(y + self.depthwise(y)))))
        return result


@pytest.fixture(scope="module")
def module() -> nn.Module:
    torch.manual_seed(2)
    return Residual().eval()


@pytest.mark.parametrize("scheme", ["affine", "symmetric"])
@pytest.mark.parametrize("ranges", ALL_RANGES)
def test_ranges(ranges: str, scheme: str, module: nn.Module) -> None:
    bits = 4 if scheme == "affine" else 5  # half of a signed grid is of no use after a ReLU
    net = labkit.quantize(module, X, 8, bits, ranges=ranges, activation_scheme=scheme)
    assert net.graph.notes["calibration"]["method"] == ranges
    report = labkit.verify(net, module, X)
    assert report.passed, report
    expected = module(torch.from_numpy(X)).detach().numpy()
    assert np.abs(net.run(X) - expected).mean() < 0.5 * np.abs(expected - expected.mean(0)).mean()


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_roundings(rounding: str, per_channel: bool, module: nn.Module) -> None:
    options = None if rounding == "nearest" else QUICK
    net = labkit.quantize(module, X, 4, 8, rounding=rounding, per_channel=per_channel, rounding_options=options, seed=3)
    assert net.graph.notes["rounding"] == rounding
    report = labkit.verify(net, module, X)
    assert report.passed, report
    assert ("which a rounding method decided" in str(report)) == (rounding != "nearest")
    assert np.array_equal(net.run(X), net.run(X, kernels="reference"))
    again = labkit.quantize(
        module, X, 4, 8, rounding=rounding, per_channel=per_channel, rounding_options=options, seed=3
    )
    assert np.array_equal(again.run(X), net.run(X)), "the same seed must give the same network"


@pytest.mark.parametrize("method", [*ALL_RANGES[:3], "kl", "gptq", "stochastic", "best"])
def test_presets_fill_the_rest(method: str, module: nn.Module) -> None:
    net = labkit.quantize(module, X, 4, 4, method=method)
    wanted = METHODS[method]
    assert net.graph.notes["rounding"] == wanted.get("rounding", "nearest")
    assert net.graph.notes["calibration"]["method"].startswith(wanted.get("ranges", "minmax"))
    assert labkit.verify(net, module, X).passed


def test_images_may_come_once_and_in_any_portions(module: nn.Module) -> None:
    def stream() -> Iterator[np.ndarray[Any, Any]]:
        for start in range(0, len(X), 17):
            yield X[start : start + 17]

    for options in ({"rounding": "gptq", "rounding_options": QUICK}, {"ranges": "mse"}, {"ranges": "lapq"}):
        whole = labkit.quantize(module, X, 4, 4, **options)  # type: ignore[arg-type]
        parts = labkit.quantize(module, stream(), 4, 4, **options)  # type: ignore[arg-type]
        assert np.allclose(parts.run(X), whole.run(X), atol=0.15)
        assert labkit.verify(parts, module, X).passed


def test_progress_runs_from_nothing_to_all(module: nn.Module) -> None:
    told: list[tuple[str, int, int]] = []
    labkit.quantize(module, X, 4, 8, rounding="gptq", rounding_options=QUICK, progress=lambda *step: told.append(step))
    assert {step for step, _, _ in told} == {"Round weights"}
    done = [done for _, done, _ in told]
    assert done == list(range(told[0][2] + 1))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "best", "rounding": "gptq"}, "means rounding='gptq.descent', but rounding='gptq' is given"),
        ({"method": "kl", "ranges": "mse"}, "means ranges='kl', but ranges='mse' is given"),
        ({"rounding_options": QUICK}, "rounding='nearest' does not: drop one"),
        ({"rounding": "random"}, "rounding must be one of nearest, .*, got 'random'"),
    ],
)
def test_contradictions_are_refused(options: dict[str, Any], words: str, module: nn.Module) -> None:
    with pytest.raises(QuantizationError, match=words):
        labkit.quantize(module, X, **options)


def test_best_is_better_than_nearest_on_real_digits() -> None:
    digits = load("mnist5k")
    lenet, (x, labels) = load_model("lenet", "mnist5k"), digits.test(1000)
    right = {}
    for method in ("minmax", "best"):
        net = labkit.quantize(lenet, digits.calibration(512), 2, 8, method=method)
        right[method] = 100 * (net.run(x).argmax(1) == labels).mean()
        assert labkit.verify(net, lenet, x[:64]).passed
    assert right["best"] > right["minmax"] + 3
    assert right["best"] > 95
