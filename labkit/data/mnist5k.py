"""The 5,000 digits that come with labkit, so that everything runs on a machine without a network.

``mnist5k.npz`` holds 500 MNIST digits of each class as uint8 [5000, 28, 28], sorted by class, and their labels;
``mnist5k.json`` beside it says where they come from, how the file was made, and its sha256.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from pathlib import Path

import numpy as np

from labkit.data.dataset import DataSet
from labkit.errors import DataError

__all__ = ["load_mnist5k"]

_FILE = Path(__file__).with_name("mnist5k.npz")
_CLASSES = 10
_EACH = 500
_TRAIN_EACH = 400


def load_mnist5k(
    reason: str = "mnist5k, the digits that come with labkit, because it was asked for by name.",
) -> DataSet:
    """Read the digits: 4,000 training and 1,000 test images, uint8 [N, 3, 32, 32].

    The split is fixed: of each class the first 400 digits train and the last 100 test. Both parts go round the classes
    (0, 1, ..., 9, 0, 1, ...). Each 28x28 digit gets a border of 2 black pixels, and is repeated to three channels.

    Parameters
    ----------
    reason
        The sentence that the data set carries about why it was taken.

    Raises
    ------
    DataError
        The file is missing, or is not the one that labkit shipped.
    """
    try:
        recipe = json.loads(_FILE.with_suffix(".json").read_text("utf-8"))
        content = _FILE.read_bytes()
    except (OSError, ValueError) as error:
        raise DataError(f"A file of mnist5k cannot be read: {error}. {_REINSTALL}") from error
    got = hashlib.sha256(content).hexdigest()
    if got != recipe["sha256"]:
        raise DataError(f"{_FILE} is damaged: its sha256 is {got}, and must be {recipe['sha256']}. {_REINSTALL}")
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            digits, labels = arrays["images"], arrays["labels"]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"{_FILE} cannot be read: {error}. {_REINSTALL}") from error
    # [class, digit within the class, ...] -> digits of all classes in turn
    images = digits.reshape(_CLASSES, _EACH, 28, 28).swapaxes(0, 1)
    images = np.pad(images, ((0, 0), (0, 0), (2, 2), (2, 2)))
    images = np.repeat(images[:, :, None], 3, axis=2)
    classes = labels.reshape(_CLASSES, _EACH).swapaxes(0, 1).astype(np.int64)
    return DataSet(
        name="mnist5k",
        reason=reason,
        class_names=tuple("0123456789"),
        train_images=images[:_TRAIN_EACH].reshape(-1, 3, 32, 32),
        train_labels=classes[:_TRAIN_EACH].reshape(-1),
        test_images=images[_TRAIN_EACH:].reshape(-1, 3, 32, 32),
        test_labels=classes[_TRAIN_EACH:].reshape(-1),
    )


_REINSTALL = "Install labkit again: the file belongs to the package."
