"""Whether a translated network still computes what the module computes: tried on two random images, in float.

A trace records operations, not side effects: a ReLU in place that changes a tensor which something else reads, a hook, a
subclass with a forward of its own. None of them shows in a graph, all of them show in its numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx, nn

from labkit.errors import UnsupportedOperation
from labkit.frontends.float_run import run_float
from labkit.frontends.torch_nodes import flat
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


def check_faithful(
    graph: FloatGraph,
    traced: fx.GraphModule,
    names: dict[fx.Node, str],
    x: torch.Tensor,
    expected: Sequence[torch.Tensor],
) -> None:
    """Compare ``graph`` with the module that it was translated from.

    Parameters
    ----------
    graph : the translation
    traced : the trace that it was made from, to name the first node that differs
    names : of the traced nodes
    x, expected : float32 images [2, ...] and what the module itself makes of them

    Raises
    ------
    UnsupportedOperation
        They do not compute the same; the first node that differs is named.
    """
    (only_input,) = graph.inputs  # a module of several inputs has already failed on the one that it was given
    outputs = run_float(graph, {only_input: x.numpy()}, only_outputs=True)
    if all(is_close(outputs[name], y) for name, y in zip(graph.outputs, expected, strict=True)):
        return
    results = run_float(graph, {only_input: x.numpy()})  # every tensor at once, which large networks are spared above
    seen = _Keeper(traced)
    seen.run(x.clone())
    wrong = [names[node] for node in traced.graph.nodes if names[node] in results and node in seen.values]
    first = next((n for n in wrong if not is_close(results[n], seen.values[seen.by_name(names, n)])), graph.outputs[0])
    raise UnsupportedOperation(
        f"{first}: the module computes something else here than its operations say: a tensor is changed in place that is "
        f"read again, a hook is at work, or a layer's class has a forward of its own. Write it without inplace=True and "
        f"without hooks, with the layers of torch.nn themselves."
    )


def batch_fault(module: nn.Module, x: torch.Tensor) -> str | None:
    """What is wrong where ``module`` works for the images ``x`` only because of their number; None where it does not.

    ``x`` float32 [N, ...]; one image more is tried. ``module`` is in inference mode.
    """
    more = torch.cat([x, x[:1]])
    try:
        results = [y for y in flat(module(more.clone())) if isinstance(y, torch.Tensor)]
    except Exception as error:  # of whatever its forward calls
        return str(error).partition("\n")[0].rstrip(".")
    follows = all(y.ndim > 0 and len(y) == len(more) for y in results)
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

    def by_name(self, names: dict[fx.Node, str], name: str) -> fx.Node:
        """The node called ``name`` in ``names``."""
        return next(node for node in self.values if names[node] == name)

    def run_node(self, n: fx.Node) -> object:
        result = super().run_node(n)
        if isinstance(result, torch.Tensor):
            self.values[n] = result.detach().clone()
        return result
