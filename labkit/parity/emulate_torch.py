"""An integer network computed by PyTorch alone, from the float module and the saved calibration and bit plan.

`Emulation` derives folded weights, scales, integer weights, biases and multipliers by itself and then runs the module's own
operations on integers held in float64 and int64. It shares no arithmetic, kernel or conversion with the engine; what it takes
from labkit is the tracing (so that nodes have the same names) and the numbers of the `Calibration` and the `BitPlan`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from labkit.errors import ModelError, UnsupportedOperation
from labkit.frontends.faithful import is_close
from labkit.frontends.torch_fx import node_names, trace_module
from labkit.parity import torch_arithmetic as arithmetic
from labkit.parity.torch_affine import channel_map
from labkit.parity.torch_kinds import KEEPS_SCALE, kind_of
from labkit.quantization.calibration import Calibration
from labkit.quantization.plan import BitPlan

__all__ = ["DecidedWeights", "Emulation"]

_BIAS_LIMIT = 2**30


@dataclass(frozen=True, eq=False)
class DecidedWeights:
    """Weights that a rounding method decided.

    integers : int64 [O, ...]
    scale, zero_point : float32 and int64, [O] or ()
    grid : smallest and largest integer
    bias : float32 [O]
    """

    integers: torch.Tensor
    scale: torch.Tensor
    zero_point: torch.Tensor
    grid: tuple[int, int]
    bias: torch.Tensor


@dataclass
class _Step:
    """One quantized operation: the traced node that it stands for and what was derived for it."""

    name: str
    kind: str
    node: fx.Node
    inputs: list[str]
    activation: str = ""
    scale: torch.Tensor = field(default_factory=lambda: torch.tensor(1.0))
    zero_point: int = 0
    grid: tuple[int, int] = (0, 255)
    clamp: tuple[int, int] = (0, 255)
    weight: torch.Tensor = field(default_factory=lambda: torch.zeros(0))
    bias: torch.Tensor = field(default_factory=lambda: torch.zeros(0))
    vanished: torch.Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))
    areas: torch.Tensor = field(default_factory=lambda: torch.ones(()))
    parameters: dict[str, torch.Tensor] = field(default_factory=dict)


class Emulation:
    """The integer form of ``module`` under ``calibration`` and ``plan``, in PyTorch only.

    Parameters
    ----------
    module : torch.nn.Module
    calibration : ranges by tensor name
    plan : bits by name
    input_shape : without the batch axis
    decided : by layer, weights that a rounding method decided, which cannot be derived from the module
    ends : by layer, low and high float64 [O] or [1] of weights whose range a search chose, in the same sense

    Attributes
    ----------
    parameters : by node name, by parameter name: integer or float32 tensors
    outputs : names of the nodes whose results leave the network

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
        self._decided, self._ends = dict(decided or {}), dict(ends or {})
        self._traced = trace_module(module, input_shape)
        self._traced.graph.eliminate_dead_code()
        self._calibration, self._plan = calibration, plan
        self._steps: dict[str, _Step] = {}
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
            for step in self._steps.values():
                self._derive(step)
        self.parameters = {name: step.parameters for name, step in self._steps.items()}
        self._anchor(type(module).__name__)

    def run(self, x: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        """Every node's name and integers (int64, layout N, C, H, W), one after the other, for images ``x``, float32 [N, ...].

        What no later node takes is let go, so that little is held at a time.
        """
        return self._one_by_one(lambda step, results: self._execute(step, x, results))

    def _one_by_one(
        self, compute: Callable[[_Step, dict[str, torch.Tensor]], torch.Tensor]
    ) -> Iterator[tuple[str, torch.Tensor]]:
        last_use = {name: step.name for step in self._steps.values() for name in step.inputs}
        results: dict[str, torch.Tensor] = {}
        for step in self._steps.values():
            with torch.inference_mode():
                results[step.name] = compute(step, results)
            yield step.name, results[step.name]
            for name in {*step.inputs, step.name}:
                if last_use.get(name, step.name) == step.name:
                    del results[name]

    def folded(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """The weights of the layer ``name`` with batch norms folded, float32 [O, ...], and bool [O]: channels that are gone."""
        step = self._steps[name]
        return step.weight, step.vanished

    def dequantized(self, name: str, integers: torch.Tensor) -> torch.Tensor:
        """Eq. 1 for the result of node ``name``: float32 from its ``integers`` (int64, any shape)."""
        step = self._steps[name]
        return (integers - step.zero_point).float() * step.scale

    # ---- anchoring: in float, the steps must compute what the module computes

    def _anchor(self, name: str) -> None:
        """Refuse a module that does something which these steps do not know of (its padding mode, a hook, ...)."""
        try:
            results = {step: y for step, y in self._one_by_one(self._float) if step in self.outputs}
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

    def _float(self, step: _Step, results: dict[str, torch.Tensor]) -> torch.Tensor:
        """The step on real numbers: folded weights, nothing rounded."""
        before = [results[name] for name in step.inputs]
        if step.kind == "input":
            return torch.as_tensor(self._traced.meta["probe"]).double()
        if step.kind == "shape":  # a view of what is not contiguous any more
            y = before[0].reshape(step.node.meta["shape"])
        elif step.kind in ("same", "pad", "mean", "adaptive", "softmax", "argmax"):
            y = self._call(step.node, before[0])
        elif step.kind == "mul":
            y = before[0] * before[1]
        elif step.kind == "add":
            y = before[0] + before[1]
        elif step.kind == "cat":
            y = torch.cat(before, 1)
        elif step.kind in ("relu", "relu6"):
            y = before[0]
        else:
            y = self._products(step, before[0], step.weight.double())
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
            if kind == "norm" and before.kind in ("conv", "linear") and self._producer(node) is before.node:
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
        step = _Step(self._names[node], kind, node, sources)
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

    def _fold(self, step: _Step, node: fx.Node) -> None:
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

    # ---- deriving: scales, integers and multipliers of each step

    def _derive(self, step: _Step) -> None:
        before = [self._steps[name] for name in step.inputs]
        if step.kind in KEEPS_SCALE:
            step.scale, step.zero_point, step.grid = before[0].scale, before[0].zero_point, before[0].grid
            step.parameters = self._grid(step)
            return
        if step.kind == "argmax":
            return
        bits = self._plan.activations[step.name]
        if step.kind == "softmax":
            fraction = bits if self._plan.activation_scheme == "affine" else bits - 1
            step.scale, step.grid = torch.tensor(2.0**-fraction), (0, 2**bits - 1)
            if self._plan.activation_scheme != "affine":
                step.grid = (1 - 2 ** (bits - 1), 2 ** (bits - 1) - 1)
            step.clamp, table = step.grid, arithmetic.exponentials(before[0].scale.double().item())
            step.parameters = self._grid(step)
            step.parameters |= {"clamp": torch.tensor(step.clamp), "table": table, "bits": torch.tensor(fraction)}
            return
        low, high = self._calibration.ranges[step.name]
        if self._plan.activation_scheme == "affine":
            step.grid = (0, 2**bits - 1)
            step.scale, step.zero_point = arithmetic.affine_parameters(low, high, step.grid)
        else:
            step.grid = (1 - 2 ** (bits - 1), 2 ** (bits - 1) - 1)
            step.scale = arithmetic.symmetric_scale(
                torch.tensor(max(abs(low), abs(high)), dtype=torch.float64), step.grid[1]
            )
        step.clamp = step.grid
        if (activation := step.activation or step.kind) in ("relu", "relu6"):
            six = int(arithmetic.real_to_integer(torch.tensor(6.0), step.scale, step.zero_point, step.grid))
            step.clamp = (step.zero_point, six if activation == "relu6" else step.grid[1])
        step.parameters = self._grid(step)
        if step.kind == "input":
            return
        step.parameters["clamp"] = torch.tensor([step.clamp] * len(before) if step.kind == "cat" else step.clamp)
        target = step.scale.double().item()
        scales = [b.scale.double().item() for b in before]
        if step.kind in ("conv", "linear", "norm-conv"):
            self._derive_weights(step, scales[0], target)
        elif step.kind == "mul":
            mantissa, exponent = arithmetic.fixed_point([scales[0] * scales[1] / target])
            step.parameters |= {"mantissa": mantissa[0], "exponent": exponent[0]}
        elif step.kind == "add":
            multipliers, shift = arithmetic.add_multipliers([s / target for s in scales])
            step.parameters |= {"multipliers": multipliers, "shift": torch.tensor(shift)}
        elif step.kind == "cat":
            step.parameters["mantissa"], step.parameters["exponent"] = arithmetic.fixed_point(
                [s / target for s in scales]
            )
        else:  # mean, and activations that stand alone
            window = {"mean": self._window, "adaptive": self._common_area}.get(step.kind, lambda _: 1)(step)
            ratio = scales[0] / (target * window)
            mantissa, exponent = arithmetic.fixed_point([ratio])
            step.parameters |= {"mantissa": mantissa[0], "exponent": exponent[0]}

    @staticmethod
    def _grid(step: _Step) -> dict[str, torch.Tensor]:
        return {"scale": step.scale, "zero_point": torch.tensor(step.zero_point), "grid": torch.tensor(step.grid)}

    def _derive_weights(self, step: _Step, input_scale: float, target: float) -> None:
        if step.name in self._decided:
            self._take_decided(step, self._decided[step.name], input_scale, target)
            return
        bits, per_channel = self._plan.weights[step.name], self._plan.per_channel
        weight = step.weight.double()
        rows = weight.flatten(1) if per_channel else weight.reshape(1, -1)
        qmax = 1 if bits == 1 else 2 ** (bits - 1) - 1
        if bits == 1:
            scale = torch.tensor([arithmetic.exact_mean(row.abs()) for row in rows], dtype=torch.float64).float()
        else:
            low, high = rows.amin(1), rows.amax(1)
            if step.name in self._ends and len(self._ends[step.name][0]) == len(rows):  # else another module's
                low, high = self._ends[step.name]
            elif self._plan.weight_ranges == "3sigma":
                means = torch.tensor([arithmetic.exact_mean(row) for row in rows], dtype=torch.float64)
                squares = [arithmetic.exact_mean((row - m).square()) for row, m in zip(rows, means, strict=True)]
                spread = 3 * torch.tensor(squares, dtype=torch.float64).sqrt()
                low, high = torch.maximum(low, means - spread), torch.minimum(high, means + spread)
            scale = arithmetic.symmetric_scale(torch.maximum(low.abs(), high.abs()), qmax)
        if per_channel:
            scale[step.vanished] = torch.finfo(torch.float32).tiny
        bias = step.bias.double()
        needed = bias.abs() / (input_scale * _BIAS_LIMIT)
        needed = needed if per_channel else needed.amax(0, keepdim=True)
        larger = torch.nextafter(needed.float(), torch.tensor(torch.inf))
        scale = torch.where(needed > scale.double(), torch.maximum(scale, larger), scale)
        shaped = scale.reshape([-1] + [1] * (weight.ndim - 1))
        if bits == 1:
            integers = torch.where(step.weight >= 0, 1, -1)
        else:
            integers = arithmetic.real_to_integer(step.weight, shaped, 0, (-qmax, qmax))
        scales = scale.double()
        mantissa, exponent = arithmetic.fixed_point(((scales * input_scale) / target).tolist())
        if not per_channel:
            scale, mantissa, exponent = scale[0], mantissa[0], exponent[0]
        step.parameters |= {
            # Sequences are images of height 1. In int8, because large networks have many of them.
            "weight": (integers.unsqueeze(2) if integers.ndim == 3 else integers).to(torch.int8),
            "weight_grid": torch.tensor((-qmax, qmax)),
            "weight_scale": scale,
            "weight_zero_point": torch.zeros_like(scale, dtype=torch.int64),
            "bias": torch.round(bias / (scales * input_scale)).long(),
            "mantissa": mantissa,
            "exponent": exponent,
        }

    def _take_decided(self, step: _Step, decided: DecidedWeights, input_scale: float, target: float) -> None:
        """Bias and multiplier from weights that were decided elsewhere; their scales already leave room for the bias."""
        scales = decided.scale.double()
        mantissa, exponent = arithmetic.fixed_point(((scales * input_scale) / target).reshape(-1).tolist())
        step.parameters |= {
            "weight": decided.integers,
            "weight_grid": torch.tensor(decided.grid),
            "weight_scale": decided.scale,
            "weight_zero_point": decided.zero_point,
            "bias": torch.round(decided.bias.double() / (scales * input_scale)).long(),
            "mantissa": mantissa.reshape(scales.shape),
            "exponent": exponent.reshape(scales.shape),
        }

    def _window(self, step: _Step) -> int:
        """Elements in each averaging window, found by averaging an image of which the first element is 1."""
        source = step.node.all_input_nodes[0].meta["shape"]
        spike = torch.zeros(1, 1, *source[2:], dtype=torch.float64)
        spike.view(-1)[0] = 1  # the first window covers it, whatever the stride
        return round(1 / self._call(step.node, spike).max().item())

    def _common_area(self, step: _Step) -> int:
        """The least common multiple of the areas of all windows of an adaptive pooling, which are kept."""
        size = step.node.all_input_nodes[0].meta["shape"][2:]
        step.areas = arithmetic.window_areas(lambda images: self._call(step.node, images), size)
        return math.lcm(*step.areas.flatten().tolist())

    # ---- executing

    def _execute(self, step: _Step, x: torch.Tensor, results: dict[str, torch.Tensor]) -> torch.Tensor:
        if step.kind == "input":
            return arithmetic.real_to_integer(x, step.scale, step.zero_point, step.grid)
        before = [self._steps[name] for name in step.inputs]
        integers = [results[name] for name in step.inputs]
        if step.kind == "shape":  # which may count the images of the trace
            return integers[0].reshape(len(integers[0]), *step.node.meta["shape"][1:])
        if step.kind == "same":
            return self._call(step.node, integers[0].double()).long()
        if step.kind == "softmax":
            table, bits = step.parameters["table"], int(step.parameters["bits"])
            dim = self._dim(step.node)
            return arithmetic.softmax(integers[0], dim, table, bits, step.zero_point, step.clamp)
        if step.kind == "argmax":
            y = step.node.meta["shape"]
            return arithmetic.first_largest(integers[0], self._dim(step.node), len(y) == integers[0].ndim)
        centred = [q - b.zero_point for q, b in zip(integers, before, strict=True)]
        p = step.parameters
        if step.kind == "pad":
            return self._call(step.node, centred[0].double()).long() + step.zero_point
        if step.kind == "add":
            total = centred[0] * p["multipliers"][0] + centred[1] * p["multipliers"][1]
            shift = int(p["shift"])
            return (((total + (1 << (shift - 1))) >> shift) + step.zero_point).clamp(*step.clamp)
        if step.kind == "cat":
            moved = [
                arithmetic.requantized(c, p["mantissa"][i], p["exponent"][i], step.zero_point, step.clamp)
                for i, c in enumerate(centred)
            ]
            return torch.cat(moved, 1)
        if step.kind == "mean":
            sums = torch.round(self._call(step.node, centred[0].double()) * self._window(step)).long()
        elif step.kind == "adaptive":
            sums = arithmetic.sums_of_means(self._call(step.node, centred[0].double()), step.areas)
        elif step.kind in ("relu", "relu6"):
            sums = centred[0]
        elif step.kind == "mul":
            sums = centred[0] * centred[1]
        else:
            bias = p["bias"].reshape([-1] + [1] * (len(step.weight.shape) - 2))
            zero_point = p["weight_zero_point"].reshape([-1] + [1] * (p["weight"].ndim - 1))
            sums = self._products(step, centred[0].double(), (p["weight"] - zero_point).double()).long() + bias
        return arithmetic.requantized(sums, p["mantissa"], p["exponent"], step.zero_point, step.clamp)

    def _products(self, step: _Step, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Sums of products in float64: exact for integers, whose partial sums stay far below 2**53."""
        if step.kind == "linear":
            return F.linear(x, weight)
        if x.ndim == 3 and weight.ndim == 4:
            weight = weight.squeeze(2)
        if step.kind == "norm-conv":
            return (F.conv2d if x.ndim == 4 else F.conv1d)(x, weight, groups=len(weight))
        conv = self._traced.get_submodule(str(step.node.target))
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
