"""A module of sequences as the float graph that it was quantized from, and what the module itself makes of a few sequences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from labkit.errors import LabkitError
from labkit.frontends.onnx.float_graph_module import graph_digest
from labkit.frontends.torch_fx import from_torch, parameters_digest
from labkit.graph import int_ops, passes
from labkit.graph.check_sequences import OPERATIONS_ON_SEQUENCES
from labkit.graph.ir import FloatGraph, IntGraph
from labkit.parity.random_inputs import random_inputs

__all__ = ["Translated", "is_of_sequences", "translated"]

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True, eq=False)
class Translated:
    """A module's float graph.

    graph : simplified
    digests : SHA-256 of the module's parameters, and of those of the graph before it was simplified, from which a net may be made
    inputs, expected : random inputs [3, ...] by input name, and what the module makes of them by the names of the graph's outputs
    """

    graph: FloatGraph
    digests: tuple[str, ...]
    inputs: Tensors
    expected: Tensors


def is_of_sequences(module: nn.Module, graph: IntGraph) -> bool:
    """Whether ``graph`` was made of ``module`` as of a network of sequences, whose linear layers are convolutions of width 1."""
    operations = {node.name: node.op for node in graph}
    linear = [name for name, part in module.named_modules() if isinstance(part, nn.Linear)]
    return any(isinstance(op, OPERATIONS_ON_SEQUENCES) for op in operations.values()) or any(
        isinstance(operations.get(name), int_ops.Conv2d) for name in linear
    )


def translated(module: nn.Module, graph: IntGraph) -> Translated:
    """``module`` for the shapes of its integer ``graph``; it is left as it was.

    Raises
    ------
    UnsupportedOperation, ModelError, InputError
        As `from_torch`.
    """
    given = random_inputs(graph, 3, np.random.default_rng(0))
    refused: LabkitError | None = None
    for mask in (torch.bool, torch.int64):  # the net says which input is a mask, not which type the module takes
        inputs = {name: _as_taken(graph, name, array, mask) for name, array in given.items()}
        examples: Any = inputs if len(inputs) > 1 or _takes_integers(graph) else next(iter(given.values())).shape[1:]
        try:
            raw = from_torch(module, examples)
        except LabkitError as error:
            refused = refused or error
            continue
        results = _run(module, inputs, isinstance(examples, Mapping))
        found, digests = passes.simplify(raw), (parameters_digest(module), graph_digest(raw))
        return Translated(found, digests, inputs, dict(zip(found.outputs, results, strict=False)))
    assert refused is not None
    raise refused


def _takes_integers(graph: IntGraph) -> bool:
    return any(isinstance(graph[name].op, int_ops.Input) for name in graph.inputs)


def _as_taken(graph: IntGraph, name: str, array: Any, mask: torch.dtype) -> torch.Tensor:
    node, tensor = graph[name], torch.from_numpy(array)
    if node.output.is_index:
        return tensor.long()
    return (tensor != 0).to(mask) if isinstance(node.op, int_ops.Input) else tensor


def _run(module: nn.Module, inputs: Tensors, by_name: bool) -> list[torch.Tensor]:
    flags = {part: part.training for part in module.modules()}
    try:
        module.eval()
        with torch.inference_mode():
            y: Any = module(**inputs) if by_name else module(*inputs.values())
    finally:
        for part, flag in flags.items():
            part.training = flag
    return [y] if isinstance(y, torch.Tensor) else [part for part in y if isinstance(part, torch.Tensor)]
