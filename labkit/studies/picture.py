"""`Picture`: a small image that a study shows, as text that JSON can hold."""

from __future__ import annotations

import base64
import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from labkit.errors import InputError

__all__ = ["Picture"]


@dataclass(frozen=True)
class Picture:
    """``height`` x ``width`` pixels with a ``label``, which may be empty.

    data : base64 of the zlib stream of the pixels, rows from the top, three bytes a pixel
    """

    label: str
    height: int
    width: int
    data: str

    @classmethod
    def of(cls, label: str, pixels: NDArray[np.uint8]) -> Picture:
        """The picture of ``pixels`` uint8 [H, W, 3], called ``label``.

        Raises
        ------
        InputError
            They have another shape or dtype.
        """
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
            raise InputError(f"A picture takes uint8 [height, width, 3], got {pixels.dtype} {list(pixels.shape)}.")
        data = base64.b64encode(zlib.compress(pixels.tobytes(), 9)).decode("ascii")
        return cls(label, int(pixels.shape[0]), int(pixels.shape[1]), data)

    @property
    def pixels(self) -> NDArray[np.uint8]:
        """uint8 [H, W, 3].

        Raises
        ------
        InputError
            ``data`` is not that many pixels.
        """
        try:
            stream = zlib.decompress(base64.b64decode(self.data, validate=True))
            return np.frombuffer(stream, np.uint8).reshape(self.height, self.width, 3)
        except (ValueError, zlib.error) as error:
            raise InputError(
                f"The picture {self.label!r} is damaged ({error}). Run the study again to make it anew."
            ) from error
