"""A folder of pictures as normalised images: what a user who has neither CIFAR-10 nor an array brings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from labkit.data.dataset import normalise
from labkit.errors import DataError

__all__ = ["load_folder"]

_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp"}


def load_folder(folder: str | Path, size: int, count: int | None = None) -> NDArray[np.float32]:
    """The first ``count`` pictures under ``folder`` (all where None), in the order of their paths.

    Each is scaled so that its shorter side has ``size`` pixels, cropped to the middle square, and normalised to [-1, 1].

    Returns
    -------
    float32 [N, 3, size, size]

    Raises
    ------
    DataError
        There is no such folder, it holds no pictures, or one of them is damaged.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    root = Path(folder)
    if not root.is_dir():
        raise DataError(
            f"There is no folder {root}. Give a data set's name (auto, cifar10, mnist5k), an .npy file or a folder."
        )
    paths = sorted(path for path in root.rglob("*") if path.suffix.lower() in _SUFFIXES)[:count]
    if not paths:
        raise DataError(f"{root} holds no pictures ({', '.join(sorted(_SUFFIXES))}). Give a folder that does.")
    images = np.empty((len(paths), 3, size, size), np.uint8)
    for image, path in zip(images, paths, strict=True):
        try:
            with Image.open(path) as picture:
                fitted = ImageOps.fit(picture.convert("RGB"), (size, size))
        except (OSError, UnidentifiedImageError) as error:
            raise DataError(f"{path} is not a picture that can be read ({error}). Remove it or replace it.") from error
        image[:] = np.asarray(fitted).transpose(2, 0, 1)
    return normalise(images)
