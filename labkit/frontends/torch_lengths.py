"""Whether a module computes at another length what its translation, cut to that length, computes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from labkit.errors import ModelError
from labkit.frontends.faithful import is_close
from labkit.frontends.float_run import run_float
from labkit.frontends.torch_inputs import Examples, examples_of, tried_inputs
from labkit.frontends.torch_nodes import flat
from labkit.graph.ir import FloatGraph
from labkit.graph.lengths import at_length, length_of

__all__ = ["check_length"]


def check_length(module: nn.Module, graph: FloatGraph, examples: Mapping[str, Any]) -> None:
    """Compare ``module`` with ``graph``, its translation for longer sequences, on random inputs like ``examples``.

    ``examples`` are arrays [N, ..., T] by input name. The module is left in the mode in which it was.

    Raises
    ------
    ModelError
        They do not compute the same: positions are counted from the end, or numbers depend on the length. Or an operation
        cannot be had at another length.
    """
    given = examples_of(module, examples)
    length = next(iter(given.tensors.values())).shape[-1]
    cut = at_length(graph, length)
    tried = tried_inputs(cut, given)
    flags = {part: part.training for part in module.modules()}
    try:
        module.eval()
        with torch.no_grad():
            found = Examples(tried, given.shape, given.by_name).run(module)
    finally:
        for part, flag in flags.items():
            part.training = flag
    expected = [y for y in flat(found) if isinstance(y, torch.Tensor)]
    try:
        outputs = run_float(cut, {name: x.numpy() for name, x in tried.items()}, only_outputs=True)
        same = all(is_close(outputs[name], y) for name, y in zip(cut.outputs, expected, strict=True))
    except RuntimeError:  # shapes that do not fit any more
        same = False
    if not same:
        raise ModelError(
            f"For {length} tokens {type(module).__name__} computes something else than the network made for {length_of(graph)} "
            f"tokens and cut to {length}: its positions do not begin with the first, a constant has the length on two axes, or a "
            f"number depends on the length. Calibrate on sequences of one length, and make a network for each length."
        )
