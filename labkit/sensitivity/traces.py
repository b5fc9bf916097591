"""The trace of each layer's block of the loss's Hessian, three ways.

gauss-newton
    Where the outputs are piecewise linear in a layer's weights (only layers, ReLU, pooling, sums and the like follow), the
    block is ``mean J^T A J`` exactly, with A the curvature of the loss by the outputs, A = S S^T. Its trace is the mean of
    ``|J^T S|^2``: one backward pass for each class gives all layers of all images. Nothing is random but the choice of
    images; with fewer passes than classes, random combinations of them.

hutchinson
    ``trace(H) = E[v . H v]`` for v with independent signs (Hutchinson 1990; HAWQ-V2 calls it so). Its variance is ``2
    sum_{i != j} H_ij^2`` a probe. Each layer has probes of its own.

hutchinson-global
    One probe for all weights, of which each layer takes its part of v and of H v, as PyHessian does. In the layer's part
    of H v stand the other layers' blocks too: they vanish on average, but add ``sum |H_lk|^2`` over all other layers k to
    the variance (Frobenius norm). That hurts insensitive layers most, since the blocks beside a small one are larger.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from labkit.arithmetic.frozen import frozen_array
from labkit.errors import InputError
from labkit.quantization.differentiable import bending_nodes
from labkit.sensitivity.hessian import HessianOperator, random_signs
from labkit.sensitivity.objective import Objective
from labkit.sensitivity.slopes import Directions, output_slopes

__all__ = ["WAYS", "LayerTraces", "is_piecewise_linear", "layer_traces"]

Values = NDArray[np.float64]
Progress = Callable[[int, int], None]

WAYS = ("auto", "gauss-newton", "hutchinson", "hutchinson-global")
_ROUND = 8  # probes of a layer between two looks at the error


@dataclass(frozen=True, eq=False)
class LayerTraces:
    """The trace of the Hessian's block of each of L layers.

    layers : names.
    traces : float64 [L].
    probe_errors : float64 [L], standard errors from random probes: what other probes on the same images would change.
    image_errors : float64 [L], standard errors from the choice of images; NaN where images were not told apart.
    sizes : int64 [L], weights of each layer.
    probes : int64 [L], products with the Hessian, or passes for each image.
    images : how many.
    way : one of `WAYS`, not "auto".
    seconds : it took.
    """

    layers: tuple[str, ...]
    traces: Values
    probe_errors: Values
    image_errors: Values
    sizes: NDArray[np.int64]
    probes: NDArray[np.int64]
    images: int
    way: str
    seconds: float

    def __post_init__(self) -> None:
        for name in ("traces", "probe_errors", "image_errors"):
            object.__setattr__(self, name, frozen_array(getattr(self, name), np.float64))
        for name in ("sizes", "probes"):
            object.__setattr__(self, name, frozen_array(getattr(self, name), np.int64))

    @property
    def averages(self) -> Values:
        """The trace divided by the number of weights, float64 [L]: HAWQ-V2's sensitivity."""
        return np.asarray(self.traces / self.sizes)

    @property
    def errors(self) -> Values:
        """The standard errors, float64 [L], of all that is known to be random: images where they were told apart, else probes."""
        return np.where(np.isnan(self.image_errors), self.probe_errors, self.image_errors)

    def __str__(self) -> str:
        room = max(len(name) for name in self.layers)
        head = f"Traces of {len(self.layers)} layers by {self.way}, {self.images} images, {self.seconds:.1f} s"
        return "\n".join(
            [head, f"  {'':<{room}}  {'trace':>10}  {'error':>9}  {'average':>10}  {'weights':>9}  probes"]
            + [
                f"  {name:<{room}}  {trace:>10.4g}  {error:>9.2g}  {average:>10.4g}  {size:>9,}  {probes}"
                for name, trace, error, average, size, probes in zip(
                    *(self.layers, self.traces, self.errors, self.averages, self.sizes, self.probes), strict=True
                )
            ]
        )


def is_piecewise_linear(objective: Objective, layer: str) -> bool:
    """Whether the outputs of ``objective`` are piecewise linear in the weights of ``layer``: nothing after it bends."""
    return not bending_nodes(objective.graph, layer)


def layer_traces(
    objective: Objective,
    way: str = "auto",
    probes: int | None = None,
    target: float | None = None,
    most: int = 1000,
    seed: int = 0,
    progress: Progress | None = None,
) -> LayerTraces:
    """The trace of the Hessian's diagonal block of each layer.

    Parameters
    ----------
    objective : its mean loss
    way : one of `WAYS`; "auto" is "gauss-newton" where that is exact, else "hutchinson"
    probes : how many; None for 64 of Hutchinson's, or for as many as there are outputs, which is exact for "gauss-newton"
    target : of Hutchinson: instead of a fixed number, go on until the standard error is below this share of the trace
    most : probes of a layer at most, with ``target``
    seed : of the probes
    progress : called with what is done and what there is

    Raises
    ------
    InputError
        There is no such way, a number is out of range, or "gauss-newton" would not be the Hessian's.
    """
    if way not in WAYS:
        raise InputError(f"The way to traces must be one of {', '.join(WAYS)}, got {way!r}.")
    if probes is not None and probes < 2 - (way == "gauss-newton"):
        raise InputError(f"There must be at least two probes, or no standard error can be given; got {probes}.")
    if target is not None and not 0 < target < 1:
        raise InputError(f"The target is a share of the trace in 0..1, such as 0.05, got {target}.")
    if target is not None and probes is not None:
        raise InputError("Give a number of probes or a target for the error, not both.")
    if most < 2 * _ROUND:
        raise InputError(f"most must be at least {2 * _ROUND} probes, got {most}.")
    bent = [name for name in objective.layers if not is_piecewise_linear(objective, name)]
    if bent and way == "gauss-newton":
        raise InputError(
            f"The outputs are not piecewise linear in the weights of {bent[0]!r}, so the Hessian has a part that this way "
            f"leaves out. Take 'hutchinson', or fisher_traces for the trace of the Gauss-Newton matrix."
        )
    started = time.perf_counter()
    if way == "gauss-newton" or (way == "auto" and not bent):
        return _from_passes(objective, probes, seed, progress, started)
    if way == "hutchinson-global":
        samples = _global_samples(objective, probes or 64, target, most, seed, progress)
    else:
        samples = _own_samples(objective, probes or 64, target, most, seed, progress)
        way = "hutchinson"
    means = np.array([part.mean() for part in samples])
    errors = np.array([_standard_error(part) for part in samples])
    count = np.array([len(part) for part in samples])
    unknown = np.full(len(means), np.nan)
    return _traces(objective, means, errors, unknown, count, way, started)


def _traces(
    objective: Objective,
    means: Values,
    probe: Values,
    image: Values,
    count: NDArray[np.int64],
    way: str,
    started: float,
) -> LayerTraces:
    seconds = time.perf_counter() - started
    return LayerTraces(
        objective.layers, means, probe, image, objective.sizes, count, len(objective.images), way, seconds
    )


def _from_passes(
    objective: Objective, probes: int | None, seed: int, progress: Progress | None, started: float
) -> LayerTraces:
    width = objective.outputs.shape[1]
    exact = probes is None or probes >= width
    wanted = Directions("fisher") if exact else Directions("probes", probes or 1, seed)
    found = {name: np.zeros(len(objective.images)) for name in objective.layers}
    for part in output_slopes(objective, wanted, progress):
        found[part.layer][part.where] = part.squared_norms().numpy()
    samples = np.stack([found[name] for name in objective.layers])
    errors = np.array([_standard_error(row) for row in samples])
    # Images have probes of their own, so their spread has that of the probes in it, which it bounds.
    count = np.full(len(samples), wanted.number(width))
    return _traces(
        objective, samples.mean(1), np.zeros(len(samples)) if exact else errors, errors, count, "gauss-newton", started
    )


def _own_samples(
    objective: Objective, probes: int, target: float | None, most: int, seed: int, progress: Progress | None
) -> list[Values]:
    """Values of ``v . H v`` of each layer."""
    samples = []
    for index, name in enumerate(objective.layers):
        operator = HessianOperator(objective, [name])
        generator = np.random.default_rng((seed, index))

        def values(count: int, operator: HessianOperator = operator, draw: np.random.Generator = generator) -> Values:
            signs = random_signs(draw, (count, operator.size))
            return np.asarray((signs * operator.products(signs)).sum(1))[:, None]

        samples.append(_sampled(values, probes, target, most)[:, 0])
        if progress is not None:
            progress(index + 1, len(objective.layers))
    return samples


def _global_samples(
    objective: Objective, probes: int, target: float | None, most: int, seed: int, progress: Progress | None
) -> list[Values]:
    """The same of one probe for all layers."""
    operator, generator = HessianOperator(objective), np.random.default_rng(seed)
    done = 0

    def values(count: int) -> Values:
        nonlocal done
        signs = random_signs(generator, (count, operator.size))
        terms = signs * operator.products(signs)
        done += count
        if progress is not None:
            progress(min(done, probes if target is None else most), probes if target is None else most)
        return np.stack([terms[:, part].sum(1) for part in operator.slices.values()], 1)

    found = _sampled(values, probes, target, most)
    if progress is not None and target is not None:
        progress(most, most)
    return list(found.T)


def _sampled(values: Callable[[int], Values], probes: int, target: float | None, most: int) -> Values:
    """Rows of ``values`` [K, L]: ``probes`` of them, or until every column's error is small enough."""
    parts = []
    for start in range(0, probes if target is None else most, _ROUND):
        parts.append(values(min(_ROUND, (probes if target is None else most) - start)))
        if target is None or len(parts) < 2:  # eight values say too little about their own spread
            continue
        found = np.concatenate(parts)
        errors = np.array([_standard_error(column) for column in found.T])
        if np.all(errors <= target * np.abs(found.mean(0))):
            break
    return np.concatenate(parts)


def _standard_error(samples: Values) -> float:
    return float(samples.std(ddof=1) / np.sqrt(len(samples))) if len(samples) > 1 else 0.0
