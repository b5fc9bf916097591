"""One held-out speaker and one seed on the bench: the trained network, its integers, and what both read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from labkit.data.digit_strings import Strings, draw_strings
from labkit.data.spoken_digits import SpokenDigits
from labkit.frontends.torch_threads import torch_threads
from labkit.models.ctc import read_greedily, word_error_rate
from labkit.models.quartznet import QuartzNet, Transcriber, frames_out
from labkit.models.speech_training import SpeechRecipe, split, test_strings, train_speech
from labkit.parity.compare import verify
from labkit.parity.report import ParityReport
from labkit.quantization.pipeline import quantize

__all__ = ["CALIBRATION_SEED", "WAYS", "Bench", "Reading", "open_bench", "train_bench"]

CALIBRATION_SEED = 13  # of strings of the training speakers that no training has seen in this order
_BATCH = 100
WAYS: dict[str, dict[str, Any]] = {
    "W8A8": {"weights": 8},
    "W6A8": {"weights": 6},
    "W4A8, nearest": {"weights": 4},
    "W4A8, best": {"weights": 4, "method": "best"},
}

Words = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Reading:
    """What a network makes of the test strings.

    errors : word error rate, per cent.
    same : share of the strings, per cent, that are read as the float network reads them.
    certificate : of the integer network against PyTorch; None for the float one.
    cut : share of the features, per cent, that `Bench.limited` cut off.
    """

    errors: float
    same: float
    certificate: ParityReport | None = None
    cut: float = 0.0


@dataclass(frozen=True, eq=False)
class Bench:
    """A trained network and what a study measures it with.

    module : features in, the class of each frame out; in evaluation mode.
    calibration : strings of the training recordings, as long as those of the test.
    test : strings of the recordings held out.
    heard : what the float network reads in them.
    """

    module: Transcriber
    calibration: Strings
    test: Strings
    heard: Words

    @property
    def reference(self) -> Reading:
        """The float network's."""
        return Reading(word_error_rate(self.heard, self.test.digits), 100.0)

    def limited(self, ranges: str = "mse") -> Reading:
        """That of the float network whose features are cut off where those of the integer network are.

        An unknown speaker's features go beyond the training speakers', and what 8 bits cannot hold of them is cut off; this
        tells that change from all others. ``ranges`` are as `labkit.quantize` takes them.
        """
        graph = quantize(self.module, self.calibration.x, ranges=ranges).graph
        spec, params = next(iter(graph)).output.quantized  # the node that quantizes the features
        low, high = (np.float32((q - int(params.zero_point)) * float(params.scale)) for q in (spec.qmin, spec.qmax))
        x, frames = self.test.x, self.test.frames
        said = np.moveaxis(x, 1, 2)[
            np.arange(x.shape[2]) < frames[:, None]
        ]  # without the zeros after each string's end
        reading = self._judged(read_greedily(_best(self.module, np.clip(x, low, high)), frames_out(frames)))
        return replace(reading, cut=100 * float(np.mean((said < low) | (said > high))))

    def integers(
        self, verified: int = 0, ranges: str = "mse", calibration: Strings | None = None, **how: Any
    ) -> Reading:
        """That of the integer engine.

        Parameters
        ----------
        verified : the first so many test strings are compared with PyTorch, node by node
        ranges, how : as `labkit.quantize` takes them
        calibration : other strings than the bench's, no longer than these
        """
        seen = self.calibration if calibration is None else calibration.padded(self.test.x.shape[2])
        net = quantize(self.module, seen.x, ranges=ranges, **how)
        certificate = verify(net, self.module, self.test.x[:verified]) if verified else None
        return self._judged(read_greedily(net.run(self.test.x), frames_out(self.test.frames)), certificate)

    def _judged(self, heard: Words, certificate: ParityReport | None = None) -> Reading:
        same = 100 * float(np.mean([one == other for one, other in zip(heard, self.heard, strict=True)]))
        return Reading(word_error_rate(heard, self.test.digits), same, certificate)


def open_bench(
    net: QuartzNet, data: SpokenDigits, held_out: str | None, tests: int, calibration: int, seed: int = 0
) -> Bench:
    """The bench of ``net``, which was trained without the recordings that ``held_out`` names (see `SpeechRecipe`).

    ``tests`` and ``calibration`` are numbers of strings drawn from ``data``; those of the calibration depend on ``seed``.
    """
    among, _ = split(data, held_out)
    test = test_strings(data, held_out, tests)
    seen = draw_strings(data, among, calibration, CALIBRATION_SEED, seed)
    longest = max(test.x.shape[2], seen.x.shape[2])
    test, seen, module = test.padded(longest), seen.padded(longest), Transcriber(net).eval()
    return Bench(module, seen, test, read_greedily(_best(module, test.x), frames_out(test.frames)))


def train_bench(
    recipe: SpeechRecipe,
    data: SpokenDigits,
    folder: Path,
    tests: int,
    calibration: int,
    tell: Callable[[int, int], None],
) -> Bench:
    """The bench of a network trained by ``recipe``, or read from ``folder`` where it was trained before.

    ``data``, ``tests`` and ``calibration`` are as for `open_bench`; ``tell`` is called with (steps done, steps).
    """
    trained = train_speech(recipe, data, folder, None, lambda done, steps, loss: tell(done, steps))
    assert trained is not None
    return open_bench(trained[0], data, recipe.held_out, tests, calibration, recipe.seed)


def _best(module: Transcriber, x: NDArray[np.float32]) -> NDArray[np.int64]:
    """Each frame's class by the float network, int64 [N, frames out]."""
    with torch_threads(1), torch.inference_mode():
        return np.concatenate([module(part).numpy() for part in torch.split(torch.from_numpy(x), _BATCH)])
