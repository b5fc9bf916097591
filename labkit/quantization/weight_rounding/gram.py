"""The squared error of a layer's output as a quadratic form in its weights, so that images are looked at only once.

For one output channel with weights ``w``, input ``x`` (a window of the image, or a vector) and wanted output ``y``,

    E[(w . (x - m) - (y - mean y))^2] = w G w - 2 w . r + e,
    G = E[(x - m)(x - m)^T],  r = E[(y - mean y)(x - m)],  e = E[(y - mean y)^2],  m = E[x].

This is the local loss of Nagel et al. 2020 (*Up or Down?*, sections 3.2 and 3.3), without the activation function.
With ``x`` from the quantized network and ``y`` from the float one it is their asymmetric form. Taking the means out
is bias correction done inside the loss: the best bias for any weights is ``mean y - w . m``. All output channels of a
group share one G, and channels do not interact (their appendix B).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from labkit.arithmetic.frozen import frozen_array
from labkit.errors import InputError
from labkit.graph import float_ops

__all__ = ["Gram", "Layer", "collect_gram", "window_rows"]

Layer = float_ops.Conv2d | float_ops.Linear
Rows = NDArray[np.float64]

_CHUNK_NUMBERS = 1 << 22  # float32 window elements held at a time: 16 MB


@dataclass(frozen=True, eq=False)
class Gram:
    """The quadratic form of one layer. Weights are rows, [O, K]: K = C / groups * kH * kW in the weight's own order.

    gram : float64 [groups, K, K], G of the text above; rows o * groups // O belong to group o.
    cross : float64 [O, K], one r a row.
    energy : float64 [O], the variance of the wanted output (with a ridge: plus its share).
    input_mean, output_mean : float64 [groups, K], [O]; without centring 0 and the layer's bias.
    samples : how many windows or vectors the means are over.
    """

    gram: Rows
    cross: Rows
    energy: Rows
    input_mean: Rows
    output_mean: Rows
    samples: int

    def __post_init__(self) -> None:
        for name in ("gram", "cross", "energy", "input_mean", "output_mean"):
            object.__setattr__(self, name, frozen_array(getattr(self, name), np.float64))

    @property
    def groups(self) -> int:
        """How many groups of output channels there are, each with a G of its own."""
        return len(self.gram)

    def times(self, weights: Rows) -> Rows:
        """``w G`` for each row of ``weights`` float64 [O, K]; the same shape."""
        grouped = weights.reshape(self.groups, -1, weights.shape[1])
        return np.asarray((grouped @ self.gram).reshape(weights.shape), np.float64)

    def half_gradient(self, weights: Rows) -> Rows:
        """``w G - r``, half of the gradient of `error`, for each row of ``weights`` float64 [O, K]; the same shape."""
        return self.times(weights) - self.cross

    def error(self, weights: Rows) -> Rows:
        """The mean squared error of each output channel with ``weights`` float64 [O, K] and the best bias: float64 [O]."""
        return np.asarray(((self.times(weights) - 2 * self.cross) * weights).sum(1) + self.energy, np.float64)

    def best_bias(self, weights: Rows) -> Rows:
        """The bias that goes with ``weights`` float64 [O, K], ``mean y - w . m``: float64 [O]."""
        means = np.repeat(self.input_mean, len(weights) // self.groups, axis=0)
        return np.asarray(self.output_mean - (weights * means).sum(1), np.float64)

    def with_ridge(self, weights: Rows, share: float) -> Gram:
        """The same form plus ``a |w - w0|^2``, which holds directions of which few samples speak near the original weights.

        Parameters
        ----------
        weights : float64 [O, K], the original ones, w0
        share : a as a share of the mean of the diagonal of G, for each group
        """
        amount = share * self.gram.diagonal(0, 1, 2).mean(1) + 1e-12
        rows = np.repeat(amount, len(weights) // self.groups)[:, None]
        return replace(
            self,
            gram=self.gram + amount[:, None, None] * np.eye(self.gram.shape[1]),
            cross=self.cross + rows * weights,
            energy=self.energy + (rows * weights**2).sum(1),
        )

    def symmetric(self, weights: Rows) -> Gram:
        """The form of which ``weights`` float64 [O, K] are the exact minimum: ``(w - w0) G (w - w0)``.

        The input errors of earlier layers are then no longer made up for (section 3.2 of the paper, not 3.3).
        """
        cross = self.times(weights)
        return replace(self, cross=cross, energy=(cross * weights).sum(1))


def collect_gram(
    op: Layer,
    inputs: torch.Tensor | Sequence[torch.Tensor],
    target: torch.Tensor | Sequence[torch.Tensor],
    samples: int = 32768,
    centred: bool = True,
    seed: int = 0,
) -> Gram:
    """Gather the quadratic form of the layer ``op`` from images.

    Parameters
    ----------
    op : a convolution or linear layer
    inputs : float32 [N, ...], what the layer is given (for the asymmetric form: by the quantized layers before it); or several
        such, of sequences of several lengths
    target : float32 [N, ...], or as many, what it shall put out, before its activation
    samples : about how many windows to look at, the same number in every image at places drawn at random
    centred : take the means out, so that the bias is free; else it stays as it is
    seed : of the places

    Raises
    ------
    InputError
        There are no images, or ``inputs`` and ``target`` do not fit each other.
    """
    xs = [inputs] if isinstance(inputs, torch.Tensor) else list(inputs)
    ys = [target] if isinstance(target, torch.Tensor) else list(target)
    images = sum(map(len, xs))
    if images == 0 or list(map(len, xs)) != list(map(len, ys)):
        raise InputError(
            f"A layer's quadratic form needs as many inputs as targets and at least one, got {images} and {sum(map(len, ys))}."
        )
    groups = op.groups if isinstance(op, float_ops.Conv2d) else 1
    outputs, depth = len(op.weight), op.weight[0].size
    wanted = max(1, -(-samples // images))
    generator = np.random.default_rng(seed)
    gram, cross = np.zeros((groups, depth, depth)), np.zeros((outputs, depth))
    sums, target_sums, energy, count = np.zeros((groups, depth)), np.zeros(outputs), np.zeros(outputs), 0
    bias = np.zeros(outputs) if op.bias is None else op.bias.astype(np.float64)
    offset = torch.from_numpy((np.zeros(outputs) if centred else bias).astype(np.float32))
    with torch.no_grad():
        for x, y in _drawn_rows(op, xs, ys, wanted, generator):
            y = y - offset
            by_group = y.reshape(len(y), groups, -1).permute(1, 2, 0)  # [groups, O / groups, samples]
            gram += (x.transpose(1, 2) @ x).numpy()
            cross += (by_group @ x).reshape(outputs, depth).numpy()
            sums += x.sum(1, dtype=torch.float64).numpy()
            target_sums += y.sum(0, dtype=torch.float64).numpy()
            energy += y.double().square().sum(0).numpy()
            count += len(y)
    gram = (gram + gram.transpose(0, 2, 1)) / 2  # the products round a little differently on both sides of the diagonal
    gram, cross, energy, mean, target_mean = (part / count for part in (gram, cross, energy, sums, target_sums))
    if not centred:
        return Gram(gram, cross, energy, np.zeros_like(mean), bias, count)
    gram -= mean[:, :, None] * mean[:, None, :]
    cross -= target_mean[:, None] * np.repeat(mean, outputs // groups, axis=0)
    return Gram(gram, cross, energy - target_mean**2, mean, target_mean, count)


def _drawn_rows(
    op: Layer,
    inputs: Sequence[torch.Tensor],
    targets: Sequence[torch.Tensor],
    wanted: int,
    generator: np.random.Generator,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """`window_rows` at up to ``wanted`` places of each image, for some images at a time."""
    groups = op.groups if isinstance(op, float_ops.Conv2d) else 1
    for x, y in zip(inputs, targets, strict=True):
        positions = int(np.prod(y.shape[2:])) if isinstance(op, float_ops.Conv2d) else int(np.prod(y.shape[1:-1]))
        taken = min(positions, wanted)
        step = max(1, min(len(x), _CHUNK_NUMBERS // (taken * op.weight[0].size * groups)))
        for start in range(0, len(x), step):
            chunk = slice(start, start + step)
            yield window_rows(op, x[chunk], y[chunk], _draw_places(generator, len(x[chunk]), positions, taken))


def window_rows(
    op: Layer, inputs: torch.Tensor, target: torch.Tensor, places: NDArray[np.integer]
) -> tuple[torch.Tensor, torch.Tensor]:
    """What ``op`` multiplies at some ``places`` of its output, and the ``target`` there.

    Parameters
    ----------
    op : a convolution or linear layer
    inputs, target : float32 [n, ...], images and what the layer shall put out
    places : integers [n, p], for each image positions in the output, counted row by row

    Returns
    -------
    windows float32 [groups, n * p, K], elements in the order of the layer's weights; targets float32 [n * p, O]
    """
    index = torch.from_numpy(np.array(places, np.int64))
    images = torch.arange(len(inputs))[:, None]
    if isinstance(op, float_ops.Linear):
        rows = inputs.reshape(len(inputs), -1, inputs.shape[-1])[images, index].flatten(0, 1)
        return rows[None], target.reshape(len(target), -1, target.shape[-1])[images, index].flatten(0, 1)
    if inputs.ndim == 3:  # sequences are images of height 1
        inputs, target = inputs.unsqueeze(2), target.unsqueeze(2)
    (top, bottom), (left, right) = op.padding
    pixels = torch.nn.functional.pad(inputs, (left, right, top, bottom)).permute(0, 2, 3, 1).contiguous()
    _, height, width, channels = pixels.shape
    kernel = op.weight.shape[2:]
    taps = (
        torch.arange(kernel[0])[:, None] * op.dilation[0] * width + torch.arange(kernel[1]) * op.dilation[1]
    ).reshape(-1)
    corners = index // target.shape[3] * op.stride[0] * width + index % target.shape[3] * op.stride[1]
    flat = (images * height * width + corners)[..., None] + taps
    # whole pixels are gathered, which is one copy of C numbers for each tap
    taken = pixels.reshape(-1, channels).index_select(0, flat.reshape(-1))
    windows = taken.reshape(-1, len(taps), op.groups, channels // op.groups).permute(2, 0, 3, 1)
    wanted = target.flatten(2).permute(0, 2, 1)[images, index].flatten(0, 1)
    return windows.reshape(op.groups, index.numel(), -1), wanted


def _draw_places(generator: np.random.Generator, images: int, positions: int, wanted: int) -> NDArray[np.integer]:
    """``wanted`` of all ``positions`` for each image, none twice."""
    every = np.broadcast_to(np.arange(positions), (images, positions))
    return every if wanted == positions else generator.permuted(every, axis=1)[:, :wanted]
