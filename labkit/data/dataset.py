"""What a data set is to labkit: 32x32 colour images in eight bits, labels, and one normalisation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from labkit.errors import InputError

__all__ = ["DataSet", "normalise"]


def normalise(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Map pixels 0..255 to [-1, 1]: ``x = pixel / 255 * 2 - 1``, each step rounded to float32.

    Doubling is exact, so this equals, to the last bit, the ``(pixel / 255 - 0.5) / 0.5`` that
    torchvision's ``ToTensor`` and ``Normalize(0.5, 0.5)`` compute.

    Parameters
    ----------
    pixels
        uint8 array of any shape.

    Returns
    -------
    float32 array of the same shape, in [-1, 1].
    """
    x = np.divide(pixels, np.float32(255), dtype=np.float32)
    x *= np.float32(2)
    x -= np.float32(1)
    return x


@dataclass(frozen=True, eq=False, repr=False)
class DataSet:
    """Images with labels, split into a training and a test part. The arrays cannot be written to.

    Attributes
    ----------
    name
        ``cifar10`` or ``mnist5k``.
    reason
        One sentence: which data were taken, from where, and why.
    class_names
        The name of class i at position i.
    train_images, test_images
        uint8 [N, 3, 32, 32], channels in the order red, green, blue.
    train_labels, test_labels
        int64 [N], each in 0..len(class_names) - 1.
    """

    name: str
    reason: str
    class_names: tuple[str, ...]
    train_images: NDArray[np.uint8]
    train_labels: NDArray[np.int64]
    test_images: NDArray[np.uint8]
    test_labels: NDArray[np.int64]

    def __post_init__(self) -> None:
        """Hold the arrays to their contract, and freeze them.

        Raises
        ------
        InputError
            An array has another shape or type, or a label is outside the classes.
        """
        for part, images, labels in (
            ("train", self.train_images, self.train_labels),
            ("test", self.test_images, self.test_labels),
        ):
            if images.dtype != np.uint8 or images.shape[1:] != (3, 32, 32):
                raise InputError(
                    f"{self.name}: {part}_images must be uint8 [N, 3, 32, 32], got {images.dtype} {list(images.shape)}."
                )
            if labels.dtype != np.int64 or labels.shape != images.shape[:1]:
                raise InputError(
                    f"{self.name}: {part}_labels must be int64 [{len(images)}], one label an image, "
                    f"got {labels.dtype} {list(labels.shape)}."
                )
            if len(labels) and not 0 <= labels.min() <= labels.max() < len(self.class_names):
                raise InputError(
                    f"{self.name}: {part}_labels must lie in 0..{len(self.class_names) - 1}, "
                    f"got {labels.min()}..{labels.max()}."
                )
            images.setflags(write=False)
            labels.setflags(write=False)

    def __repr__(self) -> str:
        return (
            f"DataSet({self.name}: {len(self.train_images)} training and {len(self.test_images)} test images, "
            f"{len(self.class_names)} classes)"
        )

    def calibration(self, n: int = 512, seed: int = 0) -> NDArray[np.float32]:
        """Draw images to calibrate with, from the training part, so that no test image is seen beforehand.

        Parameters
        ----------
        n
            How many, in 1..len(train_images); none is drawn twice.
        seed
            The same seed draws the same images in the same order.

        Returns
        -------
        float32 [n, 3, 32, 32] in [-1, 1].

        Raises
        ------
        InputError
            ``n`` is outside its range.
        """
        n = _checked_count(n, len(self.train_images), f"{self.name} calibration images")
        chosen = np.random.default_rng(seed).choice(len(self.train_images), size=n, replace=False)
        return normalise(self.train_images[chosen])

    def train(self) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The whole training part, normalised: float32 [N, 3, 32, 32] in [-1, 1] and int64 [N].

        For CIFAR-10 this takes 614 MB.
        """
        return normalise(self.train_images), self.train_labels

    def test(self, n: int | None = None) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The first ``n`` test images (all of them when None), normalised, and their labels.

        Both data sets come in an order that mixes the classes, so the first few are a fair sample.

        Returns
        -------
        float32 [n, 3, 32, 32] in [-1, 1] and int64 [n].

        Raises
        ------
        InputError
            ``n`` is outside 1..len(test_images).
        """
        if n is not None:
            n = _checked_count(n, len(self.test_images), f"{self.name} test images")
        return normalise(self.test_images[:n]), self.test_labels[:n]


def _checked_count(n: int, available: int, what: str) -> int:
    if not 1 <= n <= available:
        raise InputError(f"The number of {what} must be in 1..{available}, got {n}.")
    return int(n)
