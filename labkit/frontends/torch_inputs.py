"""What a module is tried with: images of noise for a shape, or sentences like an example."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from labkit.errors import InputError
from labkit.frontends.faithful import probe
from labkit.graph import float_ops
from labkit.graph.float_ops import InputKind
from labkit.graph.ir import FloatGraph

__all__ = ["Examples", "examples_of", "tried_inputs"]


@dataclass(frozen=True, eq=False)
class Examples:
    """Tensors of two rows by the names of the forward method's arguments; ``shape`` for errors.

    by_name : whether the user named them; else there is one, which is handed in by position.
    """

    tensors: Mapping[str, torch.Tensor]
    shape: str
    by_name: bool

    def run(self, module: nn.Module) -> Any:
        """What ``module`` makes of copies of them."""
        copies = {name: tensor.clone() for name, tensor in self.tensors.items()}
        return module(**copies) if self.by_name else module(*copies.values())

    def in_order(self, traced: fx.GraphModule) -> list[torch.Tensor]:
        """Copies of them, of the same shapes and dtypes, in the order in which ``traced`` takes them."""
        wanted = [str(node.target) for node in traced.graph.nodes if node.op == "placeholder"]
        if not self.by_name:
            return [tensor.clone() for tensor in self.tensors.values()]
        return [self.tensors[name].clone() for name in wanted]

    def with_one_more(self) -> Examples:
        """The same with the first row once more at the end."""
        more = {name: torch.cat([tensor, tensor[:1]]) for name, tensor in self.tensors.items()}
        return Examples(more, self.shape, self.by_name)


def examples_of(module: nn.Module, inputs: tuple[int, ...] | Mapping[str, Any]) -> Examples:
    """Examples for ``module``: ``inputs`` is a shape without the batch axis, or arrays [N, ...] by argument.

    Raises
    ------
    InputError
        An array is no tensor with a batch axis of real numbers, integers or booleans.
    """
    if not isinstance(inputs, Mapping):
        parameters = list(inspect.signature(module.forward).parameters)
        name = parameters[0] if parameters else "input"
        return Examples({name: probe(tuple(inputs))}, str(("N", *inputs)), by_name=False)
    generator = torch.Generator().manual_seed(0)
    tensors = {name: _like(name, value, generator) for name, value in inputs.items()}
    if not tensors:
        raise InputError("There is no example input. Hand in arrays by the names of the forward method's arguments.")
    shapes = ", ".join(f"{name} {('N', *tensor.shape[1:])}" for name, tensor in tensors.items())
    return Examples(tensors, shapes, by_name=True)


def _like(name: str, value: Any, generator: torch.Generator) -> torch.Tensor:
    """Two rows like ``value``: normal noise for real numbers, else numbers that it holds."""
    try:
        given = value.detach().cpu() if isinstance(value, torch.Tensor) else torch.from_numpy(np.asarray(value))
    except (TypeError, ValueError) as error:  # None, lists of several lengths
        raise InputError(
            f"{name}: an example is an array [N, ...] of real numbers, integers or booleans, got {type(value).__name__} "
            f"({str(error).partition('.')[0]})."
        ) from error
    if given.ndim < 2 or given.numel() == 0 or given.is_complex():
        raise InputError(
            f"{name}: an example is an array [N, ...] of real numbers, integers or booleans, got {given.dtype} "
            f"{tuple(given.shape)}."
        )
    if given.is_floating_point():
        return torch.randn(2, *given.shape[1:], generator=generator)
    held = given.reshape(-1)
    return held[torch.randint(len(held), (2, *given.shape[1:]), generator=generator)]


def tried_inputs(graph: FloatGraph, examples: Examples, images: int = 3) -> dict[str, torch.Tensor]:
    """Inputs [images, ...] on which ``graph`` and its module are compared, in the order of its inputs: any rows, any masks.

    ``examples`` tell the dtypes that the module takes.
    """
    generator = torch.Generator().manual_seed(2)
    found = {}
    for name in graph.inputs:
        argument = name if examples.by_name else next(iter(examples.tensors))
        op = graph[name].op
        assert isinstance(op, float_ops.Input)
        shape = (images, *op.shape)
        if op.kind is InputKind.REAL:
            values = torch.randn(shape, generator=generator)
        elif op.kind is InputKind.INDEX:
            tables = [n.op for n in graph.consumers(name) if isinstance(n.op, float_ops.Embedding)]
            rows = min((len(table.weight) for table in tables), default=1)
            values = torch.randint(rows, shape, generator=generator)
        else:
            values = torch.rand(shape, generator=generator) < 0.6
            values[:, torch.randint(shape[1], (1,), generator=generator)] = True
        found[argument] = values.to(examples.tensors[argument].dtype)
    return found
