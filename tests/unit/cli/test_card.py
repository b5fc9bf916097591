"""``labkit card``: what is written and printed, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save_file

import labkit
from labkit.reporting.cards.plot import sqnr_figure
from labkit.reporting.cards.results import NetworkCard
from labkit.reporting.cards.text import card_text

Run = Callable[..., tuple[int, str, str]]

_NET = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
"""


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, labkit_command: Run, tmp_path: Path) -> Run:
    """Run ``labkit card`` in an empty folder: exit status, standard output, standard error."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> tuple[int, str, str]:
        return labkit_command("card", *arguments)

    return call


def card_in(folder: Path, name: str) -> NetworkCard:
    return NetworkCard.from_json(json.loads((folder / f"{name}.json").read_text("utf-8")))


def test_card_of_a_shipped_net(run: Run, tmp_path: Path) -> None:
    words = (
        "lenet",
        "--data",
        "mnist5k",
        "--images",
        "80",
        "--calibration",
        "32",
        "--measured",
        "20",
        "--certified",
        "5",
    )
    code, out, err = run(*words, "--out", "cards")
    assert code == 0, err
    card = card_in(tmp_path / "cards", "lenet-mnist5k")
    assert (card.accuracy_images, card.calibration_images, card.sqnr_images) == (80, 32, 20)
    assert {plan.certificate.images for plan in card.plans} == {5}
    x, labels = labkit.data.load("mnist5k").test(80)
    net = labkit.quantize(labkit.models.load("lenet", "mnist5k"), labkit.data.load("mnist5k").calibration(32))
    assert card.plans[0].accuracy == pytest.approx(100 * (net.run(x).argmax(1) == labels).mean())
    assert card.command == "labkit " + " ".join(("card", *words, "--out", "cards"))
    assert (tmp_path / "cards" / "lenet-mnist5k.svg").read_bytes() == sqnr_figure(card)
    assert (tmp_path / "cards" / "lenet-mnist5k.md").read_text("utf-8") == card_text(card, "lenet-mnist5k.svg", level=1)
    for plan in card.plans:
        assert f"{plan.name}: {plan.size_bytes:,} bytes, {plan.accuracy:.2f} % right" in out
    assert "0 of " in out


def test_card_of_a_net_of_ones_own(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mynet_for_cards.py").write_text(_NET)
    rng = np.random.default_rng(0)
    np.save(tmp_path / "images.npy", rng.normal(size=(30, 3, 8, 8)).astype(np.float32))
    code, out, err = run(
        "mynet_for_cards:make", "--data", "images.npy", "--calibration", "12", "--measured", "7", "-o", ".",
        "--name", "mine",
    )  # fmt: skip
    assert code == 0, err
    card = card_in(tmp_path, "mine")
    assert (card.calibration_images, card.sqnr_images, card.accuracy) == (12, 7, None)
    assert card.no_accuracy == "labels were not asked for"
    assert card.weights == "mynet_for_cards:make, as it is made"
    assert "% right" not in out
    import mynet_for_cards

    other = mynet_for_cards.make()
    other[0].weight.data *= 2
    save_file(other.state_dict(), tmp_path / "other.safetensors")
    code, _, err = run("mynet_for_cards:make", "--weights", "other.safetensors", "--data", "images.npy", "-o", "there")
    assert code == 0, err
    assert card_in(tmp_path / "there", "make").weights == "mynet_for_cards:make, filled from other.safetensors"
    assert card_in(tmp_path / "there", "make").plans[0].sqnr_db != card.plans[0].sqnr_db


def test_labelled_folders_have_an_accuracy(run: Run, tmp_path: Path) -> None:
    import torch
    from PIL import Image

    digits = labkit.data.load("mnist5k")
    for at in range(30):
        folder = tmp_path / "pictures" / f"{digits.test_labels[at]}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(digits.test_images[at].transpose(1, 2, 0)).save(folder / f"{at}.png")
    module = labkit.models.load("lenet", "mnist5k")
    save_file(module.state_dict(), tmp_path / "lenet.safetensors")
    code, _, err = run("lenet", "--weights", "lenet.safetensors", "--data", "pictures", "--labelled", "-o", "cards")
    assert code == 0, err
    card = card_in(tmp_path / "cards", "lenet-cifar10")
    x, labels = digits.test(30)
    with torch.no_grad():
        right = module(torch.from_numpy(x)).argmax(1).numpy() == labels
    assert card.accuracy == pytest.approx(100 * right.mean())
    assert card.accuracy_images == 30
    (tmp_path / "pictures" / "7").rename(tmp_path / "seven")  # nine folders for ten classes: which label is which?
    code, out, err = run("lenet", "--data", "pictures", "--labelled", "-o", "others")
    assert code != 0
    assert "9 class folders" in " ".join((out + err).split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("alexnet", "--data", "mnist5k", "-o", "cards"), "There is no reference net named 'alexnet'"),
        (("lenet", "--data", "mnist5k", "-o", "cards", "--image-size", "64"), "are for folders of pictures"),
        (("lenet", "--data", "nowhere.npy", "-o", "cards"), "Cannot read nowhere.npy"),
        (("lenet", "--data", "mnist5k", "-o", "cards", "--images", "100000"), "1,000 test images"),
    ],
)
def test_refusals_leave_nothing_behind(run: Run, tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    code, out, err = run(*words)
    assert code != 0
    assert message in " ".join((out + err).split())
    assert not (tmp_path / "cards").exists()


@pytest.mark.parametrize("name", ["../evil", "a/b", "..", "."])
def test_name_is_no_path(run: Run, tmp_path: Path, name: str) -> None:
    code, _, said = run("lenet", "--data", "mnist5k", "--name", name, "-o", "cards")
    assert code == 2
    assert "without a folder" in said
    assert list(tmp_path.iterdir()) == []
