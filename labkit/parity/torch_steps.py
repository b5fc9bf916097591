"""The quantized operations that an emulation consists of, whatever they were found in: a traced module or a float graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

__all__ = ["KEEPS_SCALE", "DecidedWeights", "Real", "Step", "one_by_one"]

KEEPS_SCALE = ("same", "shape", "pad")
Real = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, eq=False)
class DecidedWeights:
    """Weights that a rounding method decided.

    integers : int64 [O, ...]
    scale, zero_point : float32 and int64, [O] or ()
    grid : smallest and largest integer
    bias : float32 [O]
    """

    integers: torch.Tensor
    scale: torch.Tensor
    zero_point: torch.Tensor
    grid: tuple[int, int]
    bias: torch.Tensor


@dataclass(eq=False)
class Step:
    """One quantized operation: what it stands for, how it acts on numbers, and what was derived for it.

    name, kind, inputs : its node's name; its kind, as `torch_kinds.kind_of` or `emulate_sequences` name it; names of steps
    source : the traced node or the float operation that it stands for
    activation : "relu", "relu6" or nothing
    shape : of its result, without the batch axis, where that is needed
    act : its own operation on real or whole numbers, where PyTorch has one that takes a single tensor
    products : its sums of products, from an input and weights in float64
    dim, keepdim : the axis of a softmax or argmax, the batch axis counted
    weight, bias, vanished : float32 [O, ...], [O] and bool [O]: channels that are gone
    window, areas : elements of each window of a mean; int64, where they differ
    scale, zero_point, grid, clamp : of its result
    parameters : all numbers that decide its result, by name
    """

    name: str
    kind: str
    inputs: list[str]
    source: Any
    activation: str = ""
    shape: tuple[int, ...] = ()
    act: Real | None = None
    products: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None
    dim: int = 1
    keepdim: bool = True
    weight: torch.Tensor = field(default_factory=lambda: torch.zeros(0))
    bias: torch.Tensor = field(default_factory=lambda: torch.zeros(0))
    vanished: torch.Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))
    window: int = 1
    areas: torch.Tensor = field(default_factory=lambda: torch.ones((), dtype=torch.int64))
    scale: torch.Tensor = field(default_factory=lambda: torch.tensor(1.0))
    zero_point: int = 0
    grid: tuple[int, int] = (0, 255)
    clamp: tuple[int, int] = (0, 255)
    parameters: dict[str, torch.Tensor] = field(default_factory=dict)

    def acted(self, x: torch.Tensor) -> torch.Tensor:
        """Its own operation on ``x``, float64 [N, ...]."""
        assert self.act is not None
        return self.act(x)

    def summed(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Sums of products of ``x`` [N, ...] and ``weight`` in float64: exact for integers, which stay far below 2**53."""
        assert self.products is not None
        return self.products(x, weight)


def one_by_one(
    steps: Mapping[str, Step], compute: Callable[[Step, dict[str, torch.Tensor]], torch.Tensor]
) -> Iterator[tuple[str, torch.Tensor]]:
    """The name of each of ``steps`` and what ``compute`` makes of it and of the results so far, [N, ...] of its own dtype.

    What no later step takes is let go.
    """
    last_use = {name: step.name for step in steps.values() for name in step.inputs}
    results: dict[str, torch.Tensor] = {}
    for step in steps.values():
        with torch.inference_mode():
            results[step.name] = compute(step, results)
        yield step.name, results[step.name]
        for name in {*step.inputs, step.name}:
            if last_use.get(name, step.name) == step.name:
                del results[name]
