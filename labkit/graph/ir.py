"""`FloatGraph` and `IntGraph`: a network as a list of named, frozen nodes in an order in which they can run.

A graph is not edited in place: a pass (`labkit.graph.passes`) makes a new one. Printing a graph gives one line a node.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np

from labkit.arithmetic.affine import QParams, QuantSpec
from labkit.errors import ModelError
from labkit.graph import float_ops, int_ops
from labkit.graph.float_ops import Activation, FloatOp, InputKind
from labkit.graph.int_ops import IntOp

__all__ = ["FloatGraph", "FloatNode", "IntGraph", "IntNode", "Tensor"]

_Node = TypeVar("_Node", "FloatNode", "IntNode")


@dataclass(frozen=True, eq=False)
class FloatNode:
    """One operation of a float network.

    name : unique; the module's or the traced call's own name.
    inputs : names of the nodes whose results it takes, in order.
    activation : a clamp applied to the result, fused by `passes.fuse_activations`.
    carries : names of the nodes that were fused into this one.
    """

    name: str
    op: FloatOp
    inputs: tuple[str, ...] = ()
    activation: Activation = Activation.NONE
    carries: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class FloatGraph:
    """A float network: ``nodes`` in running order, one ``float_ops.Input`` each input; ``outputs`` names nodes.

    Raises
    ------
    ModelError
        From `validate`, which runs when the graph is made.
    """

    nodes: tuple[FloatNode, ...]
    outputs: tuple[str, ...]

    def __post_init__(self) -> None:
        self.validate()

    def __getitem__(self, name: str) -> FloatNode:
        return _find(self.nodes, name)

    def __iter__(self) -> Iterator[FloatNode]:
        return iter(self.nodes)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the input nodes."""
        return tuple(n.name for n in self.nodes if isinstance(n.op, float_ops.Input))

    def consumers(self, name: str) -> tuple[FloatNode, ...]:
        """The nodes that take the result of ``name``."""
        return tuple(n for n in self.nodes if name in n.inputs)

    def validate(self) -> None:
        """Check names, order, and that every parameter is finite.

        Raises
        ------
        ModelError
            Naming the node, what is wrong with it and what to do.
        """
        _check_order(self.nodes, self.outputs)
        for node in self.nodes:
            for label, array in vars(node.op).items():
                if isinstance(array, np.ndarray) and not np.all(np.isfinite(array)):
                    where = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
                    raise ModelError(
                        f"{node.name}: {label} holds {array[where]} at index {where}. A network with NaN or infinite "
                        f"parameters cannot be quantized: load another checkpoint or train it again."
                    )

    def __str__(self) -> str:
        return _text("FloatGraph", [(n, _describe(n.op), n.activation.value) for n in self.nodes], self.outputs)


@dataclass(frozen=True, eq=False)
class Tensor:
    """What a node of an `IntGraph` puts out: ``shape`` without the batch axis; grid and scale, or None for real float32.

    is_index : int32 positions, without grid and scale: the result of an `int_ops.ArgMax`, or what an `Embedding` looks up.
    channels_last : the source has the channel axis last: ``shape`` is (C, H, W), and the network takes, returns and traces
        this tensor as (H, W, C).
    """

    shape: tuple[int, ...]
    spec: QuantSpec | None
    params: QParams | None
    is_index: bool = field(default=False, metadata={"since": 2})  # version of .lab files
    channels_last: bool = field(default=False, metadata={"since": 4})

    @property
    def source_shape(self) -> tuple[int, ...]:
        """``shape`` in the order of the source's axes."""
        return (*self.shape[1:], self.shape[0]) if self.channels_last else self.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """The NumPy type that holds the tensor: int8, uint8 or int16, int32 for an index, float32 for real numbers."""
        if self.spec is not None:
            return self.spec.dtype
        return np.dtype(np.int32 if self.is_index else np.float32)

    def __str__(self) -> str:
        shape = "x".join(map(str, self.shape)) or "1"
        if self.is_index:
            return f"{shape} index"
        if self.spec is None or self.params is None:
            return f"{shape} f32"
        return f"{shape} {self.spec} S={float(self.params.scale):.4g} Z={int(self.params.zero_point)}"

    @property
    def quantized(self) -> tuple[QuantSpec, QParams]:
        """Grid and parameters of an integer tensor.

        Raises
        ------
        ModelError
            The tensor is real, or an index.
        """
        if self.is_index:
            raise ModelError("An index has no scale: only an Embedding can take it, or it leaves the network.")
        if self.spec is None or self.params is None:
            raise ModelError("An integer operation takes the result of a real one: put a Quantize node between them.")
        return self.spec, self.params


@dataclass(frozen=True, eq=False)
class IntNode:
    """One integer operation, with the tensor that it puts out and the names of the float nodes that it stands for."""

    name: str
    op: IntOp
    inputs: tuple[str, ...]
    output: Tensor
    carries: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class IntGraph:
    """An integer network: ``nodes`` in running order, ``outputs`` names of nodes.

    Its inputs are `Quantize` nodes (and `QuantizeByReciprocal`, `QuantizeAwayFromZero`), which take real numbers, and `Input`
    nodes, which take integers.

    notes : plain JSON values that say where it came from (calibration, bit plan, model, command).
    inputs : names of the nodes through which input enters.

    Raises
    ------
    ModelError, QuantizationError
        From `validate`, which runs when the graph is made.
    """

    nodes: tuple[IntNode, ...]
    outputs: tuple[str, ...]
    notes: Mapping[str, Any] = field(default_factory=dict)
    _by_name: Mapping[str, IntNode] = field(init=False, repr=False, default_factory=dict)
    inputs: tuple[str, ...] = field(init=False, repr=False, default=())

    def __post_init__(self) -> None:
        object.__setattr__(self, "notes", MappingProxyType(dict(self.notes)))
        object.__setattr__(self, "_by_name", {node.name: node for node in self.nodes})
        borders = int_ops.Quantize | int_ops.QuantizeByReciprocal | int_ops.QuantizeAwayFromZero | int_ops.Input
        entries = tuple(node.name for node in self.nodes if isinstance(node.op, borders))
        object.__setattr__(self, "inputs", entries)
        self.validate()

    def __getitem__(self, name: str) -> IntNode:
        found = self._by_name.get(name)
        return found if found is not None else _find(self.nodes, name)

    def __iter__(self) -> Iterator[IntNode]:
        return iter(self.nodes)

    def inputs_of(self, node: IntNode) -> tuple[Tensor, ...]:
        """The tensors that ``node`` takes, in order."""
        return tuple(self[name].output for name in node.inputs)

    def carriers(self) -> dict[str, str]:
        """From every name that a trace may ask for to the node that computes it."""
        names = {name: node.name for node in self.nodes for name in node.carries}
        return names | {node.name: node.name for node in self.nodes}

    def validate(self) -> None:
        """Check names, order, shapes, grids, requantizers and that no accumulator can leave 32 bits.

        Raises
        ------
        ModelError, QuantizationError
            Naming the node and what is wrong with it.
        """
        from labkit.graph.check import check_node  # it reads the classes of this module

        _check_order(self.nodes, self.outputs)
        if not self.inputs:
            raise ModelError("The graph has no input: one of its nodes must be a Quantize or an Input node.")
        for node in self.nodes:
            check_node(self, node)

    def __str__(self) -> str:
        return _text("IntGraph", [(n, _describe(n.op), str(n.output)) for n in self.nodes], self.outputs)


def _find(nodes: tuple[_Node, ...], name: str) -> _Node:
    for node in nodes:
        if node.name == name:
            return node
    raise ModelError(f"The graph has no node {name!r}; it has {', '.join(n.name for n in nodes)}.")


def _check_order(nodes: tuple[FloatNode, ...] | tuple[IntNode, ...], outputs: tuple[str, ...]) -> None:
    known: set[str] = set()
    for node in nodes:
        for name in (node.name, *node.carries):
            _check_name(name)
        if node.name in known:
            raise ModelError(f"Two nodes are called {node.name!r}: every node needs a name of its own.")
        if missing := [name for name in node.inputs if name not in known]:
            raise ModelError(f"{node.name} takes {missing[0]!r}, which no earlier node puts out.")
        known.add(node.name)
    if not outputs or (missing := [name for name in outputs if name not in known]):
        raise ModelError(f"The graph's outputs must be nodes of it, got {list(outputs)}.")


def _check_name(name: object) -> None:
    """A name must do for a file of its own when a net is traced into a folder."""
    sound = isinstance(name, str) and name.isprintable() and 0 < len(name) <= 200
    if not sound or str(name).startswith(".") or any(c in '/\\:*?"<>|' for c in str(name)):
        raise ModelError(
            f"A node cannot be called {name!r}: a name is 1 to 200 printable characters, without a slash, a backslash "
            f'or any of :*?"<>|, and does not start with a dot.'
        )


def _describe(op: FloatOp | IntOp) -> str:
    """An operation in one short phrase: its parameters' shapes and its window."""
    parts = []
    for label, value in vars(op).items():
        if isinstance(value, np.ndarray):
            parts.append(f"{label}[{'x'.join(map(str, value.shape))}]")
        elif hasattr(value, "spec"):
            parts.append(f"{label}[{'x'.join(map(str, value.values.shape))}] {value.spec}")
        elif hasattr(value, "rule"):
            parts.append(f"{value.rule.value} clamp {value.clamp[0]}..{value.clamp[1]}")
        elif isinstance(value, tuple) and value and hasattr(value[0], "rule"):
            parts.append(" ".join(f"{v.rule.value} clamp {v.clamp[0]}..{v.clamp[1]}" for v in value))
        elif isinstance(value, Activation):
            parts.append(value.value)
        elif isinstance(value, InputKind):
            parts.extend([f"kind={value.value}"] if value is not InputKind.REAL else [])
        elif value is not None and value != ():
            parts.append(f"{label}={value}".replace(" ", ""))
    return f"{type(op).__name__}({', '.join(parts)})"


def _text(title: str, rows: list[tuple[Any, str, str]], outputs: tuple[str, ...]) -> str:
    width = max(len(node.name) for node, _, _ in rows)
    lines = [f"{title}: {len(rows)} nodes, outputs {', '.join(outputs)}"]
    for node, what, result in rows:
        source = f" <- {', '.join(node.inputs)}" if node.inputs else ""
        carried = f" (with {', '.join(node.carries)})" if node.carries else ""
        lines.append(f"  {node.name:<{width}} = {what}{source} -> {result}{carried}")
    return "\n".join(lines)
