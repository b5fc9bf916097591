"""What ``labkit verify`` puts into a net and a runtime: images given, those that its notes name, and random integers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from labkit.errors import DataError, InputError

if TYPE_CHECKING:
    from labkit.graph.ir import IntNode
    from labkit.net import IntegerNet

__all__ = ["Inputs", "inputs_for"]

_BATCH = 16
Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True, eq=False)
class Inputs:
    """Batches of inputs by name, in the net's own types and layout, made anew each time that they are gone through.

    title : what they are, in words
    count : of images
    """

    title: str
    count: int
    arrays: Mapping[str, NDArray[Any]]

    def batches(self) -> Iterator[Arrays]:
        """The inputs a few images at a time."""
        for start in range(0, self.count, _BATCH):
            yield {name: array[start : start + _BATCH] for name, array in self.arrays.items()}


def inputs_for(net: IntegerNet, given: Path | None, count: int, seed: int, data_dir: Path | None) -> Inputs:
    """``count`` images from the file ``given``; else as many random ones drawn with ``seed``, and those that the notes name.

    Random integers are drawn from the whole grid. Where the net takes real numbers they are those for which such integers
    stand, half of them moved by half a step, which is a tie at the border.

    Raises
    ------
    InputError
        The file does not fit the net, or the net takes several inputs.
    """
    from labkit.cli.sources import read_array

    graph = net.graph
    if given is not None:
        if len(graph.inputs) > 1:
            raise InputError(
                f"The net takes the inputs {', '.join(graph.inputs)}: one file cannot hold them. Leave out --input."
            )
        array = read_array(given)[:count]
        return _of(net, f"{given.name}", {graph.inputs[0]: array})
    rng = np.random.default_rng(seed)
    arrays = {name: _random(graph[name], rng, count) for name in graph.inputs}
    title = f"{count} random images, seed {seed}"
    noted = _noted(net, count, data_dir)
    if noted is not None:
        (name,) = graph.inputs
        arrays = {name: np.concatenate([noted, arrays[name]])}
        title = f"{len(noted)} images of {graph.notes['data']} and {title}"
    return _of(net, title, arrays)


def _of(net: IntegerNet, title: str, arrays: Arrays) -> Inputs:
    net._inputs(arrays)  # refuses what does not fit
    return Inputs(title, len(next(iter(arrays.values()))), arrays)


def _random(node: IntNode, rng: np.random.Generator, count: int) -> NDArray[Any]:
    from labkit.graph import int_ops

    spec, params = node.output.quantized
    integers = rng.integers(spec.qmin, spec.qmax + 1, (count, *node.output.source_shape))
    if isinstance(node.op, int_ops.Input):
        return integers.astype(spec.dtype)
    halves = rng.integers(0, 2, integers.shape) * np.float32(0.5)
    steps = (integers - int(params.zero_point)).astype(np.float32) + halves
    return np.asarray(steps * np.float32(params.scale), np.float32)


def _noted(net: IntegerNet, count: int, data_dir: Path | None) -> NDArray[np.float32] | None:
    """Test images of the data set that the notes name, where it can be had and the net takes its images."""
    from labkit import data as data_sets
    from labkit.cli.sources import find_images
    from labkit.data.preprocessing import PRESETS

    graph = net.graph
    name = graph.notes.get("data")
    if (
        name not in data_sets.names()
        or len(graph.inputs) != 1
        or graph[graph.inputs[0]].output.source_shape != (3, 32, 32)
    ):
        return None
    try:
        images = find_images(str(name), data_dir, count, PRESETS["labkit"], "test", download=False)
    except DataError:
        return None
    return np.concatenate(list(images))
