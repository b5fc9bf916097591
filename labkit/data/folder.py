"""Folders of pictures, read a few at a time: for calibration, and with labels for measuring accuracy."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from labkit.data.preprocessing import Preprocessing
from labkit.errors import DataError

__all__ = ["Pictures", "broken_pictures", "class_folders", "labelled_pictures", "pictures_in", "spread"]

# Those of torchvision.datasets.folder.IMG_EXTENSIONS, so that both see the same pictures.
_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_BATCH_NUMBERS = 2**21  # 8 MB of float32: 13 pictures of 224 pixels, 682 of 32


@dataclass(frozen=True)
class Pictures:
    """Pictures in files, opened only while they are gone through, and as often as they are.

    Iterating gives float32 arrays [N, 3, crop, crop] of a few pictures each; ``len`` is how many pictures there are.

    Attributes
    ----------
    paths
        The files.
    preprocessing
        What is done to each.
    """

    paths: tuple[Path, ...]
    preprocessing: Preprocessing

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        """Float32 arrays [N, 3, crop, crop], each of at most 8 MB or one picture.

        Raises
        ------
        DataError
            A file is not a picture that can be read.
        """
        size = max(1, _BATCH_NUMBERS // (3 * self.preprocessing.crop**2))
        for start in range(0, len(self.paths), size):
            yield np.stack([_read(path, self.preprocessing) for path in self.paths[start : start + size]])


def pictures_in(folder: str | Path, preprocessing: Preprocessing, count: int | None = None) -> Pictures:
    """Pictures under ``folder`` and the folders in it, in the order of their paths.

    Parameters
    ----------
    folder
        Where they lie.
    preprocessing
        What is done to each when it is read.
    count
        How many: evenly spread over all of them, so that each of the folders is seen. None, or more than there are: all.

    Raises
    ------
    DataError
        There is no such folder, or it holds no pictures.
    """
    root = _folder(folder)
    paths = _pictures_under(root)
    if not paths:
        raise DataError(f"{root} holds no pictures ({', '.join(_SUFFIXES)}). Give a folder that does.")
    return Pictures(tuple(paths[i] for i in spread(len(paths), count)), preprocessing)


def class_folders(folder: str | Path) -> tuple[str, ...]:
    """The names of the folders in ``folder``, one a class, sorted: class i is at position i.

    As torchvision.datasets.ImageFolder has it, but for folders whose names begin with a dot, which are left out.

    Raises
    ------
    DataError
        There is no such folder, or it holds no folders.
    """
    root = _folder(folder)
    names = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise DataError(
            f"{root} holds no folders, and for labels there must be one a class with its pictures in it: "
            f"{root.name}/cat/1.jpg, {root.name}/dog/1.jpg."
        )
    return tuple(names)


def labelled_pictures(
    folder: str | Path, labels: dict[str, int], preprocessing: Preprocessing, count: int | None = None
) -> tuple[Pictures, NDArray[np.int64]]:
    """Pictures in class folders, and the label of each.

    Parameters
    ----------
    folder
        With one folder for each class.
    labels
        The label of each class folder by its name, those of `class_folders`.
    preprocessing
        What is done to each picture when it is read.
    count
        How many pictures, evenly spread over all; None, or more than there are: all.

    Returns
    -------
    the pictures, and int64 [N], the label of each

    Raises
    ------
    DataError
        A class folder holds no pictures.
    """
    root = _folder(folder)
    found: list[tuple[Path, int]] = []
    for name, label in labels.items():
        paths = _pictures_under(root / name)
        if not paths:
            raise DataError(
                f"The class folder {root / name} holds no pictures ({', '.join(_SUFFIXES)}). Remove it (the classes of "
                f"the others then need --class-file), or put pictures into it."
            )
        found += [(path, label) for path in paths]
    chosen = [found[i] for i in spread(len(found), count)]
    return Pictures(tuple(path for path, _ in chosen), preprocessing), np.array([n for _, n in chosen], np.int64)


def broken_pictures(paths: Sequence[Path], progress: Callable[[int], None] | None = None) -> dict[Path, str]:
    """Those of ``paths`` that cannot be read, each with the reason. ``progress`` is told how many were looked at."""
    broken: dict[Path, str] = {}
    for done, path in enumerate(paths, 1):
        if (reason := _fault(path)) is not None:
            broken[path] = reason
        if progress is not None:
            progress(done)
    return broken


def spread(total: int, count: int | None) -> list[int]:
    """The positions of ``count`` of ``total`` things, evenly spread, in order; all where ``count`` is None or more."""
    if count is None or count >= total:
        return list(range(total))
    return [i * total // count for i in range(count)]


def _folder(folder: str | Path) -> Path:
    root = Path(folder)
    if root.is_file():
        raise DataError(f"{root} is a file, and a folder of pictures is needed here.")
    if not root.is_dir():
        raise DataError(
            f"There is no folder {root} (looked for from {Path.cwd()}). Give a data set's name (auto, cifar10, mnist5k), an "
            f".npy file or a folder."
        )
    return root


def _pictures_under(root: Path) -> list[Path]:
    """Links to folders are followed, since subsets of large data sets are often made of links."""
    return sorted(
        Path(place, name)
        for place, _, names in os.walk(root, followlinks=True)
        for name in names
        if name.lower().endswith(_SUFFIXES)
    )


def _read(path: Path, preprocessing: Preprocessing) -> NDArray[np.float32]:
    from PIL import Image

    try:
        with Image.open(path) as picture:
            return preprocessing.apply(picture)
    except Exception as error:  # Pillow's decoders raise SyntaxError, struct.error and others for damaged files
        raise DataError(f"{path} is not a picture that can be read ({error}). Remove it or replace it.") from error


def _fault(path: Path) -> str | None:
    from PIL import Image

    try:
        with Image.open(path) as picture:
            picture.load()
    except Exception as error:  # as in `_read`
        return " ".join(str(error).split())
    return None
