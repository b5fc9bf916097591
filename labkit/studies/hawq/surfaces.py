"""The loss around a sharp and around a flat layer, and what the same change of length costs in each."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from labkit.data import load as load_data
from labkit.frontends.torch_fx import from_torch
from labkit.graph.passes import simplify
from labkit.models import load as load_model
from labkit.sensitivity.candidates import nearest_candidates
from labkit.sensitivity.objective import Objective, make_objective
from labkit.sensitivity.traces import layer_traces
from labkit.studies.correlation import Correlation, correlate
from labkit.studies.hawq.curvature import LayerCurvature, layer_curvatures
from labkit.studies.hawq.landscape import grid, losses_at
from labkit.studies.mpqco.bench import labelled_images
from labkit.studies.study import Figure, Finding, Series, Settings, StudyResult, Surface, Table, Tell

__all__ = ["run"]

Values = NDArray[np.float64]

_TRACED = 128  # training images of the traces
_CURVED = 64  # of them, of the eigenvectors
_SEEN = 128  # of them, of the surfaces
_OTHERS = 300  # training images on which damage is measured
_BITS = 3
_SIDE = 13  # points of a surface's side
_ENOUGH = 20  # layers, for an interval over layers to mean anything


@dataclass(frozen=True, eq=False)
class _Damage:
    """What moving one layer costs, in nats an image on other training images: means and standard errors by kind of move."""

    layer: str
    predicted: float
    length: float
    means: dict[str, float]
    errors: dict[str, float]


def run(settings: Settings, tell: Tell) -> StudyResult:
    """Draw the loss over two eigenvectors' plane for the sharpest and the flattest layer, and move all layers equally far.

    ``settings`` say how much of it; ``tell`` is called with (step, done, total).
    """
    net = "lenet" if settings.smoke else "resnet20"
    data = load_data(settings.data, data_dir=settings.data_dir)
    graph = simplify(from_torch(load_model(net, data.name), (3, 32, 32)))
    images, labels = labelled_images(data, 32 if settings.smoke else _TRACED)
    seen = make_objective(graph, images[:_SEEN], labels[:_SEEN])
    others = make_objective(graph, *labelled_images(data, 100 if settings.smoke else _OTHERS, 1))
    traces = layer_traces(make_objective(graph, images)).traces.tolist()
    found = layer_curvatures(make_objective(graph, images[:_CURVED]), 2)
    curved = [replace(one, trace=trace) for one, trace in zip(found, traces, strict=True)]
    averages = np.array([one.trace / one.size for one in curved])
    sharp, flat = curved[int(averages.argmax())], curved[int(averages.argmin())]
    candidates = nearest_candidates(graph, (_BITS,))
    changes = {name: candidates.changes(graph, name)[0].ravel() for name in candidates.layers}
    radius = float(np.linalg.norm(changes[sharp.layer]))
    damages = []
    for done, one in enumerate(curved):
        damages.append(_damage(others, one, changes[one.layer], radius, settings.seeds))
        tell(f"{net}, layers", done + 1, len(curved))
    side = 5 if settings.smoke else _SIDE
    surfaces = [_surface(seen, one, radius, side) for one in (sharp, flat)]
    pair = [next(d for d in damages if d.layer == one.layer) for one in (sharp, flat)]
    orders = {
        kind: correlate(np.array([d.predicted for d in damages]), np.array([d.means[kind] for d in damages]))
        for kind in ("random", "rounding")
    }
    return StudyResult(
        (_layers(net, (sharp, flat), pair, radius), _all_layers(damages, radius)),
        _findings(surfaces, pair, orders, damages),
        (_maps(net, (sharp, flat), surfaces), _lines(seen, (sharp, flat), radius), _scatter(net, damages)),
        (
            f"{net} on {data.name}. The sharp layer is the one with the largest average trace of its Hessian, the flat one "
            f"that with the smallest, exact for {len(images)} training images. Eigenvectors are exact for {_CURVED} of "
            f"these (the Hessian's block is B^T B with {_CURVED} x 10 rows).",
            f"Surfaces: mean loss of {len(seen.images)} of these images with their labels; one unit of either axis is the "
            f"length by which rounding to {_BITS} bits moves the sharp layer. Damages: rise of the loss of "
            f"{len(others.images)} training images drawn anew. A network fits its training images better than test images, on "
            "which the loss bends more; for the loss of test images see hawq-traces.",
            "A random direction is drawn evenly from the sphere, once a seed, and taken forwards and backwards, so that the mean "
            "has no first-order term. For it theory expects a rise of "
            "|dw|² tr(H) / (2 n), if the loss is quadratic and at its minimum.",
            "At equal |dw|, a layer of many weights is moved little in each of them. This is the theorem's premise, not what "
            "quantization does: there |dw|² grows with the number of weights. The study hawq-traces has each layer's own change.",
            "The slides' own pictures of a robust and a less robust network are from Li et al. (2018) and show whole networks "
            "along random directions.",
        ),
    )


def _damage(others: Objective, one: LayerCurvature, change: Values, radius: float, seeds: int) -> _Damage:
    length = float(np.linalg.norm(change))
    directions = [change / length]
    for seed in range(seeds):
        drawn = np.random.default_rng(seed).standard_normal(one.size)
        directions += [drawn / np.linalg.norm(drawn), -drawn / np.linalg.norm(drawn)]  # both ways: no first-order term
    directions.append(one.vectors[0])
    count = len(directions)
    points = np.concatenate([np.zeros((1, count)), length * np.eye(count)[:1], radius * np.eye(count)])
    losses = losses_at(others, one.layer, directions, points)
    rises = losses[1:] - losses[0]
    kinds = {"own": rises[0], "rounding": rises[1], "random": rises[2:-1].mean(0), "eigenvector": rises[-1]}
    return _Damage(
        one.layer,
        radius**2 * one.trace / one.size / 2,
        length,
        {kind: float(rise.mean()) for kind, rise in kinds.items()},
        {kind: float(rise.std(ddof=1) / math.sqrt(len(rise))) for kind, rise in kinds.items()},
    )


def _surface(seen: Objective, one: LayerCurvature, radius: float, side: int) -> Values:
    """The mean loss, float64 [side, side], rows along the second eigenvector."""
    _, points = grid(radius, side)
    return np.asarray(losses_at(seen, one.layer, one.vectors, points).mean(1).reshape(side, side))


def _layers(net: str, pair: tuple[LayerCurvature, ...], damages: list[_Damage], radius: float) -> Table:
    rows: list[tuple[str | float | int | None, ...]] = []
    for word, one, damage in zip(("sharp", "flat"), pair, damages, strict=True):
        values = [f"{value:.3g}" for value in one.values]
        found = [
            f"{damage.means[k]:+.4f} ± {damage.errors[k]:.4f}" for k in ("rounding", "random", "eigenvector", "own")
        ]
        rows.append(
            (
                f"{word}: {one.layer}",
                one.size,
                *(f"{one.trace / one.size:.3g}", *values, found[0], found[1], f"{damage.predicted:.2g}"),
                *(found[2], f"{damage.length:.2f}", found[3]),
            )
        )
    return Table(
        f"{net}: two layers moved by |dw| = {radius:.2f}, and by their own rounding to {_BITS} bits; rise of the loss in nats",
        (
            *("layer", "weights n", "tr(H) / n", "λ1", "λ2", f"along the rounding to {_BITS} bits", "random direction"),
            *("predicted for that", "along the first eigenvector", "its own |dw|", "its own rounding"),
        ),
        tuple(rows),
    )


def _all_layers(damages: list[_Damage], radius: float) -> Table:
    rows = []
    for damage in sorted(damages, key=lambda d: -d.predicted):
        found = [f"{damage.means[k]:+.4f} ± {damage.errors[k]:.4f}" for k in ("random", "rounding")]
        rows.append((damage.layer, f"{2 * damage.predicted / radius**2:.3g}", f"{damage.predicted:.2g}", *found))
    return Table(
        f"All layers, sharp ones first, each moved by |dw| = {radius:.2f}: rise of the loss in nats",
        ("layer", "tr(H) / n", "predicted, |dw|² tr(H) / (2 n)", "random direction", "direction of the rounding"),
        tuple(rows),
    )


def _findings(
    surfaces: list[Values], pair: list[_Damage], orders: dict[str, Correlation], damages: list[_Damage]
) -> tuple[Finding, ...]:
    middle = len(surfaces[0]) // 2
    rises = [float(surface.max() - surface[middle, middle]) for surface in surfaces]
    more = {k: pair[0].means[k] - pair[1].means[k] for k in ("rounding", "random")}
    error = {k: math.hypot(pair[0].errors[k], pair[1].errors[k]) for k in more}
    sure = [more[k] > 2 * error[k] for k in more]
    ordered = [order.sure and order.value > 0 and len(damages) >= _ENOUGH for order in orders.values()]
    ratios = np.array([d.means["random"] / d.predicted for d in damages])
    middle_ratio = float(np.median(ratios))
    return (
        Finding(
            "Around a layer with a large trace the loss is sharp, around one with a small trace flat",
            f"over equal squares of two eigenvectors' plane the loss rises by up to {rises[0]:.2f} and {rises[1]:.4f} nats",
            "yes" if rises[0] > 2 * abs(rises[1]) else "partly" if rises[0] > rises[1] else "no",
        ),
        Finding(
            "At equal |dw| the sharp layer is damaged more than the flat one",
            "; ".join(f"{words} {more[k]:+.4f} ± {error[k]:.4f} nats" for k, words in _KINDS.items()),
            "yes" if all(sure) else "partly" if any(sure) else "no",
        ),
        Finding(
            "At equal |dw| damage ranks with sharpness (average trace) over all layers",
            "; ".join(f"{words} {orders[k]}" for k, words in _KINDS.items()),
            "yes" if all(ordered) else "partly" if any(order.value > 0 for order in orders.values()) else "no",
        ),
        Finding(
            "A random change of that length costs |dw|² tr(H) / (2 n)",
            f"measured over predicted, median of {len(damages)} layers: {middle_ratio:.2f} "
            f"({np.percentile(ratios, 25):.2f} to {np.percentile(ratios, 75):.2f} for half of them)",
            "yes" if 0.8 <= middle_ratio <= 1.25 else "partly" if 0.5 <= middle_ratio <= 2 else "no",
        ),
    )


_KINDS = {"rounding": "direction of the rounding", "random": "random direction"}


def _maps(net: str, pair: tuple[LayerCurvature, ...], surfaces: list[Values]) -> Figure:
    places = tuple(np.linspace(-1, 1, len(surfaces[0])).tolist())
    lowest = min(float(surface.min()) for surface in surfaces)
    highest = max(float(surface.max()) for surface in surfaces)
    steps = np.linspace(0, 1, 13) ** 2  # finer near the bottom
    levels = tuple(float(f"{lowest + (highest - lowest) * step:.4g}") for step in steps)
    panels = tuple(
        Figure(
            word,
            f"{word}: {one.layer}",
            "line",
            "along the first eigenvector, in |dw|",
            "along the second, in |dw|",
            (),
            surface=Surface(
                places, places, tuple(map(tuple, surface.tolist())), tuple(sorted(set(levels))), "loss, nats"
            ),
        )
        for word, one, surface in zip(("sharp", "flat"), pair, surfaces, strict=True)
    )
    return Figure("surfaces", f"{net}: loss over the plane of two eigenvectors", "line", "", "", (), panels=panels)


def _lines(seen: Objective, pair: tuple[LayerCurvature, ...], radius: float) -> Figure:
    places = np.linspace(-radius / 2, radius / 2, 17)
    panels = []
    for word, one in zip(("sharp", "flat"), pair, strict=True):
        losses = losses_at(seen, one.layer, one.vectors[:1], places[:, None]).mean(1)
        rise, x = losses - losses[len(places) // 2], tuple((places / radius).tolist())
        series = (
            Series("loss", x, tuple(rise.tolist())),
            Series("½ λ1 |dw|²", x, tuple((one.values[0] * places**2 / 2).tolist())),
        )
        panels.append(
            Figure(
                word,
                f"{word}: {one.layer}",
                "line",
                "along the first eigenvector, in |dw|",
                "rise of the loss, nats",
                series,
            )
        )
    return Figure(
        "lines", "Along the first eigenvector: the loss and its parabola", "line", "", "", (), panels=tuple(panels)
    )


def _scatter(net: str, damages: list[_Damage]) -> Figure:
    series = []
    for kind, words in _KINDS.items():
        shown = [d for d in damages if d.means[kind] > 0]
        series.append(Series(words, tuple(d.predicted for d in shown), tuple(d.means[kind] for d in shown)))
    return Figure(
        "equal-length",
        f"{net}: every layer moved equally far (dashed: as predicted)",
        "scatter",
        "predicted, |dw|² tr(H) / (2 n), nats",
        "measured rise of the loss, nats",
        tuple(series),
        log_x=True,
        log_y=True,
        diagonal=True,
    )
