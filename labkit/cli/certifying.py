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
    from labkit.net import IntegerNet

__all__ = ["Inputs", "inputs_for", "takes_tokens"]

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

    The file of a net with several inputs is an ``.npz`` file with an array for each, by name. Random ones are those of
    `random_inputs`.

    Raises
    ------
    InputError
        The file does not fit the net.
    """
    from labkit.cli.sources import read_arrays
    from labkit.parity.random_inputs import random_inputs

    graph = net.graph
    if given is not None:
        held = read_arrays(given)
        if not isinstance(held, dict):
            if len(graph.inputs) > 1:
                raise InputError(
                    f"The net takes the inputs {', '.join(graph.inputs)}, and {given.name} holds one array. Give an .npz file "
                    f"that numpy.savez wrote, with an array for each by name, or leave out --input for random ones."
                )
            held = {graph.inputs[0]: held}
        return _of(net, f"{given.name}", {name: array[:count] for name, array in held.items()})
    arrays = random_inputs(graph, count, np.random.default_rng(seed))
    title = f"{count} random {_things(net)}, seed {seed}"
    noted = _noted(net, count, data_dir)
    if noted is not None:
        (name,) = graph.inputs
        arrays = {name: np.concatenate([noted, arrays[name]])}
        title = f"{len(noted)} images of {graph.notes['data']} and {title}"
    return _of(net, title, arrays)


def _of(net: IntegerNet, title: str, arrays: Arrays) -> Inputs:
    net._inputs(arrays)  # refuses what does not fit
    return Inputs(title, len(next(iter(arrays.values()))), arrays)


def takes_tokens(net: IntegerNet) -> bool:
    """Whether an input of ``net`` holds token numbers, so that what goes in are sequences."""
    return any(net.graph[name].output.is_index for name in net.graph.inputs)


def _things(net: IntegerNet) -> str:
    return "sequences" if takes_tokens(net) else "images"


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
