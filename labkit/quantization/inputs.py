"""What a float network is calibrated on: one input or several by name, images or sentences of several lengths."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labkit.errors import InputError
from labkit.graph import float_ops
from labkit.graph.float_ops import InputKind
from labkit.graph.ir import FloatGraph
from labkit.graph.lengths import at_length
from labkit.quantization.batches import BATCH, image_batches

__all__ = ["Given", "GraphOfInputs", "named_batches", "only_input", "takes_images"]

Given = dict[str, NDArray[Any]]

_TOKENS = 4096  # of all sentences of a batch: some 25 MB for each tensor of a layer with 1,536 features


class GraphOfInputs:
    """A float network for inputs of several lengths: ``graph`` itself where they fit it, else the same at their length."""

    def __init__(self, graph: FloatGraph) -> None:
        self.graph = graph
        self._lengths: dict[int, FloatGraph] = {}

    def __call__(self, given: Given) -> FloatGraph:
        """The network for ``given``, arrays [N, ...] by input name.

        Raises
        ------
        InputError, ModelError
            There is no such length, or an array has another shape than its input.
        """
        name = self.graph.inputs[0]
        length, found = given[name].shape[-1], self.graph
        if not takes_images(self.graph) and length != _shape(self.graph, name)[-1]:
            if length not in self._lengths:
                self._lengths[length] = at_length(self.graph, length)
            found = self._lengths[length]
        for name, array in given.items():
            if array.shape[1:] != _shape(found, name):
                raise InputError(
                    f"The calibration images have shape {array.shape[1:]}, the network takes {_shape(found, name)}."
                    if takes_images(self.graph)
                    else f"The calibration input {name!r} has shape {array.shape[1:]}, the network takes {_shape(found, name)}."
                )
        return found


def takes_images(graph: FloatGraph) -> bool:
    """Whether ``graph`` takes one array of real numbers, which needs no name."""
    return len(graph.inputs) == 1 and _input(graph, graph.inputs[0]).kind is InputKind.REAL


def only_input(graph: FloatGraph, what: str) -> str:
    """The name of the one input of ``graph``, which ``what``, in a few words, needs.

    Raises
    ------
    InputError
        There are several.
    """
    if len(graph.inputs) > 1:
        raise InputError(f"{what} for networks of one input, and this one takes {', '.join(graph.inputs)}.")
    return graph.inputs[0]


def named_batches(graph: FloatGraph, batches: Any) -> Iterator[Given]:
    """Arrays [N, ...] by input name: float32 for real inputs, int64 for indices, uint8 for masks.

    Parameters
    ----------
    graph : the network that shall take them
    batches : for one input as `image_batches` takes them; for several a dict of arrays by input name, or any iterable of such
        dicts. Sentences of one batch are of one length, so that nothing has to be filled up; batches may differ in it.

    Raises
    ------
    InputError
        Names, types or numbers do not fit; or a mask leaves out a token, so that what is looked at would be no sentence.
    """
    if takes_images(graph):
        for array in image_batches(_bare(graph.inputs[0], batches)):
            yield {graph.inputs[0]: array}
        return
    if isinstance(batches, Mapping):
        batches = [batches]
    if hasattr(batches, "__array__") or hasattr(batches, "detach") or not isinstance(batches, Iterable):
        raise InputError(
            f"This network takes the inputs {', '.join(graph.inputs)}: hand in a dict of arrays by these names, or several such "
            f"dicts, got {type(batches).__name__}."
        )
    for item in batches:
        given = _checked(graph, item)
        length = max(array.shape[-1] for array in given.values())
        step = max(1, min(BATCH, _TOKENS // max(1, length)))
        for start in range(0, len(next(iter(given.values()))), step):
            yield {name: array[start : start + step] for name, array in given.items()}


def _bare(name: str, batches: Any) -> Any:
    """``batches`` with the array of the input ``name`` in place of each dict."""
    if isinstance(batches, Mapping):
        batches = [batches]
    if hasattr(batches, "__array__") or hasattr(batches, "detach") or not isinstance(batches, Iterable):
        return batches
    return (item[name] if isinstance(item, Mapping) and set(item) == {name} else item for item in batches)


def _input(graph: FloatGraph, name: str) -> float_ops.Input:
    op = graph[name].op
    assert isinstance(op, float_ops.Input)
    return op


def _shape(graph: FloatGraph, name: str) -> tuple[int, ...]:
    return tuple(_input(graph, name).shape)


def _checked(graph: FloatGraph, item: Any) -> Given:
    if not isinstance(item, Mapping) or set(item) != set(graph.inputs):
        got = f"the names {', '.join(map(str, item))}" if isinstance(item, Mapping) else type(item).__name__
        raise InputError(f"A batch must be a dict of arrays by the names {', '.join(graph.inputs)}, got {got}.")
    given = {name: _array(graph, name, item[name]) for name in graph.inputs}
    if len({len(array) for array in given.values()}) > 1:
        sizes = ", ".join(f"{name}: {len(array)}" for name, array in given.items())
        raise InputError(f"All inputs of a batch must have one batch size, got {sizes}.")
    return given


def _array(graph: FloatGraph, name: str, value: Any) -> NDArray[Any]:
    op = _input(graph, name)
    array = np.asarray(value.detach().cpu().numpy() if hasattr(value, "detach") else value)
    allowed = {InputKind.REAL: "f", InputKind.INDEX: "iu", InputKind.MASK: "biu"}[op.kind]
    if array.dtype.kind not in allowed or array.ndim != len(op.shape) + 1:
        raise InputError(
            f"The calibration input {name!r} holds {op.kind.value} numbers of the shape {('N', *op.shape)}, got {array.dtype} "
            f"{array.shape}."
        )
    if op.kind is InputKind.REAL:
        return array.astype(np.float32)
    if op.kind is InputKind.INDEX:
        return array.astype(np.int64)
    if not np.all(array == 1):
        raise InputError(
            f"The mask {name!r} leaves tokens out, and calibration would look at them all the same. Put sentences of one length "
            f"into a batch: batches may differ in length."
        )
    return array.astype(np.uint8)
