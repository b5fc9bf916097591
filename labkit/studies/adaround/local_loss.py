"""Nagel et al. 2020, appendix B: a convolution's local error is a sum over output channels, each to be minimised by itself."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from labkit.data import load as load_data
from labkit.graph import float_ops
from labkit.quantization.differentiable import layer_names
from labkit.quantization.weight_rounding.gram import Gram
from labkit.quantization.weight_rounding.qubo import Qubo, decisions_qubo, hessian_qubo
from labkit.quantization.weight_rounding.qubo_solvers import descend_bits, solve_exactly
from labkit.quantization.weight_rounding.simple import round_stochastic, up_share
from labkit.quantization.weight_rounding.task_hessian import TaskHessian, task_hessian
from labkit.studies.adaround.one_layer import OneLayer, labelled, layer_input, local_gram
from labkit.studies.adaround.table_10 import restrict
from labkit.studies.lab import Lab, open_lab
from labkit.studies.study import Figure, Finding, Series, Settings, StudyResult, Table, Tell

__all__ = ["block_share", "channel_sum", "joint_matrix", "output_error", "run"]

Rows = NDArray[np.float64]

_LAYERS = (("lenet", 0), ("lenet", 1), ("resnet20", 0), ("resnet20", 1))
_BITS = 4
_CHANNELS, _EACH, _PROBLEMS = 3, 6, 30
_IMAGES, _HESSIAN_IMAGES = 128, 128
_DRAWS = 5


@dataclass(frozen=True)
class _Identity:
    """Of one layer: the largest relative differences, and how the small problems ended."""

    where: str
    weights: int
    images_against_channels: float
    joint_against_channels: float
    same_minimum: int
    problems: int
    same_descent: bool
    task_same: int
    inside: float
    inside_by_chance: float


def run(settings: Settings, tell: Tell) -> StudyResult:
    """Compare joint and channel by channel, on real layers: the error itself, its minimum, and the task's own Hessian.

    ``settings`` say how much of it; ``tell`` is called with (step, done, total).
    """
    data = load_data(settings.data, data_dir=settings.data_dir)
    cases = _LAYERS[:1] if settings.smoke else _LAYERS
    labs: dict[str, Lab] = {}
    found, shares = [], []
    for done, (net, place) in enumerate(cases):
        if net not in labs:
            labs[net] = open_lab(net, settings, 0, data)
        lab = labs[net]
        name = layer_names(lab.graph)[place]
        images, labels = labelled(data, min(_IMAGES, settings.calibration), 0)
        layer = OneLayer.of(lab.graph, name, _BITS)
        gram = _full_gram(lab, layer, images)
        few = min(_HESSIAN_IMAGES, len(images))
        hessian = task_hessian(lab.graph, name, images[:few], labels[:few], dtype=torch.float32)
        found.append(_identity(lab, layer, gram, hessian, images, 2 if settings.smoke else _PROBLEMS))
        shares.append((f"{net} {name}", _block_strengths(hessian, len(layer.weights))))
        tell("layers", done + 1, len(cases))
    return StudyResult(
        (_identity_table(found), _minimum_table(found), _assumption_table(found)),
        _findings(found),
        (_figure(shares),),
        (
            f"Layers at {_BITS} bits, one scale, {_IMAGES} training images, every place of the output. By images: "
            "the convolution itself, in float64, with the change of the weights in place of the weights, squared, "
            "summed over channels and averaged over images and places. Jointly: the form over all weights of the "
            "layer with the matrix kron(I, G). By channel: the sum of one form a channel.",
            f"Small problems: {_EACH} weights of each of {_CHANNELS} channels may change, the others stay at "
            f"nearest; all 2^{_CHANNELS * _EACH} roundings together against all 2^{_EACH} of each channel.",
            "Assumption (30) of the appendix (its formula is not in the text at hand) makes the Hessian of the task loss "
            "by the layer's outputs diagonal, the same at every place and for every image, so that weights of different "
            "output channels do not interact. That is exact for the local error. For the task's own Hessian it is not: "
            "the last table gives how much of its squared norm lies inside channels, and how often the channels' own "
            "minima are the joint one.",
        ),
    )


def output_error(layer: OneLayer, inputs: torch.Tensor, change: Rows) -> float:
    """The squared change of a layer's output, summed over channels, mean over images and places, computed by the layer itself.

    Parameters
    ----------
    layer : a convolution or linear layer
    inputs : float [N, ...], what it is given
    change : float64 [O, K], of its weights
    """
    op, weight = layer.op, torch.from_numpy(change.reshape(layer.op.weight.shape))
    x = inputs.double()
    if isinstance(op, float_ops.Linear):
        moved = torch.nn.functional.linear(x, weight)
        return float(moved.square().sum(-1).mean())
    (top, bottom), (left, right) = op.padding
    padded = torch.nn.functional.pad(x, (left, right, top, bottom))
    moved = torch.nn.functional.conv2d(padded, weight, None, op.stride, 0, op.dilation, op.groups)
    return float(moved.square().sum(1).mean())


def joint_matrix(gram: Gram, rows: int) -> Rows:
    """The matrix of the local error over all weights of a layer, float64 [O * K, O * K]: G of its group for each channel.

    Parameters
    ----------
    gram : the layer's quadratic form
    rows : its output channels, O
    """
    depth = gram.gram.shape[1]
    whole = np.zeros((rows, depth, rows, depth))
    for row in range(rows):
        whole[row, :, row] = gram.gram[row * gram.groups // rows]
    return whole.reshape(rows * depth, rows * depth)


def channel_sum(gram: Gram, change: Rows) -> float:
    """The sum over channels of ``d G d`` for the ``change`` float64 [O, K] of a layer with the form ``gram``."""
    return float(sum(row @ gram.gram[place * gram.groups // len(change)] @ row for place, row in enumerate(change)))


def block_share(hessian: Rows, rows: int) -> float:
    """The share of the squared norm of a ``hessian`` float64 [O * K, O * K] inside its blocks of ``rows`` = O channels."""
    return float(np.trace(_squares(hessian, rows)) / np.square(hessian).sum())


def _squares(hessian: Rows, rows: int) -> Rows:
    """The squared norm of each block, float64 [O, O]."""
    depth = len(hessian) // rows
    return np.asarray(np.square(hessian).reshape(rows, depth, rows, depth).sum((1, 3)))


def _block_strengths(hessian: TaskHessian, rows: int) -> Rows:
    """For each channel, the norm of its blocks with other channels as shares of that with itself, largest first: [O - 1]."""
    norms = np.sqrt(_squares(hessian.hessian, rows))
    own = np.sqrt(np.outer(norms.diagonal(), norms.diagonal()))
    relative = norms / np.where(own > 0, own, 1)
    others = np.sort(relative[~np.eye(rows, dtype=bool)].reshape(rows, rows - 1), axis=1)[:, ::-1]
    return np.asarray(others.mean(0))


def _full_gram(lab: Lab, layer: OneLayer, images: NDArray[np.float32]) -> Gram:
    """The layer's form from every place of its output."""
    return local_gram(lab.graph, layer, images, samples=len(images) * 32 * 32)


def _identity(
    lab: Lab, layer: OneLayer, gram: Gram, hessian: TaskHessian, images: NDArray[np.float32], problems: int
) -> _Identity:
    inputs = layer_input(lab.graph, layer.name, images)
    by_images, jointly = [], []
    whole = joint_matrix(gram, len(layer.weights))
    for seed in range(_DRAWS):
        change = layer.change(round_stochastic(layer.weights, layer.grid, np.random.default_rng(seed)))
        apart = channel_sum(gram, change)
        by_images.append(abs(output_error(layer, inputs, change) / apart - 1))
        jointly.append(abs(float(change.reshape(-1) @ whole @ change.reshape(-1)) / apart - 1))
    joint, free = hessian_qubo(layer.weights, layer.grid, 2 * whole)
    same = sum(_same_minimum(layer, joint, free, seed) for seed in range(problems))
    task, task_free = hessian.qubo(layer.weights, layer.grid)
    task_same = sum(_same_minimum(layer, task, task_free, seed) for seed in range(problems))
    inside = block_share(hessian.hessian, len(layer.weights))
    return _Identity(
        f"{lab.net} {layer.name}",
        layer.weights.size,
        max(by_images),
        max(jointly),
        same,
        problems,
        _same_descent(layer, gram, joint, free),
        task_same,
        inside,
        1 / len(layer.weights),
    )


def _same_minimum(layer: OneLayer, qubo: Qubo, free: NDArray[np.intp], seed: int) -> bool:
    """Whether the channels' own minima together are the minimum of a small problem over several channels."""
    generator = np.random.default_rng(seed)
    depth = layer.weights.shape[1]
    nearest = up_share(layer.weights, layer.grid).reshape(-1)[free] >= 0.5
    eligible = [row for row in range(len(layer.weights)) if np.sum(free // depth == row) >= _EACH]
    rows = generator.choice(eligible, _CHANNELS, replace=False)
    parts = [generator.choice(np.flatnonzero(free // depth == row), _EACH, replace=False) for row in rows]
    together = restrict(qubo, nearest, np.concatenate(parts))
    apart = np.concatenate([solve_exactly(restrict(qubo, nearest, part)) for part in parts])
    least = float(together.energy(solve_exactly(together)))
    start = float(together.energy(nearest[np.concatenate(parts)]))
    return bool(float(together.energy(apart)) - least <= 1e-9 * max(abs(start), abs(least)))


def _same_descent(layer: OneLayer, gram: Gram, joint: Qubo, free: NDArray[np.intp]) -> bool:
    """Whether descent over the whole layer and descent channel by channel go to the same levels."""
    chance = up_share(layer.weights, layer.grid)
    flat = chance.reshape(-1)[free]
    whole = layer.levels(descend_bits(joint, flat), free)
    down, up = layer.grid.choices(layer.weights)
    levels = down.copy()
    for row in range(len(levels)):
        qubo, places = decisions_qubo(layer.weights, layer.grid, gram, row)
        ups = places[descend_bits(qubo, chance[row, places])]
        levels[row, ups] = up[row, ups]
    return bool(np.array_equal(whole, levels))


def _identity_table(found: list[_Identity]) -> Table:
    return Table(
        f"The local error of {_DRAWS} stochastic roundings: largest relative difference from the sum over channels",
        ("layer", "weights", "by images", "jointly, kron(I, G)"),
        tuple(
            (one.where, one.weights, f"{one.images_against_channels:.1e}", f"{one.joint_against_channels:.1e}")
            for one in found
        ),
    )


def _minimum_table(found: list[_Identity]) -> Table:
    return Table(
        "The minimum of the local error",
        (
            "layer",
            f"problems of {_CHANNELS} x {_EACH} weights where the channels' minima are the joint one",
            "descent over the whole layer: the same levels as by channel",
        ),
        tuple(
            (one.where, f"{one.same_minimum} of {one.problems}", "yes" if one.same_descent else "no") for one in found
        ),
    )


def _assumption_table(found: list[_Identity]) -> Table:
    return Table(
        "The task's own Hessian",
        (
            "layer",
            "squared norm inside channels, %",
            "the same if spread evenly, %",
            "problems where the channels' minima are the joint one",
        ),
        tuple(
            (
                one.where,
                f"{100 * one.inside:.1f}",
                f"{100 * one.inside_by_chance:.1f}",
                f"{one.task_same} of {one.problems}",
            )
            for one in found
        ),
    )


def _findings(found: list[_Identity]) -> tuple[Finding, ...]:
    worst = max(max(one.images_against_channels, one.joint_against_channels) for one in found)
    same, problems = sum(one.same_minimum for one in found), sum(one.problems for one in found)
    descents = sum(one.same_descent for one in found)
    task = sum(one.task_same for one in found)
    inside = [100 * one.inside for one in found]
    return (
        Finding(
            "The local problem of a convolution is the squared error of its output, a sum of one form for each "
            "output channel",
            f"largest relative difference {worst:.1e} over {len(found)} layers, by images and jointly",
            "yes" if worst < 1e-6 else "partly" if worst < 1e-4 else "no",
        ),
        Finding(
            "Each channel can be optimized by itself",
            f"the channels' minima are the joint one in {same} of {problems} problems solved exactly; descent over "
            f"the layer gives the same levels in {descents} of {len(found)} layers",
            "yes" if same == problems and descents == len(found) else "partly" if same > problems / 2 else "no",
        ),
        Finding(
            "Assumption (30): weights of different output channels do not interact in the task loss",
            f"{min(inside):.0f} to {max(inside):.0f} % of the squared norm of the task's Hessian is inside channels; "
            f"the channels' minima are the joint one in {task} of {problems} problems",
            "yes" if min(inside) > 90 else "partly" if min(inside) > 50 else "no",
        ),
    )


def _figure(shares: list[tuple[str, Rows]]) -> Figure:
    return Figure(
        "interactions",
        "The task's Hessian between output channels",
        "line",
        "other channel, most strongly interacting first",
        "norm of the block, share of the channels' own",
        tuple(
            Series(where, tuple(float(place + 1) for place in range(len(values))), tuple(values.tolist()))
            for where, values in shares
        ),
    )
