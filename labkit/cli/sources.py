"""What the options MODEL and --data may name, turned into modules and images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from labkit.errors import InputError

if TYPE_CHECKING:
    from torch import nn

    from labkit.data.dataset import DataSet
    from labkit.data.preprocessing import Preprocessing
    from labkit.net import IntegerNet

__all__ = [
    "FloatSource",
    "Images",
    "as_module",
    "find_images",
    "find_module",
    "find_network",
    "float_source",
    "is_onnx",
    "read_array",
    "read_arrays",
    "test_batches",
    "watched",
]

_BATCH = 256  # images of a data set that are made real numbers at a time


@dataclass(frozen=True, eq=False)
class Images:
    """Images that are read or normalised a batch at a time, as often as they are gone through.

    parts : gives the float32 arrays [N, ...], from the first on.
    count : images in all of them.
    """

    parts: Callable[[], Iterable[NDArray[np.float32]]]
    count: int

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        return iter(self.parts())

    def __len__(self) -> int:
        return self.count


def find_module(model: str, weights: Path | None, data: str) -> nn.Module:
    """The module that ``model`` names: a shipped net trained on ``data``, or ``module:callable`` of the user's own code.

    It can also be made of the float network in an ``.onnx`` file. ``weights`` is a file to fill it with, or the name of weights
    that torchvision has for its own networks.

    Raises
    ------
    ModelError
        There is no such net, or the weights do not fit it.
    InputError
        Weights are given for a file that has its own.
    """
    from labkit import models

    if is_onnx(model):
        return as_module(find_network(model, weights, data))
    if ":" in model:
        return models.bring(model, weights)
    return models.load(model, data=data, weights=weights)


def find_network(model: str, weights: Path | None, data: str) -> nn.Module | Path:
    """What `labkit.quantize` takes as the network that ``model`` names: a module, or the path of an ``.onnx`` file.

    ``weights`` and ``data`` as in `find_module`.

    Raises
    ------
    ModelError
        There is no such net, or the weights do not fit it.
    InputError
        Weights are given for a file that has its own.
    """
    if not is_onnx(model):
        return find_module(model, weights, data)
    if weights is not None:
        raise InputError(f"{model} holds its own weights: leave out --weights.")
    return Path(model)


def as_module(network: nn.Module | Path) -> nn.Module:
    """The ``network``, or a torch module of what the ``.onnx`` file at that path holds.

    Raises
    ------
    ModelError
        The file cannot be read, or torch has no layer for one of its operations.
    """
    if not isinstance(network, Path):
        return network
    from labkit.frontends.onnx.float_graph_module import read_module

    return read_module(network)


def is_onnx(model: str) -> bool:
    """Whether ``model`` is the path of an ONNX file, and no name of a network."""
    return Path(model).suffix.lower() == ".onnx"


@dataclass(frozen=True)
class FloatSource:
    """Which float network an integer net is compared with.

    name : what ``--model`` says, else the shipped net that the notes name; None where neither is.
    trained_on : the data whose shipped weights are meant.
    noted : whether the notes name the shipped net and its data.
    """

    name: str | None
    trained_on: str
    noted: bool


def float_source(net: IntegerNet, model: str | None, data_dir: Path | None) -> FloatSource:
    """The float network of ``net``: ``model`` where it is given, else what the notes name, if that is a shipped net.

    A file never says which code to run, so nothing but the names of shipped nets is taken from the notes. ``data_dir`` is
    where CIFAR-10 may lie, for nets that do not say what they were trained on.
    """
    from labkit import data as data_sets
    from labkit import models
    from labkit.models.zoo import MINILM

    notes = net.graph.notes
    saved, trained_on, data = (str(notes.get(key)) for key in ("model", "trained_on", "data"))
    if MINILM in (saved, model):
        return FloatSource(model or saved, data, False)
    if saved in models.names() and trained_on in models.data_for(saved):
        return FloatSource(model or saved, trained_on, True)
    if model in models.names() and data in models.data_for(model):
        return FloatSource(model, data, False)
    return FloatSource(model, data_sets.resolve("auto", data_dir), False)


def find_images(
    data: str,
    data_dir: Path | None,
    count: int,
    preprocessing: Preprocessing,
    part: str,
    download: bool | None = None,
) -> Images:
    """``count`` images from what ``data`` names, or all of them where a file or folder holds fewer.

    ``data`` is a shipped data set (its ``part``, "train" or "test"; ``data_dir`` is where CIFAR-10 may lie, ``download``
    whether it may be fetched), an ``.npy`` file, taken as it is, or a folder of pictures, each brought through
    ``preprocessing``: of many pictures those taken are spread evenly, so that a folder of class folders gives all classes.

    Raises
    ------
    DataError
        The data cannot be had.
    InputError
        The file does not hold an array of numbers.
    """
    from labkit import data as data_sets

    if data in data_sets.names():
        loaded = data_sets.load(data, data_dir=data_dir, download=download)
        if part == "test":
            if count > len(loaded.test_images):
                raise InputError(f"{loaded.name} has {len(loaded.test_images):,} test images, got --images {count}.")
            return Images(lambda: (x for x, _ in test_batches(loaded, count)), count)
        images = loaded.calibration(count)
        return Images(lambda: [images], count)
    path = Path(data)
    if path.suffix == ".npy":
        array = read_array(path, mapped=True)
        if array.ndim < 2:
            raise InputError(f"{path} must hold images with a batch axis, [N, ...], got shape {array.shape}.")
        array = array[:count]
        return Images(lambda: [array], len(array))
    from labkit.data.folder import pictures_in

    pictures = pictures_in(path, preprocessing, count)
    return Images(lambda: pictures, len(pictures))


def test_batches(data: DataSet, count: int) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
    """The first ``count`` test images of ``data``, float32 [N, 3, 32, 32] in [-1, 1] a batch, and labels int64 [N]."""
    from labkit.data import normalise

    for start in range(0, count, _BATCH):
        part = slice(start, min(start + _BATCH, count))
        yield normalise(data.test_images[part]), data.test_labels[part]


def watched(images: Images, tell: Callable[[str, int, int], None], step: str) -> Images:
    """The same ``images``, which ``tell`` what has been taken of them, as ``step``, while they are gone through."""
    from labkit.quantization.batches import image_batches

    def parts() -> Iterator[NDArray[np.float32]]:
        done = 0
        tell(step, done, len(images))
        for part in image_batches(images):  # as who takes them would split them, so that no sum comes out otherwise
            yield part
            done += len(part)  # the next one is asked for when this one has been worked on
            tell(step, done, len(images))

    return Images(parts, len(images))


def read_array(path: Path, mapped: bool = False) -> NDArray[np.float32]:
    """The numbers in the ``.npy`` file at ``path``, in their own dtype and shape. Nothing in the file is executed.

    Where ``mapped``, they stay in the file until they are used, and cannot be written to.

    Raises
    ------
    InputError
        The file cannot be read, or does not hold an array of numbers.
    """
    try:
        array = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"Cannot read {path}: {error}. Give a .npy file that numpy.save wrote.") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu":
        raise InputError(f"{path} does not hold an array of numbers. Give a .npy file that numpy.save wrote.")
    return array


def read_arrays(path: Path) -> Any:
    """The array in the ``.npy`` file at ``path`` as `read_array` gives it, or those in an ``.npz`` file as a dict by name.

    Raises
    ------
    InputError
        The file cannot be read, or does not hold arrays of numbers.
    """
    if path.suffix != ".npz":
        return read_array(path)
    import zipfile

    try:
        with np.load(path, allow_pickle=False) as held:
            arrays = {name: held[name] for name in held.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError) as error:
        raise InputError(f"Cannot read {path}: {error}. Give an .npz file that numpy.savez wrote.") from error
    if not arrays or any(array.dtype.kind not in "fiub" or not array.ndim for array in arrays.values()):
        raise InputError(f"{path} does not hold arrays of numbers. Give an .npz file that numpy.savez wrote.")
    return arrays
