"""`plan_for`: from a network, some images and budgets to a bit plan, with everything that it was chosen from.

    costs -> can the budgets be met? -> sensitivity -> allocation -> plan

The plan goes to ``labkit.quantize(module, images, plan=planned.plan, method="best")``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from labkit.allocation.allocate import allocate, make_problem
from labkit.allocation.answer import Allocation
from labkit.allocation.constraints import first_and_last, residual_partners
from labkit.allocation.cost_table import CostTable
from labkit.allocation.costs import bit_operations, weight_bytes
from labkit.allocation.latency import latency, measured_latency
from labkit.allocation.request import Budgets, PlanOptions
from labkit.allocation.rounded_widths import rounded_widths
from labkit.errors import QuantizationError
from labkit.frontends.torch_fx import from_torch
from labkit.graph.ir import FloatGraph
from labkit.graph.passes import simplify
from labkit.quantization.batches import image_batches
from labkit.quantization.calibration import calibrate
from labkit.quantization.plan import BitPlan
from labkit.quantization.weight_rounding.best import BEST, BEST_METHOD
from labkit.sensitivity.candidates import Candidates, nearest_candidates
from labkit.sensitivity.measure import measure_sensitivity
from labkit.sensitivity.table import SensitivityTable

if TYPE_CHECKING:
    from torch import nn

__all__ = ["LatencyCheck", "Planned", "check_latency", "plan_for", "plan_table"]

_TABLE_IMAGES = {"gauss-newton": 256, "fisher": 1024, "mpqco": 1024, "hawq-v2": 256, "direct": 256, "sqnr": 256}
_RANGE_IMAGES = 64  # that activation ranges are taken from where only time is measured
_ROUNDS = 15

Images = NDArray[np.float32]
Tell = Callable[[str, int, int], None]


@dataclass(frozen=True, eq=False)
class Planned:
    """A plan and what it was chosen from.

    plan : for ``labkit.quantize(..., plan=...)``.
    allocation : bits, predicted loss, costs, budgets and the gap to the optimum.
    sensitivity : the predicted damage of each layer at each width.
    costs : a table for each budget, in the order of the allocation's.
    size : bytes by layer and width, whether or not they were a budget.
    graph : the float network, simplified.
    options, budgets : as asked for.
    """

    plan: BitPlan
    allocation: Allocation
    sensitivity: SensitivityTable
    costs: tuple[CostTable, ...]
    size: CostTable
    graph: FloatGraph
    options: PlanOptions
    budgets: Budgets

    @property
    def average_bits(self) -> float:
        """Bits of a weight on average, all weights counted alike."""
        return (self.size.total(self.plan.weights) - self.size.fixed) * 8 / float(self.size.notes["weights"])

    @property
    def notes(self) -> dict[str, Any]:
        """How the plan was made, as plain JSON values, for the notes of a network."""
        found = self.allocation
        return {
            "budgets": self.budgets.given,
            "costs": dict(zip(found.names, found.costs, strict=True)),
            "average_bits": self.average_bits,
            "sensitivity": self.sensitivity.method,
            "candidates": self.sensitivity.notes.get("rounding"),
            "images": self.sensitivity.notes.get("images"),
            "bits": list(self.sensitivity.bits),
            "solver": found.method,
            "predicted_loss": found.value,
            "lower_bound": found.lower_bound,
            "first_and_last": self.options.first_and_last,
            "tie_residual": self.options.tie_residual,
            "seed": self.options.seed,
        }

    def __str__(self) -> str:
        return f"{self.allocation}\n  {self.average_bits:.3f} bits a weight on average"


def plan_for(
    network: nn.Module | FloatGraph,
    images: Any,
    budgets: Budgets,
    options: PlanOptions | None = None,
    sensitivity: SensitivityTable | None = None,
    progress: Tell | None = None,
) -> Planned:
    """Choose the bits of each layer's weights so that the predicted loss is least within the ``budgets``.

    Parameters
    ----------
    network : a module, or a simplified FloatGraph of one input
    images : array or tensor [N, ...], or any iterable of them: images like those of training, about 1,000, without labels
    budgets : what the network may take
    options : how the plan is found; None for the defaults
    sensitivity : a table measured before; its bits are then the candidates
    progress : called with (step, done, total)

    Raises
    ------
    QuantizationError
        The budgets cannot be met, a table does not fit the network, or there are no images.
    InputError
        The images do not fit the network.
    ModelError
        The module holds something that cannot be quantized.
    """
    options = options or PlanOptions()
    if sensitivity is not None:
        options = replace(options, bits=sensitivity.bits)
    solver = options.solver_for(budgets)
    x = _first_images(image_batches(images))
    graph = network if isinstance(network, FloatGraph) else simplify(from_torch(network, x.shape[1:]))
    size = weight_bytes(graph, options.bits, per_channel=options.per_channel)
    rules: dict[str, Any] = {
        "fixed": {} if options.first_and_last is None else first_and_last(graph, options.first_and_last),
        "tied": residual_partners(graph) if options.tie_residual else (),
    }
    costs: list[CostTable] = []
    limits: list[float] = []
    for table, limit in _costs(graph, size, x, budgets, options, progress):
        costs.append(table)
        limits.append(limit)
        zeros = np.zeros((len(size.layers), len(size.bits)))  # so that a budget is refused before the long work
        make_problem(
            SensitivityTable(*size.axes, zeros, zeros, "none", "none"), table, limit, **rules
        ).refuse_impossible()
    if sensitivity is None:
        sensitivity = plan_table(graph, x, options, progress)
    kept = {name: getattr(options, name) for name in ("per_channel", "activation_scheme", "weight_ranges")}
    told: dict[str, Any] = {"activations": options.activations, "plan_options": kept, **rules}
    if solver in ("random", "evolutionary"):
        told["seed"] = options.seed
    found = allocate(sensitivity, costs, limits, solver, graph=graph, **told)
    return Planned(found.plan, found.allocation, sensitivity, tuple(costs), size, graph, options, budgets)


def plan_table(
    graph: FloatGraph, images: Images, options: PlanOptions, progress: Tell | None = None
) -> SensitivityTable:
    """The sensitivity table that a plan is chosen from.

    Parameters
    ----------
    graph : after `passes.simplify`
    images : float32 [N, ...]; weights are rounded on the first 1,024, and the first ``options.images`` are looked at
    options : bits, method and rounding
    progress : called with (step, done, total)

    Raises
    ------
    QuantizationError
        A scale cannot be chosen.
    InputError
        The images do not fit the network.
    """
    tell = _step(progress, "Measure the sensitivity")
    candidates: Candidates
    if options.rounding == "best":
        candidates = rounded_widths(
            graph,
            images,
            options.bits,
            BEST_METHOD,
            BEST,
            options.per_channel,
            options.seed,
            _step(progress, "Round candidates"),
        )
    else:
        candidates = nearest_candidates(graph, options.bits, options.weight_ranges, options.per_channel)
    return measure_sensitivity(
        graph,
        images[: options.images or _TABLE_IMAGES[options.sensitivity]],
        method=options.sensitivity,
        candidates=candidates,
        seed=options.seed,
        progress=tell,
    )


@dataclass(frozen=True)
class LatencyCheck:
    """What the latency table says of a plan and what the plan takes; all in microseconds, one image on one thread.

    predicted, measured : of the plan.
    uniform_predicted, uniform_measured : of a uniform plan at the largest candidate bits, measured in turns with the first:
        it says how fast the machine was at that moment, compared with when the table was measured.
    """

    predicted: float
    measured: float
    uniform_predicted: float
    uniform_measured: float

    @property
    def error(self) -> float:
        """How far the measured time is from the predicted one, as a share of that."""
        return self.measured / self.predicted - 1

    @property
    def paired_error(self) -> float:
        """The same, with what the machine's speed has changed taken out."""
        return self.measured / self.predicted * self.uniform_predicted / self.uniform_measured - 1

    def __str__(self) -> str:
        return (
            f"Latency of one image: predicted {self.predicted:,.1f}, measured {self.measured:,.1f} microseconds "
            f"({self.error:+.1%}; {self.paired_error:+.1%} with the machine's present speed taken out)"
        )


def check_latency(planned: Planned, images: Any, rounds: int = _ROUNDS) -> LatencyCheck:
    """Measure what a plan takes whose budget was time, beside what was predicted.

    Parameters
    ----------
    planned : with a budget in microseconds
    images : as for `plan_for`
    rounds : of which the median is taken, 1 or more

    Raises
    ------
    QuantizationError
        Time was no budget of this plan.
    """
    tables = [table for table in planned.costs if table.unit == "microseconds"]
    if not tables:
        raise QuantizationError(
            "The plan has no budget in microseconds, so nothing was predicted that could be checked."
        )
    table, graph = tables[0], planned.graph
    x = _first_images(image_batches(images), _RANGE_IMAGES)
    top = max(table.bits)
    uniform = replace(planned.plan, weights=dict.fromkeys(planned.plan.weights, top))
    plan, other = measured_latency(graph, calibrate(graph, x), x[:1], [planned.plan, uniform], rounds=rounds)
    return LatencyCheck(table.total(planned.plan.weights), plan, table.uniform(top), other)


def _costs(
    graph: FloatGraph, size: CostTable, x: Images, budgets: Budgets, options: PlanOptions, progress: Tell | None
) -> Iterable[tuple[CostTable, float]]:
    """A table for each budget, and the budget in its unit; what must be measured comes last."""
    if (limit := budgets.size(size)) is not None:
        yield size, limit
    if budgets.bit_operations is not None:
        yield bit_operations(graph, options.activations, options.bits), float(budgets.bit_operations)
    if budgets.microseconds is not None:
        table = latency(
            graph,
            calibrate(graph, x[:_RANGE_IMAGES]),
            x[:1],
            options.bits,
            activations=options.activations,
            per_channel=options.per_channel,
            rounds=_ROUNDS,
            progress=_step(progress, "Measure the latency"),
        )
        yield table, float(budgets.microseconds)


def _step(progress: Tell | None, step: str) -> Callable[[int, int], None] | None:
    return None if progress is None else partial(progress, step)


def _first_images(batches: Iterable[Images], count: int = BEST.images) -> Images:
    parts: list[Images] = []
    have = 0
    stream = iter(batches)
    while have < count and (batch := next(stream, None)) is not None:
        parts.append(batch[: count - have])
        have += len(parts[-1])
    next(stream, None)  # who counts the images learns only now that the last ones have been taken
    if not have:
        raise QuantizationError(
            "There are no images, so nothing tells which layers are sensitive. Hand in some hundred images like those of "
            "training."
        )
    return np.concatenate(parts)
