"""An integer network on sequences computed by PyTorch alone, from a float graph and the saved calibration and bit plan.

`SequenceEmulation` is to a transformer what `emulate_torch.Emulation` is to a traced module: scales, integer weights, addends and
the constants of the polynomials are derived here, and every operation is computed in float64 and int64, without the engine's
arithmetic, kernels or conversion. What it takes from labkit are the operations and names of the simplified float graph.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F

from labkit.errors import ModelError, UnsupportedOperation
from labkit.frontends.faithful import is_close
from labkit.graph import float_ops
from labkit.graph.float_ops import Activation, InputKind
from labkit.graph.ir import FloatGraph, FloatNode
from labkit.parity.torch_deriving import Deriving
from labkit.parity.torch_executing import EmulatedSteps, entered, executed
from labkit.parity.torch_steps import DecidedWeights, Step, one_by_one
from labkit.quantization.calibration import Calibration
from labkit.quantization.plan import BitPlan

__all__ = ["SequenceEmulation"]

_INPUTS = {InputKind.REAL: "input", InputKind.INDEX: "index", InputKind.MASK: "mask"}
_KINDS: dict[type[Any], str] = {
    float_ops.Add: "add",
    float_ops.ArgMax: "argmax",
    float_ops.AveragePool2d: "mean",
    float_ops.Concat: "cat",
    float_ops.Constant: "constant",
    float_ops.Conv2d: "conv",
    float_ops.Embedding: "embedding",
    float_ops.Flatten: "shape",
    float_ops.Gelu: "gelu",
    float_ops.LayerNorm: "layer-norm",
    float_ops.Linear: "linear",
    float_ops.MaskedSoftmax: "masked-softmax",
    float_ops.MatMul: "product",
    float_ops.MaxPool2d: "same",
    float_ops.Multiply: "mul",
    float_ops.Pad: "pad",
    float_ops.Rescale: "rescale",
    float_ops.Reshape: "shape",
    float_ops.Softmax: "softmax",
    float_ops.Transpose: "same",
    float_ops.UpsampleNearest2d: "same",
}
_ON_IMAGES = (float_ops.AveragePool2d, float_ops.MaxPool2d, float_ops.Pad, float_ops.UpsampleNearest2d)


class SequenceEmulation(EmulatedSteps):
    """The integer form of ``graph`` under ``calibration`` and ``plan``, in PyTorch only.

    Parameters
    ----------
    graph : a simplified FloatGraph
    calibration : ranges by tensor name
    plan : bits by name
    decided : by layer, weights that a rounding method decided, which cannot be derived from the graph
    ends : by layer, low and high float64 [O] or [1] of weights whose range a search chose, in the same sense

    Raises
    ------
    UnsupportedOperation
        The graph holds an operation that has no emulation here.
    ModelError
        gamma or beta of a layer norm leave no bits.
    """

    def __init__(
        self,
        graph: FloatGraph,
        calibration: Calibration,
        plan: BitPlan,
        decided: Mapping[str, DecidedWeights] | None = None,
        ends: Mapping[str, tuple[torch.Tensor, torch.Tensor]] | None = None,
    ) -> None:
        super().__init__()
        deriving = Deriving(calibration, plan, decided or {}, ends or {})
        with torch.inference_mode():
            for node in graph:
                step = self._steps[node.name] = _step(node)
                try:
                    deriving.derive(step, [self._steps[name] for name in step.inputs])
                except ValueError as error:
                    raise ModelError(f"{node.name}: {error}. Calibrate the network again.") from error
        self.outputs = graph.outputs

    def run(self, inputs: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
        """Every node's name and integers (int64 [N, ...]), one after the other.

        Parameters
        ----------
        inputs : [N, ...] by input name: float32, or integers for indices and masks

        What no later node takes is let go, so that little is held at a time.
        """
        any_input = next(iter(inputs.values()))  # says how often a constant is there

        def compute(step: Step, results: dict[str, torch.Tensor]) -> torch.Tensor:
            if not step.inputs:
                return entered(step, inputs.get(step.name, any_input))
            return executed(step, [self._steps[name] for name in step.inputs], [results[n] for n in step.inputs])

        return one_by_one(self._steps, compute)

    def anchor(self, inputs: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], name: str) -> None:
        """Refuse a module ``name`` that computes something else than these steps do on real numbers.

        Parameters
        ----------
        inputs : as in `run`
        expected : float32 [N, ...] by output name, what the module makes of them
        name : of the module, for the error

        Raises
        ------
        ModelError
            An output differs by more than float32 sums in another order do.
        """
        any_input = next(iter(inputs.values()))

        def compute(step: Step, results: dict[str, torch.Tensor]) -> torch.Tensor:
            if not step.inputs and step.kind != "constant":
                given = inputs[step.name]
                return given.long() if step.kind == "index" else given.double()
            return _real(step, [results[name] for name in step.inputs], len(any_input))

        results = {step: y for step, y in one_by_one(self._steps, compute) if step in expected}
        if wrong := [output for output, y in expected.items() if not is_close(results[output], y)]:
            raise ModelError(
                f"{name} computes something else than its float graph, as {wrong[0]} shows: a hook, or a layer with a forward of "
                f"its own. Give the module that was quantized."
            )


def _step(node: FloatNode) -> Step:
    op = node.op
    if isinstance(op, float_ops.Input):
        return Step(node.name, _INPUTS[op.kind], [], op, shape=tuple(op.shape))
    kind = op.kind.value if isinstance(op, float_ops.Relu) else _KINDS.get(type(op))
    if kind is None:
        raise UnsupportedOperation(
            f"{node.name}: {type(op).__name__} has no emulation from a float graph. Verify the net alone: "
            f"labkit.verify(net, None, x)."
        )
    activation = "" if node.activation is Activation.NONE else node.activation.value
    step = Step(node.name, kind, list(node.inputs), op, activation)
    if isinstance(op, float_ops.Conv2d | float_ops.Linear):
        step.weight = torch.tensor(op.weight)
        step.bias = torch.zeros(len(op.weight)) if op.bias is None else torch.tensor(op.bias)
        step.vanished = torch.zeros(len(op.weight), dtype=torch.bool)
        step.vanished[list(op.vanished)] = True
        step.products = F.linear if isinstance(op, float_ops.Linear) else lambda x, weight: _convolved(op, x, weight)
    elif isinstance(op, float_ops.Embedding):
        step.weight = torch.tensor(op.weight)
    elif isinstance(op, float_ops.Constant):
        step.weight = torch.tensor(op.values)
    elif isinstance(op, float_ops.LayerNorm):
        step.weight, step.bias = torch.tensor(op.gamma), torch.tensor(op.beta)
    elif isinstance(op, float_ops.Reshape):
        step.shape = tuple(op.shape)
    elif isinstance(op, float_ops.Flatten):
        step.shape = (-1,)
    elif isinstance(op, float_ops.Transpose):
        axes = [0, *(1 + axis for axis in op.axes)]
        step.act = lambda x: x.permute(axes)
    elif isinstance(op, _ON_IMAGES):
        step.act = lambda x: _on_image(op, x)
        step.window = math.prod(op.kernel) if isinstance(op, float_ops.AveragePool2d) else 1
    elif isinstance(op, float_ops.Softmax | float_ops.ArgMax):
        step.dim, step.keepdim = 1 + op.axis, getattr(op, "keepdims", True)
    return step


def _convolved(op: float_ops.Conv2d, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Sums of products of ``x`` [N, C, T] or [N, C, H, W], float64, and ``weight`` [O, C / groups, kH, kW]."""
    plain = all(tuple(setting) == (1, 1) for setting in (op.weight.shape[2:], op.stride)) and op.groups == 1
    if plain and not any(map(any, op.padding)):
        flat = torch.matmul(weight.flatten(1), x.flatten(2))
        return flat.reshape(len(x), -1, *x.shape[2:])
    image = x if x.ndim == 4 else x.unsqueeze(2)
    (top, bottom), (left, right) = op.padding
    padded = F.pad(image, (left, right, top, bottom))
    sums = F.conv2d(padded, weight, None, op.stride, 0, op.dilation, op.groups)
    return sums if x.ndim == 4 else sums.squeeze(2)


def _on_image(op: Any, x: torch.Tensor) -> torch.Tensor:
    """What ``op``, one of those of `_ON_IMAGES`, makes of ``x`` [N, C, T] or [N, C, H, W], float64."""
    if x.ndim == 3:
        return _on_image(op, x.unsqueeze(2)).squeeze(2)
    if isinstance(op, float_ops.UpsampleNearest2d):
        return x.repeat_interleave(op.factor[0], 2).repeat_interleave(op.factor[1], 3)
    (top, bottom), (left, right) = op.padding
    outside = -torch.inf if isinstance(op, float_ops.MaxPool2d) else 0.0
    if isinstance(op, float_ops.MaxPool2d) and op.ceil_mode:  # its last window may reach beyond what is padded
        return F.max_pool2d(x, op.kernel, op.stride, (top, left), op.dilation, ceil_mode=True)
    padded = F.pad(x, (left, right, top, bottom), value=outside)
    if isinstance(op, float_ops.Pad):
        return padded
    if isinstance(op, float_ops.AveragePool2d):
        return F.avg_pool2d(padded, op.kernel, op.stride)
    return F.max_pool2d(padded, op.kernel, op.stride, 0, op.dilation)


def _real(step: Step, before: list[torch.Tensor], images: int) -> torch.Tensor:
    """The step on real numbers, float64: nothing rounded."""
    op, y = step.source, before[0] if before else torch.zeros(0)
    if step.kind == "constant":
        return step.weight.double().expand(images, *step.weight.shape)
    if step.kind == "embedding":
        return F.embedding(y, step.weight.double()).movedim(-1, 1)
    if step.kind == "shape":
        y = y.reshape(len(y), *step.shape)
    elif step.kind in ("same", "pad", "mean"):
        y = step.acted(y)
    elif step.kind == "add":
        y = y + before[1]
    elif step.kind == "mul":
        y = y * before[1]
    elif step.kind == "cat":
        y = torch.cat(before, 1)
    elif step.kind == "gelu":
        y = F.gelu(y)
    elif step.kind == "layer-norm":
        columns = y.movedim(1, -1)
        gamma, beta = step.weight.double(), step.bias.double()
        y = F.layer_norm(columns, columns.shape[-1:], gamma, beta, op.epsilon).movedim(-1, 1)
    elif step.kind == "product":
        left, right = (
            x.mT if turned else x for x, turned in zip(before, (op.transpose_a, op.transpose_b), strict=True)
        )
        y = op.factor * (left @ right)
    elif step.kind == "masked-softmax":
        if len(before) == 2:
            y = y.masked_fill(before[1].reshape(len(y), *[1] * (y.ndim - 2), -1) == 0, -torch.inf)
        y = torch.nan_to_num(y.softmax(-1))
    elif step.kind == "softmax":
        y = y.softmax(step.dim)
    elif step.kind == "argmax":
        y = y.argmax(step.dim, step.keepdim)
    elif step.kind in ("conv", "linear"):
        y = step.summed(y, step.weight.double())
        y = y + step.bias.double().reshape([-1] + [1] * (y.ndim - 2))
    activation = step.activation or step.kind
    return y.clamp(0, 6 if activation == "relu6" else None) if activation in ("relu", "relu6") else y
