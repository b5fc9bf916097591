"""Calibration images from elsewhere: digits, and noise that knows more or less about the training images."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from labkit.data import load as load_data

__all__ = ["DOMAINS", "blurred_noise", "channel_noise", "draw_images", "uniform_noise"]

Images = NDArray[np.float32]

DOMAINS = ("digits", "uniform noise", "noise of like mean and spread", "blurred noise of like mean and spread")


def draw_images(domain: str, images: Images, count: int, seed: int) -> Images:
    """``count`` images of a ``domain`` of `DOMAINS`, float32 [count, C, H, W] in [-1, 1].

    Parameters
    ----------
    domain
        Where they come from; the digits are those that come with labkit.
    images
        Training images float32 [N, C, H, W]; of them only the shape, and the channels' means and deviations, are used.
    count
        How many.
    seed
        Of the draw.
    """
    generator = np.random.default_rng((seed, DOMAINS.index(domain)))
    if domain == "digits":
        return load_data("mnist5k").calibration(count, seed)
    if domain == "uniform noise":
        return uniform_noise((count, *images.shape[1:]), generator)
    if domain == "noise of like mean and spread":
        return channel_noise(images, count, generator)
    return blurred_noise(images, count, generator)


def uniform_noise(shape: tuple[int, ...], generator: np.random.Generator) -> Images:
    """Independent uniform pixels in [-1, 1]: float32 of ``shape``, from ``generator``."""
    return generator.uniform(-1, 1, shape).astype(np.float32)


def channel_noise(images: Images, count: int, generator: np.random.Generator) -> Images:
    """Independent normal pixels with the mean and deviation of each channel of some images, clipped to [-1, 1].

    Parameters
    ----------
    images : float32 [N, C, H, W]
    count : how many to make
    generator : of the noise

    Returns
    -------
    float32 [count, C, H, W]
    """
    return _with_statistics(generator.normal(size=(count, *images.shape[1:])), images)


def blurred_noise(images: Images, count: int, generator: np.random.Generator) -> Images:
    """`channel_noise` whose amplitude falls as 1 / frequency, as in photographs (Field 1987): neighbours look alike.

    Parameters
    ----------
    images : float32 [N, C, H, W]
    count : how many to make
    generator : of the noise

    Returns
    -------
    float32 [count, C, H, W]
    """
    height, width = images.shape[2:]
    down, across = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    frequency = np.sqrt(down**2 + across**2)
    frequency[0, 0] = 1 / max(height, width)  # the mean brightness varies from image to image as the slowest wave does
    white = np.fft.rfft2(generator.normal(size=(count, *images.shape[1:])))
    return _with_statistics(np.fft.irfft2(white / frequency, (height, width)), images)


def _with_statistics(noise: NDArray[np.float64], images: Images) -> Images:
    axes = (0, 2, 3)
    wanted = images.mean(axes, keepdims=True, dtype=np.float64), images.std(axes, keepdims=True, dtype=np.float64)
    noise = (noise - noise.mean(axes, keepdims=True)) / noise.std(axes, keepdims=True)
    return np.asarray(np.clip(noise * wanted[1] + wanted[0], -1, 1), np.float32)
