"""Slices of the input that are scaled, shifted and joined again: found in a trace, and measured by running them.

Written independently of the front end: there the constants are read off the calls, here they are what the calls do to numbers.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

__all__ = ["ChannelMap", "channel_map"]

_JOINS = (torch.cat, torch.concat)
_ONE_CHANNEL = (operator.getitem, torch.unsqueeze, "unsqueeze")
_WITH_A_NUMBER = (operator.mul, torch.mul, "mul", operator.add, torch.add, "add")
_LARGE = 2.0**200  # a shift that is added to it lies below its last bit


@dataclass(frozen=True, eq=False)
class ChannelMap:
    """``gain[c] * source[:, c] + shift[c]``: float64 [C] each; ``parts`` are the traced nodes in between."""

    source: fx.Node
    gain: torch.Tensor
    shift: torch.Tensor
    parts: frozenset[fx.Node]


def channel_map(join: fx.Node) -> ChannelMap | None:
    """The map of the network's input that ends in the traced node ``join``; None where it is no such map."""
    if join.target not in _JOINS or len(join.meta.get("shape", ())) != 4:
        return None
    parts: dict[fx.Node, None] = {}
    sources: set[fx.Node] = set()
    waiting = list(join.all_input_nodes)
    while waiting:
        node = waiting.pop()
        if node.op == "placeholder":
            sources.add(node)
        elif node.target in _ONE_CHANNEL or (node.target in _WITH_A_NUMBER and len(node.all_input_nodes) == 1):
            parts[node] = None
            waiting += node.all_input_nodes
        else:
            return None
    if len(sources) != 1 or not any(node.target is operator.getitem for node in parts):
        return None
    (source,) = sources
    if source.meta["shape"] != join.meta["shape"] or any(
        user is not join and user not in parts for p in parts for user in p.users
    ):
        return None
    gain, shift = _measured(join, source, parts)
    return None if gain is None else ChannelMap(source, gain, shift, frozenset(parts))


def _measured(join: fx.Node, source: fx.Node, parts: dict[fx.Node, None]) -> tuple[torch.Tensor | None, torch.Tensor]:
    """What ``join`` makes of an image of zeros, and of images in which one channel is 2**200; None where channels mix."""
    channels = int(source.meta["shape"][1])
    images = torch.cat(
        [torch.zeros(1, channels, dtype=torch.float64), torch.eye(channels, dtype=torch.float64) * _LARGE]
    )
    values: dict[fx.Node, Any] = {source: images.reshape(-1, channels, 1, 1)}
    for node in join.graph.nodes:
        if node in parts or node is join:
            args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), lambda n: values[n])
            method = node.op == "call_method"
            values[node] = (
                getattr(args[0], node.target)(*args[1:], **kwargs) if method else node.target(*args, **kwargs)
            )
    result = values[join].reshape(channels + 1, channels)
    shift, large = result[0], result[1:]
    others = ~torch.eye(channels, dtype=torch.bool)
    mixes = bool((large[others] != shift.expand(channels, channels)[others]).any())
    return (None if mixes else large.diagonal() / _LARGE), shift
