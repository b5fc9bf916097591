"""What the options MODEL and --data may name, turned into modules and images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from labkit.errors import InputError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["find_images", "find_module", "read_array"]


def find_module(model: str, weights: Path | None, data: str) -> nn.Module:
    """The module that ``model`` names: a shipped net trained on ``data``, or ``module:callable`` of the user's own code.

    ``weights`` is a safetensors file to fill it with.

    Raises
    ------
    ModelError
        There is no such net, or the weights do not fit it.
    """
    from labkit import models

    if ":" in model:
        return models.bring(model, weights)
    return models.load(model, data=data, weights=weights)


def find_images(data: str, data_dir: Path | None, count: int, size: int, part: str) -> NDArray[np.float32]:
    """``count`` images float32 [N, ...] from what ``data`` names.

    ``data`` is a shipped data set (its ``part``, "train" or "test"; ``data_dir`` is where CIFAR-10 may lie), an ``.npy``
    file, taken as it is, or a folder of pictures, cropped to ``size`` pixels and normalised to [-1, 1].

    Raises
    ------
    DataError
        The data cannot be had.
    InputError
        The file does not hold an array of numbers.
    """
    from labkit import data as data_sets

    if data in data_sets.names():
        loaded = data_sets.load(data, data_dir=data_dir)
        return loaded.calibration(count) if part == "train" else loaded.test(count)[0]
    path = Path(data)
    if path.suffix == ".npy":
        images = read_array(path)
        if images.ndim < 2:
            raise InputError(f"{path} must hold images with a batch axis, [N, ...], got shape {images.shape}.")
        return images[:count]
    from labkit.data.folder import load_folder

    return load_folder(path, size, count)


def read_array(path: Path) -> NDArray[np.float32]:
    """The numbers in the ``.npy`` file at ``path``, in their own dtype. Nothing in the file is executed.

    Raises
    ------
    InputError
        The file cannot be read, or does not hold an array of numbers.
    """
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"Cannot read {path}: {error}. Give a .npy file that numpy.save wrote.") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu":
        raise InputError(f"{path} does not hold an array of numbers. Give a .npy file that numpy.save wrote.")
    return array
