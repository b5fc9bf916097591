"""What each step of an emulation computes with, derived from real weights, a calibration and a bit plan, in PyTorch only."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch

from labkit.parity import torch_arithmetic as arithmetic
from labkit.parity import torch_sequences as sequences
from labkit.parity.torch_steps import KEEPS_SCALE, DecidedWeights, Step
from labkit.quantization.calibration import Calibration
from labkit.quantization.plan import BitPlan

__all__ = ["Deriving"]

Ends = tuple[torch.Tensor, torch.Tensor]

_BIAS_LIMIT = 2**30
_WIDE = 16  # bits, always symmetric


class Deriving:
    """Scales, integers and multipliers of steps under ``calibration`` and ``plan``.

    Parameters
    ----------
    calibration : ranges by tensor name
    plan : bits by name
    decided : by layer, weights that a rounding method decided
    ends : by layer, low and high float64 [O] or [1] of weights whose range a search chose
    """

    def __init__(
        self,
        calibration: Calibration,
        plan: BitPlan,
        decided: Mapping[str, DecidedWeights],
        ends: Mapping[str, Ends],
    ) -> None:
        self._calibration, self._plan, self._decided, self._ends = calibration, plan, decided, ends
        self._of_kind: dict[str, Callable[[Step, Sequence[Step]], None]] = {
            "index": lambda step, before: None,
            "argmax": lambda step, before: None,
            "mask": self._mask,
            "softmax": self._softmax,
            "masked-softmax": self._masked_softmax,
            "constant": self._constant,
            "embedding": self._embedding,
            "layer-norm": self._layer_norm,
            "gelu": self._gelu,
            "add": self._add,
            "cat": self._cat,
            **dict.fromkeys(KEEPS_SCALE, self._same),
            **dict.fromkeys(("conv", "linear", "norm-conv"), self._layer),
        }

    def derive(self, step: Step, before: Sequence[Step]) -> None:
        """Fill in what ``step`` computes with; ``before`` are the steps whose results it takes, which know theirs.

        Raises
        ------
        KeyError
            Calibration or plan do not name it.
        """
        self._of_kind.get(step.kind, self._scaled)(step, before)

    # ---- grids and scales of results

    def _is_affine(self, step: Step) -> bool:
        return self._plan.activation_scheme == "affine" and self._plan.activations[step.name] != _WIDE

    def _grid_of(self, step: Step) -> tuple[int, int]:
        bits = self._plan.activations[step.name]
        return (0, 2**bits - 1) if self._is_affine(step) else (1 - 2 ** (bits - 1), 2 ** (bits - 1) - 1)

    def _same(self, step: Step, before: Sequence[Step]) -> None:
        step.scale, step.zero_point, step.grid = before[0].scale, before[0].zero_point, before[0].grid
        step.parameters = _named(step)

    def _mask(self, step: Step, before: Sequence[Step]) -> None:
        step.parameters = _named(step)

    def _ranged(self, step: Step) -> None:
        """Grid, scale and clamp by the range of its tensor."""
        low, high = self._calibration.ranges[step.name]
        step.grid = self._grid_of(step)
        if self._is_affine(step):
            step.scale, step.zero_point = arithmetic.affine_parameters(low, high, step.grid)
        else:
            largest = torch.tensor(max(abs(low), abs(high)), dtype=torch.float64)
            step.scale = arithmetic.symmetric_scale(largest, step.grid[1])
        step.clamp = step.grid
        if (activation := step.activation or step.kind) in ("relu", "relu6"):
            six = int(arithmetic.real_to_integer(torch.tensor(6.0), step.scale, step.zero_point, step.grid))
            step.clamp = (step.zero_point, six if activation == "relu6" else step.grid[1])
        step.parameters = _named(step)

    def _shared(self, step: Step) -> int:
        """Grid and scale of the result of a softmax, whose range is known; the scale is 2**-bits with the bits returned."""
        bits = self._plan.activations[step.name] - (0 if self._is_affine(step) else 1)
        step.scale, step.grid = torch.tensor(2.0**-bits), self._grid_of(step)
        step.clamp = step.grid
        step.parameters = _named(step)
        return bits

    # ---- operations

    def _softmax(self, step: Step, before: Sequence[Step]) -> None:
        bits = self._shared(step)
        table = arithmetic.exponentials(before[0].scale.double().item())
        step.parameters |= {"clamp": torch.tensor(step.clamp), "table": table, "bits": torch.tensor(bits)}

    def _masked_softmax(self, step: Step, before: Sequence[Step]) -> None:
        bits = self._shared(step)
        ln2, linear, constant, real = sequences.exp_numbers(before[0].scale.double().item())
        mantissa, exponent = arithmetic.fixed_point([real * 32767])
        numbers = {"ln2": ln2, "b": linear, "c": constant, "bits": bits}
        step.parameters |= {name: torch.tensor(value) for name, value in numbers.items()}
        step.parameters |= {"mantissa": mantissa[0], "exponent": exponent[0]}

    def _constant(self, step: Step, before: Sequence[Step]) -> None:
        self._ranged(step)
        values = arithmetic.real_to_integer(step.weight, step.scale, step.zero_point, step.grid)
        step.parameters["values"] = values

    def _embedding(self, step: Step, before: Sequence[Step]) -> None:
        self._ranged(step)
        step.vanished = (step.weight == 0).all(1)
        scale, qmax = self._weight_scale(step)
        step.parameters |= self._weights(step, scale, qmax)
        step.parameters |= self._multipliers(scale.double() / step.scale.double())
        step.parameters["clamp"] = torch.tensor(step.clamp)

    def _layer_norm(self, step: Step, before: Sequence[Step]) -> None:
        self._ranged(step)
        found = sequences.layer_norm_numbers(step.weight, step.bias, step.scale.double().item())
        step.parameters |= dict(zip(("multipliers", "addends"), found[:2], strict=True))
        step.parameters |= {"shift": torch.tensor(found[2]), "clamp": torch.tensor(step.clamp)}
        scale = before[0].scale.double()
        counts = bool(step.source.epsilon * 12 > scale * scale)  # more than the variance of the input's own rounding
        added = torch.round(len(step.weight) * step.source.epsilon / (scale * scale)) if counts else torch.zeros(())
        step.parameters["epsilon"] = added.long()

    def _gelu(self, step: Step, before: Sequence[Step]) -> None:
        self._ranged(step)
        if before[0].grid[1] < 2**8:
            table = sequences.gelu_table(before[0].scale, before[0].zero_point, before[0].grid[0] < 0, step.scale)
            step.parameters["table"] = (table + step.zero_point).clamp(*step.grid)
            return
        b, c, one, real = sequences.gelu_numbers(before[0].scale.double().item())
        numbers = {"b": b, "c": c, "one": one}
        step.parameters |= {name: torch.tensor(value) for name, value in numbers.items()}
        self._one_multiplier(step, real / step.scale.double().item())

    def _add(self, step: Step, before: Sequence[Step]) -> None:
        self._ranged(step)
        target = step.scale.double().item()
        multipliers, shift = arithmetic.add_multipliers([b.scale.double().item() / target for b in before])
        step.parameters |= {"multipliers": multipliers, "shift": torch.tensor(shift)}
        step.parameters["clamp"] = torch.tensor(step.clamp)

    def _cat(self, step: Step, before: Sequence[Step]) -> None:
        self._ranged(step)
        target = step.scale.double().item()
        mantissa, exponent = arithmetic.fixed_point([b.scale.double().item() / target for b in before])
        step.parameters |= {"mantissa": mantissa, "exponent": exponent}
        step.parameters["clamp"] = torch.tensor([step.clamp] * len(before))

    def _scaled(self, step: Step, before: Sequence[Step]) -> None:
        """Inputs; what has one multiplier: products of two tensors, means, activations that stand alone, changes of scale."""
        self._ranged(step)
        if step.kind == "input":
            return
        target = step.scale.double().item()
        scales = [b.scale.double().item() for b in before]
        if step.kind == "mul":
            self._one_multiplier(step, scales[0] * scales[1] / target)
        elif step.kind == "product":
            self._one_multiplier(step, step.source.factor * scales[0] * scales[1] / target)
        else:
            common = math.lcm(*step.areas.flatten().tolist()) if step.kind == "adaptive" else step.window
            self._one_multiplier(step, scales[0] / (target * common))

    def _one_multiplier(self, step: Step, real: float) -> None:
        mantissa, exponent = arithmetic.fixed_point([real])
        step.parameters |= {"mantissa": mantissa[0], "exponent": exponent[0], "clamp": torch.tensor(step.clamp)}

    # ---- weights

    def _layer(self, step: Step, before: Sequence[Step]) -> None:
        self._ranged(step)
        step.parameters["clamp"] = torch.tensor(step.clamp)
        input_scale, target = before[0].scale.double().item(), step.scale.double().item()
        if step.name in self._decided:  # their scales already leave room for the bias
            decided = self._decided[step.name]
            scale, bias = decided.scale, decided.bias.double()
            step.parameters |= {
                "weight": decided.integers,
                "weight_grid": torch.tensor(decided.grid),
                "weight_scale": decided.scale,
                "weight_zero_point": decided.zero_point,
            }
        else:
            scale, qmax = self._weight_scale(step)
            bias = step.bias.double()
            needed = bias.abs() / (input_scale * _BIAS_LIMIT)
            needed = needed if self._plan.per_channel else needed.amax(0)
            larger = torch.nextafter(needed.float(), torch.tensor(torch.inf))
            scale = torch.where(needed > scale.double(), torch.maximum(scale, larger), scale)
            step.parameters |= self._weights(step, scale, qmax)
        scales = scale.double()
        step.parameters["bias"] = torch.round(bias / (scales * input_scale)).long()
        step.parameters |= self._multipliers((scales * input_scale) / target)

    @staticmethod
    def _multipliers(reals: torch.Tensor) -> dict[str, torch.Tensor]:
        mantissa, exponent = arithmetic.fixed_point(reals.reshape(-1).tolist())
        return {"mantissa": mantissa.reshape(reals.shape), "exponent": exponent.reshape(reals.shape)}

    def _weight_scale(self, step: Step) -> tuple[torch.Tensor, int]:
        """The scale of its weights, float32 [O] or [], as their range asks for it, and their largest integer."""
        bits, per_channel = self._plan.weights[step.name], self._plan.per_channel
        weight = step.weight.double()
        rows = weight.flatten(1) if per_channel else weight.reshape(1, -1)
        qmax = 1 if bits == 1 else 2 ** (bits - 1) - 1
        if bits == 1:
            scale = torch.tensor([arithmetic.exact_mean(row.abs()) for row in rows], dtype=torch.float64).float()
        else:
            low, high = rows.amin(1), rows.amax(1)
            if step.name in self._ends and len(self._ends[step.name][0]) == len(rows):  # else another module's
                low, high = self._ends[step.name]
            elif self._plan.weight_ranges == "3sigma":
                means = torch.tensor([arithmetic.exact_mean(row) for row in rows], dtype=torch.float64)
                squares = [arithmetic.exact_mean((row - m).square()) for row, m in zip(rows, means, strict=True)]
                spread = 3 * torch.tensor(squares, dtype=torch.float64).sqrt()
                low, high = torch.maximum(low, means - spread), torch.minimum(high, means + spread)
            scale = arithmetic.symmetric_scale(torch.maximum(low.abs(), high.abs()), qmax)
        if per_channel:
            scale[step.vanished] = torch.finfo(torch.float32).tiny
        return (scale if per_channel else scale[0]), qmax

    def _weights(self, step: Step, scale: torch.Tensor, qmax: int) -> dict[str, torch.Tensor]:
        """Its weights as integers: int8, because large networks have many of them."""
        if self._plan.weights[step.name] == 1:
            integers = torch.where(step.weight >= 0, 1, -1)
        else:
            shaped = scale.reshape([-1] + [1] * (step.weight.ndim - 1)) if scale.ndim else scale
            integers = arithmetic.real_to_integer(step.weight, shaped, 0, (-qmax, qmax))
        if step.kind != "embedding" and integers.ndim == 3:  # sequences are images of height 1
            integers = integers.unsqueeze(2)
        return {
            "weight": integers.to(torch.int8),
            "weight_grid": torch.tensor((-qmax, qmax)),
            "weight_scale": scale,
            "weight_zero_point": torch.zeros_like(scale, dtype=torch.int64),
        }


def _named(step: Step) -> dict[str, torch.Tensor]:
    return {"scale": step.scale, "zero_point": torch.tensor(step.zero_point), "grid": torch.tensor(step.grid)}
