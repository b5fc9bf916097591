"""Weight ranges that a search chose: read from the net's notes, and held against the weights that they were chosen for.

Scales, integers and biases are derived from the saved ends, as they are from the saved ranges of activations. Two things are
asked of the ends themselves. They lie within the weights that PyTorch folded: that needs nothing of labkit. And the method
that the plan names, run again on those weights, chooses them again: that is the same code twice and proves that the notes
are what it gives, not that it is a good method.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from labkit.arithmetic.affine import PerAxis
from labkit.errors import LabkitError, ModelError
from labkit.graph import int_ops
from labkit.graph.ir import IntGraph
from labkit.parity.tally import Tally
from labkit.quantization.clipping.weights import DERIVED, weight_ends
from labkit.quantization.plan import BitPlan

__all__ = ["Ends", "check_ends", "saved_ends"]

Ends = tuple[torch.Tensor, torch.Tensor]  # low and high, float64 [O] or [1]

TOLERANCE = 1e-9  # of the larger end: sums of reals in another order, on another processor


def saved_ends(graph: IntGraph, plan: BitPlan) -> dict[str, Ends]:
    """By layer, the ends that were saved with ``graph``; none where the ``plan`` names a method that is derived.

    Raises
    ------
    ModelError
        They are missing, or are no pairs of finite numbers with low <= high, one for each scale.
    """
    if plan.weight_ranges in DERIVED:
        return {}
    found = {}
    decided = graph.notes.get("rounded_biases", {})
    wanted = [name for name, bits in plan.weights.items() if bits > 1 and name not in decided]
    notes = graph.notes.get("weight_ends", {})
    for name in wanted:
        try:
            low, high = (torch.tensor([float(end) for end in side], dtype=torch.float64) for side in notes[name])
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(
                f"The net's weights have ranges by {plan.weight_ranges!r}, but it carries no ends for {name!r}, so its scales "
                f"cannot be derived. Make it again with labkit.quantize."
            ) from error
        op = graph[name].op if name in {node.name for node in graph} else None
        rows = (
            len(op.weight.values)
            if isinstance(op, int_ops.Conv2d | int_ops.Linear | int_ops.Embedding) and plan.per_channel
            else 1
        )
        if not len(low) == len(high) == rows or not bool(
            (torch.isfinite(low) & torch.isfinite(high) & (low <= high)).all()
        ):
            raise ModelError(
                f"The saved ends of the weights of {name!r} are not one interval for each scale: the net was changed or "
                f"damaged. Make it again with labkit.quantize."
            )
        found[name] = (low, high)
    return found


def check_ends(
    tally: Tally,
    plan: BitPlan,
    ends: Mapping[str, Ends],
    folded: Callable[[str], tuple[torch.Tensor, torch.Tensor]],
) -> None:
    """Compare ``ends`` with the weights that they were chosen for.

    Parameters
    ----------
    tally : where each end is counted, as ``NAME.weight_low`` and ``NAME.weight_high``
    plan : names the method
    ends : by layer, from `saved_ends`
    folded : a layer's float32 weights [O, ...] and bool [O], the channels that a batch norm took away
    """
    for name, (low, high) in ends.items():
        weight, vanished = folded(name)
        rows = (weight.flatten(1) if plan.per_channel else weight.reshape(1, -1)).double()
        if low.shape != rows.shape[:1]:
            tally.missing(f"{name}.weight_low", f"{len(rows)} ends", f"{len(low)} ends")
            continue
        gone = vanished if plan.per_channel else torch.zeros(1, dtype=torch.bool)
        inside = gone | ((low >= rows.amin(1)) & (high <= rows.amax(1)))
        if not bool(inside.all()):
            row = int(torch.argmin(inside.int()))
            tally.missing(
                f"{name}.weight_low",
                f"ends within {rows[row].min():g}..{rows[row].max():g} in row {row}",
                f"{low[row]:g}..{high[row]:g}",
            )
            continue
        again = _chosen_again(name, weight, vanished, plan)
        for side, got, expected in zip(("low", "high"), (low, high), again, strict=True):
            largest = torch.maximum(low.abs(), high.abs()).numpy()
            close = np.abs(expected - got.numpy()) <= TOLERANCE * largest
            tally.parameter(f"{name}.weight_{side}", np.where(close, got.numpy(), expected), got.numpy())


def _chosen_again(
    name: str, weight: torch.Tensor, vanished: torch.Tensor, plan: BitPlan
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    spec = plan.weight_spec(name)
    channels = torch.nonzero(vanished).flatten().tolist() if isinstance(spec.granularity, PerAxis) else []
    try:
        low, high = weight_ends(weight.numpy(), spec, plan.weight_ranges, channels)
    except LabkitError as error:
        raise ModelError(
            f"{name}: ranges by {plan.weight_ranges!r} cannot be chosen for the module's weights ({error}): the net was not made "
            f"from it. Give the module that was quantized."
        ) from error
    return low.reshape(-1), high.reshape(-1)
