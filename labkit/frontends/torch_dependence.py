"""On which inputs the value of each traced tensor depends, and what is known of it without them.

A tensor that depends on no input's values (positions, sinusoids, a table of one token type) is a constant of the network. One
that depends on masks alone is no tensor of the network either: it says which elements of a softmax take part, and is
recognised by what it holds, however it is written.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import fx

from labkit.frontends.torch_nodes import is_tensor

__all__ = ["adds_mask", "constant_of", "depends_on", "hides", "note_constant", "note_dependence"]

# Of their first argument they take the shape, the type or the device only.
_SHAPE_OF_FIRST = {
    *(torch.zeros_like, torch.ones_like, torch.full_like, torch.empty_like),
    *("new_zeros", "new_ones", "new_full", "new_tensor", "new_empty", "size", "dim", "numel"),
}
# Of what follows their first argument they take the shape, the type or the device only.
_VALUE_OF_FIRST = {"expand_as", "view_as", "reshape_as", "type_as"}
_ATTRIBUTES = {"shape", "dtype", "device", "ndim"}
_HIDDEN = -1e3  # e to the power of it is 0 in float32


def note_dependence(traced: fx.GraphModule) -> None:
    """Note at every node of ``traced`` the placeholders on whose values its result depends."""
    for node in traced.graph.nodes:
        if node.op == "placeholder":
            node.meta["depends"] = frozenset({node})
        else:
            node.meta["depends"] = frozenset().union(*(n.meta["depends"] for n in _read(node)))


def depends_on(node: fx.Node) -> frozenset[fx.Node]:
    """The placeholders that `note_dependence` found for ``node``."""
    found: frozenset[fx.Node] = node.meta["depends"]
    return found


def note_constant(node: fx.Node, result: Any) -> None:
    """Keep the ``result`` of ``node`` if it is a tensor that depends on no input."""
    if isinstance(result, torch.Tensor) and not depends_on(node):
        node.meta["constant"] = result.detach() if node.op == "get_attr" else result.detach().clone()


def constant_of(node: fx.Node) -> torch.Tensor | None:
    """What ``node`` always holds, of its shape and dtype for the two images of the trace; None where it depends on an input."""
    found: torch.Tensor | None = node.meta.get("constant")
    return found


def adds_mask(traced: fx.GraphModule, node: fx.Node, shape: tuple[int, ...]) -> fx.Node | None:
    """The mask that ``node`` of ``traced`` adds to scores of ``shape`` (N, ..., n), or None.

    It must be 0 where the mask, (N, n), is 1, and so low where it is 0 that a softmax gives 0.
    """

    def is_hidden(values: torch.Tensor, mask: torch.Tensor) -> bool:
        return bool(((values == 0) & mask | (values <= _HIDDEN) & ~mask).all())

    return _mask_that(traced, node, shape, is_hidden)


def hides(traced: fx.GraphModule, node: fx.Node, shape: tuple[int, ...], where: bool) -> fx.Node | None:
    """The mask (N, n) that is 0 just where ``node`` of ``traced``, made ``shape`` (N, ..., n), is ``where``; or None."""
    return _mask_that(traced, node, shape, lambda values, mask: bool(((values.to(torch.bool) == where) == ~mask).all()))


def _mask_that(traced: fx.GraphModule, node: fx.Node, shape: tuple[int, ...], fits: Any) -> fx.Node | None:
    """The one placeholder on which ``node`` depends, if ``fits`` says so for many masks."""
    sources = depends_on(node)
    if len(sources) != 1:
        return None
    (source,) = sources
    if tuple(source.meta["shape"]) != (shape[0], shape[-1]):
        return None
    for mask in _masks(shape[0], shape[-1]):
        values = _evaluated(traced, node, {source: mask.to(source.meta["dtype"])})
        try:
            values = values.expand(shape)
        except RuntimeError:
            return None
        if not fits(values, mask.reshape(shape[0], *(1,) * (len(shape) - 2), shape[-1])):
            return None
    return source


def _masks(rows: int, length: int) -> Iterable[torch.Tensor]:
    """Masks, bool [rows, length]: of ones, and at random."""
    yield torch.ones(rows, length, dtype=torch.bool)
    generator = torch.Generator().manual_seed(1)
    for share in (0.2, 0.5, 0.8):
        yield torch.rand(rows, length, generator=generator) < share


def _evaluated(traced: fx.GraphModule, node: fx.Node, known: dict[fx.Node, torch.Tensor]) -> Any:
    """The value of ``node`` where placeholders have the values ``known``; what depends on none has been noted."""
    found: dict[fx.Node, Any] = dict(known)
    run = fx.Interpreter(traced)

    def value(n: fx.Node) -> Any:
        if n not in found:
            constant = constant_of(n)
            if constant is not None:
                found[n] = constant
            elif not is_tensor(n) and not depends_on(n):
                found[n] = n.meta["value"]
            else:
                args, kwargs = fx.map_arg((n.args, n.kwargs), value)
                found[n] = getattr(run, n.op)(n.target, args, kwargs)
        return found[n]

    with torch.no_grad():
        return value(node)


def _read(node: fx.Node) -> list[fx.Node]:
    """The nodes whose values ``node`` takes."""
    target: Any = node.target
    if target is getattr and node.args[1] in _ATTRIBUTES:
        return []
    taken: list[fx.Node] = []
    parts = [*node.args, *node.kwargs.values()]
    if target in _SHAPE_OF_FIRST:
        parts = parts[1:]
    elif target in _VALUE_OF_FIRST:
        parts = parts[:1]
    fx.map_arg(parts, lambda n: taken.append(n))
    return taken
