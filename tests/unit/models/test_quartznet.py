"""The small QuartzNet: its shapes, its twin of height 1, the shipped weights, and its integers bit for bit."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import labkit
from labkit import models
from labkit.data.digit_strings import draw_strings
from labkit.data.log_mel import LogMel
from labkit.data.spoken_digits import find_fsdd, load_fsdd
from labkit.data.spoken_tones import spoken_tones
from labkit.errors import ModelError
from labkit.models.quartznet import CHECKPOINT, QuartzNet, Transcriber, frames_out, load_quartznet, quartznet_recipe
from labkit.models.speech_training import SpeechRecipe, score, test_strings

TONES = spoken_tones(2, 3)
STRINGS = draw_strings(TONES, np.arange(len(TONES.sounds)), 12, 1)


def test_it_has_the_parameters_that_it_says() -> None:
    net = QuartzNet()
    assert sum(parameter.numel() for parameter in net.parameters()) == 33_987 == quartznet_recipe()["parameters"]
    assert "33,987" in str(QuartzNet.__doc__)


@pytest.mark.parametrize("frames", [1, 2, 15, 16, 101])
def test_half_the_frames_come_out(frames: int) -> None:
    with torch.inference_mode():
        scores = QuartzNet().eval()(torch.zeros(2, 40, frames))
    assert scores.shape == (2, 11, frames_out(np.array(frames)))
    assert Transcriber(QuartzNet().eval())(torch.zeros(2, 40, frames)).shape == (2, scores.shape[2])


def test_height_one_is_the_same_net() -> None:
    net, twin = load_quartznet(), QuartzNet(height_one=True).eval()
    state = net.state_dict()
    twin.load_state_dict({name: t.unsqueeze(2) if t.ndim == 3 else t for name, t in state.items()})
    x = torch.from_numpy(STRINGS.x[:4])
    with torch.inference_mode():
        torch.testing.assert_close(twin(x.unsqueeze(2)).squeeze(2), net(x), atol=1e-4, rtol=1e-4)


# ---- the shipped weights


def test_the_shipped_weights_are_those_of_their_record() -> None:
    made = quartznet_recipe()
    assert CHECKPOINT.stat().st_size < 200_000
    assert hashlib.sha256(CHECKPOINT.read_bytes()).hexdigest() == made["sha256"]
    recipe = SpeechRecipe(**made["recipe"])
    assert recipe == SpeechRecipe()
    assert recipe.command == made["command"]
    assert made["word_error_rate"] < 2
    assert "CC BY-SA 4.0" in made["attribution"]
    readme = (CHECKPOINT.parent / "README.md").read_text("utf-8")
    assert f"{made['word_error_rate']:.2f} % of {made['words']:,} words" in " ".join(readme.split())
    front = LogMel(**made["front_end"])
    assert front == LogMel()


def test_the_shipped_weights_are_loaded_by_name() -> None:
    net = models.load("quartznet", data="fsdd")
    assert not net.training
    wanted = load_file(CHECKPOINT)
    state = net.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in wanted.items())
    assert models.recipe("quartznet", "fsdd") == quartznet_recipe()
    with pytest.raises(ModelError, match="no reference net named 'quartznet'"):
        models.load("quartznet")


def test_making_the_net_leaves_the_random_numbers_alone() -> None:
    torch.manual_seed(3)
    wanted = torch.rand(2)
    torch.manual_seed(3)
    load_quartznet()
    assert torch.equal(torch.rand(2), wanted)


def test_the_recorded_error_rate_is_found_again() -> None:
    """Where FSDD is at hand; nothing else needs it."""
    if find_fsdd() is None:
        pytest.skip("FSDD is not here")
    made, net = quartznet_recipe(), load_quartznet()
    data = load_fsdd()
    assert data.sha256 == made["data_sha256"]
    strings = test_strings(data, None, 100)

    def best(x: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return net(torch.from_numpy(x)).argmax(1).numpy()

    assert score(best, strings) == pytest.approx(made["word_error_rate"], abs=1.5)  # the first 100 of 500 strings


def test_other_weights_are_taken_and_wrong_ones_are_not(tmp_path: Path) -> None:
    other = QuartzNet()
    tensors = {name: t for name, t in other.state_dict().items() if t.is_floating_point()}
    save_file(tensors, tmp_path / "w.safetensors")
    assert torch.equal(load_quartznet(tmp_path / "w.safetensors").head.weight, other.head.weight)
    save_file({**tensors, "head.bias": torch.zeros(10)}, tmp_path / "w.safetensors")
    with pytest.raises(
        ModelError, match=r"w\.safetensors, weights for QuartzNet: head\.bias must have the shape \[11\], got \[10\]"
    ):
        load_quartznet(tmp_path / "w.safetensors")
    del tensors["stem.depthwise.weight"]
    save_file(tensors, tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match=r"lack stem\.depthwise\.weight"):
        load_quartznet(tmp_path / "w.safetensors")


# ---- integers


@pytest.mark.parametrize(
    ("how", "kernels"),
    [
        ({"weights": 8}, "numba"),
        ({"weights": 8}, "reference"),
        ({"weights": 4, "per_channel": False}, "numba"),
        ({"weights": 6, "ranges": "mse"}, "numba"),
        ({"weights": 4, "activations": 4}, "reference"),
        ({"weights": 4, "rounding": "gptq"}, "numba"),
    ],
)
def test_every_integer_is_what_pytorch_computes(how: dict[str, object], kernels: str) -> None:
    module = Transcriber(load_quartznet()).eval()
    net = labkit.quantize(module, STRINGS.x, **how)  # type: ignore[arg-type]
    report = labkit.verify(net, module, STRINGS.x[:3], kernels=kernels)
    assert report.passed, report
    assert report.differing == 0
    assert report.elements > 400_000


def test_all_is_integer_from_the_features_to_the_class() -> None:
    module = Transcriber(load_quartznet()).eval()
    net = labkit.quantize(module, STRINGS.x)
    kinds = [type(node.op).__name__ for node in net.graph]
    assert kinds == ["Quantize", "Conv2d", "Conv2d", *["Conv2d", "Conv2d", "Add"] * 4, "Conv2d", "Conv2d", "ArgMax"]
    trace = net.trace(STRINGS.x[:2])
    assert all(values.dtype.kind in "iu" for values in trace.values())
    logits = trace["net.head"]
    assert logits.shape == (2, 11, frames_out(np.array(STRINGS.x.shape[2])))
    got = net.run(STRINGS.x[:2])
    assert got.dtype == np.int32
    np.testing.assert_array_equal(got, logits.argmax(1))


def test_integers_read_nearly_what_real_numbers_read() -> None:
    module = Transcriber(load_quartznet()).eval()
    with torch.inference_mode():
        wanted = module(torch.from_numpy(STRINGS.x)).numpy()
    got = labkit.quantize(module, STRINGS.x).run(STRINGS.x)
    assert (wanted != 0).mean() > 0.01  # tones are no digits, but something is heard in them
    assert (got == wanted).mean() > 0.98


def test_the_net_is_saved_and_runs_again(tmp_path: Path) -> None:
    net = labkit.quantize(Transcriber(load_quartznet()).eval(), STRINGS.x, weights=4)
    net.save(tmp_path / "q.lab")
    np.testing.assert_array_equal(labkit.load(tmp_path / "q.lab").run(STRINGS.x), net.run(STRINGS.x))
