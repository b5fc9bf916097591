"""Networks over sequences (N, T, D), transformers among them, as a `FloatGraph` over (D, T).

Each traced tensor is a `View` of a node's result; the translators take views and give views. What is not particular to sequences
is left to the tables of `torch_calls`, which see every axis where PyTorch has it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import fx, nn

from labkit.errors import UnsupportedOperation
from labkit.frontends import torch_attention, torch_moves, torch_sums
from labkit.frontends.torch_dependence import constant_of, depends_on
from labkit.frontends.torch_layers import gelu
from labkit.frontends.torch_nodes import argument, array_of, flat, is_tensor, shape_of, source_of
from labkit.frontends.torch_translation import Others, Translation
from labkit.frontends.torch_views import View
from labkit.graph import float_ops
from labkit.graph.ir import FloatGraph

__all__ = ["is_sequence_network", "sequence_graph"]

_PRODUCTS: tuple[Any, ...] = (operator.matmul, torch.matmul, torch.bmm, "matmul", "bmm")
_ATTENTION = F.scaled_dot_product_attention
_OF_SEQUENCES = (F.layer_norm, F.embedding, F.linear, _ATTENTION, *_PRODUCTS)
_WHOLE_TRANSFORMERS = (
    *(nn.TransformerEncoderLayer, nn.TransformerEncoder, nn.TransformerDecoderLayer),
    *(nn.TransformerDecoder, nn.Transformer),
)
_ELEMENTWISE: tuple[Any, ...] = (nn.ReLU, nn.ReLU6, nn.GELU, F.relu, F.relu6, F.gelu, torch.relu, "relu", "relu_")
_SAME: tuple[Any, ...] = (
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Identity, F.dropout),
    *("contiguous", "clone", "detach", "float", "to", "type_as"),
)


def is_sequence_network(traced: fx.GraphModule) -> bool:
    """Whether ``traced`` has operations that only sequences have, or takes anything but one tensor of real numbers."""
    inputs = [node for node in traced.graph.nodes if node.op == "placeholder" and is_tensor(node)]
    if len(inputs) != 1 or inputs[0].meta["dtype"] is not torch.float32:
        return True
    for node in traced.graph.nodes:
        if node.op == "call_module":
            part = traced.get_submodule(str(node.target))
            on_tokens = isinstance(part, nn.Linear) and is_tensor(node) and len(shape_of(node)) == 3
            if on_tokens or isinstance(part, (nn.Embedding, nn.LayerNorm, nn.MultiheadAttention, *_WHOLE_TRANSFORMERS)):
                return True
        elif node.target in _OF_SEQUENCES and node.op in ("call_function", "call_method"):
            return True
    return False


def sequence_graph(
    traced: fx.GraphModule, names: Mapping[fx.Node, str], others: Others
) -> tuple[FloatGraph, dict[fx.Node, View]]:
    """The graph of ``traced``, and what became of each of its tensors.

    Parameters
    ----------
    traced : by `torch_fx.trace_module`
    names : of its nodes
    others : translates what this module does not: an operation and the nodes that it takes, for a node, its name and the tensors
        that go in

    Raises
    ------
    UnsupportedOperation
        An operation has no integer form here; the message names its node and says what to do.
    """
    made = Translation(traced, names, others)
    outputs: list[str] = []
    for node in traced.graph.nodes:
        if node.op == "output":
            outputs = [made.leave(n) for n in flat(node.args[0]) if isinstance(n, fx.Node)]
        elif is_tensor(node) or node.op == "call_module":
            _translate(made, node, names[node])
    return made.builder.graph(outputs), made.views


def _translate(t: Translation, node: fx.Node, name: str) -> None:
    if node.op == "placeholder":
        t.enter(node, name)
    elif is_tensor(node) and (constant_of(node) is not None or depends_on(node) <= t.masks):
        return  # it is looked at where it is used
    elif (view := _call(t, node, name)) is not None:
        t.views[node] = view


def _call(t: Translation, node: fx.Node, name: str) -> View | None:
    """The view of the call ``node``; None where it is taken apart before it is a tensor of the graph."""
    part = t.traced.get_submodule(str(node.target)) if node.op == "call_module" else None
    if part is not None and isinstance(part, _WHOLE_TRANSFORMERS):
        raise UnsupportedOperation(
            f"{name}: nn.{type(part).__name__} hides its layers from the trace. Write it out: "
            f"nn.MultiheadAttention(batch_first=True) or products and a softmax of your own, nn.LayerNorm, nn.Linear and nn.GELU "
            f"(labkit.models.sentence_encoder is an example)."
        )
    if isinstance(part, nn.MultiheadAttention):
        t.attended[node] = torch_attention.multihead(t, part, node, name)
        return None
    if isinstance(part, nn.Embedding) or node.target is F.embedding:
        return _embedding(t, part, node, name)
    if _is(part, node, _SAME):
        return _same(t, node, name)
    if isinstance(part, nn.Linear):
        weight, bias = array_of(part.weight), None if part.bias is None else array_of(part.bias)
        return torch_attention.linear(t, t.view(source_of(node), name), weight, bias, name)
    if node.target is F.linear:
        return _linear_function(t, node, name)
    if isinstance(part, nn.LayerNorm) or node.target is F.layer_norm:
        return _layer_norm(t, part, node, name)
    if node.target in _PRODUCTS:
        return torch_attention.product(t, node, name)
    if node.target is _ATTENTION:
        return torch_attention.attention(t, node, name)
    if isinstance(part, nn.Softmax) or node.target in (F.softmax, torch.softmax, "softmax"):
        dim = part.dim if isinstance(part, nn.Softmax) else argument(node, 1, "dim", None)
        return torch_attention.softmax(t, node, name, dim)
    if node.op != "call_module":
        for targets, translate in _FUNCTIONS:
            if node.target in targets:
                return translate(t, node, name)
    if _is(part, node, (nn.Flatten, nn.Unflatten)):
        return torch_moves.reshape(t, node, name)
    if _is(part, node, _ELEMENTWISE):
        return _elementwise(t, part, node, name)
    return t.other(node, name)


def _elementwise(t: Translation, part: nn.Module | None, node: fx.Node, name: str) -> View:
    source = source_of(node)
    view = t.builder.plain(t.view(source, name), name)
    op = gelu(part, node, name) if _is(part, node, (nn.GELU, F.gelu)) else t.others(node, name, [source])[0]
    return replace(view, name=t.builder.emit(name, op, (view.name,)))


def _same(t: Translation, node: fx.Node, name: str) -> View:
    if shape_of(node) != shape_of(source_of(node)) or node.meta["dtype"] is not torch.float32:
        raise UnsupportedOperation(f"{name}: activations stay float32, got {node.meta['dtype']}. Leave it out.")
    return t.view(source_of(node), name)


def _embedding(t: Translation, part: nn.Module | None, node: fx.Node, name: str) -> View:
    source = source_of(node)
    if isinstance(part, nn.Embedding):
        weight = part.weight if part.max_norm is None else None
    else:
        given = argument(node, 1, "weight", None)
        weight = constant_of(given) if argument(node, 3, "max_norm", None) is None else None
    if source not in t.indices:
        raise UnsupportedOperation(
            f"{name}: an embedding looks up an input of the network, and this one looks up {t.what(source)}. Hand the "
            f"indices in as they are, int64 (N, T)."
        )
    if weight is None:
        raise UnsupportedOperation(f"{name}: an embedding with max_norm is not supported. Leave it out.")
    table = array_of(weight)
    made = t.builder.emit(name, float_ops.Embedding(table), (t.names[source],))
    return View(made, (table.shape[1], shape_of(source)[1]), (1, 0), ("feature", "place"))


def _linear_function(t: Translation, node: fx.Node, name: str) -> View:
    weight, bias = (argument(node, i, key, None) for i, key in ((1, "weight"), (2, "bias")))
    known = [None if given is None else constant_of(given) for given in (weight, bias)]
    if known[0] is None or (bias is not None and known[1] is None):
        raise UnsupportedOperation(f"{name}: the weights of a linear layer must be parameters of the module.")
    return torch_attention.linear(
        t, t.view(source_of(node), name), array_of(known[0]), None if known[1] is None else array_of(known[1]), name
    )


def _layer_norm(t: Translation, part: nn.Module | None, node: fx.Node, name: str) -> View:
    weight: torch.Tensor | None
    bias: torch.Tensor | None
    if isinstance(part, nn.LayerNorm):
        shape, weight, bias, epsilon = part.normalized_shape, part.weight, part.bias, part.eps
    else:
        shape, given_weight, given_bias, epsilon = (
            argument(node, 1 + i, key, default)
            for i, (key, default) in enumerate(
                [("normalized_shape", ()), ("weight", None), ("bias", None), ("eps", 1e-5)]
            )
        )
        weight, bias = (None if given is None else constant_of(given) for given in (given_weight, given_bias))
    if len(shape) != 1:
        raise UnsupportedOperation(
            f"{name}: a layer norm over the last axis is supported, got one over {len(shape)}. Write nn.LayerNorm(D)."
        )
    size = int(shape[0])
    gamma = np.ones(size, np.float32) if weight is None else array_of(weight)
    beta = np.zeros(size, np.float32) if bias is None else array_of(bias)
    whole, columns = t.builder.columns(t.view(source_of(node), name), name)
    made = t.builder.emit(name, float_ops.LayerNorm(gamma, beta, float(epsilon)), (columns.name,))
    return t.builder.from_columns(whole, made, size)


def _is(part: nn.Module | None, node: fx.Node, kinds: tuple[Any, ...]) -> bool:
    """Whether a call of the module ``part``, or of something else where it is None, is one of ``kinds``."""
    if part is not None:
        return isinstance(part, tuple(kind for kind in kinds if isinstance(kind, type)))
    return node.target in kinds


_FUNCTIONS: tuple[tuple[tuple[Any, ...], Callable[[Translation, fx.Node, str], View | None]], ...] = (
    ((torch.add, operator.add, operator.iadd, "add", "add_"), torch_sums.add),
    ((torch.sub, operator.sub, operator.isub, torch.subtract, "sub", "sub_"), torch_sums.subtract),
    ((torch.mul, operator.mul, operator.imul, torch.multiply, "mul", "mul_"), torch_sums.multiply),
    ((torch.div, operator.truediv, operator.itruediv, torch.true_divide, "div", "div_"), torch_sums.divide),
    ((torch.neg, operator.neg, "neg"), torch_sums.negative),
    ((torch.masked_fill, "masked_fill", "masked_fill_", torch.where, "where"), torch_attention.filled),
    (
        (torch.reshape, torch.flatten, torch.unsqueeze, "reshape", "view", "flatten", "unsqueeze", "unflatten"),
        torch_moves.reshape,
    ),
    ((torch.squeeze, "squeeze"), torch_moves.squeeze),
    ((torch.permute, "permute"), torch_moves.permute),
    ((torch.transpose, torch.swapaxes, "transpose", "swapaxes"), torch_moves.transpose),
    ((torch.mean, "mean"), torch_moves.mean),
    ((getattr,), torch_moves.attribute),
    ((operator.getitem,), torch_moves.part),
    ((torch.cat, torch.concat), torch_moves.joined),
)
