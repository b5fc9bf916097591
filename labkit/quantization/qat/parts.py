"""Where the layers of a graph have their parameters in the module that it was traced from."""

from __future__ import annotations

from typing import Any

from torch import nn

from labkit.errors import ModelError
from labkit.graph import float_ops
from labkit.graph.ir import FloatGraph

__all__ = ["check_parts", "submodule"]


def submodule(module: nn.Module, name: str) -> Any:
    """The part of ``module`` that the graph's node ``name`` stands for.

    Raises
    ------
    ModelError
        There is no such part: a layer is called more than once.
    """
    try:
        return module.get_submodule(name)
    except AttributeError as error:
        raise ModelError(
            f"{name}: {type(module).__name__} has no submodule of that name. A layer that is called more than once cannot be "
            f"fine-tuned; give each call a layer of its own."
        ) from error


def check_parts(module: nn.Module, raw: FloatGraph) -> None:
    """Refuse a ``module`` whose layers, as its graph ``raw`` has them, cannot take new parameters.

    Raises
    ------
    ModelError
        A layer is called more than once or shares its weight, a batch norm has no gain, shift or statistics of its own, or the
        network does not end in one tensor of logits.
    """
    if len(raw.outputs) != 1 or isinstance(raw[raw.outputs[0]].op, float_ops.Softmax | float_ops.ArgMax):
        raise ModelError(
            f"Fine-tuning needs a network with one output, its logits; {type(module).__name__} ends in "
            f"{', '.join(f'{name} ({type(raw[name].op).__name__})' for name in raw.outputs)}. Leave out a softmax or argmax at "
            f"the end, which the loss has itself."
        )
    owners: dict[int, str] = {}
    for node in raw:
        if isinstance(node.op, float_ops.Conv2d | float_ops.Linear):
            weight = submodule(module, node.name).weight
            other = owners.setdefault(id(weight), node.name)
            if other != node.name:
                raise ModelError(
                    f"{node.name}: it shares its weight with {other}, and the two would be trained apart. Give each a weight "
                    f"of its own."
                )
        elif isinstance(node.op, float_ops.BatchNorm2d) and _follows_layer(raw, node.inputs[0]):
            norm = submodule(module, node.name)
            held = [getattr(norm, key, None) for key in ("weight", "bias", "running_mean", "running_var")]
            if any(value is None for value in held):
                raise ModelError(
                    f"{node.name}: a batch norm without gain and shift, or without running statistics, cannot be fine-tuned. "
                    f"Make it with affine=True and track_running_stats=True."
                )


def _follows_layer(raw: FloatGraph, name: str) -> bool:
    return isinstance(raw[name].op, float_ops.Conv2d | float_ops.Linear)
