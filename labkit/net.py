"""`IntegerNet`: an integer network that can be run, traced, printed and saved."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from labkit.errors import InputError
from labkit.graph import int_ops, storage
from labkit.graph.ir import IntGraph, IntNode
from labkit.graph.lengths import at_length
from labkit.kernels.kernel_set import REFERENCE, KernelSet

if TYPE_CHECKING:
    from labkit.engine.prepare import Prepared, Purpose

__all__ = ["IntegerNet", "load"]

# Images run node by node a few at a time, so that memory grows neither with their number nor with their size: 64 of them,
# or what fits here of their tensors. The largest is counted in int64 besides, some ten times, as the readable tier needs it.
NODE_BY_NODE_BATCH, NODE_BY_NODE_BYTES, _BESIDE = 64, 1 << 28, 80
LENGTHS_KEPT = 16  # nets of other lengths, with their buffers; the one that was not used for longest goes first


class IntegerNet:
    """An integer network. Real numbers enter and leave at its borders; all between is integer.

    graph : the frozen `IntGraph`.
    """

    def __init__(self, graph: IntGraph) -> None:
        self.graph = graph
        self._prepared: dict[Purpose, Prepared] = {}
        self._lengths: dict[int, IntegerNet] = {}

    def __str__(self) -> str:
        return str(self.graph)

    __repr__ = __str__

    def run(
        self, x: Any, kernels: str | KernelSet = "numba", threads: int = 1, purpose: str | Purpose = "speed"
    ) -> Any:
        """The network's output.

        Parameters
        ----------
        x : array or tensor [N, ...], or a dict of them by input name
            Any batch size, in the layout of the module or file that the net was made from. Float32 (float64 is converted;
            pixels must be normalised first), or integers where the net takes them.
        kernels : "numba", "reference" or a KernelSet
            The fast tier, the readable one, or your own functions node by node. All give the same integers.
        threads : 1 or more
            How many threads the fast tier uses; the integers are the same.
        purpose : "speed" or "memory"
            What the fast tier is made for, see `prepared`; the integers are the same.

        Returns
        -------
        float32 array [N, ...] (integers where the net puts them out, int32 positions of an argmax), or a dict by output name
        where there are several

        Raises
        ------
        InputError
            Wrong shape or type, unknown input, kernels or purpose, no threads.
        QuantizationError
            ``x`` holds a NaN.
        """
        results = self._results(self._inputs(x), kernels, only_outputs=True, threads=threads, purpose=purpose)
        outputs = {name: results[name] for name in self.graph.outputs}
        return outputs if len(outputs) > 1 else next(iter(outputs.values()))

    def trace(
        self, x: Any, kernels: str | KernelSet = "numba", purpose: str | Purpose = "speed"
    ) -> dict[str, NDArray[np.generic]]:
        """Every node's tensor by name, and again by the names of the nodes that were fused into it.

        ``x``, ``kernels`` and ``purpose`` as in `run`, except that all tensors are kept. Integers in the tensor's own
        dtype, float32 after a Dequantize node (int32 after an argmax), of shape [N, ...] in the layout of the source.

        Raises
        ------
        InputError, QuantizationError
            As `run`.
        """
        return self._results(self._inputs(x), kernels, only_outputs=False, purpose=purpose)

    def prepared(self, purpose: str | Purpose = "speed") -> Prepared:
        """The packed weights, buffers and kernel calls with which the fast tier runs the net, made on first use.

        ``purpose`` is "speed" for whatever is fastest, or "memory" for few bytes: see `labkit.engine.plan.Purpose`.

        Raises
        ------
        InputError
            An unknown purpose.
        UnsupportedOperation
            The fast tier does not serve some operation of the net.
        """
        from labkit.engine.prepare import Purpose, prepare

        try:
            wanted = Purpose(purpose)
        except ValueError:
            known = " or ".join(f'"{one.value}"' for one in Purpose)
            raise InputError(f"purpose must be {known}, got {purpose!r}.") from None
        if wanted not in self._prepared:
            self._prepared[wanted] = prepare(self.graph, purpose=wanted)
        return self._prepared[wanted]

    def like(self, runtime: str) -> IntegerNet:
        """The net as ``runtime``, one of `labkit.runtimes.rules.RUNTIMES`, computes it: same scales, weights and biases.

        Raises
        ------
        InputError
            There is no such runtime.
        UnsupportedOperation
            The runtime's arithmetic for one of the operations is not known, or it has none.
        """
        from labkit.runtimes.rules import as_run_by

        return IntegerNet(as_run_by(self.graph, runtime))

    def at_length(self, length: int) -> IntegerNet:
        """The same network for sequences of ``length`` tokens, at most as many as it was made for; weights are shared.

        The last few such nets are kept, so that sentences of many lengths do not prepare the engine again and again.

        Raises
        ------
        ModelError
            The inputs are no sequences, or an operation knows the length.
        InputError
            The net was made for shorter sequences, or ``length`` is not positive.
        """
        if (net := self._lengths.pop(length, None)) is None:
            graph = at_length(self.graph, length)
            if graph is self.graph:
                return self
            net = IntegerNet(graph)
        self._lengths[length] = net  # the latest one last
        if len(self._lengths) > LENGTHS_KEPT:
            del self._lengths[next(iter(self._lengths))]
        return net

    def checked(self, x: Any) -> dict[str, NDArray[Any]]:
        """``x`` as `run` takes it, checked: arrays [N, ...] by input name, in the layout of the source.

        Integers in the tensor's dtype for an Input node, else float32.

        Raises
        ------
        InputError
            As `run`.
        """
        last = {name for name in self.graph.inputs if self.graph[name].output.channels_last}
        return {n: np.moveaxis(array, 1, -1) if n in last else array for n, array in self._inputs(x).items()}

    def with_notes(self, **notes: Any) -> IntegerNet:
        """The same net with more ``notes`` (plain JSON values) saved beside the graph."""
        return IntegerNet(replace(self.graph, notes={**self.graph.notes, **notes}))

    def save(self, path: str | Path) -> None:
        """Write the net to a ``.lab`` file at ``path``, whole or not at all.

        Raises
        ------
        OutputError
            The file cannot be written.
        """
        storage.save(self.graph, path)

    def to_onnx(self, path: str | Path, style: str = "qdq") -> None:
        """Export to an ONNX file at ``path``, which onnxruntime computes in integers, with the batch axis free.

        ``style`` is "qdq" (real operators between DequantizeLinear and QuantizeLinear, which onnxruntime fuses) or "qoperator"
        (its integer operators themselves). In onnxruntime the file gives the integers of this net under the rules
        "onnxruntime", on every processor; docs/runtimes.md says what it cannot hold.

        Raises
        ------
        InputError
            There is no such style.
        UnsupportedOperation
            ONNX cannot hold one of the operations.
        ModelError
            The package onnx is not installed, or the network is too large for one file.
        OutputError
            The file cannot be written.
        """
        from labkit.exporters.onnx import write_onnx

        write_onnx(self.graph, path, style)

    def to_tflite(self, path: str | Path) -> None:
        """Export to a TFLite file at ``path``, which LiteRT computes in int8, with the channel axis last.

        In LiteRT the file gives the integers of this net, less 128 where those are unsigned, under the rules "litert" or
        "xnnpack"; docs/runtimes.md says what it cannot hold.

        Raises
        ------
        UnsupportedOperation
            TFLite cannot hold one of the operations.
        ModelError
            The packages that write the file are not installed.
        OutputError
            The file cannot be written.
        """
        from labkit.exporters.tflite import write_tflite

        write_tflite(self.graph, path)

    def _inputs(self, x: Any) -> dict[str, NDArray[Any]]:
        names = self.graph.inputs
        if len(names) > 1 and not isinstance(x, Mapping):
            raise InputError(
                f"The net takes the inputs {', '.join(names)}: give a dict of arrays by these names, not one array."
            )
        given: Mapping[Any, Any] = x if isinstance(x, Mapping) else {names[0]: x}
        if set(given) != set(names):
            raise InputError(f"The net takes the inputs {', '.join(names)}, got {', '.join(map(str, given))}.")
        checked = {name: _checked(self.graph[name], given[name]) for name in names}
        if len({len(array) for array in checked.values()}) > 1:
            raise InputError(
                "All inputs must have one batch size, got "
                + ", ".join(f"{n}: {len(a)}" for n, a in checked.items())
                + "."
            )
        return checked

    def _results(
        self,
        inputs: dict[str, NDArray[Any]],
        kernels: str | KernelSet,
        only_outputs: bool,
        threads: int = 1,
        purpose: str | Purpose = "speed",
    ) -> dict[str, NDArray[np.generic]]:
        threads = _whole(threads)
        if kernels == "numba":
            from labkit.engine.run import run, trace

            prepared = self.prepared(purpose)
            return self._in_source_layout(run(prepared, inputs, threads) if only_outputs else trace(prepared, inputs))
        if kernels == "reference":
            kernels = REFERENCE
        if not isinstance(kernels, KernelSet):
            raise InputError(f'kernels must be "numba", "reference" or a KernelSet, got {kernels!r}.')
        return self._in_source_layout(self._run_nodes(inputs, kernels, only_outputs))

    def _in_source_layout(self, results: dict[str, NDArray[np.generic]]) -> dict[str, NDArray[np.generic]]:
        """``results`` by name, with the channel axis last where the source has it there."""
        if not any(node.output.channels_last for node in self.graph):
            return results
        carriers = self.graph.carriers()
        return {
            name: np.ascontiguousarray(np.moveaxis(array, 1, -1))
            if self.graph[carriers[name]].output.channels_last
            else array
            for name, array in results.items()
        }

    def _run_nodes(
        self, inputs: dict[str, NDArray[Any]], kernels: KernelSet, only_outputs: bool
    ) -> dict[str, NDArray[np.generic]]:
        from labkit.engine.node_by_node import run_nodes

        size = len(next(iter(inputs.values())))
        wanted = self.graph.outputs if only_outputs else tuple(node.name for node in self.graph)
        tensors = {name: self.graph[name].output for name in wanted}
        whole = {name: np.empty((size, *tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
        step = self._node_by_node_images()
        for start in range(0, max(size, 1), step):
            batch = {name: array[start : start + step] for name, array in inputs.items()}
            results = run_nodes(self.graph, batch, kernels)
            for name in wanted:
                whole[name][start : start + step] = results[name]
        if only_outputs:
            return whole
        return {name: whole[carrier] for name, carrier in self.graph.carriers().items()}

    def _node_by_node_images(self) -> int:
        sizes = [math.prod(node.output.shape) for node in self.graph]
        return max(1, min(NODE_BY_NODE_BATCH, NODE_BY_NODE_BYTES // (4 * sum(sizes) + _BESIDE * max(sizes))))


def _whole(threads: Any) -> int:
    try:
        number = operator.index(threads)
    except TypeError:
        number = 0
    if number < 1:
        raise InputError(f"threads: got {threads!r}, which must be a whole number, 1 or more.")
    return number


def load(path: str | Path, like: str | None = None) -> IntegerNet:
    """Read an integer network from the ``.lab``, ``.tflite`` or ``.onnx`` file at ``path``.

    ``like`` names the runtime whose rounding rules the net shall follow, one of `labkit.runtimes.rules.RUNTIMES`. None: a
    ``.lab`` file as it was saved, ``.tflite`` like "litert", ``.onnx`` like "onnxruntime".

    Raises
    ------
    ModelError
        There is no such file, or it is damaged or of a version that this labkit does not read.
    UnsupportedOperation
        The file holds an operation that labkit cannot run in integers, or ``like`` names a runtime whose arithmetic for one of
        its operations is not known.
    InputError
        ``like`` names no runtime.
    """
    from labkit.runtimes.rules import as_run_by

    graph: IntGraph
    match Path(path).suffix.lower():
        case ".tflite":
            from labkit.frontends.tflite import read_tflite

            graph, like = read_tflite(path), like or "litert"
        case ".onnx":
            from labkit.frontends.onnx import read_onnx

            graph, like = read_onnx(path), like or "onnxruntime"
        case _:
            graph = storage.load(path)
    return IntegerNet(graph if like is None else as_run_by(graph, like))


def _checked(node: IntNode, x: Any) -> NDArray[Any]:
    """``x`` as the input ``node`` takes it, in the layout (N, C, H, W)."""
    name, shape = node.name, node.output.source_shape
    if hasattr(x, "detach"):
        x = x.detach().cpu().numpy()
    array = np.asarray(x)
    takes_integers = isinstance(node.op, int_ops.Input)
    if takes_integers:
        array = array.astype(np.uint8) if array.dtype == np.bool_ and _is_mask(node) else array
        _check_integers(node, array)
    elif array.dtype.kind != "f":
        raise InputError(
            f"Input {name!r} must hold real numbers (float32), got {array.dtype}. Pixels are normalised as they were for the "
            f"float network first: for labkit's own networks x = pixels / 127.5 - 1."
        )
    if array.shape[1:] != shape or array.ndim != len(shape) + 1:
        hint = " Resize the images, or take the network made for them."
        if array.shape == shape:
            hint = " Add a batch axis: x[None]."
        elif array.shape[1:] == node.output.shape:
            hint = " Here the channel axis is the last one: np.moveaxis(x, 1, -1)."
        raise InputError(f"Input {name!r} must have shape {('N', *shape)}, got {array.shape}.{hint}")
    if node.output.channels_last:
        array = np.moveaxis(array, -1, 1)
    return np.ascontiguousarray(array, node.output.dtype if takes_integers else np.float32)


def _is_mask(node: IntNode) -> bool:
    """Whether the integers 0 and 1 of the input ``node`` stand for the real numbers 0 and 1."""
    if node.output.is_index:
        return False
    _, params = node.output.quantized
    return float(params.scale) == 1 and int(params.zero_point) == 0


def _check_integers(node: IntNode, array: NDArray[Any]) -> None:
    if node.output.is_index:
        if array.dtype.kind not in "iu":
            raise InputError(f"Input {node.name!r} must hold indices, integers from 0 on, got {array.dtype}.")
        if array.size and (array.min() < 0 or array.max() >= 2**31):
            raise InputError(
                f"Input {node.name!r} must hold indices from 0 to 2**31 - 1, got {array.min()}..{array.max()}. "
                f"Use the tokenizer that the network was made for."
            )
        return
    spec, params = node.output.quantized
    if array.dtype.kind not in "iu":
        raise InputError(
            f"Input {node.name!r} must hold integers ({spec.dtype}), got {array.dtype}. Quantize real numbers first: "
            f"round(x / {float(params.scale):g}) + {int(params.zero_point)}."
        )
    if array.size and (array.min() < spec.qmin or array.max() > spec.qmax):
        raise InputError(
            f"Input {node.name!r} must hold integers of {spec.qmin}..{spec.qmax}, got {array.min()}..{array.max()}."
        )
