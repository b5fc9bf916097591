"""A trace by torch.fx that knows every shape: each call is also carried out on example inputs while it is recorded.

`torch.fx.symbolic_trace` hands shapes around as unknowns, and much ordinary code stops there: ``torch.arange(x.shape[1])``,
``if x.shape[1] > longest``, ``for _ in range(x.size(1))``. Here a shape is a number, as it is when the module runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn

__all__ = ["trace_with_shapes"]


def trace_with_shapes(module: nn.Module, examples: Mapping[str, torch.Tensor]) -> fx.GraphModule:
    """``module`` traced for inputs of the shapes and dtypes of ``examples``, by the names of its forward method's arguments.

    Arguments that are not among them keep their defaults. Branches and loops on values are refused as by torch.fx, with
    whatever error torch or the module itself raises.
    """
    before = set(vars(module))
    tracer = _ShapedTracer(examples)
    try:
        graph = tracer.trace(module)
        for node in graph.nodes:
            node.meta.pop("example", None)
        return fx.GraphModule(module, graph, type(module).__name__)
    finally:
        for name in set(vars(module)) - before:  # tensors that torch.fx has parked on the module
            delattr(module, name)


class _Shaped(fx.Proxy):
    """A traced tensor that answers for its shape and type at once."""

    @property
    def _example(self) -> Any:
        return self.node.meta["example"]

    @property
    def shape(self) -> Any:
        return self._example.shape

    @property
    def ndim(self) -> Any:
        return self._example.ndim

    @property
    def dtype(self) -> Any:
        return self._example.dtype

    @property
    def device(self) -> Any:
        return self._example.device

    def size(self, dim: int | None = None) -> Any:
        return self._example.size() if dim is None else self._example.size(dim)

    def dim(self) -> Any:
        return self._example.dim()

    def numel(self) -> Any:
        return self._example.numel()

    def __len__(self) -> int:
        return len(self._example)

    def __iter__(self) -> Any:
        if isinstance(self._example, tuple | list):  # the pieces of chunk, split and unbind
            whole: Any = self
            return iter([whole[index] for index in range(len(self._example))])
        return super().__iter__()


class _ShapedTracer(fx.Tracer):
    def __init__(self, examples: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self._examples = examples
        self._evaluating = False

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Shaped(node, self)

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **named: Any) -> Any:
        if kind == "placeholder" and target not in self._examples:
            if not args:
                raise TypeError(f"forward() needs an argument {target!r} that is not given")
            return args[0]  # left out: its default
        made = super().create_proxy(kind, target, args, kwargs, *rest, **named)
        made.node.meta["example"] = self._evaluated(made.node)
        return made

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return forward(*args, **kwargs) if self._evaluating else super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        return attr_val if self._evaluating else super().getattr(attr, attr_val, parameter_proxy_cache)

    def _example(self, node: fx.Node) -> Any:
        if "example" not in node.meta:  # a tensor that the module handed in
            node.meta["example"] = self._evaluated(node)
        return node.meta["example"]

    def _evaluated(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            return self._examples[str(node.target)]
        args, kwargs = fx.map_arg((node.args, node.kwargs), self._example)
        self._evaluating = True
        try:
            with torch.no_grad():
                if node.op == "get_attr":
                    value: Any = self.root
                    for part in str(node.target).split("."):
                        value = getattr(value, part)
                    return value
                if node.op == "call_module":
                    return self.root.get_submodule(str(node.target)).forward(*args, **kwargs)
                if node.op == "call_method":
                    return getattr(args[0], str(node.target))(*args[1:], **kwargs)
                assert callable(node.target)
                return node.target(*args, **kwargs)
        finally:
            self._evaluating = False
