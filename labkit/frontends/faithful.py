"""Whether a translated network still computes what the module computes: tried on two random images, in float.

A trace records operations, not side effects: a ReLU in place that changes a tensor which something else reads, a hook, a
subclass with a forward of its own. None of them shows in a graph, all of them show in its numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx, nn

from labkit.errors import UnsupportedOperation
from labkit.frontends.float_run import run_float
from labkit.frontends.torch_nodes import flat
from labkit.frontends.torch_views import View
from labkit.graph.ir import FloatGraph

__all__ = ["TOLERANCE", "batch_fault", "check_batch", "check_faithful", "is_close", "probe"]

TOLERANCE = 1e-3  # of the largest value: float32 sums in another order stay far below it, another function does not


def probe(input_shape: tuple[int, ...]) -> torch.Tensor:
    """Two images of seeded normal noise, float32 [2, *input_shape]: two, so that a reshape that mixes images shows."""
    return torch.randn(2, *input_shape, generator=torch.Generator().manual_seed(0))


def is_close(got: NDArray[np.floating] | torch.Tensor, expected: NDArray[np.floating] | torch.Tensor) -> bool:
    """Whether ``got`` and ``expected``, float arrays, have one shape and differ by at most `TOLERANCE` of the largest."""
    a, b = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    if a.shape != b.shape:
        return False
    a, b = np.nan_to_num(a), np.nan_to_num(b)
    return bool(np.abs(a - b).max(initial=0.0) <= TOLERANCE * np.abs(b).max(initial=0.0) + 1e-6)


class _Tried(Protocol):
    """Inputs that a module can be run on."""

    def run(self, module: nn.Module) -> Any:
        """What ``module`` makes of them."""

    def with_one_more(self) -> _Tried:
        """The same with one row more."""

    @property
    def tensors(self) -> Mapping[str, torch.Tensor]:
        """Each input [N, ...]."""


def check_faithful(
    graph: FloatGraph,
    traced: fx.GraphModule,
    names: dict[fx.Node, str],
    inputs: Sequence[torch.Tensor],
    expected: Sequence[torch.Tensor],
    views: Mapping[fx.Node, View] | None = None,
) -> None:
    """Compare ``graph`` with the module that it was translated from.

    Parameters
    ----------
    graph : the translation
    traced : the trace that it was made from, to name the first node that differs
    names : of the traced nodes
    inputs, expected : what goes in, [N, ...] in order and of its own dtype, and what the module itself makes of it
    views : what each traced tensor is in the graph; where it is left out, the node of its name

    Raises
    ------
    UnsupportedOperation
        They do not compute the same; the first node that differs is named.
    """
    given = {name: x.numpy() for name, x in zip(graph.inputs, inputs, strict=True)}
    outputs = run_float(graph, given, only_outputs=True)
    if all(is_close(outputs[name], y) for name, y in zip(graph.outputs, expected, strict=True)):
        return
    results = run_float(graph, given)  # every tensor at once, which large networks are spared above
    seen = _Keeper(traced)
    first = graph.outputs[0]
    try:
        seen.run(*(x.clone() for x in inputs))
    except RuntimeError:  # the trace is for two images, these are three: the module itself took them
        seen.values.clear()
    for node, value in seen.values.items():
        name = names[node] if views is None else views[node].name if node in views and views[node].is_plain else ""
        if name in results:
            result = results[name] if views is None else results[name].transpose(0, *(1 + a for a in views[node].axes))
            if not is_close(result, value):
                first = names[node]
                break
    raise UnsupportedOperation(
        f"{first}: the module computes something else here than its operations say: a tensor is changed in place that is "
        f"read again, a hook is at work, or a layer's class has a forward of its own. Write it without inplace=True and "
        f"without hooks, with the layers of torch.nn themselves."
    )


def batch_fault(module: nn.Module, examples: _Tried) -> str | None:
    """What is wrong where ``module`` works for its ``examples`` only because of their number; None where it does not.

    One image more is tried. ``module`` is in inference mode.
    """
    more = examples.with_one_more()
    images = len(next(iter(more.tensors.values())))
    try:
        results = [y for y in flat(more.run(module)) if isinstance(y, torch.Tensor)]
    except Exception as error:  # of whatever its forward calls
        return str(error).partition("\n")[0].rstrip(".")
    follows = all(y.ndim > 0 and len(y) == images for y in results)
    return None if follows else "its results do not have as many rows as there are images"


def check_batch(name: str, fault: str | None) -> None:
    """Refuse a module with a ``fault`` of `batch_fault`; ``name`` is that of its first output.

    Raises
    ------
    UnsupportedOperation
        There is a fault.
    """
    if fault is not None:
        raise UnsupportedOperation(
            f"{name}: the module works for batches of 2 images and not for 3 ({fault}): it names the size of the batch as a "
            f"number. Write x.reshape(x.size(0), ...) or x.flatten(1)."
        )


class _Keeper(fx.Interpreter):
    """Runs a traced module and keeps a copy of what each node put out at the time."""

    def __init__(self, traced: fx.GraphModule) -> None:
        super().__init__(traced)
        self.values: dict[fx.Node, torch.Tensor] = {}

    def run_node(self, n: fx.Node) -> object:
        result = super().run_node(n)
        if isinstance(result, torch.Tensor):
            self.values[n] = result.detach().clone()
        return result
