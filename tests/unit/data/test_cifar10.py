"""Finding, reading and refusing CIFAR-10, on a folder of the official form with few images.

torchvision's list of MD5 sums is replaced by that of the small files, so the real integrity check runs.
"""

from __future__ import annotations

import hashlib
import pickle
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from labkit.data import cifar10, load
from labkit.data.torchvision_shim import import_torchvision
from labkit.errors import DataError, InputError

FOLDER, ARCHIVE = "cifar-10-batches-py", "cifar-10-python.tar.gz"
CLASSES = [f"class {i}" for i in range(10)]


@dataclass(frozen=True)
class Official:
    """A small official release: the unpacked files and the archive, for placing where a test wants them."""

    files: dict[str, bytes]
    archive: bytes

    def unpack(self, root: Path) -> Path:
        (root / FOLDER).mkdir(parents=True)
        for name, content in self.files.items():
            (root / FOLDER / name).write_bytes(content)
        return root


@pytest.fixture
def official(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Official:
    rng = np.random.default_rng(0)
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    files = {
        name: pickle.dumps(
            {"data": rng.integers(0, 256, (4, 3072), dtype=np.uint8), "labels": rng.integers(0, 10, 4).tolist()}
        )
        for name in names
    }
    files["batches.meta"] = pickle.dumps({"label_names": CLASSES})
    made = tmp_path / "made"
    source = Official(files, b"").unpack(made)
    with tarfile.open(made / ARCHIVE, "w:gz") as archive:
        archive.add(source / FOLDER, FOLDER)
    archive_bytes = (made / ARCHIVE).read_bytes()

    def md5(content: bytes) -> str:
        return hashlib.md5(content).hexdigest()

    known = import_torchvision().datasets.CIFAR10
    monkeypatch.setattr(known, "train_list", [[name, md5(files[name])] for name in names[:5]])
    monkeypatch.setattr(known, "test_list", [["test_batch", md5(files["test_batch"])]])
    monkeypatch.setattr(known, "meta", known.meta | {"md5": md5(files["batches.meta"])})
    monkeypatch.setattr(known, "tgz_md5", md5(archive_bytes))
    monkeypatch.setattr(known, "url", "http://127.0.0.1:9/no-such-server")  # the discard port: refused at once
    return Official(files, archive_bytes)


@pytest.fixture(autouse=True)
def empty_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, no LABKIT_DATA, no proxy."""
    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("LABKIT_DATA", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr("labkit.data.download.time.sleep", lambda _: None)
    return tmp_path


def test_places_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABKIT_DATA", str(tmp_path / "named"))
    expected = [("--data-dir", tmp_path), ("LABKIT_DATA", tmp_path / "named"), ("the cache", tmp_path / "cache/data")]
    assert list(cifar10.places(tmp_path)) == expected
    assert list(cifar10.places()) == expected[1:]


@pytest.mark.parametrize("first", [0, 1, 2])
def test_first_place_that_holds_it_is_taken(
    first: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, official: Official
) -> None:
    monkeypatch.setenv("LABKIT_DATA", str(tmp_path / "named"))
    folders = [tmp_path / "given", tmp_path / "named", tmp_path / "cache" / "data"]
    for folder in folders[first:]:
        official.unpack(folder)
    data = load("auto", tmp_path / "given")
    assert data.name == "cifar10"
    assert str(folders[first]) in data.reason


def test_images_are_those_of_the_files(tmp_path: Path, official: Official) -> None:
    data = load("cifar10", official.unpack(tmp_path / "given"))
    assert data.class_names == tuple(CLASSES)
    assert data.train_images.shape == (20, 3, 32, 32)
    second = pickle.loads(official.files["data_batch_2"])
    np.testing.assert_array_equal(data.train_images[4:8], second["data"].reshape(4, 3, 32, 32))
    assert data.train_labels[4:8].tolist() == second["labels"]
    test = pickle.loads(official.files["test_batch"])
    np.testing.assert_array_equal(data.test_images, test["data"].reshape(4, 3, 32, 32))


def test_unpacked_folder_itself_may_be_named(tmp_path: Path, official: Official) -> None:
    official.unpack(tmp_path / "given")
    assert load("auto", tmp_path / "given" / FOLDER).name == "cifar10"


def test_archive_is_unpacked_beside_itself(tmp_path: Path, official: Official) -> None:
    (tmp_path / ARCHIVE).write_bytes(official.archive)
    assert load("auto", tmp_path).name == "cifar10"
    assert (tmp_path / FOLDER / "test_batch").read_bytes() == official.files["test_batch"]
    assert not list(tmp_path.glob(".unpacking*"))


def test_damaged_archive_is_refused(tmp_path: Path, official: Official) -> None:
    (tmp_path / ARCHIVE).write_bytes(official.archive[:-1])
    with pytest.raises(DataError, match=r"cifar-10-python\.tar\.gz is damaged: its MD5 is not"):
        load("auto", tmp_path)
    assert not (tmp_path / FOLDER).exists()


@pytest.mark.parametrize("name", ["data_batch_3", "test_batch", "batches.meta"])
@pytest.mark.parametrize("harm", ["changed", "missing"])
def test_damaged_file_is_named(name: str, harm: str, tmp_path: Path, official: Official) -> None:
    file = official.unpack(tmp_path / "given") / FOLDER / name
    if harm == "changed":
        file.write_bytes(official.files[name] + b"x")
    else:
        file.unlink()
    said = rf"is damaged: {name} \({'its MD5 differs' if harm == 'changed' else 'missing'}[^)]*\)\. Delete that folder"
    with pytest.raises(DataError, match=said):
        load("auto", tmp_path / "given")


def test_auto_without_it_takes_the_digits_and_says_why() -> None:
    data = load()
    assert data.name == "mnist5k"
    assert "because CIFAR-10 was not found" in data.reason
    assert "`labkit demo --data cifar10`" in data.reason


@pytest.mark.usefixtures("official")
def test_by_name_without_network_says_the_three_ways(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"Cannot download CIFAR-10") as caught:
        load("cifar10")
    for way in ("`labkit demo --data cifar10`", "--data-dir", "LABKIT_DATA", "--data mnist5k"):
        assert way in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_download_may_be_forbidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar10, "download", lambda *_, **__: pytest.fail("nothing may be fetched"))
    with pytest.raises(DataError, match=r"in none of these folders: .*the cache.*Three ways"):
        load("cifar10", tmp_path, download=False)


def test_download_goes_to_the_first_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, official: Official) -> None:
    def fetch(url: str, path: Path, *, md5: str, title: str) -> None:
        assert md5 == hashlib.md5(official.archive).hexdigest()
        path.write_bytes(official.archive)

    monkeypatch.setattr(cifar10, "download", fetch)
    data = load("cifar10", tmp_path / "new" / "folder")
    assert len(data.test_images) == 4
    assert "downloaded to" in data.reason
    assert (tmp_path / "new" / "folder" / FOLDER).is_dir()
    assert "found in" in load("auto", tmp_path / "new" / "folder").reason


def test_unwritable_place_for_the_download(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"Cannot write to the folder .*Three ways"):
        load("cifar10", tmp_path / "file" / "below")


def test_unknown_name() -> None:
    with pytest.raises(InputError, match=r"no data set named 'imagenet'. Choose one of: auto, cifar10, mnist5k"):
        load("imagenet")
