"""`labkit verify --against RUNTIME`: certificates, pages, exit status, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from parity.small_net import images, small_net
from unit.cli.conftest import Command


@pytest.fixture
def net_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    small_net().save("net.lab")
    return Path("net.lab")


def test_a_certificate_is_printed_and_saved(labkit_command: Command, net_file: Path) -> None:
    files = ("--json", "out/c.json", "--html", "out/c.html")
    code, out, err = labkit_command("verify", net_file, "--against", "fbgemm", "--images", 5, *files)
    assert code == 0, err
    assert "Bit for bit equal" in out
    words = " ".join(out.split())
    assert "node rule elements differ end to end x float32" in words
    assert "Inputs: 5 random images, seed 0." in words
    assert "Versions: labkit " in words
    assert "Processor: " in words
    saved = json.loads(Path("out/c.json").read_text())
    assert saved["passed"] is True
    assert saved["first"] is None
    assert (saved["runtime"], saved["like"], saved["images"]) == ("fbgemm", "fbgemm", 5)
    assert saved["inputs"] == "5 random images, seed 0"
    assert saved["processor"]["processor"]
    assert saved["versions"]["torch"]
    rules = {node["name"]: node["rule"] for node in saved["nodes"]}
    assert rules["conv1"] == "float32_even, real bias"
    assert "All " in Path("out/c.html").read_text()


def test_a_difference_gives_1_and_says_which_rule(labkit_command: Command, net_file: Path) -> None:
    options = ("--against", "qnnpack", "--like", "labkit", "--images", 64, "--json", "c.json", "--html", "c.html")
    code, out, _ = labkit_command("verify", net_file, *options)
    assert code == 1
    saved = json.loads(Path("c.json").read_text())
    assert saved["passed"] is False
    culprits = [node for node in saved["nodes"] if node["own"][1]]
    assert culprits
    for node in culprits:
        assert "qnnpack" in node["matching"]
        assert node["first"]["theirs"] != node["first"]["ours"]
        assert node["explanation"] in " ".join(out.split())
    sums = [node for node in culprits if node["operation"] in ("Conv2d", "Linear", "AveragePool2d")]
    assert all(node["first"]["accumulator"].lstrip("-").isdigit() and node["first"]["exact"] for node in sums)
    assert "Where they part" in Path("c.html").read_text()


def test_a_seed_draws_other_images(labkit_command: Command, net_file: Path) -> None:
    code, _, err = labkit_command(
        "verify", net_file, "--against", "labkit", "--images", 3, "--seed", 7, "--json", "c.json"
    )
    assert code == 0, err
    assert json.loads(Path("c.json").read_text())["inputs"] == "3 random images, seed 7"


def test_images_of_ones_own(labkit_command: Command, net_file: Path) -> None:
    np.save("x.npy", images(4))
    code, _, err = labkit_command("verify", net_file, "--against", "qnnpack", "--input", "x.npy", "--json", "c.json")
    assert code == 0, err
    saved = json.loads(Path("c.json").read_text())
    assert (saved["inputs"], saved["images"]) == ("x.npy", 4)
    np.save("x.npy", np.zeros((2, 3, 4, 4), np.float32))
    code, _, err = labkit_command("verify", net_file, "--against", "qnnpack", "--input", "x.npy")
    assert code not in (0, 1)
    assert "(2, 3, 4, 4)" in " ".join(err.split())


@pytest.mark.parametrize(
    ("suffix", "runtime"), [(".tflite", "litert"), (".tflite", "xnnpack"), (".onnx", "onnxruntime")]
)
def test_a_file_is_run_by_its_runtime(labkit_command: Command, net_file: Path, suffix: str, runtime: str) -> None:
    pytest.importorskip({".tflite": "ai_edge_litert", ".onnx": "onnxruntime"}[suffix])
    name = f"net{suffix}"
    (small_net().to_tflite if suffix == ".tflite" else small_net().to_onnx)(name)
    code, out, err = labkit_command("verify", name, "--against", runtime, "--images", 5, "--json", "c.json")
    assert code == 0, out + err
    saved = json.loads(Path("c.json").read_text())
    assert sum(node["own"][0] > 0 for node in saved["nodes"]) >= 6
    assert not any("export" in remark for remark in saved["remarks"])


@pytest.mark.parametrize(
    ("words", "fragment"),
    [
        (("--against", "cuda"), "'cuda'"),
        (("--against", "torch", "--like", "labkit"), "--like"),
        (("--against", "fbgemm", "--model", "lenet"), "--model"),
        (("--against", "fbgemm", "--like", "cuda"), "'cuda'"),
        (("--against", "fbgemm", "--kernels", "mine"), "kernels"),
        (("--against", "fbgemm", "--input", "none.npy"), "none.npy"),
    ],
)
def test_wrong_use(labkit_command: Command, net_file: Path, words: tuple[str, ...], fragment: str) -> None:
    code, _, err = labkit_command("verify", net_file, *words)
    assert code not in (0, 1)
    assert fragment in " ".join(err.split())
    assert "Traceback" not in err
