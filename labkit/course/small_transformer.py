"""The transformer of module m11: it reads an image as a sentence of 16 patches, and a notebook trains it in seconds.

One layer as in BERT: attention, then two linear layers with a GELU, each half with a residual and a layer norm after it. Patches
of one colour only are the padding of this language: a mask leaves them out of the attention.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from labkit.data.dataset import DataSet, normalise
from labkit.frontends.float_run import run_float
from labkit.graph import float_ops
from labkit.graph.float_ops import FloatOp, InputKind
from labkit.graph.ir import FloatGraph, FloatNode
from labkit.net import IntegerNet
from labkit.quantization.calibration import GELU_RANGE, Calibration
from labkit.quantization.convert import convert
from labkit.quantization.plan import BitPlan, observed_names

__all__ = ["SIDE", "TOKENS", "PatchTransformer", "graph_of", "patches_of", "quantized", "trained"]

SIDE = 8  # pixels of a patch, in each direction
TOKENS = (32 // SIDE) ** 2  # patches of an image
_FEATURES = 3 * SIDE * SIDE  # numbers of a patch
_WIDTH, _HEADS, _INNER, _CLASSES = 32, 2, 64, 10
_BATCH, _RATE = 128, 1.2e-2

Arrays = dict[str, NDArray[Any]]


def patches_of(images: NDArray[np.float32]) -> Arrays:
    """The patches of ``images``, float32 [N, 3, 32, 32], row by row, as the inputs of the network.

    ``patches`` float32 [N, 192, 16], a column a patch; ``mask`` uint8 [N, 16], 0 for a patch of one colour only.
    """
    across = 32 // SIDE
    apart = images.reshape(len(images), 3, across, SIDE, across, SIDE).transpose(0, 1, 3, 5, 2, 4)
    patches = np.ascontiguousarray(apart.reshape(len(images), _FEATURES, TOKENS), np.float32)
    pixels = patches.reshape(len(images), 3, SIDE * SIDE, TOKENS)
    mask = (pixels.max(axis=2) != pixels.min(axis=2)).any(axis=1)
    return {"patches": patches, "mask": mask.astype(np.uint8)}


class PatchTransformer(nn.Module):
    """The network: 15,626 parameters, 16 tokens of 32 features, two heads, 64 features within the second half."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(_FEATURES, _WIDTH)
        self.positions = nn.Parameter(0.1 * torch.randn(TOKENS, _WIDTH))
        self.norm0 = nn.LayerNorm(_WIDTH, eps=1e-12)
        self.query = nn.Linear(_WIDTH, _WIDTH)
        self.key = nn.Linear(_WIDTH, _WIDTH)
        self.value = nn.Linear(_WIDTH, _WIDTH)
        self.gather = nn.Linear(_WIDTH, _WIDTH)
        self.norm1 = nn.LayerNorm(_WIDTH, eps=1e-12)
        self.up = nn.Linear(_WIDTH, _INNER)
        self.down = nn.Linear(_INNER, _WIDTH)
        self.norm2 = nn.LayerNorm(_WIDTH, eps=1e-12)
        self.head = nn.Linear(_WIDTH, _CLASSES)

    def forward(self, patches: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Logits, float32 [N, 10], for what `patches_of` makes: ``patches`` float32 [N, 192, 16], ``mask`` uint8 [N, 16]."""
        n, inner = len(patches), _WIDTH // _HEADS

        def apart(y: torch.Tensor) -> torch.Tensor:
            return y.reshape(n, TOKENS, _HEADS, inner).transpose(1, 2)

        x = self.norm0(self.embed(patches.transpose(1, 2)) + self.positions)
        scores = apart(self.query(x)) @ apart(self.key(x)).transpose(2, 3) * inner**-0.5
        shares = scores.masked_fill(mask[:, None, None, :] == 0, -1e9).softmax(-1)
        context = (shares @ apart(self.value(x))).transpose(1, 2).reshape(n, TOKENS, _WIDTH)
        x = self.norm1(x + self.gather(context))
        x = self.norm2(x + self.down(F.gelu(self.up(x))))
        logits: torch.Tensor = self.head(x.mean(1))
        return logits


def trained(data: DataSet, epochs: int = 15, images: int = 4000, seed: int = 0) -> PatchTransformer:
    """A `PatchTransformer` trained on the first ``images`` training images of ``data`` for so many ``epochs``, in eval mode.

    It takes about three seconds on one core. The same ``seed`` gives the same network on the same machine.
    """
    before = torch.random.get_rng_state()
    torch.manual_seed(seed)
    module = PatchTransformer()
    given = {n: torch.from_numpy(a) for n, a in patches_of(normalise(data.train_images[:images])).items()}
    labels = torch.from_numpy(data.train_labels[:images].copy())
    steps = len(labels) // _BATCH
    optimizer = torch.optim.AdamW(module.parameters(), lr=_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=epochs * steps)
    for _ in range(epochs):
        order = torch.randperm(len(labels))
        for step in range(steps):
            rows = order[step * _BATCH : (step + 1) * _BATCH]
            loss = F.cross_entropy(module(given["patches"][rows], given["mask"][rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    torch.random.set_rng_state(before)
    return module.eval()


def graph_of(module: PatchTransformer) -> FloatGraph:
    """The same network as a `FloatGraph`, tokens last: inputs ``patches`` (192, 16) and ``mask`` (16,), output ``head``."""
    inner = _WIDTH // _HEADS

    def norm(layer: nn.LayerNorm) -> float_ops.LayerNorm:
        return float_ops.LayerNorm(_array(layer.weight), _array(layer.bias), layer.eps)

    nodes: list[tuple[str, FloatOp, tuple[str, ...]]] = [
        ("patches", float_ops.Input((_FEATURES, TOKENS)), ()),
        ("mask", float_ops.Input((TOKENS,), InputKind.MASK), ()),
        ("embed", _pointwise(module.embed), ("patches",)),
        ("positions", float_ops.Constant(np.ascontiguousarray(_array(module.positions).T)), ()),
        ("placed", float_ops.Add(), ("embed", "positions")),
        ("norm0", norm(module.norm0), ("placed",)),
        ("tokens", float_ops.Rescale(), ("norm0",)),
    ]
    for name in ("query", "key", "value"):
        nodes.append((name, _pointwise(getattr(module, name)), ("tokens",)))
        nodes.append((f"{name}_heads", float_ops.Reshape((_HEADS, inner, TOKENS)), (name,)))
    nodes += [
        ("scores", float_ops.MatMul(transpose_a=True, factor=inner**-0.5), ("query_heads", "key_heads")),
        ("shares", float_ops.MaskedSoftmax(), ("scores", "mask")),
        ("context", float_ops.MatMul(transpose_b=True), ("value_heads", "shares")),
        ("joined", float_ops.Reshape((_WIDTH, TOKENS)), ("context",)),
        ("gather", _pointwise(module.gather), ("joined",)),
        ("sum1", float_ops.Add(), ("norm0", "gather")),
        ("norm1", norm(module.norm1), ("sum1",)),
        ("tokens1", float_ops.Rescale(), ("norm1",)),
        ("up", _pointwise(module.up), ("tokens1",)),
        ("gelu", float_ops.Gelu(), ("up",)),
        ("down", _pointwise(module.down), ("gelu",)),
        ("sum2", float_ops.Add(), ("norm1", "down")),
        ("norm2", norm(module.norm2), ("sum2",)),
        ("tokens2", float_ops.Rescale(), ("norm2",)),
        ("mean", float_ops.AveragePool2d((1, TOKENS), (1, TOKENS), ((0, 0), (0, 0))), ("tokens2",)),
        ("flat", float_ops.Flatten(), ("mean",)),
        ("head", float_ops.Linear(_array(module.head.weight), _array(module.head.bias)), ("flat",)),
    ]
    return FloatGraph(tuple(FloatNode(name, op, inputs) for name, op, inputs in nodes), ("head",))


def quantized(
    graph: FloatGraph, inputs: Mapping[str, NDArray[Any]], weights: int = 8, activations: int = 8
) -> IntegerNet:
    """The integer network of ``graph``, made by `graph_of`; ranges are the extremes on ``inputs``, made by `patches_of`.

    ``inputs`` are float32 and uint8 arrays of the shapes [N, 192, 16] and [N, 16] by name. ``weights`` and ``activations`` are
    bits; between the layers an activation has 16. What the GELU takes gets a range of at least -8.2..8.2, which its polynomial
    needs (docs/arithmetic.md, eq. 48).
    """
    seen = run_float(graph, dict(inputs))
    ranges = {name: (float(seen[name].min()), float(seen[name].max())) for name in observed_names(graph)}
    low, high = ranges["up"]
    ranges["up"] = (min(low, -GELU_RANGE), max(high, GELU_RANGE))
    calibration = Calibration({}, ranges, "minmax", len(inputs["mask"]))
    return IntegerNet(convert(graph, calibration, BitPlan.uniform(graph, weights, activations)))


def _array(parameter: torch.Tensor) -> NDArray[np.float32]:
    found: NDArray[np.float32] = parameter.detach().numpy()
    return found


def _pointwise(layer: nn.Linear) -> float_ops.Conv2d:
    """A linear layer on each token."""
    weight = _array(layer.weight)[:, :, None, None]
    return float_ops.Conv2d(weight, _array(layer.bias), (1, 1), ((0, 0), (0, 0)), (1, 1), 1)
