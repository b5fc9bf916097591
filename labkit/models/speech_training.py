"""Train QuartzNet on strings of spoken digits: ``python -m labkit.models.speech_training FOLDER``.

A training that was killed goes on where it stood and ends in the same weights: what is drawn depends on the seed and the step
alone, and weights, momenta and the step lie in one file.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from labkit import __version__
from labkit.data.digit_strings import Distortion, Strings, draw_strings
from labkit.data.log_mel import LogMel
from labkit.data.spoken_digits import SpokenDigits, load_fsdd
from labkit.errors import InputError, ModelError
from labkit.files import folder_for, write_atomically
from labkit.frontends.torch_threads import torch_threads
from labkit.models.ctc import BLANK, read_greedily, word_error_rate
from labkit.models.quartznet import QuartzNet, frames_out, load_quartznet

__all__ = ["TEST_SEED", "SpeechRecipe", "main", "score", "split", "test_strings", "train_speech"]

TRAINING_SEED, TEST_SEED = 11, 12  # of what is drawn; a calibration set has another one
_KEPT = 100  # steps between two progress files
_WARM_UP = 0.2  # share of the steps in which the rate rises
_MOST_GRADIENT = 5.0  # norm of all gradients together
_TEST_TAKES = 5  # takes 0 to 4 of each digit and speaker are FSDD's own test set
_JUDGED = 100  # strings at a time
_STATE = "labkit_speech_training"


@dataclass(frozen=True)
class SpeechRecipe:
    """All that decides the weights, given the recordings, the version of torch and the kind of processor.

    held_out : the speaker whose recordings are kept for the test; None: takes 0 to 4 of every speaker (FSDD's own split)
    steps, batch_size : steps of AdamW, and strings a step
    learning_rate, weight_decay : the highest rate of one cycle (a straight rise, then half a cosine to 0), and the decay
    seed : of the first weights and the strings
    precision : of the products, "bfloat16" or "float32"
    test_strings : the weights are judged by them, once, at the end

    Raises
    ------
    InputError
        A number is outside its range.
    """

    held_out: str | None = None
    steps: int = 1500
    batch_size: int = 32
    learning_rate: float = 0.008
    weight_decay: float = 0.01
    seed: int = 0
    precision: str = "bfloat16"
    test_strings: int = 500

    def __post_init__(self) -> None:
        if min(self.steps, self.batch_size, self.test_strings) < 1 or self.seed < 0:
            raise InputError(f"steps, batch_size and test_strings must be at least 1, seed at least 0, got {self}.")
        if not (0 < self.learning_rate < 1 and 0 <= self.weight_decay < 1):
            raise InputError(
                f"learning_rate must be in (0, 1) and weight_decay in [0, 1), got {self.learning_rate} and {self.weight_decay}."
            )
        if self.precision not in ("float32", "bfloat16"):
            raise InputError(f"precision must be float32 or bfloat16, got {self.precision!r}.")

    @property
    def command(self) -> str:
        """The command that follows this recipe, every option spelled out."""
        held_out = "" if self.held_out is None else f" --held-out {self.held_out}"
        return (
            f"python -m labkit.models.speech_training FOLDER{held_out} --steps {self.steps} --batch-size {self.batch_size} "
            f"--learning-rate {self.learning_rate} --weight-decay {self.weight_decay} --seed {self.seed} "
            f"--precision {self.precision} --test-strings {self.test_strings}"
        )


def split(data: SpokenDigits, held_out: str | None) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices of the recordings of ``data`` to train and to test with, int64 [M] each; ``held_out`` as in `SpeechRecipe`.

    Raises
    ------
    InputError
        There is no such speaker.
    """
    if held_out is not None:
        return data.not_by(held_out), data.by(held_out)
    return np.flatnonzero(data.take >= _TEST_TAKES), np.flatnonzero(data.take < _TEST_TAKES)


def test_strings(data: SpokenDigits, held_out: str | None, count: int) -> Strings:
    """``count`` strings of the test recordings of ``data``; ``held_out`` as in `SpeechRecipe`."""
    return draw_strings(data, split(data, held_out)[1], count, TEST_SEED)


test_strings.__test__ = False  # type: ignore[attr-defined]  # pytest would take it for a test


def score(best: Callable[[NDArray[np.float32]], NDArray[np.integer]], strings: Strings) -> float:
    """Word error rate, per cent, on ``strings``; ``best`` gives each frame's class, [N, frames out], of float32 features."""
    return word_error_rate(read_greedily(best(strings.x), frames_out(strings.frames)), strings.digits)


def train_speech(
    recipe: SpeechRecipe,
    data: SpokenDigits,
    folder: str | Path,
    stem: str | None = None,
    tell: Callable[[int, int, float], None] | None = None,
    stop_after: int | None = None,
) -> tuple[QuartzNet, dict[str, Any]] | None:
    """Train by ``recipe`` and write weights (.safetensors) and record (.json) into ``folder``; or read them where they lie there.

    Parameters
    ----------
    recipe, data
        What is trained, and the recordings.
    folder
        Made where it is missing. While training goes on, ``<stem>.progress.safetensors`` in it says how far.
    stem
        Of the files' names; None: one that says all that decides the weights, so that trainings do not meet.
    tell
        Called with (steps done, steps, mean loss of the last ones).
    stop_after
        Return None after this many steps, as if killed there. For tests.

    Returns
    -------
    The net in evaluation mode, and what the .json holds

    Raises
    ------
    InputError
        There is no such speaker, or the loss is no longer a number.
    ModelError
        A file in the folder belongs to another training, or is damaged.
    OutputError
        The folder cannot be written to.
    """
    identity = {
        "recipe": asdict(recipe),
        "data": data.name,
        "data_sha256": data.sha256,
        "front_end": asdict(LogMel()),
        "distortion": asdict(Distortion()),
    }
    stem = stem or f"quartznet-{hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]}"
    with folder_for(folder) as path:
        weights, record = path / f"{stem}.safetensors", path / f"{stem}.json"
        if record.exists():
            return load_quartznet(weights), _read_record(record, identity)
        with torch_threads(1), torch.random.fork_rng(devices=[]):
            return _train(recipe, data, weights, identity, tell, stop_after)


def _train(
    recipe: SpeechRecipe,
    data: SpokenDigits,
    weights: Path,
    identity: dict[str, Any],
    tell: Callable[[int, int, float], None] | None,
    stop_after: int | None,
) -> tuple[QuartzNet, dict[str, Any]] | None:
    among, _ = split(data, recipe.held_out)
    torch.manual_seed(recipe.seed)
    module = QuartzNet(height_one=True).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = torch.optim.AdamW(module.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    progress, state = weights.with_suffix(".progress.safetensors"), {**identity, "losses": [], "seconds": 0.0}
    if progress.exists():
        state = _restore(progress, identity, module, optimiser)
    module.train()
    losses = state["losses"]
    while len(losses) * _KEPT < recipe.steps:
        first = len(losses) * _KEPT
        if stop_after is not None and first >= stop_after:
            return None
        started, total = time.monotonic(), 0.0
        last = min(first + _KEPT, recipe.steps)
        for step in range(first, last):
            for group in optimiser.param_groups:
                group["lr"] = _rate(recipe, step)
            total += _step(recipe, module, optimiser, data, among, step)
        if not math.isfinite(total):
            raise InputError(
                f"Training diverged in steps {first} to {last}: the loss is {total}. "
                f"Lower the learning rate, which is {recipe.learning_rate}; nothing of these steps was kept."
            )
        losses.append(total / (last - first))
        state["seconds"] += time.monotonic() - started
        _keep(progress, state, module, optimiser)
        if tell is not None:
            tell(last, recipe.steps, losses[-1])
    record = _write(weights, recipe, data, state, module)
    progress.unlink(missing_ok=True)
    return load_quartznet(weights), record


def _step(
    recipe: SpeechRecipe,
    module: QuartzNet,
    optimiser: torch.optim.Optimizer,
    data: SpokenDigits,
    among: NDArray[np.int64],
    step: int,
) -> float:
    """One step; returns the loss. All chance comes from the seed and the step."""
    seeds = (TRAINING_SEED, recipe.seed, step)
    strings = draw_strings(data, among, recipe.batch_size, *seeds, distortion=Distortion())
    x = torch.from_numpy(strings.x).unsqueeze(2).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16, enabled=recipe.precision == "bfloat16"):
        scores = module(x)
    loss = F.ctc_loss(
        scores.float().squeeze(2).log_softmax(1).permute(2, 0, 1),
        torch.tensor([digit + 1 for said in strings.digits for digit in said]),
        torch.from_numpy(frames_out(strings.frames)),
        torch.tensor([len(said) for said in strings.digits]),
        blank=BLANK,
        zero_infinity=True,  # a fast speaker may leave fewer frames than words; such a string teaches nothing
    )
    optimiser.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(module.parameters(), _MOST_GRADIENT)
    optimiser.step()
    return float(loss.item())


def _rate(recipe: SpeechRecipe, step: int) -> float:
    """The learning rate of ``step``, counted from 0: from a tenth up in a straight line, then half a cosine down."""
    rise = _WARM_UP * recipe.steps
    if step < rise:
        return recipe.learning_rate * (0.1 + 0.9 * step / rise)
    return recipe.learning_rate * (1 + math.cos(math.pi * (step - rise) / (recipe.steps - rise))) / 2


def _write(
    weights: Path, recipe: SpeechRecipe, data: SpokenDigits, state: dict[str, Any], module: QuartzNet
) -> dict[str, Any]:
    tensors = {name: tensor for name, tensor in module.state_dict().items() if tensor.is_floating_point()}
    content = save({name: (t.squeeze(2) if t.ndim == 4 else t).contiguous() for name, t in tensors.items()})
    write_atomically(weights, content)
    trained, strings = load_quartznet(weights), test_strings(data, recipe.held_out, recipe.test_strings)

    def best(x: NDArray[np.float32]) -> NDArray[np.int64]:
        with torch.inference_mode():
            return np.concatenate(
                [trained(part).argmax(1).numpy() for part in torch.split(torch.from_numpy(x), _JUDGED)]
            )

    record = {
        "command": recipe.command,
        **{key: value for key, value in state.items() if key not in ("losses", "seconds")},
        "attribution": data.reason,
        "parameters": sum(parameter.numel() for parameter in trained.parameters()),
        "mean_training_loss": [round(loss, 5) for loss in state["losses"]],
        "seconds": round(state["seconds"], 1),
        "word_error_rate": round(score(best, strings), 3),
        "words": sum(map(len, strings.digits)),
        "sha256": hashlib.sha256(content).hexdigest(),
        "versions": {
            "labkit": __version__,
            "torch": str(torch.__version__),
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    }
    write_atomically(weights.with_suffix(".json"), json.dumps(record, indent=1) + "\n")
    return record


def _keep(path: Path, state: dict[str, Any], module: QuartzNet, optimiser: torch.optim.Optimizer) -> None:
    """Write weights, the optimiser's moments and where we stand into one file, so that they cannot disagree."""
    tensors = {f"weights {name}": tensor.contiguous() for name, tensor in module.state_dict().items()}
    for name, parameter in module.named_parameters():
        for moment, tensor in optimiser.state[parameter].items():
            tensors[f"{moment} {name}"] = tensor.contiguous()
    write_atomically(path, save(tensors, {_STATE: json.dumps(state)}))


def _restore(
    path: Path, identity: dict[str, Any], module: QuartzNet, optimiser: torch.optim.Optimizer
) -> dict[str, Any]:
    """Put what `_keep` wrote back into place and return where it stood."""
    try:
        with safe_open(path, "pt") as file:
            state: dict[str, Any] = json.loads((file.metadata() or {})[_STATE])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        _agree(path, state, identity)
        module.load_state_dict({name: tensors[f"weights {name}"] for name in module.state_dict()})
        for name, parameter in module.named_parameters():
            optimiser.state[parameter]["step"] = tensors[f"step {name}"]
            for moment in ("exp_avg", "exp_avg_sq"):
                buffer = torch.empty_like(parameter, requires_grad=False)  # in the same memory format
                optimiser.state[parameter][moment] = buffer.copy_(tensors[f"{moment} {name}"])
    except (SafetensorError, KeyError, ValueError, RuntimeError, OSError) as error:
        raise ModelError(f"{path} cannot be read: {error}. Delete it to start anew.") from error
    return state


def _read_record(path: Path, identity: dict[str, Any]) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}. Delete it to train again.") from error
    _agree(path, record, identity)
    return record


def _agree(path: Path, found: dict[str, Any], identity: dict[str, Any]) -> None:
    """Refuse a file of another training."""
    differing = [
        f"{name} was {found.get(name)}, is {value}" for name, value in identity.items() if found.get(name) != value
    ]
    if differing:
        raise ModelError(
            f"{path} belongs to another training: {'; '.join(differing)}. Choose another folder, or delete it."
        )


def main(words: list[str] | None = None) -> None:
    """Read options from ``words`` (None: those of the command), train, and print the word error rate."""
    parser = argparse.ArgumentParser(description="Train QuartzNet on FSDD, the Free Spoken Digit Dataset.")
    parser.add_argument("folder", help="of the weights and their record")
    parser.add_argument("--data-dir", help="folder that holds FSDD's folder recordings")
    parser.add_argument("--held-out", help="speaker kept for the test; else takes 0 to 4 of each")
    for name, value in asdict(SpeechRecipe()).items():
        if name != "held_out":
            parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    chosen = vars(parser.parse_args(words))
    folder, data_dir = chosen.pop("folder"), chosen.pop("data_dir")
    recipe = SpeechRecipe(**chosen)
    start = time.monotonic()

    def tell(done: int, steps: int, loss: float) -> None:
        print(
            f"{done} of {steps} steps: loss {loss:.4f}, {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True
        )

    stem = "quartznet-fsdd" + ("" if recipe.held_out is None else f"-without-{recipe.held_out}-seed-{recipe.seed}")
    result = train_speech(recipe, load_fsdd(data_dir), folder, stem, tell)
    assert result is not None
    print(f"word error rate {result[1]['word_error_rate']:.2f} % of {result[1]['words']} words")


if __name__ == "__main__":
    main()
