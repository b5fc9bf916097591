"""Networks that people bring: of torchvision or their own, with weights in each form that they come in.

torchvision's own weights cannot be downloaded in a test. Its loader is replaced, and files of `torch.save` stand in.
"""

from __future__ import annotations

import dataclasses
import hashlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from labkit.data.torchvision_shim import import_torchvision
from labkit.errors import ModelError
from labkit.models import bring
from labkit.models.brought import preprocessing_of, remark_on
from labkit.models.torchvision_nets import find_torchvision_net
from labkit.models.weights_files import fill_from, read_tensors

import_torchvision()
from torchvision import models  # noqa: E402

SQUEEZE = "torchvision.models:squeezenet1_1"
INCEPTION = "torchvision.models:inception_v3"


def net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5))


def other(module: nn.Module, seed: int = 1) -> dict[str, torch.Tensor]:
    """Weights for ``module`` that it does not have yet."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(tensor.shape, generator=generator) if tensor.is_floating_point() else torch.tensor(seed)
        for name, tensor in module.state_dict().items()
    }


def same(module: nn.Module, tensors: dict[str, torch.Tensor]) -> bool:
    state = module.state_dict()
    return state.keys() == tensors.keys() and all(torch.equal(state[name], tensors[name]) for name in state)


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module of the user's in the current folder, under a name of this test's own."""
    monkeypatch.chdir(tmp_path)
    name = f"own_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(
        "from torch import nn\n"
        "def make():\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5))\n"
        "def with_classes(classes, *, width, deep=False, **more):\n"
        "    return nn.Linear(width, classes)\n"
        "class Net(nn.Module):\n"
        "    def __init__(self, width):\n"
        "        super().__init__()\n"
        "ready = make()\n"
    )
    yield name
    sys.modules.pop(name, None)
    sys.path[:] = [entry for entry in sys.path if entry != str(tmp_path)]


def saved(form: str, tensors: dict[str, torch.Tensor], folder: Path) -> Path:
    path = folder / ("weights.safetensors" if form == "safetensors" else "weights.pth")
    content: Any = {
        "state_dict": {"state_dict": tensors, "epoch": 3, "best": 71.2},
        "model_state_dict": {"model_state_dict": tensors, "optimizer": {"lr": 0.1}},
        "model": {"model": tensors, "epoch": 3},
        "DataParallel": {f"module.{name}": tensor for name, tensor in tensors.items()},
        "wrapped DataParallel": {"state_dict": {f"module.{name}": tensor for name, tensor in tensors.items()}},
        "compiled": {f"_orig_mod.{name}": tensor for name, tensor in tensors.items()},
        "parameters": {name: nn.Parameter(t) if t.is_floating_point() else t for name, t in tensors.items()},
    }.get(form, tensors)
    if form == "safetensors":
        save_file(tensors, path)
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form != "before torch 1.6")
    return path


FORMS = [
    "safetensors", "plain", "before torch 1.6", "state_dict", "model_state_dict", "model", "DataParallel",
    "wrapped DataParallel", "compiled", "parameters",
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_weights_of_every_form_fill_the_network(own: str, tmp_path: Path, form: str) -> None:
    tensors = other(net())
    module = bring(f"{own}:make", saved(form, tensors, tmp_path))
    assert same(module, tensors)
    assert not module.training


def test_the_form_is_told_by_the_content(own: str, tmp_path: Path) -> None:
    tensors = other(net())
    torch.save(tensors, tmp_path / "no-suffix")
    save_file(tensors, tmp_path / "weights.bin")
    for name in ("no-suffix", "weights.bin"):
        assert same(bring(f"{own}:make", tmp_path / name), tensors)


def test_counters_that_older_files_lack_are_not_missed(own: str, tmp_path: Path) -> None:
    tensors = {name: t for name, t in other(net()).items() if not name.endswith("num_batches_tracked")}
    state = bring(f"{own}:make", saved("plain", tensors, tmp_path)).state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in tensors.items())


class Planted:
    """What a hostile file holds: unpickling it would write a file."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> Any:
        return (Path.touch, (self.place,))


@pytest.mark.parametrize("new_format", [True, False])
def test_nothing_in_a_file_is_executed(own: str, tmp_path: Path, new_format: bool) -> None:
    place = tmp_path / "was-here"
    path = tmp_path / "hostile.pth"
    torch.save({**other(net()), "more": Planted(place)}, path, _use_new_zipfile_serialization=new_format)
    with pytest.raises(ModelError, match="nothing that a file names is run"):
        bring(f"{own}:make", path)
    assert not place.exists()
    torch.load(path, weights_only=False)  # the plant works where it is let
    assert place.exists()


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        (net(), "torch.nn.modules.container.Sequential"),
        ([torch.zeros(3)], "hold a list, not tensors by name"),
        ({"a": 3, "b": torch.zeros(2)}, r"not only tensors: a \(int\)"),
        ({"state_dict": {}}, "hold nothing"),
        ({3: torch.zeros(2)}, "not only tensors: 3"),
    ],
    ids=["whole module", "list", "numbers", "nothing", "no names"],
)
def test_what_is_not_tensors_by_name_is_refused(tmp_path: Path, content: Any, fragment: str) -> None:
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(ModelError, match=fragment) as caught:
        read_tensors(tmp_path / "x.pth")
    assert "module.state_dict()" in str(caught.value)


@pytest.mark.parametrize("kept", [0.3, 0.9])
def test_truncated_files_are_refused(tmp_path: Path, kept: float) -> None:
    path = saved("plain", other(net()), tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(ModelError, match="weights.pth"):
        read_tensors(path)


def _without(name: str) -> dict[str, torch.Tensor]:
    return {key: tensor for key, tensor in other(net()).items() if key != name}


@pytest.mark.parametrize(
    ("tensors", "fragment"),
    [
        (_without("4.bias"), "lack 4.bias"),
        ({**other(net()), "5.weight": torch.zeros(2)}, "unknown 5.weight"),
        ({**other(net()), "AuxLogits.fc.bias": torch.zeros(2)}, "unknown AuxLogits.fc.bias"),
        ({**other(net()), "4.bias": torch.zeros(7)}, r"4.bias must have the shape \[5\], got \[7\]"),
        ({**other(net()), "4.bias": torch.zeros(5, dtype=torch.int8)}, "4.bias must be torch.float32"),
        ({**other(net()), "4.bias": torch.full((5,), torch.nan)}, "4.bias holds 5 values that are NaN"),
    ],
)
def test_what_does_not_fit_is_named(own: str, tmp_path: Path, tensors: Any, fragment: str) -> None:
    with pytest.raises(ModelError, match=fragment):
        bring(f"{own}:make", saved("plain", tensors, tmp_path))


# The callable.


def test_random_weights_are_the_same_each_time(own: str) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, second = bring(f"{own}:make"), bring(f"{own}:make")
    assert torch.equal(torch.get_rng_state(), before)
    assert same(first, dict(second.state_dict()))
    assert isinstance(bring(f"{own}:ready"), nn.Sequential)


@pytest.mark.parametrize(
    ("attribute", "fragments"),
    [
        ("with_classes", ("needs classes, width", "with_classes(classes=..., width=...)")),
        ("Net", ("needs width", "return Net(width=...)")),
    ],
)
def test_a_callable_with_arguments_gets_advice(own: str, attribute: str, fragments: tuple[str, ...]) -> None:
    with pytest.raises(ModelError) as caught:
        bring(f"{own}:{attribute}")
    for fragment in (*fragments, f"{own}:make"):
        assert fragment in str(caught.value)


def test_a_name_is_no_file_for_a_network_of_ones_own(own: str) -> None:
    with pytest.raises(ModelError, match="There is no file DEFAULT.*torchvision"):
        bring(f"{own}:make", "DEFAULT")
    assert preprocessing_of(f"{own}:make") is None
    assert remark_on(f"{own}:make") is None


# torchvision.


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "mobilenet_v2", "inception_v3", "squeezenet1_1", "googlenet"])
def test_preprocessing_of_each_torchvision_network(name: str) -> None:
    """Weights of the user's own get the oldest preset, named weights their own."""
    oldest, latest = next(iter(models.get_model_weights(name))), models.get_model_weights(name).DEFAULT
    source = f"torchvision.models:{name}"
    for weights, member in ((None, oldest), ("DEFAULT", latest), (oldest.name, oldest), (str(oldest), oldest)):
        got, preset = preprocessing_of(source, weights), member.transforms()
        assert got is not None
        assert ([got.resize], [got.crop]) == (preset.resize_size, preset.crop_size)
        if weights is None or name not in ("inception_v3", "googlenet"):
            assert (list(got.mean), list(got.std)) == (preset.mean, preset.std)
        else:
            assert (got.mean, got.std) == ((0.5,) * 3, (0.5,) * 3)


def test_modules_that_only_look_like_torchvisions() -> None:
    assert find_torchvision_net("torchvision.models", "resnet18") is not None
    assert find_torchvision_net("torchvision.models.resnet", "resnet18") is not None
    assert find_torchvision_net("torchvision.models.quantization", "resnet18") is None
    assert find_torchvision_net("torchvision.models", "ResNet") is None
    assert find_torchvision_net("mynet", "resnet18") is None


def test_other_networks_of_torchvision_have_no_preset() -> None:
    assert preprocessing_of("torchvision.models:fcn_resnet50") is None


@pytest.fixture
def downloads(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Replace torchvision's loader: what ``tensors`` holds is "downloaded"; the calls are kept."""
    kept: dict[str, Any] = {"tensors": {}, "calls": []}

    def load(url: str, *, weights_only: bool = False, **more: Any) -> Any:
        kept["calls"].append((url, weights_only))
        if isinstance(kept["tensors"], Exception):
            raise kept["tensors"]
        return kept["tensors"]

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", load)
    return kept


@pytest.mark.parametrize("name", ["DEFAULT", "IMAGENET1K_V1", "SqueezeNet1_1_Weights.IMAGENET1K_V1"])
def test_weights_of_torchvision_by_name(downloads: dict[str, Any], name: str) -> None:
    downloads["tensors"] = other(models.squeezenet1_1())
    module = bring(SQUEEZE, name)
    assert same(module, downloads["tensors"])
    assert not module.training
    url = models.SqueezeNet1_1_Weights.IMAGENET1K_V1.url
    assert downloads["calls"][0] == (url, True)  # the restricted reading comes first


@pytest.mark.parametrize(
    "error", [URLError("no route"), RuntimeError('invalid hash value (expected "b8a5")'), OSError("disk full")], ids=str
)
def test_without_a_network_the_error_says_what_to_do(downloads: dict[str, Any], error: Exception) -> None:
    downloads["tensors"] = error
    with pytest.raises(ModelError) as caught:
        bring(SQUEEZE, "DEFAULT")
    for fragment in ("squeezenet1_1-b8a52dc0.pth", "https://", "--weights", "checkpoints"):
        assert fragment in str(caught.value)
    assert len(downloads["calls"]) == 1


def test_unknown_names_list_what_there_is() -> None:
    for call in (bring, preprocessing_of):
        with pytest.raises(ModelError, match="IMAGENET1K_V1, IMAGENET1K_V2, DEFAULT"):
            call("torchvision.models:resnet50", "IMAGENET21K")
    with pytest.raises(ModelError, match="Cannot read the weights nowhere.pth"):
        bring(SQUEEZE, "nowhere.pth")


def test_a_download_is_recognised_by_its_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """resnet50 has two sets of weights with different presets, and the file's own name says nothing."""
    path = tmp_path / "mine.pth"
    path.write_bytes(b"weights")
    found = find_torchvision_net("torchvision.models", "resnet50")
    assert found is not None
    assert found.recognised(path) is None
    assert found.recognised(tmp_path / "nowhere") is None
    digits = hashlib.sha256(b"weights").hexdigest()[:8]
    second = models.ResNet50_Weights.IMAGENET1K_V2
    offered = dataclasses.replace(second.value, url=f"https://example.com/resnet50-{digits}.pth")
    monkeypatch.setattr(second, "_value_", offered)
    assert found.recognised(path) is second
    got = preprocessing_of("torchvision.models:resnet50", path)
    assert got is not None
    assert got.resize == second.transforms().resize_size[0] == 232


def test_weights_with_other_classes_get_advice(tmp_path: Path) -> None:
    path = tmp_path / "ten.pth"
    torch.save(models.squeezenet1_1(num_classes=10).state_dict(), path)
    with pytest.raises(ModelError, match=r"classifier.1.weight.*squeezenet1_1\(num_classes=10\)"):
        bring(SQUEEZE, path)


def test_remarks() -> None:
    assert "random weights" in str(remark_on(SQUEEZE))
    assert remark_on(SQUEEZE, "nowhere.pth") is None
    assert "--mean 0.5" in str(remark_on(INCEPTION, "nowhere.pth"))
    assert remark_on(INCEPTION, "DEFAULT") is None


# Inception, whose builder is slow, whose head is for training, and which can normalise a second time.


@pytest.fixture(scope="module")
def inception() -> nn.Module:
    torch.manual_seed(2)
    return models.inception_v3(init_weights=False).eval()  # type: ignore[no-any-return]


def test_inception_is_made_without_its_slow_start() -> None:
    began = time.process_time()
    module = bring(INCEPTION)
    assert time.process_time() - began < 15  # the truncated normal alone takes longer
    assert not [name for name in module.state_dict() if name.startswith("AuxLogits.")]


@pytest.mark.parametrize("form", ["with the head", "without it"])
def test_the_auxiliary_head_is_not_needed(inception: nn.Module, tmp_path: Path, form: str) -> None:
    tensors = dict(inception.state_dict())
    if form == "without it":
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("AuxLogits.")}
    module = bring(INCEPTION, saved("DataParallel", tensors, tmp_path))
    assert same(module, {name: tensor for name, tensor in tensors.items() if not name.startswith("AuxLogits.")})


def test_only_such_a_head_may_be_too_many() -> None:
    module = models.inception_v3(init_weights=False, aux_logits=False)
    tensors = other(module)
    fill_from(module, {**tensors, "AuxLogits.fc.bias": torch.zeros(1000)}, "weights")
    assert same(module, tensors)
    with pytest.raises(ModelError, match="unknown AuxLogitsToo.bias"):
        fill_from(module, {**tensors, "AuxLogitsToo.bias": torch.zeros(3)}, "weights")
    with pytest.raises(ModelError, match="unknown aux1.bias"):
        fill_from(module, {**tensors, "aux1.bias": torch.zeros(3)}, "weights")


def test_named_inception_is_the_function_that_torchvision_computes(
    inception: nn.Module, downloads: dict[str, Any]
) -> None:
    """torchvision: usual normalisation, undone in the network. Here: normalised to [-1, 1] at once."""
    from PIL import Image

    downloads["tensors"] = inception.state_dict()
    theirs = models.inception_v3(weights="DEFAULT").eval()
    ours, preset = bring(INCEPTION, "DEFAULT"), preprocessing_of(INCEPTION, "DEFAULT")
    assert theirs.transform_input
    assert preset is not None
    picture = Image.fromarray(np.random.default_rng(4).integers(0, 256, (360, 400, 3), np.uint8))
    with torch.no_grad():
        expected = theirs(models.Inception_V3_Weights.DEFAULT.transforms()(picture)[None])
        got = ours(torch.from_numpy(preset.apply(picture))[None])
    assert float(expected.std()) > 0
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
