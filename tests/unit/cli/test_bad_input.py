"""Each mistake of a user gets one paragraph that says what to do, a non-zero exit, and leaves nothing half-written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import labkit
from labkit.models.zoo import CHECKPOINTS

WEIGHTS = CHECKPOINTS / "lenet-mnist5k.safetensors"

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, labkit_command: Run, tmp_path: Path) -> Run:
    """Run the command line in an empty folder: exit status, standard output, standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LABKIT_DATA", str(tmp_path / "nothing-here"))

    def call(*arguments: object) -> tuple[int, str, str]:
        return labkit_command(*arguments)

    return call


@pytest.fixture(scope="module")
def net_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound ``.lab`` file of the shipped LeNet."""
    path = tmp_path_factory.mktemp("net") / "lenet.lab"
    module = labkit.models.load("lenet", data="mnist5k")
    labkit.quantize(module, labkit.data.load("mnist5k").calibration(16)).with_notes(
        model="lenet", trained_on="mnist5k"
    ).save(path)
    return path


def check(result: tuple[int, str, str], *fragments: str) -> None:
    """A mistake: exit 2, one paragraph on standard error with all of ``fragments``, no traceback."""
    code, _, err = result
    assert code == 2, err
    assert "Traceback" not in err
    text = " ".join(err[err.index("Error: ") :].split())  # a progress bar may stand before it
    for fragment in fragments:
        assert fragment in text, text
    assert len(text) < 700


def quantize(run: Run, *arguments: object) -> tuple[int, str, str]:
    return run("quantize", "lenet", "--data", "mnist5k", "--images", 8, "-o", "net.lab", *arguments)


def left_over(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("option", "bits", "allowed"), [("-w", 0, "1..8"), ("-w", 9, "1..8"), ("-a", 1, "2..8"), ("-a", 12, "2..8")]
)
def test_bits_outside_the_range(run: Run, tmp_path: Path, option: str, bits: int, allowed: str) -> None:
    check(quantize(run, option, bits), allowed, f"got {bits}")
    assert left_over(tmp_path) == []


def test_unknown_names(run: Run, tmp_path: Path) -> None:
    check(quantize(run, "--ranges", "widest"), "minmax, 3sigma", "'widest'")
    check(quantize(run, "--rounding", "up"), "nearest", "'up'")
    check(quantize(run, "--weight-ranges", "widest"), "minmax, 3sigma, percentile", "'widest'")
    check(quantize(run, "--method", "magic"), "'magic'")
    check(run("quantize", "alexnet", "--data", "mnist5k", "-o", "net.lab"), "alexnet", "lenet")
    check(run("demo", "--net", "alexnet", "--data", "mnist5k", "--out", "out"), "alexnet", "lenet")
    check(run("demo", "--data", "imagenet", "--out", "out"), "imagenet", "mnist5k")
    check(run("train", "lenet", "--data", "auto"), "--data cifar10")
    assert left_over(tmp_path) == []


def test_checkpoint_of_another_shape(run: Run, tmp_path: Path) -> None:
    tensors = load_file(WEIGHTS)
    tensors["fc2.weight"] = np.zeros((64, 255), np.float32)
    save_file(tensors, tmp_path / "other.safetensors")
    check(quantize(run, "--weights", "other.safetensors"), "fc2.weight", "[64, 256]", "[64, 255]")
    assert left_over(tmp_path) == ["other.safetensors"]


def test_damaged_and_missing_checkpoint(run: Run, tmp_path: Path) -> None:
    (tmp_path / "cut.safetensors").write_bytes(WEIGHTS.read_bytes()[:1000])
    check(quantize(run, "--weights", "cut.safetensors"), "cut.safetensors")
    check(quantize(run, "--weights", "nowhere.safetensors"), "nowhere.safetensors")
    assert left_over(tmp_path) == ["cut.safetensors"]


def test_nan_in_weights(run: Run, tmp_path: Path) -> None:
    tensors = load_file(WEIGHTS)
    tensors["conv2.weight"][3, 1, 0, 2] = np.nan
    save_file(tensors, tmp_path / "nan.safetensors")
    check(quantize(run, "--weights", "nan.safetensors"), "conv2.weight", "NaN", "[3, 1, 0, 2]")
    assert left_over(tmp_path) == ["nan.safetensors"]


def test_all_zero_channel(run: Run, tmp_path: Path) -> None:
    tensors = load_file(WEIGHTS)
    tensors["conv2.weight"][5] = 0
    save_file(tensors, tmp_path / "dead.safetensors")
    check(quantize(run, "--weights", "dead.safetensors"), "conv2", "channel 5", "per_channel=False")
    assert left_over(tmp_path) == ["dead.safetensors"]
    code, _, err = quantize(run, "--weights", "dead.safetensors", "--no-per-channel")
    assert code == 0, err  # the advice works


def test_nan_in_images(run: Run, tmp_path: Path, net_file: Path) -> None:
    x = np.zeros((4, 3, 32, 32), np.float32)
    x[2, 1, 5, 7] = np.nan
    np.save(tmp_path / "x.npy", x)
    check(run("quantize", "lenet", "--data", "x.npy", "-o", "net.lab"), "NaN", "calibration")
    check(run("run", net_file, "--input", "x.npy", "--output", "y.npy"), "NaN", "(2, 1, 5, 7)")
    assert left_over(tmp_path) == ["x.npy"]


def test_activation_that_is_always_zero(run: Run, tmp_path: Path) -> None:
    np.save(tmp_path / "black.npy", np.zeros((4, 3, 32, 32), np.float32))
    check(run("quantize", "lenet", "--data", "black.npy", "-o", "net.lab"), "0 for every calibration image")
    assert left_over(tmp_path) == ["black.npy"]


def test_empty_calibration_set(run: Run, tmp_path: Path) -> None:
    np.save(tmp_path / "none.npy", np.zeros((0, 3, 32, 32), np.float32))
    check(run("quantize", "lenet", "--data", "none.npy", "-o", "net.lab"), "empty")
    (tmp_path / "pictures").mkdir()
    check(run("quantize", "lenet", "--data", "pictures", "-o", "net.lab"), "no pictures")
    assert left_over(tmp_path) == ["none.npy"]


def test_wrong_image_shape(run: Run, tmp_path: Path, net_file: Path) -> None:
    np.save(tmp_path / "big.npy", np.zeros((2, 3, 28, 28), np.float32))
    np.save(tmp_path / "one.npy", np.zeros((3, 32, 32), np.float32))
    np.save(tmp_path / "words.npy", np.array(["a", "b"]))
    check(run("quantize", "lenet", "--data", "big.npy", "-o", "net.lab"), "28")
    check(run("run", net_file, "--input", "big.npy", "--output", "y.npy"), "('N', 3, 32, 32)", "(2, 3, 28, 28)")
    check(run("run", net_file, "--input", "one.npy", "--output", "y.npy"), "batch axis")
    check(run("run", net_file, "--input", "words.npy", "--output", "y.npy"), "numbers")
    check(run("run", net_file, "--input", "nowhere.npy", "--output", "y.npy"), "nowhere.npy")
    assert left_over(tmp_path) == ["big.npy", "one.npy", "words.npy"]


def test_truncated_and_foreign_net(run: Run, tmp_path: Path, net_file: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((1, 3, 32, 32), np.float32))
    data = net_file.read_bytes()
    (tmp_path / "cut.lab").write_bytes(data[: len(data) // 2])
    (tmp_path / "foreign.lab").write_bytes(b"PK\x03\x04" + data[4:])
    for name, fragment in (("cut.lab", "damaged"), ("foreign.lab", "not a .lab file"), ("none.lab", "Cannot read")):
        check(run("run", name, "--input", "x.npy", "--output", "y.npy"), name, fragment)
        check(run("verify", name), name, fragment)
    assert left_over(tmp_path) == ["cut.lab", "foreign.lab", "x.npy"]


@pytest.mark.parametrize("command", ["demo", "quantize", "run", "train"])
def test_unwritable_output_folder(run: Run, tmp_path: Path, net_file: Path, command: str) -> None:
    (tmp_path / "file").write_text("in the way")  # no folder can be made below a file, not even by root
    np.save(tmp_path / "x.npy", np.zeros((1, 3, 32, 32), np.float32))
    place = tmp_path / "file" / "out"
    arguments = {
        "demo": ("demo", "--data", "mnist5k", "--out", place),
        "quantize": ("quantize", "lenet", "--data", "mnist5k", "-o", place / "net.lab"),
        "run": ("run", net_file, "--input", "x.npy", "--output", place / "y.npy"),
        "train": ("train", "lenet", "--data", "mnist5k", "--out", place),
    }[command]
    check(run(*arguments), "Cannot write", "another folder")
    assert left_over(tmp_path) == ["file", "x.npy"]


def test_missing_and_damaged_data_file(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # no network: nothing listens there
    check(run("demo", "--data", "cifar10", "--out", "out"), "--data-dir", "LABKIT_DATA", "mnist5k")
    folder = tmp_path / "data" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for name in ("batches.meta", "test_batch", *(f"data_batch_{i}" for i in range(1, 6))):
        (folder / name).write_bytes(b"not the data")
    check(run("demo", "--data", "cifar10", "--data-dir", tmp_path / "data", "--out", "out"), "damaged")
    shutil.rmtree(tmp_path / "data")
    assert not [name for name in left_over(tmp_path) if "report" in name or name.endswith(".lab")]


def test_module_of_ones_own_that_is_not_there(run: Run, tmp_path: Path) -> None:
    check(quantize_own(run, "nothing:make"), "nothing:make")
    (tmp_path / "mine_1.py").write_text("def make():\n    return 3\n")
    check(quantize_own(run, "mine_1:make"), "int")
    check(quantize_own(run, ":"), "module:callable")


def test_unsupported_operation_names_its_node(run: Run, tmp_path: Path) -> None:
    code = "from torch import nn\ndef make():\n    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sigmoid())\n"
    (tmp_path / "mine_2.py").write_text(code)
    check(quantize_own(run, "mine_2:make"), "Sigmoid", "1:")


def test_bad_plan(run: Run, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text("{not json")
    check(quantize(run, "--plan", "plan.json"), "plan.json")
    (tmp_path / "plan.json").write_text(json.dumps({"weights": {"conv1": 11}, "activations": {}}))
    check(quantize(run, "--plan", "plan.json"), "conv1", "got 11")
    (tmp_path / "plan.json").write_text(json.dumps({"weights": {"conv1": 8}, "activations": {"x": 8}}))
    check(quantize(run, "--plan", "plan.json"), "conv1")


def test_verify_finds_a_changed_net(run: Run, net_file: Path) -> None:
    code, out, err = run("verify", net_file, "--images", 16, "--json", "certificate.json")
    assert code == 0, err
    assert json.loads(Path("certificate.json").read_text())["passed"] is True
    code, out, _ = run("verify", net_file, "--images", 16, "--model", "lenet-bias")
    assert code == 1  # the engine is right, but this is not the net's module
    assert "fc3.bias" in " ".join(out.split()) or "conv1" in out


def quantize_own(run: Run, model: str) -> tuple[int, str, str]:
    return run("quantize", model, "--data", "mnist5k", "--images", 8, "-o", "net.lab")
