from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from labkit.data.folder import Pictures, broken_pictures, class_folders, labelled_pictures, pictures_in, spread
from labkit.data.preprocessing import PRESETS, Preprocessing
from labkit.data.torchvision_shim import import_torchvision
from labkit.errors import DataError

SMALL = PRESETS["labkit"].resized_to(4)


def make(path: Path, seed: int = 0, size: int = 6) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size + 3, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three classes of unequal size, a folder in a folder, files that are no pictures, names whose order matters."""
    root = tmp_path / "pictures"
    for number, name in enumerate(
        "cat/2.png cat/10.jpg Dog/a.JPEG Dog/b.bmp Dog/in/c.webp ant/x.ppm ant/y.tif".split()
    ):
        make(root / name, number)
    (root / "cat" / "notes.txt").write_text("no picture")
    (root / "readme.md").write_text("no picture")
    return root


def test_classes_and_labels_are_those_of_torchvision(folder: Path) -> None:
    peer = import_torchvision().datasets.ImageFolder(str(folder))
    names = class_folders(folder)
    assert list(names) == peer.classes
    pictures, labels = labelled_pictures(folder, {name: i for i, name in enumerate(names)}, SMALL)
    got = {(str(path), int(label)) for path, label in zip(pictures.paths, labels, strict=True)}
    assert got == set(peer.samples)
    assert len(pictures) == len(peer.samples) == 7
    assert labels.dtype == np.int64


def test_folders_that_begin_with_a_dot_are_no_classes(folder: Path) -> None:
    make(folder / ".thumbnails" / "x.png")
    assert class_folders(folder) == ("Dog", "ant", "cat")


def test_links_to_folders_are_followed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "dogs").symlink_to(folder / "Dog", target_is_directory=True)
    assert class_folders(tmp_path / "part") == ("dogs",)
    assert len(pictures_in(tmp_path / "part", SMALL)) == 3


@pytest.mark.parametrize("count", [None, 1, 3, 6, 7, 100])
def test_the_numbers_are_those_of_each_picture(folder: Path, count: int | None) -> None:
    pictures = pictures_in(folder, SMALL, count)
    assert len(pictures) == min(7, count or 7)
    got = np.concatenate(list(pictures))
    assert got.shape == (len(pictures), 3, 4, 4)
    assert got.dtype == np.float32
    for path, x in zip(pictures.paths, got, strict=True):
        with Image.open(path) as image:
            np.testing.assert_array_equal(x, SMALL.apply(image))
    np.testing.assert_array_equal(np.concatenate(list(pictures)), got)  # it can be gone through again


@given(total=st.integers(1, 400), count=st.none() | st.integers(1, 500))
def test_what_is_taken_is_spread(total: int, count: int | None) -> None:
    got = spread(total, count)
    assert len(got) == len(set(got)) == min(total, total if count is None else count)
    assert got == sorted(got)
    assert got[0] == 0
    assert got[-1] < total
    gaps = np.diff([*got, total])
    assert gaps.max() - gaps.min() <= 1


def test_labels_stay_with_their_pictures_when_few_are_taken(folder: Path) -> None:
    labels = {"Dog": 9, "ant": 2, "cat": 5}
    pictures, numbers = labelled_pictures(folder, labels, SMALL, 4)
    assert [labels[path.relative_to(folder).parts[0]] for path in pictures.paths] == list(numbers)
    assert set(numbers) == {9, 2, 5}


def test_memory_holds_a_few_pictures_only(tmp_path: Path) -> None:
    one = make(tmp_path / "a.png", size=64)
    wanted = Preprocessing(64, 64, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    pictures = Pictures((one,) * 2000, wanted)  # 98 MB of float32
    tracemalloc.start()
    seen = sum(len(batch) for batch in pictures)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seen == 2000
    assert peak < 40e6


def test_broken_pictures_are_named_with_a_reason(folder: Path) -> None:
    cut = folder / "cat" / "10.jpg"
    cut.write_bytes(cut.read_bytes()[:200])
    words = folder / "Dog" / "words.png"
    words.write_text("not a picture")
    (folder / "ant" / "empty.png").write_bytes(b"")
    pictures = pictures_in(folder, SMALL)
    told: list[int] = []
    broken = broken_pictures(pictures.paths, told.append)
    assert set(broken) == {cut, words, folder / "ant" / "empty.png"}
    assert all(broken.values())
    assert told == list(range(1, 10))
    with pytest.raises(DataError, match="not a picture that can be read"):
        list(pictures)


def test_folders_that_are_of_no_use(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="There is no folder"):
        pictures_in(tmp_path / "nowhere", SMALL)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no pictures"):
        pictures_in(tmp_path / "empty", SMALL)
    with pytest.raises(DataError, match="one a class"):
        class_folders(tmp_path / "empty")
    (folder / "bee").mkdir()
    with pytest.raises(DataError, match="bee holds no pictures"):
        labelled_pictures(folder, {name: i for i, name in enumerate(class_folders(folder))}, SMALL)
