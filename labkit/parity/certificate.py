"""`Certificate`: a comparison with a runtime, node by node on the runtime's own tensors, and from end to end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from labkit.arithmetic.requantize import Requantizer
from labkit.graph import int_ops
from labkit.graph.int_ops import IntOp
from labkit.parity.report import Comparison, ParityReport

__all__ = ["Certificate", "Element", "NodeVerdict", "rule_of"]

SCHEMA = "labkit.certificate/1"


@dataclass(frozen=True)
class Element:
    """One element at which a node differs, and what is behind it.

    index : counted from 0 in the source's own layout, the image first
    theirs, ours : what the runtime and labkit have
    accumulator : the integer sum, int32 in both; None where the operation has none
    exact : the real number in front of rounding and clamp, in steps of the output, and whether it is a tie
    pair : the largest sum of two products behind it, activations counted from 0; 0 where there are none
    """

    index: tuple[int, ...]
    theirs: str
    ours: str
    accumulator: str | None
    exact: str | None
    pair: int = 0

    def __str__(self) -> str:
        behind = "" if self.exact is None else f" (sum {self.accumulator}, exactly {self.exact}, before rounding)"
        return f"index {list(self.index)}: the runtime has {self.theirs}, labkit {self.ours}{behind}"


@dataclass(frozen=True)
class NodeVerdict:
    """What was found of one node.

    operation, rule : its type, and how it rounds, in words
    own : elements compared on the runtime's own inputs of the node, and how many of them differ; (0, 0) where its inputs or
        its result cannot be seen
    through : elements compared from end to end, and how many of them differ
    inputs : the tensors of the runtime from which it was computed; more nodes than this one if the runtime shows none between
    first : the first element that differs on the runtime's own inputs
    matching : other runtimes whose rules for this node give all elements that the runtime has
    broken : the rules that the net follows, if they do so themselves where they are made anew from the node's scales and run by
        the readable kernels: the fault is then in the kernel or in what the node was given; else empty
    """

    name: str
    operation: str
    rule: str
    own: tuple[int, int]
    through: tuple[int, int]
    inputs: tuple[str, ...] = ()
    first: Element | None = None
    matching: tuple[str, ...] = ()
    broken: str = ""

    @property
    def explanation(self) -> str:
        """Why it differs, in a sentence; empty where it does not."""
        if self.own[1]:
            if self.broken:
                return (
                    f"The rules of {self.broken}, made anew from the scales, weights and bias and run by labkit's readable "
                    f"kernels, give all {self.own[0]:,} elements of the runtime: the fault is in the parameters with which this "
                    f"node was run, or in its kernel."
                )
            if self.matching:
                return f"The rules of {', '.join(self.matching)} give all {self.own[0]:,} elements of the runtime."
            unknown = "No runtime's rules for this node give all elements of the runtime."
            if self.first is not None and not -(2**15) <= self.first.pair < 2**15:
                unknown += (
                    f" Two of the products behind this element add to {self.first.pair:,}, beyond 16 bits: kernels that "
                    f"multiply 8-bit integers in pairs saturate there, and labkit does not."
                )
            return unknown
        if self.through[1]:
            return "It differs only because what goes in differs."
        return ""


@dataclass(frozen=True, repr=False)
class Certificate(ParityReport):
    """A `ParityReport` against a runtime.

    runtime : one of `labkit.runtimes.rules.RUNTIMES`
    like : whose rules the net followed
    processor : its name and vector extensions, by heading
    inputs : what was put in, in words
    nodes : in the order of the graph
    """

    runtime: str = ""
    like: str = ""
    processor: Mapping[str, str] = field(default_factory=dict)
    inputs: str = ""
    nodes: tuple[NodeVerdict, ...] = ()

    @property
    def culprits(self) -> tuple[NodeVerdict, ...]:
        """The nodes that differ by themselves, on what the runtime puts into them."""
        return tuple(node for node in self.nodes if node.own[1])

    @property
    def misstated(self) -> tuple[Comparison, ...]:
        """The parameters in which the net, as saved, is not what its rules make of its scales, weights and biases."""
        return tuple(one for one in self.comparisons if one.kind == "parameter" and one.differing)

    @property
    def unseen(self) -> tuple[str, ...]:
        """Names of nodes whose result the runtime does not show."""
        return tuple(node.name for node in self.nodes if not node.own[0] and not node.through[0])

    def __str__(self) -> str:
        text = super().__str__()
        for one in self.misstated:
            text += f"\n{one.name}: {one.differing:,} of {one.elements:,} are not what the rules of {self.like} make of the "
            text += "scales."
        for node in self.culprits:
            text += (
                f"\n{node.name} ({node.operation}, {node.rule}): {node.own[1]:,} of {node.own[0]:,} elements differ. "
            )
            text += f"{node.first}. {node.explanation}"
        return text

    def to_json(self) -> dict[str, Any]:
        """The certificate as plain JSON values, with ``passed``, ``elements`` and ``differing`` spelled out."""
        plain = {**super().to_json(), "schema": SCHEMA, "unseen": list(self.unseen)}
        plain["nodes"] = [{**asdict(node), "explanation": node.explanation} for node in self.nodes]
        return plain


def rule_of(op: IntOp) -> str:
    """How ``op`` rounds, in a few words."""
    if isinstance(op, int_ops.Concat):
        return " / ".join(dict.fromkeys(map(_requantizer, op.requantizers)))
    requantizer = getattr(op, "requantizer", None)
    if isinstance(requantizer, Requantizer) and not isinstance(op, int_ops.GeluPolynomial):
        return _requantizer(requantizer)
    if isinstance(op, int_ops.AddFixedPoint):
        return f"{op.rule.value}, three roundings"
    if isinstance(op, int_ops.GeluPolynomial):
        return f"{_OTHERS[type(op).__name__]}, then {_requantizer(op.requantizer)}"
    if isinstance(op, int_ops.QuantizeByReciprocal) and op.zero_point_inside:
        return f"{_OTHERS[type(op).__name__]}, zero point before rounding"
    return _OTHERS.get(type(op).__name__, "exact: it only moves or compares integers")


_OTHERS = {
    "Quantize": "float32 quotient, half to even",
    "QuantizeByReciprocal": "float32 product with the reciprocal, half to even",
    "QuantizeAwayFromZero": "float32 quotient, half away from zero",
    "Dequantize": "one float32 product",
    "Add": "one rounding in int64, ties up",
    "AddAwayFromZero": "one rounding, ties away from zero",
    "AddDequantized": "float32, half to even",
    "AddFloat32": "float32, half to even",
    "AveragePoolOfValid": "integer division, ties away from zero",
    "AveragePoolFloat32": "float32, half to even",
    "GeluPolynomial": "a parabola in integers",
    "Input": "",
    "LayerNorm": "root and quotient in integers, then one rounding in int64, ties up",
    "Lookup": "a table",
    "MeanFloat32": "float32, half to even",
    "Softmax": "one rounding in int64, ties up",
    "SoftmaxByReciprocal": "float32",
    "SoftmaxPolynomial": "parabola and quotient in integers, one rounding in int64, ties up",
    "SoftmaxFixedPoint": "fixed point of gemmlowp",
    "SoftmaxFloat32": "float32",
}


def _requantizer(requantizer: Requantizer) -> str:
    words = [requantizer.rule.value]
    if requantizer.bias is not None:
        words.append("real bias")
    if requantizer.zero_point_inside:
        words.append("zero point before rounding")
    return ", ".join(words)
