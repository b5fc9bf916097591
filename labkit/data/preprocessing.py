"""`Preprocessing`: how a picture of any size becomes the numbers that a network was trained on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from labkit.errors import DataError, InputError

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["PRESETS", "Preprocessing"]

Channels = tuple[float, float, float]
_INTERPOLATIONS = ("bilinear", "bicubic")


@dataclass(frozen=True)
class Preprocessing:
    """Resize, crop the middle, normalise: what torchvision's presets for classification do to a PIL image, bit for bit.

    Attributes
    ----------
    resize
        Pixels of the shorter side after resizing (with antialiasing), 1 or more; None leaves the picture's size.
    crop
        Side in pixels of the square that is cut out of the middle, 1 or more. What it exceeds the picture by is black.
    mean, std
        Of red, green and blue: ``x = (pixel / 255 - mean) / std``; each standard deviation is above 0.
    interpolation
        Of resizing: ``bilinear`` or ``bicubic``.
    """

    resize: int | None
    crop: int
    mean: Channels
    std: Channels
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        """Hold the values to their ranges.

        Raises
        ------
        InputError
            A side is below 1 pixel, or there are not three finite means and three positive standard deviations,
            or the interpolation is unknown.
        """
        for what, side in (("resize", 1 if self.resize is None else self.resize), ("crop", self.crop)):
            if isinstance(side, bool) or not isinstance(side, int) or side < 1:
                raise InputError(f"Preprocessing: {what} must be a whole number of pixels, 1 or more, got {side!r}.")
        for what, values in (("mean", self.mean), ("std", self.std)):
            object.__setattr__(self, what, _channels(what, values))
        if min(self.std) <= 0:
            raise InputError(f"Preprocessing: each std must be above 0, it divides the pixels, got {self.std}.")
        if self.interpolation not in _INTERPOLATIONS:
            raise InputError(
                f"Preprocessing: interpolation must be {' or '.join(_INTERPOLATIONS)}, got {self.interpolation!r}."
            )

    def __str__(self) -> str:
        resized = f"shorter side {self.resize} px ({self.interpolation}), " if self.resize is not None else ""
        mean, std = (", ".join(f"{value:g}" for value in values) for values in (self.mean, self.std))
        return f"{resized}middle {self.crop} x {self.crop} px, mean ({mean}), std ({std})"

    def apply(self, picture: Image.Image) -> NDArray[np.float32]:
        """The numbers of ``picture`` as a network takes them: float32 [3, crop, crop].

        Any mode of 8 bits is taken as RGB, 16 bits of grey as their upper 8; transparency and a note of the camera's
        orientation are ignored, as torchvision does.

        Raises
        ------
        DataError
            The picture holds 32-bit or real numbers, of which nobody says what is white.
        """
        from PIL import Image

        if picture.mode in ("I", "F"):
            raise DataError(
                f"A picture of mode {picture.mode} holds numbers without a white: save it with 8 or 16 bits a pixel."
            )
        if picture.mode.startswith("I;16"):
            picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
        fitted = picture.convert("RGB")
        if self.resize is not None:
            kind = Image.Resampling[self.interpolation.upper()]
            fitted = fitted.resize(_with_shorter_side(fitted.size, self.resize), kind)
        left, top = (_first(side, self.crop) for side in fitted.size)
        pixels = np.asarray(fitted.crop((left, top, left + self.crop, top + self.crop)))
        x = np.divide(pixels.transpose(2, 0, 1), np.float32(255), dtype=np.float32)
        x -= np.asarray(self.mean, np.float32)[:, None, None]
        x /= np.asarray(self.std, np.float32)[:, None, None]
        return np.ascontiguousarray(x)

    def resized_to(self, crop: int) -> Preprocessing:
        """The same for another ``crop`` in pixels; ``resize`` keeps its ratio to it, rounded."""
        resize = None if self.resize is None else max(1, round(crop * self.resize / self.crop))
        return replace(self, resize=resize, crop=crop)

    def to_json(self) -> dict[str, Any]:
        """The values as plain JSON."""
        values: dict[str, Any] = {name.name: getattr(self, name.name) for name in fields(self)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def from_json(cls, values: Any) -> Preprocessing:
        """The preprocessing that `to_json` made ``values`` of.

        Raises
        ------
        InputError
            ``values`` is no such thing.
        """
        names = {name.name for name in fields(cls)}
        if not isinstance(values, Mapping) or set(values) != names:
            raise InputError(f"This is no preprocessing ({', '.join(sorted(names))}): {str(values)[:100]}.")
        return cls(**values)


def _channels(what: str, values: Any) -> Channels:
    if not isinstance(values, Sequence) or isinstance(values, str) or len(values) != 3:
        raise InputError(f"Preprocessing: {what} must be three numbers, for red, green and blue, got {values!r}.")
    try:
        red, green, blue = (float(value) for value in values)
    except (TypeError, ValueError) as error:
        raise InputError(f"Preprocessing: {what} must be three numbers, got {values!r}.") from error
    if not all(map(math.isfinite, (red, green, blue))):
        raise InputError(f"Preprocessing: {what} must be three finite numbers, got {values!r}.")
    return red, green, blue


def _with_shorter_side(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Width and height so that the shorter is ``side``; the longer is rounded down, as torchvision does."""
    width, height = size
    if width <= height:
        return side, int(side * height / width)
    return int(side * width / height), side


def _first(side: int, crop: int) -> int:
    """Where the middle ``crop`` of ``side`` pixels begins; below 0 where the picture is smaller."""
    return round((side - crop) / 2) if side >= crop else -((crop - side) // 2)


PRESETS: dict[str, Preprocessing] = {
    # labkit's own networks, and its data sets: [-1, 1].
    "labkit": Preprocessing(32, 32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    # torchvision.transforms._presets.ImageClassification with crop_size=224, its other values left out.
    "imagenet": Preprocessing(256, 224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
