"""From a ``torch.nn.Module`` to a `FloatGraph`, by tracing its forward method with torch.fx.

Each supported module, function and method has one small translator below. The graph's node names are the modules' own
dotted names (``layer1.0.conv1``); a call that belongs to no module keeps the name that torch.fx gives it.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import fx, nn

from labkit.errors import InputError, ModelError, UnsupportedOperation
from labkit.frontends.faithful import check_faithful, probe
from labkit.graph import float_ops
from labkit.graph.float_ops import Activation, FloatOp
from labkit.graph.ir import FloatGraph, FloatNode
from labkit.graph.shapes import Padding, symmetric_padding

__all__ = ["from_torch", "node_names", "parameters_digest", "trace_module"]


def from_torch(module: nn.Module, input_shape: tuple[int, ...]) -> FloatGraph:
    """Translate ``module`` (in inference mode) for an input of ``input_shape``, without the batch axis.

    Returns
    -------
    FloatGraph
        Float32 copies of the parameters; batch norm not yet folded.

    Raises
    ------
    UnsupportedOperation
        An operation has no integer form here; the message names its node and says what to do.
    ModelError
        The module cannot be traced, or has parameters that are not finite.
    InputError
        The module does not accept an input of this shape.
    """
    traced = trace_module(module, input_shape)
    names = node_names(traced)
    nodes: list[FloatNode] = []
    outputs: tuple[str, ...] = ()
    for node in traced.graph.nodes:
        if node.op == "output":
            outputs = tuple(names[n] for n in _flat(node.args[0]) if isinstance(n, fx.Node))
        elif node.op == "placeholder":
            if _is_tensor(node):  # an optional argument that was left out is no input
                nodes.append(FloatNode(names[node], float_ops.Input(_shape(node)[1:])))
        elif _is_tensor(node) and node.op != "get_attr":
            _refuse_overwriting(traced, node, names)
            op, inputs = _translate(traced, node, names[node])
            nodes.append(FloatNode(names[node], op, tuple(names[i] for i in inputs)))
    if not outputs:
        raise UnsupportedOperation(
            f"{type(module).__name__} returns {_returned(traced)}; a tensor or a tuple of tensors is needed. "
            f"Wrap it in a module that returns tensors."
        )
    graph = FloatGraph(tuple(nodes), outputs)
    check_faithful(graph, traced, names, traced.meta["probe"], traced.meta["expected"])
    return graph


def _returned(traced: fx.GraphModule) -> str:
    output = next(node for node in traced.graph.nodes if node.op == "output")
    return f"a {type(output.args[0]).__name__}"


def trace_module(module: nn.Module, input_shape: tuple[int, ...]) -> fx.GraphModule:
    """``module`` traced in inference mode, every node annotated with the shape or value of its result for two images.

    ``input_shape`` is without the batch axis; the module itself and its training flag are left as they were. The trace's
    ``meta`` holds the two images ("probe") and the list of tensors that the module made of them ("expected").

    Raises
    ------
    ModelError
        The forward method takes branches that depend on values, or fails.
    InputError
        The module does not accept an input of this shape.
    """
    if not isinstance(module, nn.Module):
        raise ModelError(
            f"A torch.nn.Module is needed, got {type(module).__name__}. Build the network and load its weights."
        )
    flags = {m: m.training for m in module.modules()}
    try:
        module.eval()
        return _with_shapes(module, _traced(module), input_shape)
    finally:
        for part, flag in flags.items():
            part.training = flag


def _traced(module: nn.Module) -> fx.GraphModule:
    try:
        return fx.symbolic_trace(module)
    except Exception as error:
        raise ModelError(
            f"{type(module).__name__} cannot be traced by torch.fx: {_one_line(error)}. Its forward method must not "
            f"branch or loop on the values of tensors; rewrite that part, or wrap the traceable part in a module of its own."
        ) from error


def _with_shapes(module: nn.Module, traced: fx.GraphModule, input_shape: tuple[int, ...]) -> fx.GraphModule:
    if wrong := {str(p.dtype) for p in module.parameters() if p.dtype is not torch.float32}:
        raise ModelError(
            f"{type(module).__name__} has parameters of {', '.join(sorted(wrong))}, and float32 is needed. "
            f"Convert it first: module.float()."
        )
    x = probe(input_shape)
    try:
        with torch.no_grad():
            expected = module(x.clone())
            recorded = _Recorder(traced).run(x.clone())
    except Exception as error:
        raise InputError(
            f"{type(module).__name__} does not accept an input of shape {('N', *input_shape)}: {_one_line(error)}. "
            f"Give images of the size that the network was made for."
        ) from error
    traced.meta["probe"] = x
    traced.meta["expected"] = [y for y in _flat(expected) if isinstance(y, torch.Tensor)]
    again = [y for y in _flat(recorded) if isinstance(y, torch.Tensor)]
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
    """The name of each node: the module's dotted path where it is called once, else torch.fx's name, made unique."""
    called = [node.target for node in traced.graph.nodes if node.op == "call_module"]
    names = {
        node: str(node.target)
        for node in traced.graph.nodes
        if node.op == "call_module" and called.count(node.target) == 1
    }
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
        n.meta["shape" if isinstance(result, torch.Tensor) else "value"] = getattr(result, "shape", result)
        return result


def _refuse_overwriting(traced: fx.GraphModule, node: fx.Node, names: dict[fx.Node, str]) -> None:
    """Raise where ``node`` works in place on a tensor that is read again later: a graph has no such side effects."""
    if node.op == "call_module":
        part = traced.get_submodule(str(node.target))
        overwrites = isinstance(part, nn.ReLU | nn.Hardtanh) and part.inplace
    elif node.target in (F.relu, F.relu6):
        overwrites = _argument(node, 1, "inplace", False)
    else:
        overwrites = node.target is operator.iadd or (node.op == "call_method" and str(node.target).endswith("_"))
    if not overwrites:
        return
    order = {n: i for i, n in enumerate(traced.graph.nodes)}
    for reader in node.all_input_nodes[0].users:
        if order[reader] > order[node] and (_is_tensor(reader) or reader.op == "output"):
            raise UnsupportedOperation(
                f"{names[node]}: it overwrites a tensor that {names[reader]!r} reads afterwards. "
                f"Write it without inplace=True, or `a = a + b` in place of `a += b`."
            )


def _translate(traced: fx.GraphModule, node: fx.Node, name: str) -> tuple[FloatOp, list[fx.Node]]:
    """The operation of ``node`` and the nodes that it takes."""
    tensors = [
        n for n in _flat(node.args) + _flat(tuple(node.kwargs.values())) if isinstance(n, fx.Node) and _is_tensor(n)
    ]
    if any(n.op == "get_attr" for n in tensors):
        raise UnsupportedOperation(
            f"{name}: an operation on a parameter or buffer of the module itself is not supported. "
            f"Put the parameter into an nn.Conv2d, nn.Linear or nn.BatchNorm2d."
        )
    if node.op == "call_module":
        part = traced.get_submodule(str(node.target))
        if isinstance(part, nn.BatchNorm1d) and not _follows_linear(traced, tensors[0]):
            raise UnsupportedOperation(
                f"{name}: batch norm of a flat tensor is supported right after a linear layer only, where it can be "
                f"folded. Move it there, or leave it out."
            )
        for kind, translate in _MODULES.items():
            if isinstance(part, kind):
                return translate(part, node, name), tensors[:1]
        raise _unsupported(name, f"nn.{type(part).__name__}")
    if node.op == "call_function" and node.target in _FUNCTIONS:
        return _FUNCTIONS[node.target](node, name), tensors
    if node.op == "call_method" and node.target in _METHODS:
        return _METHODS[str(node.target)](node, name), tensors
    raise _unsupported(name, getattr(node.target, "__name__", str(node.target)))


def _follows_linear(traced: fx.GraphModule, source: fx.Node) -> bool:
    """Whether ``source`` is a linear layer, perhaps under a dropout, whose result nobody else takes."""
    while (
        source.op == "call_module"
        and len([user for user in source.users if _is_tensor(user) or user.op == "output"]) == 1
    ):
        part = traced.get_submodule(str(source.target))
        if not isinstance(part, nn.Dropout | nn.Identity):
            return isinstance(part, nn.Linear)
        source = source.all_input_nodes[0]
    return False


def _unsupported(name: str, what: str) -> UnsupportedOperation:
    return UnsupportedOperation(
        f"{name}: {what} has no integer form in labkit. Supported are Conv2d, Linear, BatchNorm2d, ReLU, ReLU6, max, "
        f"average and adaptive pooling, flatten, add, cat and dropout: rewrite this part of the network with them, "
        f"or leave it outside of the network that you quantize."
    )


def _convolution(conv: nn.Module, node: fx.Node, name: str) -> FloatOp:
    assert isinstance(conv, nn.Conv2d)
    if conv.padding_mode != "zeros":
        raise UnsupportedOperation(f"{name}: padding_mode {conv.padding_mode!r} is not supported, only 'zeros'.")
    kernel, dilation = _pair(conv.kernel_size), _pair(conv.dilation)
    padding: Padding
    if conv.padding == "same":
        total = [dilation[i] * (kernel[i] - 1) for i in range(2)]
        padding = ((total[0] // 2, total[0] - total[0] // 2), (total[1] // 2, total[1] - total[1] // 2))
    elif conv.padding == "valid":
        padding = symmetric_padding(0, 0)
    else:
        padding = symmetric_padding(*_pair(conv.padding))
    return float_ops.Conv2d(
        _array(conv.weight), _optional(conv.bias), _pair(conv.stride), padding, dilation, conv.groups
    )


def _linear(layer: nn.Module, node: fx.Node, name: str) -> FloatOp:
    assert isinstance(layer, nn.Linear)
    if len(_shape(node)) != 2:
        raise UnsupportedOperation(f"{name}: a linear layer needs a flat input, got {_shape(node)}. Flatten it first.")
    return float_ops.Linear(_array(layer.weight), _optional(layer.bias))


def _batch_norm(norm: nn.Module, node: fx.Node, name: str) -> FloatOp:
    assert isinstance(norm, nn.BatchNorm2d | nn.BatchNorm1d)
    if norm.running_mean is None or norm.running_var is None:
        raise UnsupportedOperation(
            f"{name}: batch norm without running statistics cannot be folded. Track them in training."
        )
    ones = torch.ones_like(norm.running_mean)
    return float_ops.BatchNorm2d(
        _array(ones if norm.weight is None else norm.weight),
        _array(torch.zeros_like(ones) if norm.bias is None else norm.bias),
        _array(norm.running_mean),
        _array(norm.running_var),
        float(norm.eps),
    )


def _hardtanh(clamp: nn.Module, node: fx.Node, name: str) -> FloatOp:
    assert isinstance(clamp, nn.Hardtanh)  # nn.ReLU6 is one
    if (clamp.min_val, clamp.max_val) != (0, 6):
        raise _unsupported(name, f"Hardtanh({clamp.min_val}, {clamp.max_val})")
    return float_ops.Relu(Activation.RELU6)


def _max_pool(name: str, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool) -> FloatOp:
    size = _pair(kernel)
    edges = symmetric_padding(*_pair(padding))
    return float_ops.MaxPool2d(size, _pair(stride) if stride else size, edges, _pair(dilation), bool(ceil_mode))


def _average_pool(
    name: str, kernel: Any, stride: Any, padding: Any, ceil_mode: Any, include_pad: Any, divisor: Any
) -> FloatOp:
    size, edges = _pair(kernel), symmetric_padding(*_pair(padding))
    if ceil_mode or divisor is not None or (not include_pad and edges != symmetric_padding(0, 0)):
        raise UnsupportedOperation(
            f"{name}: average pooling with ceil_mode, divisor_override, or padding that is not counted is not supported: "
            f"its windows have differing sizes. Use count_include_pad=True, or no padding."
        )
    return float_ops.AveragePool2d(size, _pair(stride) if stride else size, edges)


def _adaptive_pool(node: fx.Node, name: str, largest: bool) -> FloatOp:
    source = _argument(node, 0, "input", None)
    assert isinstance(source, fx.Node)
    have, want = _shape(source)[2:], _shape(node)[2:]
    if any(h % w for h, w in zip(have, want, strict=True)):
        raise UnsupportedOperation(
            f"{name}: adaptive pooling from {have} to {want} needs windows of differing sizes. Choose an output size that "
            f"divides the input size, or use ordinary pooling."
        )
    kernel = (have[0] // want[0], have[1] // want[1])
    none = symmetric_padding(0, 0)
    if largest:
        return float_ops.MaxPool2d(kernel, kernel, none, (1, 1), False)
    return float_ops.AveragePool2d(kernel, kernel, none)


def _flatten(node: fx.Node, name: str) -> FloatOp:
    source = _argument(node, 0, "input", None)
    assert isinstance(source, fx.Node)
    have, want = _shape(source), _shape(node)
    if want == have:
        return float_ops.Identity()
    if want != (have[0], int(np.prod(have[1:]))):
        raise UnsupportedOperation(
            f"{name}: a reshape from {have} to {want} is not supported, only to (N, everything else)."
        )
    return float_ops.Flatten()


def _mean(node: fx.Node, name: str) -> FloatOp:
    source = _argument(node, 0, "input", None)
    assert isinstance(source, fx.Node)
    axes = _argument(node, 1, "dim", None)
    have = _shape(source)
    if len(have) != 4 or not isinstance(axes, list | tuple) or {int(a) % 4 for a in axes} != {2, 3}:
        raise UnsupportedOperation(f"{name}: only the mean over height and width, dims (2, 3), is supported.")
    if len(_shape(node)) != 4:
        raise UnsupportedOperation(f"{name}: use mean((2, 3), keepdim=True) and flatten, or nn.AdaptiveAvgPool2d(1).")
    return float_ops.AveragePool2d((have[2], have[3]), (have[2], have[3]), symmetric_padding(0, 0))


def _add(node: fx.Node, name: str) -> FloatOp:
    shapes = [_shape(n) if isinstance(n, fx.Node) else None for n in node.args[:2]]
    if len(shapes) != 2 or shapes[0] != shapes[1] or node.kwargs.get("alpha", 1) != 1:
        raise UnsupportedOperation(f"{name}: only the sum of two tensors of one shape is supported, got {shapes}.")
    return float_ops.Add()


def _concat(node: fx.Node, name: str) -> FloatOp:
    axis = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
    parts = [n for n in _flat(node.args[0] if node.args else node.kwargs["tensors"]) if isinstance(n, fx.Node)]
    if axis not in (1, -3) or any(len(_shape(n)) != 4 for n in parts):
        raise UnsupportedOperation(
            f"{name}: only concatenation of images along the channel axis (1) is supported, got {axis}."
        )
    return float_ops.Concat()


def _argument(node: fx.Node, position: int, key: str, default: Any) -> Any:
    """An argument of a call; what the call itself computes from sizes, such as ``x.size(2)``, as its value."""
    value = node.args[position] if len(node.args) > position else node.kwargs.get(key, default)
    return fx.map_arg(value, lambda n: n.meta.get("value", n))


def _call_max_pool(node: fx.Node, name: str) -> FloatOp:
    return _max_pool(
        name,
        _argument(node, 1, "kernel_size", None),
        _argument(node, 2, "stride", None),
        _argument(node, 3, "padding", 0),
        _argument(node, 4, "dilation", 1),
        _argument(node, 5, "ceil_mode", False),
    )


def _call_average_pool(node: fx.Node, name: str) -> FloatOp:
    return _average_pool(
        name,
        _argument(node, 1, "kernel_size", None),
        _argument(node, 2, "stride", None),
        _argument(node, 3, "padding", 0),
        _argument(node, 4, "ceil_mode", False),
        _argument(node, 5, "count_include_pad", True),
        _argument(node, 6, "divisor_override", None),
    )


_MODULES: dict[type[nn.Module], Callable[[Any, fx.Node, str], FloatOp]] = {
    nn.Conv2d: _convolution,
    nn.Linear: _linear,
    nn.BatchNorm2d: _batch_norm,
    nn.BatchNorm1d: _batch_norm,
    nn.ReLU: lambda m, node, name: float_ops.Relu(Activation.RELU),
    nn.Hardtanh: _hardtanh,
    nn.MaxPool2d: lambda m, node, name: _max_pool(name, m.kernel_size, m.stride, m.padding, m.dilation, m.ceil_mode),
    nn.AvgPool2d: lambda m, node, name: _average_pool(
        name, m.kernel_size, m.stride, m.padding, m.ceil_mode, m.count_include_pad, m.divisor_override
    ),
    nn.AdaptiveAvgPool2d: lambda m, node, name: _adaptive_pool(node, name, largest=False),
    nn.AdaptiveMaxPool2d: lambda m, node, name: _adaptive_pool(node, name, largest=True),
    nn.Flatten: lambda m, node, name: _flatten(node, name),
    nn.Dropout: lambda m, node, name: float_ops.Identity(),
    nn.Dropout2d: lambda m, node, name: float_ops.Identity(),
    nn.Identity: lambda m, node, name: float_ops.Identity(),
}

_FUNCTIONS: dict[Any, Callable[[fx.Node, str], FloatOp]] = {
    F.relu: lambda node, name: float_ops.Relu(Activation.RELU),
    torch.relu: lambda node, name: float_ops.Relu(Activation.RELU),
    F.relu6: lambda node, name: float_ops.Relu(Activation.RELU6),
    F.max_pool2d: _call_max_pool,
    torch.max_pool2d: _call_max_pool,
    F.avg_pool2d: _call_average_pool,
    F.adaptive_avg_pool2d: lambda node, name: _adaptive_pool(node, name, largest=False),
    F.adaptive_max_pool2d: lambda node, name: _adaptive_pool(node, name, largest=True),
    F.dropout: lambda node, name: float_ops.Identity(),
    torch.flatten: _flatten,
    torch.reshape: _flatten,
    torch.mean: _mean,
    torch.add: _add,
    operator.add: _add,
    operator.iadd: _add,
    torch.cat: _concat,
    torch.concat: _concat,
}

_METHODS: dict[str, Callable[[fx.Node, str], FloatOp]] = {
    "relu": lambda node, name: float_ops.Relu(Activation.RELU),
    "relu_": lambda node, name: float_ops.Relu(Activation.RELU),
    "flatten": _flatten,
    "view": _flatten,
    "reshape": _flatten,
    "mean": _mean,
    "add": _add,
    "add_": _add,
    "contiguous": lambda node, name: float_ops.Identity(),
}


def _array(tensor: torch.Tensor) -> NDArray[np.float32]:
    return tensor.detach().cpu().to(torch.float32).numpy().copy()


def _optional(tensor: torch.Tensor | None) -> NDArray[np.float32] | None:
    return None if tensor is None else _array(tensor)


def _pair(value: Any) -> tuple[int, int]:
    first, second = (value, value) if isinstance(value, int) else value
    return int(first), int(second)


def _flat(value: Any) -> list[Any]:
    return [item for part in value for item in _flat(part)] if isinstance(value, list | tuple) else [value]


def _is_tensor(node: fx.Node) -> bool:
    return "shape" in node.meta


def _shape(node: fx.Node) -> tuple[int, ...]:
    return tuple(int(size) for size in node.meta["shape"])


def _one_line(error: Exception) -> str:
    message = str(error).split("While executing")[0]  # torch.fx appends its own traceback
    return " ".join(message.split())[:200].rstrip(".")
