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

from labkit.errors import InputError, UnsupportedOperation
from labkit.graph import storage
from labkit.graph.ir import IntGraph
from labkit.kernels.kernel_set import REFERENCE, KernelSet

if TYPE_CHECKING:
    from labkit.engine.prepare import Prepared, Purpose

__all__ = ["IntegerNet", "load"]

# Images run node by node a few at a time, so that memory grows neither with their number nor with their size: 64 of them,
# or what fits here of their tensors. The largest is counted in int64 besides, some ten times, as the readable tier needs it.
NODE_BY_NODE_BATCH, NODE_BY_NODE_BYTES, _BESIDE = 64, 1 << 28, 80


class IntegerNet:
    """An integer network. Real numbers enter and leave at its borders; all between is integer.

    graph : the frozen `IntGraph`.
    """

    def __init__(self, graph: IntGraph) -> None:
        self.graph = graph
        self._prepared: dict[Purpose, Prepared] = {}

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
            Float32 (float64 is converted; pixels must be normalised first), any batch size, in the layout of the module
            that the net was made from.
        kernels : "numba", "reference" or a KernelSet
            The fast tier, the readable one, or your own functions node by node. All give the same integers.
        threads : 1 or more
            How many threads the fast tier uses; the integers are the same.
        purpose : "speed" or "memory"
            What the fast tier is made for, see `prepared`; the integers are the same.

        Returns
        -------
        float32 array [N, ...] (int32 positions of an argmax), or a dict by output name where there are several

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
        dtype, float32 after the last node (int32 where that is an argmax); the layout is (N, C, H, W).

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
        """Export to ONNX at ``path``, in the given ``style``; not in this version.

        Raises
        ------
        UnsupportedOperation
            Always.
        """
        raise UnsupportedOperation(f"This version of labkit cannot export to ONNX ({path}, {style}); save a .lab file.")

    def to_tflite(self, path: str | Path) -> None:
        """Export to TFLite at ``path``; not in this version.

        Raises
        ------
        UnsupportedOperation
            Always.
        """
        raise UnsupportedOperation(f"This version of labkit cannot export to TFLite ({path}); save a .lab file.")

    def _inputs(self, x: Any) -> dict[str, NDArray[np.float32]]:
        names = self.graph.inputs
        given: Mapping[Any, Any] = x if isinstance(x, Mapping) else {names[0]: x}
        if set(given) != set(names):
            raise InputError(f"The net takes the inputs {', '.join(names)}, got {', '.join(map(str, given))}.")
        checked = {name: _checked(name, given[name], self.graph[name].output.shape) for name in names}
        if len({len(array) for array in checked.values()}) > 1:
            raise InputError(
                "All inputs must have one batch size, got "
                + ", ".join(f"{n}: {len(a)}" for n, a in checked.items())
                + "."
            )
        return checked

    def _results(
        self,
        inputs: dict[str, NDArray[np.float32]],
        kernels: str | KernelSet,
        only_outputs: bool,
        threads: int = 1,
        purpose: str | Purpose = "speed",
    ) -> dict[str, NDArray[np.generic]]:
        threads = _whole(threads)
        if kernels == "numba":
            from labkit.engine.run import run, trace

            prepared = self.prepared(purpose)
            return run(prepared, inputs, threads) if only_outputs else trace(prepared, inputs)
        if kernels == "reference":
            kernels = REFERENCE
        if not isinstance(kernels, KernelSet):
            raise InputError(f'kernels must be "numba", "reference" or a KernelSet, got {kernels!r}.')
        return self._run_nodes(inputs, kernels, only_outputs)

    def _run_nodes(
        self, inputs: dict[str, NDArray[np.float32]], kernels: KernelSet, only_outputs: bool
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
    """Read an integer network from the ``.lab`` file at ``path``.

    ``like`` names the runtime whose rounding rules the net shall follow; in this version only "labkit", as saved.

    Raises
    ------
    ModelError
        There is no such file, or it is not a whole ``.lab`` file of a version that this labkit reads.
    UnsupportedOperation
        It is an ONNX or TFLite file, or ``like`` names another runtime.
    """
    if Path(path).suffix.lower() in (".onnx", ".tflite"):
        raise UnsupportedOperation(f"{path}: this version of labkit reads .lab files only, not ONNX or TFLite.")
    if like not in (None, "labkit"):
        raise UnsupportedOperation(f'This version of labkit runs nets like "labkit" only, not like {like!r}.')
    return IntegerNet(storage.load(path))


def _checked(name: str, x: Any, shape: tuple[int, ...]) -> NDArray[np.float32]:
    if hasattr(x, "detach"):
        x = x.detach().cpu().numpy()
    array = np.asarray(x)
    if array.dtype.kind != "f":
        raise InputError(
            f"Input {name!r} must hold real numbers (float32), got {array.dtype}. Pixels are normalised as they were for the "
            f"float network first: for labkit's own networks x = pixels / 127.5 - 1."
        )
    if array.shape[1:] != shape or array.ndim != len(shape) + 1:
        hint = (
            " Add a batch axis: x[None]."
            if array.shape == shape
            else " Resize the images, or take the network made for them."
        )
        raise InputError(f"Input {name!r} must have shape {('N', *shape)}, got {array.shape}.{hint}")
    return np.ascontiguousarray(array, np.float32)
