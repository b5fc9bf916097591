"""HAWQ-V2's sensitivity: the average trace of a layer's Hessian times the squared change of its weights.

``Omega = trace(H) / n * |Q(w) - w|^2`` (Dong et al. 2020). It is what ``dw . H dw`` would be if dw pointed in a random direction:
n weights that are moved independently by equal amounts. There is no factor 1/2, which changes no order.
"""

from __future__ import annotations

import numpy as np

from labkit.errors import InputError
from labkit.sensitivity.candidates import Candidates
from labkit.sensitivity.objective import Objective
from labkit.sensitivity.perturbation import unit_of
from labkit.sensitivity.table import SensitivityTable
from labkit.sensitivity.traces import LayerTraces

__all__ = ["hawq_sensitivity"]


def hawq_sensitivity(objective: Objective, candidates: Candidates, traces: LayerTraces) -> SensitivityTable:
    """The table of ``trace / n * |Q_b(w) - w|^2``, with the standard errors of the traces.

    Parameters
    ----------
    objective : network and layers
    candidates : the layers' quantized weights
    traces : of the objective's layers

    Raises
    ------
    InputError
        Candidates or traces of a layer are missing.
    """
    if missing := [name for name in objective.layers if name not in candidates.weights]:
        raise InputError(
            f"There are no candidate weights for {missing[0]!r}; there are for {', '.join(candidates.layers)}."
        )
    if traces.layers != objective.layers:
        raise InputError(
            f"The traces are those of {', '.join(traces.layers)}, the layers here {', '.join(objective.layers)}."
        )
    changes = [candidates.changes(objective.graph, name) for name in objective.layers]
    squares = np.stack([np.square(change).reshape(len(change), -1).sum(1) for change in changes])  # [L, B]
    notes = {
        "images": traces.images,
        "rounding": candidates.rounding,
        "way": traces.way,
        "probes": int(traces.probes.max()),
    }
    return SensitivityTable(
        objective.layers,
        candidates.bits,
        traces.averages[:, None] * squares,
        (traces.errors / traces.sizes)[:, None] * squares,
        "hawq-v2",
        f"{unit_of(objective)}, doubled",
        notes,
    )
