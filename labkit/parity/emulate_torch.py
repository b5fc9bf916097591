"""An integer network computed by PyTorch alone, from the float module and the saved calibration and bit plan.

`Emulation` derives folded weights, scales, integer weights, biases and multipliers by itself and then runs the module's own
operations on integers held in float64 and int64. It shares no arithmetic, kernel or conversion with the engine; what it takes
from labkit is the tracing (so that nodes have the same names) and the numbers of the `Calibration` and the `BitPlan`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from labkit.errors import ModelError, UnsupportedOperation
from labkit.frontends.faithful import is_close
from labkit.frontends.torch_fx import node_names, trace_module
from labkit.parity import torch_arithmetic as arithmetic
from labkit.parity.torch_affine import channel_map
from labkit.parity.torch_deriving import Deriving
from labkit.parity.torch_executing import EmulatedSteps, entered, executed
from labkit.parity.torch_kinds import kind_of
from labkit.parity.torch_steps import DecidedWeights, Step, one_by_one
from labkit.quantization.calibration import Calibration
from labkit.quantization.plan import BitPlan

__all__ = ["Emulation"]


class Emulation(EmulatedSteps):
    """The integer form of ``module`` under ``calibration`` and ``plan``, in PyTorch only.

    Parameters
    ----------
    module : torch.nn.Module
    calibration : ranges by tensor name
    plan : bits by name
    input_shape : without the batch axis
    decided : by layer, weights that a rounding method decided, which cannot be derived from the module
    ends : by layer, low and high float64 [O] or [1] of weights whose range a search chose, in the same sense

    Raises
    ------
    UnsupportedOperation
        The module holds an operation that has no emulation.
    """

    def __init__(
        self,
        module: nn.Module,
        calibration: Calibration,
        plan: BitPlan,
        input_shape: tuple[int, ...],
        decided: Mapping[str, DecidedWeights] | None = None,
        ends: Mapping[str, tuple[torch.Tensor, torch.Tensor]] | None = None,
    ) -> None:
        super().__init__()
        self._traced = trace_module(module, input_shape)
        self._traced.graph.eliminate_dead_code()
        self._home: dict[fx.Node, str] = {}  # traced node -> name of the step that computes it
        self._names = node_names(self._traced)
        maps = {node: found for node in self._traced.graph.nodes if (found := channel_map(node)) is not None}
        self._maps, self._parts = maps, {part for found in maps.values() for part in found.parts}
        with torch.inference_mode():
            for node in self._traced.graph.nodes:
                if node.op == "output":
                    self.outputs = tuple(self._home[n] for n in _tensors(node))
                elif "shape" in node.meta and node not in self._parts:
                    self._place(node)
            deriving = Deriving(calibration, plan, decided or {}, ends or {})
            for step in self._steps.values():
                deriving.derive(step, [self._steps[name] for name in step.inputs])
        self._anchor(type(module).__name__)

    def run(self, x: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        """Every node's name and integers (int64, layout N, C, H, W), one after the other, for images ``x``, float32 [N, ...].

        What no later node takes is let go, so that little is held at a time.
        """
        return one_by_one(self._steps, lambda step, results: self._execute(step, x, results))

    # ---- anchoring: in float, the steps must compute what the module computes

    def _anchor(self, name: str) -> None:
        """Refuse a module that does something which these steps do not know of (its padding mode, a hook, ...)."""
        try:
            results = {step: y for step, y in one_by_one(self._steps, self._float) if step in self.outputs}
            known = all(
                is_close(results[output], expected)
                for output, expected in zip(self.outputs, self._traced.meta["expected"], strict=True)
            )
        except (RuntimeError, ValueError) as error:
            raise ModelError(f"{name} cannot be emulated: {' '.join(str(error).split())[:200]}.") from error
        if not known:
            raise ModelError(
                f"{name} computes something else than convolutions, sums and clamps as labkit reads them: another padding "
                f"mode, a hook, or a layer with a forward of its own. Give the module that was quantized."
            )

    def _float(self, step: Step, results: dict[str, torch.Tensor]) -> torch.Tensor:
        """The step on real numbers: folded weights, nothing rounded."""
        before = [results[name] for name in step.inputs]
        if step.kind == "input":
            (images,) = self._traced.meta["examples"].in_order(self._traced)
            return torch.as_tensor(images).double()
        if step.kind == "shape":  # a view of what is not contiguous any more
            y = before[0].reshape(len(before[0]), *step.shape)
        elif step.kind in ("same", "pad", "mean", "adaptive", "softmax", "argmax"):
            y = step.acted(before[0])
        elif step.kind == "mul":
            y = before[0] * before[1]
        elif step.kind == "add":
            y = before[0] + before[1]
        elif step.kind == "cat":
            y = torch.cat(before, 1)
        elif step.kind in ("relu", "relu6"):
            y = before[0]
        else:
            y = step.summed(before[0], step.weight.double())
            y = y + step.bias.double().reshape([-1] + [1] * (y.ndim - 2))
        activation = step.activation or step.kind
        return y.clamp(0, 6 if activation == "relu6" else None) if activation in ("relu", "relu6") else y

    # ---- placing: which traced nodes become steps, and which are merged into the step before them

    def _place(self, node: fx.Node) -> None:
        kind = self._kind(node)
        sources = [self._home[n] for n in ([self._maps[node].source] if node in self._maps else _tensors(node))]
        before = self._steps[sources[0]] if sources else None
        if kind == "silent":
            self._home[node] = sources[0]
            return
        if before is not None and self._only_use(node):
            if kind == "norm" and before.kind in ("conv", "linear") and self._producer(node) is before.source:
                self._fold(before, node)
                self._home[node] = before.name
                return
            if (
                kind in ("relu", "relu6")
                and before.kind in ("conv", "linear", "norm-conv", "add", "mul", "mean", "adaptive")
                and not before.activation
            ):
                before.activation = kind
                self._home[node] = before.name
                return
        step = Step(self._names[node], kind, sources, node)
        if kind in ("conv", "linear"):
            part = self._traced.get_submodule(str(node.target))
            assert isinstance(part, nn.Conv1d | nn.Conv2d | nn.Linear)
            step.weight = part.weight.detach().float()
            step.bias = torch.zeros(len(step.weight)) if part.bias is None else part.bias.detach().float()
        elif kind == "norm":  # nothing to fold into: a depthwise 1x1 convolution
            step.kind = "norm-conv"
            step.weight = torch.ones(node.meta["shape"][1], *(1 for _ in node.meta["shape"][1:]))
            step.bias = torch.zeros(len(step.weight))
            self._fold(step, node)
        if not len(step.vanished):
            step.vanished = torch.zeros(len(step.weight), dtype=torch.bool)
        self._measure(step, node)
        self._steps[step.name] = step
        self._home[node] = step.name

    def _kind(self, node: fx.Node) -> str:
        if node in self._maps or node in self._parts:
            return "norm"  # by channel
        part = self._traced.get_submodule(str(node.target)) if node.op == "call_module" else None
        kind = kind_of(node, part)
        if kind is None:
            raise UnsupportedOperation(f"{self._names[node]}: {node.target} has no emulation in PyTorch.")
        return kind

    def _only_use(self, node: fx.Node) -> bool:
        """Whether ``node`` alone takes what the node before it puts out; silent nodes in between do not count."""
        return self._takers(self._producer(node)) == {node}

    def _producer(self, node: fx.Node) -> fx.Node:
        """The node, silent ones left out, whose result ``node`` takes first."""
        before = node.all_input_nodes[0]
        while self._kind(before) == "silent":
            before = before.all_input_nodes[0]
        return before

    def _takers(self, node: fx.Node) -> set[fx.Node]:
        takers: set[fx.Node] = set()
        for user in node.users:
            silent = user.op != "output" and "shape" in user.meta and self._kind(user) == "silent"
            if silent:
                takers |= self._takers(user)
            elif user.op == "output" or "shape" in user.meta:
                takers.add(user)
        return takers

    def _fold(self, step: Step, node: fx.Node) -> None:
        """Eqs. 22, 23 and 23a in float64, rounded once."""
        gain, mean, beta = self._normalisation(node)
        step.bias = (beta + (step.bias.double() - mean) * gain).float()
        folded = step.weight.double() * gain.reshape([-1] + [1] * (step.weight.ndim - 1))
        largest, before = folded.flatten(1).abs().amax(1), step.weight.flatten(1).abs().amax(1)
        gone = largest < 2.0**-100
        folded[gone] = 0.0
        step.weight = folded.float()
        step.vanished = (gone & (before > 0)) | (step.vanished if len(step.vanished) else torch.zeros_like(gone))

    def _normalisation(self, node: fx.Node) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What ``node`` does to channels: (x - mean) * gain + beta, as gain, mean and beta, float64 [C] each."""
        if node in self._maps:
            gain, beta = (numbers.float().double() for numbers in (self._maps[node].gain, self._maps[node].shift))
            return gain, torch.zeros_like(gain), beta
        norm = self._traced.get_submodule(str(node.target))
        assert isinstance(norm, nn.BatchNorm2d | nn.BatchNorm1d)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        mean, variance = norm.running_mean.float().double(), norm.running_var.float().double()
        gain = torch.ones_like(mean) if norm.weight is None else norm.weight.detach().float().double()
        beta = torch.zeros_like(mean) if norm.bias is None else norm.bias.detach().float().double()
        return gain / torch.sqrt(variance + norm.eps), mean, beta

    # ---- what a step does to numbers

    def _measure(self, step: Step, node: fx.Node) -> None:
        """The step's own operation, its axis, its windows: whatever the node says and weights do not."""
        step.shape = tuple(node.meta["shape"][1:])
        step.act = lambda x: self._call(node, x)
        step.products = lambda x, weight: self._products(node, step.kind, x, weight)
        if step.kind in ("softmax", "argmax"):
            step.dim, step.keepdim = self._dim(node), len(node.meta["shape"]) == len(_shape_before(node))
        elif step.kind == "mean":  # of an image of which the first element is 1: the first window covers it
            spike = torch.zeros(1, 1, *_shape_before(node)[2:], dtype=torch.float64)
            spike.view(-1)[0] = 1
            step.window = round(1 / step.act(spike).max().item())
        elif step.kind == "adaptive":
            step.areas = arithmetic.window_areas(step.act, _shape_before(node)[2:])

    def _execute(self, step: Step, x: torch.Tensor, results: dict[str, torch.Tensor]) -> torch.Tensor:
        if not step.inputs:
            return entered(step, x)
        return executed(step, [self._steps[name] for name in step.inputs], [results[name] for name in step.inputs])

    def _products(self, node: fx.Node, kind: str, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        if kind == "linear":
            return F.linear(x, weight)
        if x.ndim == 3 and weight.ndim == 4:
            weight = weight.squeeze(2)
        if kind == "norm-conv":
            return (F.conv2d if x.ndim == 4 else F.conv1d)(x, weight, groups=len(weight))
        conv = self._traced.get_submodule(str(node.target))
        if isinstance(conv, nn.Conv1d):
            return F.conv1d(x, weight, None, conv.stride, conv.padding, conv.dilation, conv.groups)
        assert isinstance(conv, nn.Conv2d)
        if conv.groups > 1 or isinstance(conv.padding, str):
            return F.conv2d(x, weight, None, conv.stride, conv.padding, conv.dilation, conv.groups)
        return _matrix_convolution(x, weight, conv, conv.padding)

    def _dim(self, node: fx.Node) -> int:
        """The axis of a softmax or argmax."""
        if node.op == "call_module":
            part: Any = self._traced.get_submodule(str(node.target))
            dim = 1 if isinstance(part, nn.Softmax2d) else part.dim
        else:
            dim = node.args[1] if len(node.args) > 1 else node.kwargs["dim"]
        return int(dim) % len(node.all_input_nodes[0].meta["shape"])

    def _call(self, node: fx.Node, x: torch.Tensor) -> torch.Tensor:
        """The node's own PyTorch operation on another tensor; sizes that it was given stay those of the trace."""
        args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), lambda n: x if "shape" in n.meta else n.meta["value"])
        if node.op == "call_module":
            result = self._traced.get_submodule(str(node.target))(*args, **kwargs)
        elif node.op == "call_method":
            result = getattr(args[0], str(node.target))(*args[1:], **kwargs)
        else:
            result = node.target(*args, **kwargs)  # type: ignore[operator]
        assert isinstance(result, torch.Tensor)
        return result


def _shape_before(node: fx.Node) -> tuple[int, ...]:
    return tuple(node.all_input_nodes[0].meta["shape"])


def _tensors(node: fx.Node) -> list[fx.Node]:
    """The tensors that ``node`` takes, in order; one that it takes twice is there twice."""
    found: list[fx.Node] = []
    fx.map_arg((node.args, node.kwargs), lambda n: found.append(n) if "shape" in n.meta else None)
    return found


def _matrix_convolution(
    x: torch.Tensor, weight: torch.Tensor, conv: nn.Conv2d, padding: tuple[int, ...]
) -> torch.Tensor:
    """``F.conv2d(x, weight)`` with the window of ``conv`` as a matrix product: several times faster in float64."""
    kernel_h, kernel_w = weight.shape[2:]
    (down, right), (step_h, step_w) = conv.stride, conv.dilation
    padded = F.pad(x, (padding[1], padding[1], padding[0], padding[0])).contiguous()
    images, channels, height, width = padded.shape
    rows = (height - step_h * (kernel_h - 1) - 1) // down + 1
    columns = (width - step_w * (kernel_w - 1) - 1) // right + 1
    of_image, of_channel, of_row, of_column = padded.stride()
    windows = padded.as_strided(
        (images, channels, kernel_h, kernel_w, rows, columns),
        (of_image, of_channel, of_row * step_h, of_column * step_w, of_row * down, of_column * right),
    )
    product = torch.matmul(weight.flatten(1), windows.reshape(images, -1, rows * columns))
    return product.reshape(images, -1, rows, columns)
