"""One step of an emulation on integers: float64 and int64 in PyTorch, with what `torch_deriving` found."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from labkit.parity import torch_arithmetic as arithmetic
from labkit.parity import torch_sequences as sequences
from labkit.parity.torch_steps import Step

__all__ = ["EmulatedSteps", "entered", "executed"]


class EmulatedSteps:
    """The steps of a network by name, and what is asked of them whatever they were found in.

    Attributes
    ----------
    outputs : names of the nodes whose results leave the network
    """

    outputs: tuple[str, ...]

    def __init__(self) -> None:
        self._steps: dict[str, Step] = {}

    @property
    def parameters(self) -> dict[str, dict[str, torch.Tensor]]:
        """By node name, by parameter name: int64, int8 or float32 of any shape."""
        return {name: step.parameters for name, step in self._steps.items()}

    def folded(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """The weights of the layer ``name`` with batch norms folded, float32 [O, ...], and bool [O]: channels that are gone."""
        step = self._steps[name]
        return step.weight, step.vanished

    def dequantized(self, name: str, integers: torch.Tensor) -> torch.Tensor:
        """Eq. 1 for the result of node ``name``: float32 from its ``integers`` (int64, any shape)."""
        step = self._steps[name]
        return (integers - step.zero_point).float() * step.scale


def entered(step: Step, x: torch.Tensor) -> torch.Tensor:
    """What the ``step`` of an input or constant makes of ``x``, [N, ...]; int64.

    Real numbers are rounded, indices and masks are taken as they are. Of a constant, ``x`` says only how many images there are.
    """
    if step.kind == "input":
        return arithmetic.real_to_integer(x, step.scale, step.zero_point, step.grid)
    if step.kind == "constant":
        return step.parameters["values"].expand(len(x), *step.weight.shape)
    return x.long()


def executed(step: Step, before: Sequence[Step], integers: Sequence[torch.Tensor]) -> torch.Tensor:
    """The result of ``step``, any that takes something, int64 [N, ...].

    Parameters
    ----------
    step : with its parameters
    before : the steps whose results it takes
    integers : these results, int64 [N, ...]
    """
    p = step.parameters
    if step.kind == "shape":
        return integers[0].reshape(len(integers[0]), *step.shape)
    if step.kind == "same":
        return step.acted(integers[0].double()).long()
    if step.kind == "softmax":
        bits = int(p["bits"])
        return arithmetic.softmax(integers[0], step.dim, p["table"], bits, step.zero_point, step.clamp)
    if step.kind == "argmax":
        return arithmetic.first_largest(integers[0], step.dim, step.keepdim)
    if step.kind == "embedding":
        clamp = (step.clamp[0] - step.zero_point, step.clamp[1] - step.zero_point)
        rows = sequences.looked_up_rows(integers[0], p["weight"], p["mantissa"], p["exponent"], clamp)
        return rows + step.zero_point
    if step.kind == "masked-softmax":
        mask = integers[1] != before[1].zero_point if len(integers) == 2 else None
        numbers, fixed = (int(p["ln2"]), int(p["b"]), int(p["c"])), (int(p["mantissa"]), int(p["exponent"]))
        return sequences.polynomial_shares(integers[0], mask, numbers, fixed, int(p["bits"]))
    if step.kind == "gelu" and "table" in p:
        return p["table"][integers[0] + (128 if before[0].grid[0] < 0 else 0)]
    if step.kind == "layer-norm":
        numbers_of = p["multipliers"], p["addends"], int(p["shift"])
        return sequences.layer_norm(integers[0], *numbers_of, step.clamp, int(p["epsilon"]))
    centred = [q - b.zero_point for q, b in zip(integers, before, strict=True)]
    if step.kind == "pad":
        return step.acted(centred[0].double()).long() + step.zero_point
    if step.kind == "add":
        total = centred[0] * p["multipliers"][0] + centred[1] * p["multipliers"][1]
        shift = int(p["shift"])
        return (((total + (1 << (shift - 1))) >> shift) + step.zero_point).clamp(*step.clamp)
    if step.kind == "cat":
        moved = [
            arithmetic.requantized(c, p["mantissa"][i], p["exponent"][i], step.zero_point, step.clamp)
            for i, c in enumerate(centred)
        ]
        return torch.cat(moved, 1)
    return arithmetic.requantized(_sums(step, centred), p["mantissa"], p["exponent"], step.zero_point, step.clamp)


def _sums(step: Step, centred: Sequence[torch.Tensor]) -> torch.Tensor:
    """What the one multiplier of ``step`` (or that of each channel) multiplies, int64."""
    if step.kind == "mean":
        return torch.round(step.acted(centred[0].double()) * step.window).long()
    if step.kind == "adaptive":
        return arithmetic.sums_of_means(step.acted(centred[0].double()), step.areas)
    if step.kind in ("relu", "relu6", "rescale"):
        return centred[0]
    if step.kind == "mul":
        return centred[0] * centred[1]
    if step.kind == "product":
        return sequences.matrix_product(centred[0], centred[1], step.source.transpose_a, step.source.transpose_b)
    p = step.parameters
    if step.kind == "gelu":
        return sequences.gelu(centred[0], int(p["b"]), int(p["c"]), int(p["one"]))
    zero_point = p["weight_zero_point"].reshape([-1] + [1] * (p["weight"].ndim - 1))
    sums = step.summed(centred[0].double(), (p["weight"] - zero_point).double()).long()
    return sums + p["bias"].reshape([-1] + [1] * (sums.ndim - 2))
