"""From a ``torch.nn.Module`` to a `FloatGraph`, by tracing its forward method with torch.fx.

Each supported module, function and method has one small translator; `torch_calls` has the tables of them. The graph's node
names are the modules' own dotted names (``layer1.0.conv1``); a call that belongs to no module keeps the name that torch.fx
gives it.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from labkit.errors import InputError, ModelError, UnsupportedOperation
from labkit.frontends.faithful import batch_fault, check_batch, check_faithful
from labkit.frontends.torch_affine import channel_affine
from labkit.frontends.torch_calls import FUNCTIONS, METHODS, MODULES
from labkit.frontends.torch_concrete import trace_with_shapes
from labkit.frontends.torch_dependence import note_constant, note_dependence
from labkit.frontends.torch_inputs import Examples, examples_of, tried_inputs
from labkit.frontends.torch_nodes import argument, flat, is_tensor, shape_of, unsupported
from labkit.frontends.torch_sequences import is_sequence_network, sequence_graph
from labkit.graph import float_ops
from labkit.graph.float_ops import FloatOp
from labkit.graph.ir import FloatGraph, FloatNode

__all__ = ["from_torch", "node_names", "parameters_digest", "trace_module"]


def from_torch(module: nn.Module, inputs: tuple[int, ...] | Mapping[str, Any]) -> FloatGraph:
    """Translate ``module`` (in inference mode) for certain ``inputs``.

    Parameters
    ----------
    module
        Any network of the supported operations (docs/support.md); it is not changed.
    inputs
        The shape of its one input of real numbers, without the batch axis. Or an example: arrays or tensors [N, ...] by the
        names of the forward method's arguments, in their own types. Whole numbers that an nn.Embedding looks up are indices,
        others and booleans are a mask, 1 for what takes part. Of the examples only shapes, types and the range of whole
        numbers count.

    Returns
    -------
    FloatGraph
        Float32 copies of the parameters; batch norm not yet folded. A sequence (N, T, D) of the module is (D, T) in it; its
        inputs and outputs are as the module has them.

    Raises
    ------
    UnsupportedOperation
        An operation has no integer form here; the message names its node and says what to do.
    ModelError
        The module cannot be traced, or has parameters that are not finite.
    InputError
        The module does not accept such an input.
    """
    traced = trace_module(module, inputs)
    names = node_names(traced)
    if not any(
        isinstance(n, fx.Node) for node in traced.graph.nodes if node.op == "output" for n in flat(node.args[0])
    ):
        raise UnsupportedOperation(
            f"{type(module).__name__} returns {_returned(traced)}; a tensor or a tuple of tensors is needed. "
            f"Wrap it in a module that returns tensors."
        )
    examples: Examples = traced.meta["examples"]
    if not is_sequence_network(traced):
        graph = _graph(traced, names)
        check_batch(graph.outputs[0], traced.meta["batch_fault"])
        check_faithful(graph, traced, names, examples.in_order(traced), traced.meta["expected"])
        return graph

    def others(node: fx.Node, name: str, tensors: list[fx.Node]) -> tuple[FloatOp, list[fx.Node]]:
        return _translate(traced, node, name)

    for node in traced.graph.nodes:
        if is_tensor(node) and node.op not in ("placeholder", "get_attr"):
            _refuse_overwriting(traced, node, names)
    graph, views = sequence_graph(traced, names, others)
    check_batch(graph.outputs[0], traced.meta["batch_fault"])
    tried = tried_inputs(graph, examples)
    with _inference(module), torch.no_grad():
        found = Examples(tried, examples.shape, examples.by_name).run(module)
    expected = [y for y in flat(found) if isinstance(y, torch.Tensor)]
    check_faithful(graph, traced, names, list(tried.values()), expected, views)
    return graph


def _graph(traced: fx.GraphModule, names: dict[fx.Node, str]) -> FloatGraph:
    """The graph of ``traced``, whose nodes have ``names`` and in which every tensor has its axes where PyTorch has them."""
    nodes: list[FloatNode] = []
    outputs: tuple[str, ...] = ()
    affine = {node: found for node in traced.graph.nodes if (found := channel_affine(node)) is not None}
    absorbed = {part for found in affine.values() for part in found.parts}
    for node in traced.graph.nodes:
        if node in affine:
            nodes.append(FloatNode(names[node], affine[node].op, (names[affine[node].source],)))
        elif node.op == "output":
            outputs = tuple(names[n] for n in flat(node.args[0]) if isinstance(n, fx.Node))
        elif node.op == "placeholder":
            if is_tensor(node):  # an optional argument that was left out is no input
                nodes.append(FloatNode(names[node], float_ops.Input(shape_of(node)[1:])))
        elif is_tensor(node) and node.op != "get_attr" and node not in absorbed:
            _refuse_overwriting(traced, node, names)
            op, inputs = _translate(traced, node, names[node])
            nodes.append(FloatNode(names[node], op, tuple(names[i] for i in inputs)))
    return FloatGraph(tuple(nodes), outputs)


def _returned(traced: fx.GraphModule) -> str:
    output = next(node for node in traced.graph.nodes if node.op == "output")
    return f"a {type(output.args[0]).__name__}"


def trace_module(module: nn.Module, inputs: tuple[int, ...] | Mapping[str, Any]) -> fx.GraphModule:
    """``module`` traced in inference mode, every node annotated with the shape or value of its result for two images.

    ``inputs`` as in `from_torch`; the module itself and its training flag are left as they were. The trace's ``meta`` holds
    the two images ("examples"; "probe" is the first input alone), the list of tensors that the module made of them ("expected")
    and what is wrong with a batch of another size ("batch_fault").

    Raises
    ------
    ModelError
        The forward method takes branches that depend on values, or fails.
    InputError
        The module does not accept such an input.
    """
    if not isinstance(module, nn.Module):
        raise ModelError(
            f"A torch.nn.Module is needed, got {type(module).__name__}. Build the network and load its weights."
        )
    with _inference(module):
        examples = examples_of(module, inputs)
        return _with_shapes(module, _traced(module, examples), examples)


@contextmanager
def _inference(module: nn.Module) -> Iterator[None]:
    flags = {m: m.training for m in module.modules()}
    try:
        module.eval()
        yield
    finally:
        for part, flag in flags.items():
            part.training = flag


def _traced(module: nn.Module, examples: Examples) -> fx.GraphModule:
    refused: Exception | None = None
    if examples.by_name:
        _accepted(module, examples)
    try:
        if not examples.by_name:
            return fx.symbolic_trace(module)
    except Exception as error:
        refused = error
        _accepted(module, examples)
    try:
        return trace_with_shapes(module, examples.tensors)
    except Exception as error:
        refused = refused or error
    raise ModelError(
        f"{type(module).__name__} cannot be traced by torch.fx: {_one_line(refused)}. Its forward method must not "
        f"branch or loop on the values of tensors; rewrite that part, or wrap the traceable part in a module of its own."
    ) from refused


def _accepted(module: nn.Module, examples: Examples) -> Any:
    """What ``module`` makes of its ``examples``."""
    try:
        with torch.no_grad():
            return examples.run(module)
    except Exception as error:
        raise InputError(
            f"{type(module).__name__} does not accept an input of shape {examples.shape}: {_one_line(error)}. "
            f"Give images of the size that the network was made for."
        ) from error


def _with_shapes(module: nn.Module, traced: fx.GraphModule, examples: Examples) -> fx.GraphModule:
    if wrong := {str(p.dtype) for p in module.parameters() if p.dtype is not torch.float32}:
        raise ModelError(
            f"{type(module).__name__} has parameters of {', '.join(sorted(wrong))}, and float32 is needed. "
            f"Convert it first: module.float()."
        )
    note_dependence(traced)
    expected = _accepted(module, examples)
    try:
        with torch.no_grad():
            recorded = _Recorder(traced).run(*examples.in_order(traced))
            fault = batch_fault(module, examples)
    except Exception as error:
        raise InputError(
            f"{type(module).__name__} does not accept an input of shape {examples.shape}: {_one_line(error)}. "
            f"Give images of the size that the network was made for."
        ) from error
    traced.meta["examples"], traced.meta["batch_fault"] = examples, fault
    traced.meta["probe"] = next(iter(examples.tensors.values()))
    traced.meta["expected"] = [y for y in flat(expected) if isinstance(y, torch.Tensor)]
    again = [y for y in flat(recorded) if isinstance(y, torch.Tensor)]
    pairs = zip(again, traced.meta["expected"], strict=True)
    if not all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in pairs):
        raise UnsupportedOperation(
            f"{type(module).__name__} computes something else than its trace: it changes a tensor in place that is "
            f"used again, or does something at random. Write `a = a + b` in place of `a += b`, and draw nothing at random."
        )
    return traced


def parameters_digest(module: nn.Module) -> str:
    """SHA-256 over the names and float values of all parameters and buffers of ``module``, to know it again."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode() + b"\0" + tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def node_names(traced: fx.GraphModule) -> dict[fx.Node, str]:
    """The name of each node: the module's dotted path where it is called once, else torch.fx's name, made unique.

    An input of ``traced`` that was given by name has the name of its argument.
    """
    called = [node.target for node in traced.graph.nodes if node.op == "call_module"]
    names = {
        node: str(node.target)
        for node in traced.graph.nodes
        if node.op == "call_module" and called.count(node.target) == 1
    }
    examples: Examples = traced.meta["examples"]
    if examples.by_name:  # torch.fx calls an argument `input` input_1
        names |= {node: str(node.target) for node in traced.graph.nodes if node.op == "placeholder"}
    taken = set(names.values())
    for node in traced.graph.nodes:
        if node not in names:
            name = node.name
            while name in taken:
                name += "_"
            names[node] = name
            taken.add(name)
    return names


class _Recorder(fx.Interpreter):
    """Runs a traced module and notes at each node what came out: the shape of a tensor, anything else as it is."""

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, torch.Tensor):
            n.meta["shape"], n.meta["dtype"] = result.shape, result.dtype
            note_constant(n, result)
        else:
            n.meta["value"] = result
        return result


def _refuse_overwriting(traced: fx.GraphModule, node: fx.Node, names: dict[fx.Node, str]) -> None:
    """Raise where ``node`` works in place on a tensor that is read again later: a graph has no such side effects."""
    if node.op == "call_module":
        part = traced.get_submodule(str(node.target))
        overwrites = isinstance(part, nn.ReLU | nn.Hardtanh) and part.inplace
    elif node.target in (F.relu, F.relu6):
        overwrites = argument(node, 1, "inplace", False)
    else:
        overwrites = node.target in (operator.iadd, operator.imul) or (
            node.op == "call_method" and str(node.target).endswith("_")
        )
    if not overwrites:
        return
    order = {n: i for i, n in enumerate(traced.graph.nodes)}
    for reader in node.all_input_nodes[0].users:
        if order[reader] > order[node] and (is_tensor(reader) or reader.op == "output"):
            raise UnsupportedOperation(
                f"{names[node]}: it overwrites a tensor that {names[reader]!r} reads afterwards. "
                f"Write it without inplace=True, or `a = a + b` in place of `a += b`."
            )


def _translate(traced: fx.GraphModule, node: fx.Node, name: str) -> tuple[FloatOp, list[fx.Node]]:
    """The operation of ``node`` and the nodes that it takes."""
    tensors = [
        n for n in flat(node.args) + flat(tuple(node.kwargs.values())) if isinstance(n, fx.Node) and is_tensor(n)
    ]
    if any(n.op == "get_attr" for n in tensors):
        raise UnsupportedOperation(
            f"{name}: an operation on a parameter or buffer of the module itself is not supported. "
            f"Put the parameter into an nn.Conv2d, nn.Linear or nn.BatchNorm2d."
        )
    if node.op == "call_module":
        part = traced.get_submodule(str(node.target))
        if isinstance(part, nn.BatchNorm1d) and len(shape_of(node)) == 2 and not _follows_linear(traced, tensors[0]):
            raise UnsupportedOperation(
                f"{name}: batch norm of a flat tensor is supported right after a linear layer only, where it can be "
                f"folded. Move it there, or leave it out."
            )
        for kind, translate in MODULES.items():
            if isinstance(part, kind):
                return translate(part, node, name), tensors[:1]
        raise unsupported(name, f"nn.{type(part).__name__}")
    if node.op == "call_function" and node.target in FUNCTIONS:
        return FUNCTIONS[node.target](node, name), tensors
    if node.op == "call_method" and node.target in METHODS:
        return METHODS[str(node.target)](node, name), tensors
    if node.target is operator.getitem:
        raise unsupported(name, "taking a part of a tensor (an index, a slice, chunk or split)")
    raise unsupported(name, getattr(node.target, "__name__", str(node.target)))


def _follows_linear(traced: fx.GraphModule, source: fx.Node) -> bool:
    """Whether ``source`` is a linear layer, perhaps under a dropout, whose result nobody else takes."""
    while (
        source.op == "call_module"
        and len([user for user in source.users if is_tensor(user) or user.op == "output"]) == 1
    ):
        part = traced.get_submodule(str(source.target))
        if not isinstance(part, nn.Dropout | nn.Identity):
            return isinstance(part, nn.Linear)
        source = source.all_input_nodes[0]
    return False


def _one_line(error: Exception) -> str:
    message = str(error).split("While executing")[0]  # torch.fx appends its own traceback
    return " ".join(message.split())[:200].rstrip(".")
