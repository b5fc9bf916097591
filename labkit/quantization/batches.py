"""Images in batches: taken apart into sizes that fit the cache, and worked on side by side."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from labkit.errors import InputError
from labkit.frontends.torch_threads import torch_threads

__all__ = ["WORKERS", "checked_batches", "image_batches", "images_for", "in_threads", "sized_batches"]

BATCH = 128
_SMALL_IMAGE = 3 * 32 * 32  # numbers
WORKERS = min(4, os.cpu_count() or 1)

Item = TypeVar("Item")
Result = TypeVar("Result")


def image_batches(batches: Any, size: int = BATCH) -> Iterator[NDArray[np.float32]]:
    """Float32 arrays [N, ...] of at most ``size`` images from one array or tensor, or any iterable of them.

    Images larger than 3 x 32 x 32 come fewer at a time, so that memory does not grow with their size. ``batches`` may
    also be a torch DataLoader: of a pair (images, labels) the first is taken.

    Raises
    ------
    InputError
        An item is not an array of real numbers with a batch axis.
    """
    for array in _arrays(batches):
        image = max(1, math.prod(array.shape[1:]))
        yield from _cut(array, max(1, min(size, size * _SMALL_IMAGE // image)))


def sized_batches(batches: Any, size: int) -> Iterator[NDArray[np.float32]]:
    """Float32 arrays [N, ...] of at most ``size`` images each, for whoever knows what one of them takes.

    ``batches`` as in `image_batches`, which is for those who do not.

    Raises
    ------
    InputError
        As `image_batches`.
    """
    for array in _arrays(batches):
        yield from _cut(array, size)


def checked_batches(
    batches: Any, check: Callable[[Any], dict[str, NDArray[Any]]], size: int
) -> Iterator[dict[str, NDArray[Any]]]:
    """What an integer net takes, by input name and at most ``size`` images at a time, in its own types and layout.

    Parameters
    ----------
    batches : array or tensor [N, ...], a dict of them by input name, or an iterable of these; of a pair (images, labels) the
        first is taken
    check : `IntegerNet.checked`, which gives arrays [N, ...] of the dtypes that the net takes
    size : 1 or more

    Raises
    ------
    InputError
        An item is nothing of these, or does not fit the net.
    """
    if isinstance(batches, Mapping) or hasattr(batches, "__array__") or hasattr(batches, "detach"):
        batches = [batches]
    if not isinstance(batches, Iterable):
        raise InputError(
            f"Images must be an array [N, ...], a dict of them, or an iterable of these, got {type(batches).__name__}."
        )
    for item in batches:
        arrays = check(item[0] if isinstance(item, list | tuple) and len(item) else item)
        for start in range(0, len(next(iter(arrays.values()))), size):
            yield {name: array[start : start + size] for name, array in arrays.items()}


def images_for(budget: int, image_bytes: int, largest: int) -> int:
    """How many images of ``image_bytes`` each fit into ``budget`` bytes: at least 1, at most ``largest``."""
    return max(1, min(largest, budget // max(1, image_bytes)))


def _arrays(batches: Any) -> Iterator[NDArray[np.floating]]:
    """The arrays [N, ...] of real numbers that ``batches`` consists of, as they are handed in."""
    if hasattr(batches, "__array__") or hasattr(batches, "detach"):
        batches = [batches]
    if not isinstance(batches, Iterable):
        raise InputError(f"Images must be an array [N, ...] or an iterable of them, got {type(batches).__name__}.")
    for item in batches:
        part = item[0] if isinstance(item, list | tuple) and len(item) else item
        if hasattr(part, "detach"):
            part = part.detach().cpu().numpy()
        array = np.asarray(part)
        if array.ndim < 2 or array.dtype.kind != "f":
            raise InputError(
                f"Images must be real numbers (float32) with a batch axis, [N, ...], got {array.dtype} {array.shape}. "
                f"Normalise pixels as for the float network first: for labkit's own networks x = pixels / 127.5 - 1."
            )
        yield array


def _cut(array: NDArray[np.floating], step: int) -> Iterator[NDArray[np.float32]]:
    for start in range(0, len(array), step):
        yield array[start : start + step].astype(np.float32)


def in_threads(function: Callable[[Item], Result], items: Iterable[Item], workers: int = WORKERS) -> Iterator[Result]:
    """``function(item)`` for each of ``items``, in their order; few of them are in memory at a time.

    PyTorch's own threads split single operations, which gains little for small batches and collapses on a busy machine:
    here each of ``workers`` threads has an item of its own, and PyTorch one thread.
    """
    with torch_threads(1), ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[Result]] = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
