"""`RuleSet`: how one runtime computes each operation; and the one list of runtimes.

A graph's scales, weights and biases say what is computed; a rule set says how it is rounded. `as_run_by` takes a graph and
remakes its operations under the rules of a runtime, from nothing but their scales, weights, biases and clamps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from types import MappingProxyType
from typing import Any

from labkit.errors import InputError, ModelError, UnsupportedOperation
from labkit.graph import int_ops
from labkit.graph.int_ops import IntOp
from labkit.graph.ir import IntGraph, IntNode, Tensor

__all__ = ["KEPT", "RUNTIMES", "Remake", "RuleSet", "as_run_by", "prepared_for", "rule_set"]

RUNTIMES = ("labkit", "litert", "litert-opt", "xnnpack", "onnxruntime", "fbgemm", "qnnpack", "onednn")

Remake = Callable[[IntNode, tuple[Tensor, ...]], IntOp]
"""A function that takes a node and the tensors that go in, and gives the operation under a runtime's rules."""

_MODULES = {
    "labkit": "labkit_rules",
    "litert": "litert",
    "litert-opt": "litert_opt",
    "xnnpack": "xnnpack",
    "onnxruntime": "onnxruntime",
    "fbgemm": "torch_engines",
    "qnnpack": "torch_engines",
    "onednn": "torch_engines",
}

KEPT: tuple[type[IntOp], ...] = (
    int_ops.Input,
    int_ops.Dequantize,
    int_ops.MaxPool2d,
    int_ops.Flatten,
    int_ops.Pad,
    int_ops.Reshape,
    int_ops.Transpose,
    int_ops.UpsampleNearest2d,
    int_ops.ArgMax,
)  # they move or compare integers, or convert them to real numbers by one product: the same everywhere

_OWN: Mapping[type[Any], str] = MappingProxyType(
    {
        int_ops.Embedding: "rows of a table that each have a scale of their own, looked up and rescaled, are labkit's own "
        "operation; others gather integers of one scale.",
        int_ops.SoftmaxPolynomial: "I-BERT's i-softmax is labkit's own operation; others take exponentials from a table, or "
        "compute them otherwise, and have no mask.",
        int_ops.GeluPolynomial: "I-BERT's i-GELU is labkit's own operation; others have a table of 256 entries, which an input "
        "of 8 bits gets.",
        int_ops.LayerNorm: "I-BERT's i-LayerNorm is labkit's own operation; others normalise real numbers.",
    }
)  # why no runtime but labkit computes them


@dataclass(frozen=True)
class RuleSet:
    """The rules of one runtime.

    name : one of `RUNTIMES`.
    remakes : by the type of an operation, the function that remakes it; an operation that is neither here nor in `KEPT`
        is refused.
    refusals : by the type of an operation, why it cannot be computed as this runtime does.
    prepared : a pass over the whole graph before that, where the runtime has no operation for some node; None for none.
    """

    name: str
    remakes: Mapping[type[Any], Remake]
    refusals: Mapping[type[Any], str] = field(default_factory=dict)
    prepared: Callable[[IntGraph], IntGraph] | None = None

    def remade(self, node: IntNode, inputs: tuple[Tensor, ...]) -> IntOp:
        """The operation of ``node``, which takes ``inputs``, under these rules.

        Raises
        ------
        UnsupportedOperation
            It is not known how the runtime computes it, or it has no such operation.
        """
        kind = type(node.op)
        is_wide = self.name != "labkit" and any(_is_wide(tensor) for tensor in (*inputs, node.output))
        if kind in self.remakes and not is_wide:
            return self.remakes[kind](node, inputs)
        if kind in KEPT:
            return node.op
        if kind in _OWN or is_wide:
            reason = _OWN.get(kind, "activations of 16 bits are labkit's own; others are known here with 8 bits only.")
            raise UnsupportedOperation(
                f"{node.name}: {kind.__name__} cannot be run like {self.name}: {reason} Run it like labkit."
            )
        reason = self.refusals.get(kind, f"{self.name} has no such operation, or its arithmetic is not known here.")
        others = ", ".join(runtime for runtime in RUNTIMES if runtime != self.name)
        raise UnsupportedOperation(
            f"{node.name}: {kind.__name__} cannot be run like {self.name}: {reason} Choose another of {others}."
        )


def _is_wide(tensor: Tensor) -> bool:
    return tensor.spec is not None and tensor.spec.is_wide


def rule_set(runtime: str) -> RuleSet:
    """The rules of ``runtime``, one of `RUNTIMES`.

    Raises
    ------
    InputError
        There is no such runtime.
    """
    if runtime not in _MODULES:
        raise InputError(f"A net can be run like {', '.join(RUNTIMES)}; got {runtime!r}.")
    found: Mapping[str, RuleSet] = import_module(f"labkit.runtimes.{_MODULES[runtime]}").RULE_SETS
    return found[runtime]


def prepared_for(graph: IntGraph, runtime: str) -> IntGraph:
    """``graph`` with the nodes that it has as ``runtime`` computes it, but with operations that any rules can be made from.

    Raises
    ------
    InputError
        There is no such runtime.
    """
    from labkit.runtimes.canonical import without_torch
    from labkit.runtimes.canonical_litert import without_litert

    rules, plain = rule_set(runtime), without_litert(without_torch(graph))
    return plain if rules.prepared is None else rules.prepared(plain)


def as_run_by(graph: IntGraph, runtime: str) -> IntGraph:
    """``graph`` with each operation as ``runtime`` computes it; ``notes["like"]`` says so.

    Raises
    ------
    InputError
        There is no such runtime.
    UnsupportedOperation
        It cannot be said how the runtime computes one of the operations.
    """
    rules = rule_set(runtime)
    graph = prepared_for(graph, runtime)
    nodes = []
    for node in graph:
        try:
            nodes.append(replace(node, op=rules.remade(node, graph.inputs_of(node))))
        except ModelError as error:
            is_named = str(error).startswith((f"{node.name}:", f"{node.name},"))
            raise error if is_named else type(error)(f"{node.name}: {error}") from error
    return IntGraph(tuple(nodes), graph.outputs, {**graph.notes, "like": runtime})
