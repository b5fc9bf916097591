"""Make docs/support.md: what labkit runs and what it refuses, asked of the code itself.

    python tools/make_support.py            write the page
    python tools/make_support.py --check    write nothing; exit 1 where the page is not what the code says

Nothing on the page is written by hand twice. Names come from the tables that the code works with; whether something
runs is found out by running it: one node in both tiers, one layer through the front end, one mistake for its error.
"""

from __future__ import annotations

import argparse
import itertools
import operator
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import labkit
from labkit.arithmetic.affine import PerAxis, QParams, QTensor, QuantSpec
from labkit.arithmetic.fixedpoint import FixedPointMultiplier
from labkit.arithmetic.requantize import Requantizer, RoundingRule
from labkit.errors import LabkitError
from labkit.frontends import torch_fx
from labkit.graph import float_ops, int_ops
from labkit.graph.ir import IntGraph, IntNode, Tensor
from labkit.graph.passes import simplify
from labkit.net import IntegerNet
from labkit.quantization import pipeline, plan, ranges

__all__ = ["main", "page"]

_PAGE = Path(__file__).resolve().parents[1] / "docs" / "support.md"
_BITS = range(1, 9)
_EDGES = ((1, 1), (1, 1))
_RULE_OPS = {"Conv2d", "Linear", "AveragePool2d", "Concat", "Requantize"}
_WEIGHT_OPS = {"Conv2d", "Linear"}

Rows = list[tuple[str, ...]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page, or compare it; 0 when all is well."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only say whether the page is up to date")
    options = parser.parse_args(arguments)
    text = page()
    if options.check:
        same = _PAGE.exists() and _PAGE.read_text("utf-8") == text
        print("docs/support.md is " + ("up to date" if same else "not what the code says: run tools/make_support.py"))
        return 0 if same else 1
    _PAGE.write_text(text, "utf-8", newline="\n")
    return 0


def page() -> str:
    """The whole of docs/support.md."""
    combinations, checked = _quantized_bits()
    parts = [
        "# What labkit supports",
        "<!-- Made by tools/make_support.py from the code. Do not edit: change the code, then run the tool. -->",
        "Everything on this page was found out by running it. A test makes the page again and compares.",
        "## Integer operations",
        "One row for each operation of an integer network (`labkit.graph.int_ops`). Each was run with every combination "
        "of the bits and rules in its row, for unsigned activations with a zero point and for signed symmetric ones. "
        "*Reference* is the readable tier. The *Numba* tier counts only where it gives the same integers.",
        _table(("operation", "weight bits", "activation bits", "rounding rules", "reference", "Numba"), _operations()),
        "Max-pool and flatten move integers and keep their scale. Add rounds once, ties up, at its own shift. Quantize "
        "and Dequantize are the borders to real numbers.",
        "## Rounding rules",
        "Each requantizer names its rule (`labkit.arithmetic.requantize.RoundingRule`). `labkit.quantize` makes nets with "
        f"{_rule_of_quantize()}.",
        _table(("rule", "in a file", "integers only", "what it does"), _rules()),
        "## Bits that `labkit.quantize` takes",
        f"Weights {_span(combinations[0])}, activations {_span(combinations[1])}, per layer in a `BitPlan` or the same "
        f"everywhere. All {checked} combinations were quantized, `labkit.verify` found no differing element, and both tiers "
        "gave the same result. The network's inputs and outputs keep 8 bits unless a plan says otherwise.",
        "## What `labkit.quantize` offers",
        _table(("argument", "values"), _options()),
        "## What the PyTorch front end takes",
        "One layer of each kind was translated and quantized. *Part of* another operation means that it costs nothing of "
        "its own: batch norm is folded into the weights, a ReLU is the clamp of the requantizer.",
        _table(("PyTorch", "kind", "read as", "becomes"), _front_end()),
        "## What is refused, and how",
        "A restriction is enforced where it is met first, by an error that names the place and says what to do. Each line "
        "was provoked; the words are the code's own.",
        _table(("what was tried", "error", "message"), _refusals()),
    ]
    return "\n\n".join(parts) + "\n"


def _table(heads: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [heads, tuple("---" for _ in heads), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _span(values: Iterable[int]) -> str:
    """Integers as short text: ``1 to 8``, ``2, 4, 8``."""
    found = sorted(set(values))
    if len(found) > 2 and found == list(range(found[0], found[-1] + 1)):
        return f"{found[0]} to {found[-1]}"
    return ", ".join(map(str, found)) or "none"


# Integer operations


def _operations() -> Rows:
    rows: Rows = []
    for name in (n for n in int_ops.__all__ if n != "IntOp"):
        weights = _BITS if name in _WEIGHT_OPS else (8,)
        rules = list(RoundingRule) if name in _RULE_OPS else [RoundingRule.SINGLE]
        tried = list(itertools.product(weights, _BITS, (False, True), rules))
        runs = {case: _tiers(name, *case) for case in tried}
        works = [case for case in tried if runs[case][0]]
        rows.append(
            (
                f"`{name}`",
                _span(case[0] for case in works) if name in _WEIGHT_OPS else "-",
                _span(case[1] for case in works),
                _rule_names({case[3] for case in works}) if name in _RULE_OPS else "-",
                *(_verdict(tried, [case for case in tried if runs[case][tier]]) for tier in (0, 1)),
            )
        )
    return rows


def _verdict(tried: list[Any], works: list[Any]) -> str:
    """``yes``, or what about it does not work: the values that never do, else how many of the combinations."""
    if len(works) == len(tried):
        return "yes"
    never = []
    for place, what in enumerate(("weight bits", "activation bits", "signed", "rule")):
        lost = {case[place] for case in tried} - {case[place] for case in works}
        never += [
            f"{what} {value.name if isinstance(value, RoundingRule) else value}" for value in sorted(lost, key=str)
        ]
    return f"not for {', '.join(never)}" if never and works else f"{len(works)} of {len(tried)} combinations"


def _tiers(name: str, weight_bits: int, bits: int, signed: bool, rule: RoundingRule) -> tuple[bool, bool]:
    """Whether the operation runs in the reference tier, and whether the Numba tier then gives the same integers."""
    rng = np.random.default_rng(0)
    try:
        net = IntegerNet(_one_node(name, weight_bits, bits, signed, rule, rng))
        x = rng.uniform(-1.5, 1.5, (3, *net.graph["x"].output.shape)).astype(np.float32)
        expected = net.run(x, kernels="reference")
    except LabkitError:
        return False, False
    try:
        return True, bool(np.array_equal(net.run(x), expected))
    except LabkitError:
        return True, False


def _one_node(
    name: str, weight_bits: int, bits: int, signed: bool, rule: RoundingRule, rng: np.random.Generator
) -> IntGraph:
    """A graph of a Quantize node and the operation called ``name``."""
    spec = QuantSpec(bits, signed=signed, symmetric=signed, narrow=signed)
    zero_point = 0 if signed else spec.qmax // 2
    params = QParams(np.float32(1 / max(spec.qmax, 1)), np.int32(zero_point))
    shape = (20,) if name == "Linear" else (4, 6, 6)
    x = Tensor(shape, spec, params)
    y_params = QParams(np.float32(1.5 / max(spec.qmax, 1)), np.int32(zero_point))

    def requantizer(real: float, channels: int | None = None) -> Requantizer:
        reals = real * rng.uniform(0.5, 1.5, () if channels is None else channels)
        multiplier: Any = {RoundingRule.FLOAT32_EVEN: np.float32, RoundingRule.FLOAT64_AWAY: np.float64}.get(rule)
        made = FixedPointMultiplier.from_real(reals) if multiplier is None else np.asarray(reals, multiplier)
        return Requantizer(rule, made, zero_point, (spec.qmin, spec.qmax))

    def weights(*size: int) -> QTensor:
        grid = QuantSpec(weight_bits, narrow=True, granularity=PerAxis(0))
        choices = [-1, 1] if grid.is_binary else list(range(grid.qmin, grid.qmax + 1))
        values = rng.choice(choices, size).astype(grid.dtype)
        return QTensor(values, QParams(np.full(size[0], 0.01, np.float32), np.zeros(size[0], np.int32)), grid)

    bias, gain = rng.integers(-50, 50, 5).astype(np.int32), 0.3 / 2 ** (weight_bits - 1)
    made: dict[str, Callable[[], tuple[Any, tuple[int, ...], QParams | None, int]]] = {
        "Quantize": lambda: (None, shape, params, 0),
        "Dequantize": lambda: (int_ops.Dequantize(), shape, None, 1),
        "Conv2d": lambda: (
            int_ops.Conv2d(weights(5, 4, 3, 3), bias, requantizer(gain, 5), (1, 1), _EDGES, (1, 1), 1),
            (5, 6, 6),
            y_params,
            1,
        ),
        "Linear": lambda: (int_ops.Linear(weights(5, 20), bias, requantizer(gain, 5)), (5,), y_params, 1),
        "MaxPool2d": lambda: (
            int_ops.MaxPool2d((3, 3), (2, 2), _EDGES, (1, 1), False), (4, 3, 3), params, 1
        ),
        "AveragePool2d": lambda: (
            int_ops.AveragePool2d((2, 2), (2, 2), ((0, 0), (0, 0)), requantizer(0.2)), (4, 3, 3), y_params, 1
        ),
        "Add": lambda: (
            int_ops.Add(np.array([2**29, 2**28], np.int32), 30, zero_point, (spec.qmin, spec.qmax)), shape, y_params, 2
        ),
        "Concat": lambda: (int_ops.Concat((requantizer(0.7), requantizer(0.6))), (8, 6, 6), y_params, 2),
        "Requantize": lambda: (int_ops.Requantize(requantizer(0.7)), shape, y_params, 1),
        "Flatten": lambda: (int_ops.Flatten(), (144,), params, 1),
    }  # fmt: skip
    op, out, out_params, inputs = made[name]()
    nodes = [IntNode("x", int_ops.Quantize(shape), (), x)]
    if op is not None:
        result = Tensor(out, spec if out_params is not None else None, out_params)
        nodes.append(IntNode("y", op, ("x",) * inputs, result))
    return IntGraph(tuple(nodes), (nodes[-1].name,))


def _rule_names(rules: set[RoundingRule]) -> str:
    return "all six" if len(rules) == len(RoundingRule) == 6 else ", ".join(r.name for r in RoundingRule if r in rules)


def _rules() -> Rows:
    told = dict(line.strip().split(" : ", 1) for line in str(RoundingRule.__doc__).splitlines() if " : " in line)
    return [
        (f"`{rule.name}`", f"`{rule.value}`", "yes" if rule.is_integer_only else "no", told[rule.name])
        for rule in RoundingRule
    ]


# Quantization


def _small_net() -> nn.Module:
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(3, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(36, 5),
    ]
    return nn.Sequential(*layers).eval()


def _images(channels: int = 3) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(1).uniform(-1, 1, (4, channels, 8, 8)).astype(np.float32)


def _quantized_bits() -> tuple[tuple[list[int], list[int]], int]:
    """The weight and activation bits that work, and how many combinations of them were verified in both tiers."""
    module, x = _small_net(), _images()
    works = []
    for weights, activations in itertools.product(_BITS, _BITS):
        try:
            net = labkit.quantize(module, x, weights=weights, activations=activations)
        except LabkitError:
            continue
        if labkit.verify(net, module, x).passed and np.array_equal(net.run(x, kernels="reference"), net.run(x)):
            works.append((weights, activations))
    sides = [w for w, _ in works], [a for _, a in works]
    if len(works) != len(set(sides[0])) * len(set(sides[1])):
        raise SystemExit(f"not every combination of these bits works, and the page cannot say so yet: {works}")
    return sides, len(works)


def _rule_of_quantize() -> str:
    net = labkit.quantize(_small_net(), _images())
    rules = {node.op.requantizer.rule for node in net.graph if hasattr(node.op, "requantizer")}
    return _rule_names(rules)


def _options() -> Rows:
    def names(values: Iterable[str]) -> str:
        return ", ".join(f"`{value}`" for value in values)

    return [
        ("`ranges` (activations)", names(ranges.RANGES)),
        ("`BitPlan.weight_ranges`", names(plan.WEIGHT_RANGES)),
        ("`activation_scheme`", names(plan.ACTIVATION_SCHEMES)),
        ("`per_channel`", "`True` (one weight scale for each output channel), `False` (one for each layer)"),
        ("`rounding` (weights)", names(pipeline.ROUNDINGS)),
        (
            "`method`",
            "; ".join(
                f"`{name}`: {', '.join(f'{k}={v}' for k, v in m.items())}" for name, m in pipeline.METHODS.items()
            ),
        ),
    ]


# The front end


class _Calls(nn.Module):
    """A convolution, and what ``function`` does with its result."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.function = function

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(self.conv(x))


_FLAT = (nn.Flatten(), nn.Linear(192, 6))
_MODULE_EXAMPLES: Mapping[Any, Callable[[], tuple[nn.Module, ...]]] = {
    nn.Conv2d: lambda: (nn.Conv2d(3, 4, 3),),
    nn.Linear: lambda: _FLAT,
    nn.BatchNorm2d: lambda: (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)),
    nn.BatchNorm1d: lambda: (*_FLAT, nn.BatchNorm1d(6)),
    nn.ReLU: lambda: (nn.Conv2d(3, 4, 3), nn.ReLU()),
    nn.Hardtanh: lambda: (nn.Conv2d(3, 4, 3), nn.ReLU6()),
    nn.MaxPool2d: lambda: (nn.MaxPool2d(2),),
    nn.AvgPool2d: lambda: (nn.AvgPool2d(2),),
    nn.AdaptiveAvgPool2d: lambda: (nn.AdaptiveAvgPool2d(1),),
    nn.AdaptiveMaxPool2d: lambda: (nn.AdaptiveMaxPool2d(2),),
    nn.Flatten: lambda: (nn.Flatten(),),
    nn.Dropout: lambda: (nn.Conv2d(3, 4, 3), nn.Dropout()),
    nn.Dropout2d: lambda: (nn.Conv2d(3, 4, 3), nn.Dropout2d()),
    nn.Identity: lambda: (nn.Conv2d(3, 4, 3), nn.Identity()),
}
_CALL_EXAMPLES: Mapping[Any, Callable[[Any], Any]] = {
    F.relu: lambda x: F.relu(x),
    torch.relu: lambda x: torch.relu(x),
    F.relu6: lambda x: F.relu6(x),
    F.max_pool2d: lambda x: F.max_pool2d(x, 2),
    torch.max_pool2d: lambda x: torch.max_pool2d(x, 2),
    F.avg_pool2d: lambda x: F.avg_pool2d(x, 2),
    F.adaptive_avg_pool2d: lambda x: F.adaptive_avg_pool2d(x, 1),
    F.adaptive_max_pool2d: lambda x: F.adaptive_max_pool2d(x, 2),
    F.dropout: lambda x: F.dropout(x, training=False),
    torch.flatten: lambda x: torch.flatten(x, 1),
    torch.reshape: lambda x: torch.reshape(x, (x.size(0), -1)),
    torch.mean: lambda x: torch.mean(x, (2, 3), keepdim=True),
    torch.add: lambda x: torch.add(x, F.relu(x)),
    operator.add: lambda x: x + F.relu(x),
    operator.iadd: lambda x: operator.iadd(F.relu(x), x),
    torch.cat: lambda x: torch.cat([x, F.relu(x)], 1),
    torch.concat: lambda x: torch.concat([x, F.relu(x)], 1),
    "relu": lambda x: x.relu(),
    "relu_": lambda x: x.relu_(),
    "flatten": lambda x: x.flatten(1),
    "view": lambda x: x.view(x.size(0), -1),
    "reshape": lambda x: x.reshape(x.size(0), -1),
    "mean": lambda x: x.mean((2, 3), keepdim=True),
    "add": lambda x: x.add(F.relu(x)),
    "add_": lambda x: F.relu(x).add_(x),
    "contiguous": lambda x: x.contiguous(),
}
_TRACED_AS = {operator.iadd: operator.add}  # torch.fx itself records the one as the other


def _front_end() -> Rows:
    rows: Rows = []
    for kind in torch_fx._MODULES:
        name = "`nn.ReLU6`, `nn.Hardtanh(0, 6)`" if kind is nn.Hardtanh else f"`nn.{kind.__name__}`"
        rows.append((name, "module", *_translated(nn.Sequential(*_MODULE_EXAMPLES[kind]()))))
    for function in torch_fx._FUNCTIONS:
        rows.append((f"`{_called(function)}`", "function", *_translated(_Calls(_CALL_EXAMPLES[function]), function)))
    for method in torch_fx._METHODS:
        rows.append((f"`x.{method}()`", "method", *_translated(_Calls(_CALL_EXAMPLES[method]), method)))
    return rows


def _called(function: Any) -> str:
    """A function's name as one writes it."""
    for prefix, place in (("operator", operator), ("torch", torch), ("F", F)):
        for name in dir(place):
            if not name.startswith("_") and getattr(place, name) is function:
                return f"{prefix}.{name}"
    raise SystemExit(f"{function} has no public name")


def _translated(module: nn.Module, target: Any = None) -> tuple[str, str]:
    """The float operation that the last layer of ``module`` is read as, and the integer operation that it becomes."""
    module.eval()
    if target is not None:
        called = [node.target for node in torch_fx.trace_module(module, (3, 8, 8)).graph.nodes]
        if _TRACED_AS.get(target, target) not in called:
            raise SystemExit(f"the example for {target} does not call it")
    graph = torch_fx.from_torch(module, (3, 8, 8))
    node = graph[graph.outputs[0]]
    net = labkit.quantize(module, _images())
    report = labkit.verify(net, module, _images())
    if not report.passed:
        raise SystemExit(f"{target or node.name}: {report}")
    if isinstance(node.op, float_ops.Identity):
        return "Identity", "nothing"
    simple = simplify(graph)
    carrier = net.graph.carriers().get(node.name, simple.outputs[0])
    became = type(net.graph[carrier].op).__name__
    return type(node.op).__name__, f"`{became}`" if carrier == node.name else f"part of `{became}`"


# Refusals


def _refusals() -> Rows:
    rows: Rows = []
    for what, act in _mistakes().items():
        try:
            act()
        except LabkitError as error:
            rows.append((what, f"`{type(error).__name__}`", str(error)))
        else:
            raise SystemExit(f"{what}: nothing was refused")
    return rows


def _mistakes() -> dict[str, Callable[[], Any]]:
    def quantized(*layers: nn.Module, **options: Any) -> Callable[[], Any]:
        return lambda: labkit.quantize(nn.Sequential(*layers).eval(), _images(), **options)

    def called(function: Callable[[Any], Any]) -> Callable[[], Any]:
        return lambda: labkit.quantize(_Calls(function).eval(), _images())

    def spoilt(value: float) -> nn.Module:
        conv = nn.Conv2d(3, 4, 3)
        with torch.no_grad():
            conv.weight[1] = value
        return conv

    conv = nn.Conv2d(3, 4, 3)
    return {
        "9 weight bits": quantized(conv, weights=9),
        "1 activation bit": quantized(conv, activations=1),
        "unknown ranges": quantized(conv, ranges="max"),
        "unknown rounding": quantized(conv, rounding="up"),
        "no calibration images": lambda: labkit.quantize(conv, []),
        "an operation without integer form": quantized(conv, nn.GELU()),
        "padding with the border's values": quantized(nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect")),
        "average pooling over a partial window": quantized(nn.AvgPool2d(3, ceil_mode=True)),
        "average pooling that does not count its padding": quantized(
            nn.AvgPool2d(2, padding=1, count_include_pad=False)
        ),
        "adaptive pooling to a size that does not divide": quantized(nn.AdaptiveAvgPool2d(3)),
        "a linear layer over images": quantized(nn.Linear(8, 4)),
        "batch norm of a flat tensor that follows no linear layer": quantized(nn.Flatten(), nn.BatchNorm1d(192)),
        "a reshape that is no flattening": called(lambda x: x.view(-1, 2, 8, 8)),
        "a mean over other axes": called(lambda x: x.mean(1, keepdim=True)),
        "adding a constant": called(lambda x: x + 1),
        "a sum that stretches one tensor": called(lambda x: x + F.adaptive_avg_pool2d(x, 1)),
        "joining along another axis": called(lambda x: torch.cat([x, x], 2)),
        "overwriting what is read again": called(lambda x: F.relu(x, inplace=True) + x),
        "branching on values": called(lambda x: x if x.sum() > 0 else F.relu(x)),
        "a NaN among the weights": quantized(spoilt(float("nan"))),
        "a channel of zeros, one scale a channel": quantized(spoilt(0.0)),
        "sums beyond 32 bits": lambda: _deep_sum(70_000),
        "a float multiplier under an integer rule": lambda: Requantizer(
            RoundingRule.SINGLE, np.asarray(0.5, np.float32), 0, (0, 255)
        ),
        "a left shift out of 32 bits (GEMMLOWP rules)": lambda: Requantizer(
            RoundingRule.GEMMLOWP, FixedPointMultiplier.from_real(8.0), 0, (0, 255)
        ).apply(np.array([2**30])),
        "a kernel of your own that leaves the grid": lambda: _own_kernel(lambda x: np.full((len(x), x[0].size), 1000)),
        "a kernel of your own that returns real numbers": lambda: _own_kernel(lambda x: x.reshape(len(x), -1) * 0.5),
        "a linear layer over several axes in the Numba tier": _wide_linear,
    }


def _deep_sum(depth: int) -> IntGraph:
    u8, s8 = QuantSpec(8, signed=False, symmetric=False), QuantSpec(8, narrow=True)
    one = QParams(np.float32(1), np.int32(0))
    weight = QTensor(np.full((1, depth), 127, np.int8), one, s8)
    half = Requantizer(RoundingRule.SINGLE, FixedPointMultiplier.from_real(0.5), 0, (0, 255))
    x = IntNode("x", int_ops.Quantize((depth,)), (), Tensor((depth,), u8, one))
    fc = IntNode("fc", int_ops.Linear(weight, np.zeros(1, np.int32), half), ("x",), Tensor((1,), u8, one))
    return IntGraph((x, fc), ("fc",))


def _wide_linear() -> Any:
    s8 = QuantSpec(8, narrow=True)
    one = QParams(np.float32(1), np.int32(0))
    half = Requantizer(RoundingRule.SINGLE, FixedPointMultiplier.from_real(0.5), 0, (-127, 127))
    weight = QTensor(np.ones((2, 4), np.int8), one, s8)
    x = IntNode("x", int_ops.Quantize((3, 4)), (), Tensor((3, 4), s8, one))
    fc = IntNode("fc", int_ops.Linear(weight, np.zeros(2, np.int32), half), ("x",), Tensor((3, 2), s8, one))
    return IntegerNet(IntGraph((x, fc), ("fc",))).run(np.zeros((1, 3, 4), np.float32))


def _own_kernel(function: Callable[[Any], Any]) -> Any:
    from labkit.kernels.kernel_set import REFERENCE

    net = labkit.quantize(nn.Flatten(), _images())
    return net.run(_images(), kernels=REFERENCE.with_override("flatten", function))


if __name__ == "__main__":
    sys.exit(main())
