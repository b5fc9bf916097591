"""`BitPlan`: how many bits each layer's weights and each activation get, and on what kind of grid."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from labkit.arithmetic.affine import WIDE_BITS, PerAxis, PerTensor, QuantSpec
from labkit.errors import QuantizationError
from labkit.files import write_atomically
from labkit.graph import float_ops
from labkit.graph.ir import FloatGraph
from labkit.graph.widths import KEEPS_SCALE, scale_owner, wide_names
from labkit.quantization.clipping.weights import WEIGHT_METHODS

__all__ = [
    "ACTIVATION_SCHEMES",
    "WEIGHT_RANGES",
    "BitPlan",
    "observed_names",
    "scale_owner",
    "tensor_names",
    "wide_names",
]

ACTIVATION_SCHEMES = ("affine", "symmetric")
WEIGHT_RANGES = WEIGHT_METHODS


def tensor_names(graph: FloatGraph) -> tuple[str, ...]:
    """The nodes of a simplified ``graph`` whose results have a range of their own.

    These are all but those that only move numbers, and but indices and masks.
    """
    return tuple(
        node.name
        for node in graph
        if not isinstance(node.op, KEEPS_SCALE)
        and not (isinstance(node.op, float_ops.Input) and node.op.kind is not float_ops.InputKind.REAL)
    )


def observed_names(graph: FloatGraph) -> tuple[str, ...]:
    """Those of `tensor_names` in ``graph`` whose range depends on images: the results of a softmax lie in 0..1."""
    known = (float_ops.Softmax, float_ops.MaskedSoftmax)
    return tuple(name for name in tensor_names(graph) if not isinstance(graph[name].op, known))


@dataclass(frozen=True)
class BitPlan:
    """Bits by name, for a simplified `FloatGraph`.

    weights : 1..8 for each convolution, linear layer and embedding.
    activations : 2..8, or 16 between the layers of a transformer, for each tensor of `tensor_names`.
    per_channel : one weight scale for each output channel, or one for the layer.
    activation_scheme : "affine" (unsigned, with a zero point) or "symmetric" (signed, narrow, as in the EE219 lab).
    weight_ranges : one of `WEIGHT_RANGES`, for weights of 2 bits and more that are rounded to nearest: "minmax", or what
        clips the largest of them: "3sigma" (at mean -+ 3 standard deviations), "mse", ... (`clipping.weights`).

    Raises
    ------
    QuantizationError
        Bits out of range, or an unknown scheme.
    """

    weights: Mapping[str, int]
    activations: Mapping[str, int]
    per_channel: bool = True
    activation_scheme: str = "affine"
    weight_ranges: str = "minmax"

    def __post_init__(self) -> None:
        for kind, lowest in (("weights", 1), ("activations", 2)):
            table = dict(getattr(self, kind))
            for name, bits in table.items():
                is_whole = isinstance(bits, int | np.integer) and not isinstance(bits, bool)
                if is_whole and kind == "activations" and bits == WIDE_BITS:
                    continue
                if not is_whole or not lowest <= bits <= 8:
                    raise QuantizationError(
                        f"{name}: {kind[:-1]} bits must be an integer in {lowest}..8, got {bits!r}. "
                        f"Choose from {lowest} to 8."
                    )
            frozen = MappingProxyType({name: int(bits) for name, bits in table.items()})
            object.__setattr__(self, kind, frozen)
        if not isinstance(self.per_channel, bool):
            raise QuantizationError(f"per_channel must be true or false, got {self.per_channel!r}.")
        for what, got, allowed in (
            ("activation_scheme", self.activation_scheme, ACTIVATION_SCHEMES),
            ("weight_ranges", self.weight_ranges, WEIGHT_RANGES),
        ):
            if got not in allowed:
                raise QuantizationError(f"{what} must be one of {', '.join(allowed)}, got {got!r}.")

    @classmethod
    def uniform(cls, graph: FloatGraph, weights: int = 8, activations: int = 8, **options: Any) -> BitPlan:
        """The same bits everywhere in a simplified ``graph``, but 8 for the network's inputs and outputs and its embeddings.

        What a transformer wants wide (`wide_names`) has 16 bits.

        ``weights`` in 1..8 and ``activations`` in 2..8 are the bits. Images and logits cost next to nothing to keep at
        8 bits and much to coarsen (MPQCO supplement, section 1).
        ``options`` are the other fields of a BitPlan.

        Raises
        ------
        QuantizationError
            As the class itself.
        """
        layers = [n.name for n in graph if isinstance(n.op, float_ops.Conv2d | float_ops.Linear)]
        borders = {*graph.inputs, *(scale_owner(graph, name) for name in graph.outputs)}
        tables = [n.name for n in graph if isinstance(n.op, float_ops.Embedding)]
        tensors, wide = tensor_names(graph), wide_names(graph)
        narrow = {name: 8 if name in borders and activations in range(2, 9) else activations for name in tensors}
        return cls(
            {**dict.fromkeys(layers, weights), **dict.fromkeys(tables, 8)},
            {name: WIDE_BITS if name in wide else bits for name, bits in narrow.items()},
            **options,
        )

    def weight_spec(self, layer: str) -> QuantSpec:
        """The grid of the weights of ``layer``: signed, symmetric, narrow; scales along axis 0 where per channel.

        Raises
        ------
        QuantizationError
            The plan does not name the layer.
        """
        granularity = PerAxis(0) if self.per_channel else PerTensor()
        return QuantSpec(_bits(self.weights, layer, "weights"), narrow=True, granularity=granularity)

    def activation_spec(self, tensor: str) -> QuantSpec:
        """The grid of the activation ``tensor``.

        Raises
        ------
        QuantizationError
            The plan does not name the tensor.
        """
        bits = _bits(self.activations, tensor, "activations")
        if bits == WIDE_BITS:
            return QuantSpec(bits, narrow=True)
        if self.activation_scheme == "affine":
            return QuantSpec(bits, signed=False, symmetric=False)
        return QuantSpec(bits, narrow=True)

    def to_json(self) -> dict[str, Any]:
        """The plan as plain JSON values."""
        return {
            "weights": dict(self.weights),
            "activations": dict(self.activations),
            "per_channel": self.per_channel,
            "activation_scheme": self.activation_scheme,
            "weight_ranges": self.weight_ranges,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> BitPlan:
        """The plan that `to_json` made ``values`` of.

        Raises
        ------
        QuantizationError
            ``values`` is not such a plan.
        """
        if missing := {"weights", "activations"} - set(values):
            raise QuantizationError(
                f"A bit plan needs the keys weights and activations (name: bits), got no {' and no '.join(sorted(missing))}. "
                f"`labkit quantize ... --write-plan plan.json` writes one to start from."
            )
        if unknown := set(values) - {field.name for field in fields(cls)}:
            raise QuantizationError(
                f"A bit plan has no key {', '.join(sorted(unknown))}; it has {', '.join(f.name for f in fields(cls))}."
            )
        try:
            return cls(**values)
        except (TypeError, ValueError) as error:
            raise QuantizationError(
                f"This is not a bit plan: {error}. A plan has the keys weights and activations (name: bits), "
                f"and optionally per_channel, activation_scheme and weight_ranges."
            ) from error

    def save(self, path: str | Path) -> None:
        """Write the plan to ``path`` as JSON, whole or not at all.

        Raises
        ------
        OutputError
            The file cannot be written.
        """
        write_atomically(path, json.dumps(self.to_json(), indent=2) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> BitPlan:
        """Read a plan from the JSON file at ``path``.

        Raises
        ------
        QuantizationError
            The file cannot be read, or does not hold a plan.
        """
        try:
            values = json.loads(Path(path).read_text())
        except (OSError, ValueError) as error:
            raise QuantizationError(
                f"Cannot read the bit plan {path}: {error}. Give a JSON file with a plan."
            ) from error
        if not isinstance(values, dict):
            raise QuantizationError(f"{path} does not hold a bit plan but a {type(values).__name__}.")
        return cls.from_json(values)


def _bits(table: Mapping[str, int], name: str, what: str) -> int:
    if name not in table:
        raise QuantizationError(
            f"The bit plan gives no {what[:-1]} bits for {name!r}; it names {', '.join(table) or 'nothing'}."
        )
    return table[name]
