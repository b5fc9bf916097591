"""A network of torchvision and one's own pictures through ``quantize``, ``verify`` and ``accuracy``, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import labkit
from labkit.data.preprocessing import PRESETS, Preprocessing
from labkit.data.torchvision_shim import import_torchvision
from labkit.models import bring

Run = Callable[..., tuple[int, str, str]]

SQUEEZE = "torchvision.models:squeezenet1_1"
LENET = ("quantize", "lenet", "--data", "mnist5k", "--images", 32, "-o", "lenet.lab")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, labkit_command: Run, tmp_path: Path) -> Run:
    """Run the command line in an empty folder: exit status, standard output, standard error, each on one line."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LABKIT_DATA", str(tmp_path / "nothing-here"))
    monkeypatch.setenv("COLUMNS", "100")

    def call(*arguments: object) -> tuple[int, str, str]:
        code, out, err = labkit_command(*arguments)
        return code, " ".join(out.split()), " ".join(err.split())

    return call


def digits(folder: Path, each: int) -> tuple[np.ndarray, np.ndarray]:
    """The first ``each`` test digits of each class as PNG files, one folder a class; the images in the files' order."""
    data = labkit.data.load("mnist5k")
    chosen = [i for digit in range(10) for i in np.flatnonzero(data.test_labels == digit)[:each]]
    for i in chosen:
        path = folder / str(data.test_labels[i]) / f"{i:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(data.test_images[i].transpose(1, 2, 0)).save(path)
    return labkit.data.normalise(data.test_images[chosen]), data.test_labels[chosen]


def photographs(folder: Path, count: int = 6) -> None:
    rng = np.random.default_rng(7)
    for i in range(count):
        path = folder / f"class{i % 3}" / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (9, 12, 3), np.uint8))
        coarse.resize((int(rng.integers(80, 150)), int(rng.integers(80, 150)))).save(path)


def notes(path: Path) -> Any:
    return labkit.load(path).graph.notes


def test_a_torchvision_network_end_to_end(run: Run, tmp_path: Path) -> None:
    photographs(tmp_path / "pictures")
    torch.manual_seed(1)
    weights = import_torchvision().models.squeezenet1_1().state_dict()
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in weights.items()}}, "squeeze.pth")
    own = ("--weights", "squeeze.pth")
    code, out, err = run("quantize", SQUEEZE, *own, "--data", "pictures", "--image-size", 64, "-o", "s.lab")
    assert code == 0, err
    wanted = PRESETS["imagenet"].resized_to(64)
    assert f"6 pictures of pictures: {wanted}." in out
    assert Preprocessing.from_json(notes(tmp_path / "s.lab")["preprocessing"]) == wanted

    paths = sorted((tmp_path / "pictures").rglob("*.jpg"))
    x = np.stack([wanted.apply(Image.open(path)) for path in paths])
    module = bring(SQUEEZE, tmp_path / "squeeze.pth")
    expected = labkit.quantize(module, x)
    np.testing.assert_array_equal(labkit.load(tmp_path / "s.lab").run(x), expected.run(x))

    code, out, err = run("verify", "s.lab", "--model", SQUEEZE, *own, "--images", 2)  # the pictures in the notes
    assert code == 0, err
    assert "derived from the float module SqueezeNet: 0 of" in out
    assert "2 images)" in out
    code, out, err = run("verify", "s.lab", "--input", "pictures", "--images", 1)
    assert (code, err) == (0, "")

    places = {"class0": 3, "class1": 1, "class2": 998}
    names = {place: name for name, place in places.items()}
    (tmp_path / "classes.txt").write_text("".join(f"{names.get(i, f'none{i}')}\n" for i in range(1000)))
    code, out, err = run(
        "accuracy", "s.lab", "--class-file", "classes.txt", "--json", "a.json", "--model", SQUEEZE, *own
    )
    assert code == 0, err
    found = json.loads((tmp_path / "a.json").read_text())
    labels = np.array([places[path.parent.name] for path in paths])
    with torch.no_grad():
        scores = {"integer": expected.run(x), "float": module(torch.from_numpy(x)).numpy()}
    for name, values in scores.items():
        order = np.argsort(-values, 1, kind="stable")
        for top in (1, 5):
            assert found[f"top{top}"][name] == 100 * (order[:, :top] == labels[:, None]).any(1).sum() / 6
    assert Preprocessing.from_json(found["preprocessing"]) == wanted
    assert "top-5 %" in out


@pytest.mark.parametrize(("side", "expected"), [(96, 1000), (100, 16)])
def test_how_many_images_are_verified(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, side: int, expected: int
) -> None:
    """Sixteen where pictures are large; here of a network that does nearly nothing."""
    name = f"tiny_{side}"
    (tmp_path / f"{name}.py").write_text(
        "from torch import nn\ndef make():\n    return nn.Sequential(nn.Conv2d(3, 2, 1, stride=16), nn.Flatten())\n"
    )
    rng = np.random.default_rng(0)
    np.save(tmp_path / "x.npy", rng.normal(size=(20, 3, side, side)).astype(np.float32))
    code, _, err = run("quantize", f"{name}:make", "--data", "x.npy", "-o", "tiny.lab")
    assert code == 0, err
    code, out, err = run("verify", "tiny.lab", "--model", f"{name}:make")
    assert code == 0, err
    assert f"{min(20, expected)} images)" in out


def test_accuracy_of_a_shipped_network_by_its_notes(run: Run, tmp_path: Path) -> None:
    assert run(*LENET, "-w", 2)[0] == 0
    code, out, err = run("accuracy", "lenet.lab", "--images", 200, "--json", "there/a.json")
    assert code == 0, err
    x, labels = labkit.data.load("mnist5k").test(200)
    right = labkit.load(tmp_path / "lenet.lab").run(x).argmax(1) == labels
    with torch.no_grad():
        before = labkit.models.load("lenet", "mnist5k")(torch.from_numpy(x)).numpy().argmax(1) == labels
    found = json.loads((tmp_path / "there" / "a.json").read_text())
    assert (found["data"], found["float_network"], found["images"]) == ("mnist5k", "lenet", 200)
    assert found["top1"]["integer"] == right.sum() / 2
    assert found["top1"]["float"] == before.sum() / 2
    assert found["top1"]["change_standard_error"] == pytest.approx(100 * np.sqrt((right != before).sum()) / 200)
    assert f"Integer network {right.sum() / 2:.2f}" in out
    assert "top-5" not in out
    assert "top5" not in found


def test_a_folder_gives_what_the_data_set_gives(run: Run, tmp_path: Path) -> None:
    x, labels = digits(tmp_path / "digits", 8)
    assert run(*LENET, "-w", 2)[0] == 0
    code, _, err = run("accuracy", "lenet.lab", "--data", "digits", "--json", "a.json")
    assert code == 0, err
    right = labkit.load(tmp_path / "lenet.lab").run(x).argmax(1) == labels
    found = json.loads((tmp_path / "a.json").read_text())
    assert found["top1"]["integer"] == 100 * right.sum() / 80
    assert found["images"] == 80
    assert 0 < right.sum() < 80 or found["top1"]["integer"] in (0, 100)
    code, _, err = run("accuracy", "lenet.lab", "--data", "digits", "--images", 20, "--json", "b.json")
    assert code == 0, err
    assert json.loads((tmp_path / "b.json").read_text())["images"] == 20


def test_broken_pictures_are_an_error_or_are_counted(run: Run, tmp_path: Path) -> None:
    digits(tmp_path / "digits", 3)
    for name in ("0/bad.png", "7/worse.jpg"):
        (tmp_path / "digits" / name).write_text("not a picture")
    assert run(*LENET)[0] == 0
    code, _, err = run("accuracy", "lenet.lab", "--data", "digits")
    assert code == 2
    for fragment in ("2 of 32 pictures cannot be read", "bad.png", "worse.jpg", "--skip-broken"):
        assert fragment in err
    code, out, err = run("accuracy", "lenet.lab", "--data", "digits", "--skip-broken", "--json", "a.json")
    assert code == 0, err
    for fragment in ("2 of 32 pictures cannot be read and were left out", "bad.png", "worse.jpg"):
        assert fragment in out
    found = json.loads((tmp_path / "a.json").read_text())
    assert found["images"] == 30
    assert [Path(one["file"]).name for one in found["broken"]] == ["bad.png", "worse.jpg"]
    assert found["top1"]["float"] > 80  # labels stay with their pictures when some are left out
    for path in (tmp_path / "digits").rglob("*.png"):
        path.write_text("not a picture")
    code, _, err = run("accuracy", "lenet.lab", "--data", "digits", "--skip-broken")
    assert code == 2
    assert "32 of 32 pictures cannot be read" in err


def test_labels_by_a_class_file(run: Run, tmp_path: Path) -> None:
    digits(tmp_path / "digits", 4)
    for digit in (0, 2, 3, 6, 8, 9):  # what is left: 1, 4, 5, 7
        for path in (tmp_path / "digits" / str(digit)).iterdir():
            path.unlink()
        (tmp_path / "digits" / str(digit)).rmdir()
    assert run(*LENET)[0] == 0
    code, _, err = run("accuracy", "lenet.lab", "--data", "digits")
    assert code == 2
    for fragment in ("4 class folders", "10 classes", "--class-file FILE"):
        assert fragment in err
    (tmp_path / "classes.txt").write_text("".join(f"{digit}\n" for digit in range(10)))
    code, _, err = run("accuracy", "lenet.lab", "--data", "digits", "--class-file", "classes.txt", "--json", "a.json")
    assert code == 0, err
    assert json.loads((tmp_path / "a.json").read_text())["top1"]["float"] > 80


@pytest.mark.parametrize(
    ("lines", "fragment"),
    [
        ("0 1 2 3 4 5 6 7 8", "does not name 1 of the class folders, the first 9"),
        ("0 1 2 3 4 5 6 7 8 9 10", "has 11 lines, and the net 10 classes"),
        ("0 1 2 3 4 5 6 7 8 9 9", "has 11 lines"),
        ("0 1 2 3 4 5 6 7 7 9", "names the folder 7 twice, in lines 8 and 9"),
    ],
)
def test_class_files_that_do_not_fit(run: Run, tmp_path: Path, lines: str, fragment: str) -> None:
    digits(tmp_path / "digits", 1)
    (tmp_path / "classes.txt").write_text("\n".join(lines.split()) + "\n\n")
    assert run(*LENET)[0] == 0
    code, _, err = run("accuracy", "lenet.lab", "--data", "digits", "--class-file", "classes.txt")
    assert code == 2
    assert fragment in err
    code, _, err = run("accuracy", "lenet.lab", "--data", "digits", "--class-file", "nowhere.txt")
    assert code == 2
    assert "Cannot read the class file nowhere.txt" in err


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ((), PRESETS["labkit"]),
        (("--image-size", 24), PRESETS["labkit"].resized_to(24)),
        (("--preprocessing", "imagenet", "--image-size", 24), PRESETS["imagenet"].resized_to(24)),
        (
            ("--resize", 40, "--image-size", 24, "--mean", "0.1,0.2,0.3", "--std", "0.25"),
            Preprocessing(40, 24, (0.1, 0.2, 0.3), (0.25, 0.25, 0.25)),
        ),
        (("--resize", 0, "--image-size", 24), Preprocessing(None, 24, (0.5,) * 3, (0.5,) * 3)),
    ],
    ids=["none", "side", "preset", "all", "not resized"],
)
def test_options_of_preprocessing_are_used_and_saved(
    run: Run, tmp_path: Path, options: tuple[object, ...], wanted: Preprocessing
) -> None:
    photographs(tmp_path / "pictures", 4)
    (tmp_path / "any_size.py").write_text(
        "from torch import nn\ndef make():\n"
        "    return nn.Sequential(nn.Conv2d(3, 3, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())\n"
    )
    code, _, err = run("quantize", "any_size:make", "--data", "pictures", "-o", "net.lab", *options)
    assert code == 0, err
    assert Preprocessing.from_json(notes(tmp_path / "net.lab")["preprocessing"]) == wanted
    x = np.stack([wanted.apply(Image.open(path)) for path in sorted((tmp_path / "pictures").rglob("*.jpg"))])
    seen = notes(tmp_path / "net.lab")["calibration"]["statistics"]
    lowest = min(statistics["minimum"] for statistics in seen.values())
    assert lowest <= float(x.min())
    assert any(statistics["minimum"] == float(x.min()) for statistics in seen.values())
    code, out, err = run("accuracy", "net.lab", "--model", "any_size:make")
    assert code == 0, err
    assert str(wanted) in out


@pytest.mark.parametrize(
    ("options", "fragment"),
    [
        (("--preprocessing", "vgg"), "labkit, imagenet, got 'vgg'"),
        (("--mean", "0.1,0.2"), "--mean takes one number, or three"),
        (("--std", "wide"), "--std takes one number, or three"),
        (("--std", "0"), "std must be above 0"),
        (("--mean", "nan"), "finite"),
    ],
)
def test_options_that_make_no_sense(run: Run, tmp_path: Path, options: tuple[object, ...], fragment: str) -> None:
    photographs(tmp_path / "pictures", 3)
    code, _, err = run("quantize", "lenet", "--data", "pictures", "-o", "net.lab", *options)
    assert code == 2
    assert fragment in err
    assert not (tmp_path / "net.lab").exists()


@pytest.mark.parametrize("command", ["quantize", "accuracy"])
def test_a_shipped_data_set_takes_no_preprocessing(run: Run, command: str) -> None:
    assert run(*LENET)[0] == 0
    words = {"quantize": (*LENET, "--mean", 0), "accuracy": ("accuracy", "lenet.lab", "--image-size", 32)}[command]
    code, _, err = run(*words)
    assert code == 2
    assert "are for folders of pictures" in err


def test_mistakes_of_accuracy(run: Run, tmp_path: Path) -> None:
    assert run(*LENET)[0] == 0
    photographs(tmp_path / "pictures", 3)
    np.save(tmp_path / "x.npy", labkit.data.load("mnist5k").test(4)[0])
    (tmp_path / "spread_out.py").write_text(
        "from torch import nn\ndef make():\n    return nn.Sequential(nn.Conv2d(3, 10, 3))\n"
    )
    assert run("quantize", "spread_out:make", "--data", "x.npy", "-o", "map.lab")[0] == 0
    (tmp_path / "ten.py").write_text(
        "from torch import nn\ndef make():\n    return nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))\n"
    )
    assert run("quantize", "ten:make", "--data", "x.npy", "-o", "ten.lab")[0] == 0
    for words, fragment in (
        (("map.lab", "--data", "mnist5k"), "one score a class, (N, classes)"),
        (("ten.lab",), "does not say which labelled images"),
        (("ten.lab", "--data", "x.npy"), "x.npy is a file, and a folder of pictures"),
        (("lenet.lab", "--data", "pictures", "--image-size", 48), "--image-size 32"),
        (("lenet.lab", "--images", 1001), "1,000 test images"),
        (("lenet.lab", "--class-file", "x.txt"), "has its labels with it"),
        (("nowhere.lab",), "nowhere.lab"),
    ):
        code, _, err = run("accuracy", *words)
        assert code == 2, words
        assert fragment in err
        assert "Traceback" not in err
    code, out, err = run("accuracy", "ten.lab", "--data", "mnist5k", "--images", 50)
    assert code == 0, err
    assert "No float model is given" in out


def test_other_weights_are_noticed(run: Run, tmp_path: Path) -> None:
    assert run(*LENET)[0] == 0
    for model, said in (("lenet", False), ("lenet-bias", True)):
        code, out, err = run("accuracy", "lenet.lab", "--images", 20, "--model", model)
        assert code == 0, err
        assert ("are not those that were quantized" in out) is said
