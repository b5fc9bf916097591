"""Find out which integer operations run, by running each of them alone in both tiers (for tools/make_support.py)."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from labkit.arithmetic.affine import WIDE_BITS, PerAxis, QParams, QTensor, QuantSpec
from labkit.arithmetic.fixedpoint import FixedPointMultiplier
from labkit.arithmetic.ibert import exp_constants, gelu_constants
from labkit.arithmetic.requantize import Requantizer, RoundingRule
from labkit.arithmetic.softmax import exponential_table
from labkit.errors import LabkitError
from labkit.graph import int_ops
from labkit.graph.ir import IntGraph, IntNode, Tensor
from labkit.net import IntegerNet

__all__ = ["BITS", "REQUANTIZES", "WEIGHTED", "Case", "cases", "one_node", "qparams", "tiers"]

BITS = range(1, 9)
WEIGHTED = {"Conv2d", "Linear"}
REQUANTIZES = {
    *("Conv2d", "Linear", "AveragePool2d", "AdaptiveAveragePool2d", "Multiply", "Concat", "Requantize"),
    *("Embedding", "GeluPolynomial", "MatMul"),
}
_OF_SEQUENCES = {"Embedding", "GeluPolynomial", "LayerNorm", "MatMul", "SoftmaxPolynomial"}
_TAKES_WIDE = {
    "Add",
    "Flatten",
    "GeluPolynomial",
    "LayerNorm",
    "Requantize",
    "Reshape",
    "SoftmaxPolynomial",
    "Transpose",
}

_BORDERS: dict[str, Any] = {
    name: getattr(int_ops, name) for name in ("Input", "QuantizeByReciprocal", "QuantizeAwayFromZero")
}
_SHARES = QuantSpec(8, symmetric=False)  # of a softmax of LiteRT
_ROWS = 9  # of an embedding
_NONE, _ONE = ((0, 0), (0, 0)), ((1, 1), (1, 1))


class Case(NamedTuple):
    """One thing to try. Signed activations are symmetric, the others have a zero point in the middle of their grid."""

    weight_bits: int
    activation_bits: int
    signed: bool
    rule: RoundingRule


def cases(name: str) -> list[Case]:
    """All that can vary about the operation called ``name``: bits, grids and, where it requantizes, rules.

    A rule knows nothing of bits, so that weights and activations of unequal bits are tried under one rule only.
    """
    rules = list(RoundingRule) if name in REQUANTIZES else [RoundingRule.SINGLE]
    if name == "Embedding":  # its rows have fixed-point multipliers
        rules = [rule for rule in rules if rule.is_integer_only]
    weights = BITS if name in WEIGHTED else (8,)
    every = [Case(*values) for values in itertools.product(weights, BITS, (False, True), rules)]
    if name in _TAKES_WIDE or name == "Embedding":
        every += [Case(8, WIDE_BITS, True, rule) for rule in rules]
    return [
        case
        for case in every
        if name not in WEIGHTED or case.rule is RoundingRule.SINGLE or case.weight_bits == case.activation_bits
    ]


def tiers(name: str, case: Case) -> tuple[bool, bool]:
    """Whether the operation runs in the reference tier, and whether the Numba tier then gives the same integers."""
    rng = np.random.default_rng(0)
    try:
        net = IntegerNet(one_node(name, case, rng))
        source = net.graph["x"].output
        x: NDArray[Any] = rng.uniform(-1.5, 1.5, (3, *source.shape)).astype(np.float32)
        if source.is_index:
            x = rng.integers(0, _ROWS, x.shape)
        elif isinstance(net.graph["x"].op, int_ops.Input):
            spec, _ = source.quantized
            x = rng.integers(spec.qmin, spec.qmax + 1, x.shape).astype(spec.dtype)
        expected = net.run(x, kernels="reference")
    except LabkitError:
        return False, False
    try:
        return True, bool(np.array_equal(net.run(x), expected))
    except LabkitError:
        return True, False


def one_node(name: str, case: Case, rng: np.random.Generator) -> IntGraph:
    """A graph of a Quantize node, whose result is called ``x``, and the operation called ``name``."""
    spec = QuantSpec(case.activation_bits, signed=case.signed, symmetric=case.signed, narrow=case.signed)
    centred = case.signed or name in ("GeluPolynomial", "LayerNorm", "SoftmaxPolynomial")
    zero_point = 0 if centred else spec.qmax // 2
    clamp = (spec.qmin, spec.qmax)
    shape = {"Linear": (20,), "LayerNorm": (24, 6), "Embedding": (6,)}.get(name, (4, 6, 6))
    x = Tensor(shape, spec, qparams(1 / spec.qmax, zero_point))
    if name == "Embedding":
        x = Tensor(shape, None, None, is_index=True)
    other = qparams(1.5 / spec.qmax, zero_point)
    layer_gain = 0.3 / 2 ** (case.weight_bits - 1)
    bias = rng.integers(-50, 50, 5).astype(np.int32)

    def requantizer(real: float, channels: int | None = None) -> Requantizer:
        multiplier = _multiplier(case.rule, real * rng.uniform(0.5, 1.5, () if channels is None else channels))
        if case.rule is RoundingRule.FLOAT32_TWICE:
            factors: dict[str, Any] = {"second": np.array(0.7, np.float32), "bias": np.array(0.4, np.float32)}
            return Requantizer(case.rule, multiplier, zero_point, clamp, **factors)
        return Requantizer(case.rule, multiplier, zero_point, clamp)

    def made() -> tuple[Any, tuple[int, ...], QParams | None, int]:
        """The operation, the shape and parameters of its result, and how many inputs it takes."""
        if (found := _of_runtimes(name, spec, x, other)) is not None:
            return found
        if name in _OF_SEQUENCES:
            return _of_sequences(name, x, other, clamp, requantizer, rng)
        match name:
            case "Dequantize":
                return int_ops.Dequantize(), shape, None, 1
            case "Conv2d":
                weight, finish = _weights(case.weight_bits, (5, 4, 3, 3), rng), requantizer(layer_gain, 5)
                return int_ops.Conv2d(weight, bias, finish, (1, 1), _ONE, (1, 1), 1), (5, 6, 6), other, 1
            case "Linear":
                weight, finish = _weights(case.weight_bits, (5, 20), rng), requantizer(layer_gain, 5)
                return int_ops.Linear(weight, bias, finish), (5,), other, 1
            case "MaxPool2d":
                return int_ops.MaxPool2d((3, 3), (2, 2), _ONE, (1, 1), False), (4, 3, 3), x.params, 1
            case "AveragePool2d":
                return int_ops.AveragePool2d((2, 2), (2, 2), _NONE, requantizer(0.2)), (4, 3, 3), other, 1
            case "Add":
                multipliers = np.array([2**29, 2**28 + 1], np.int32)
                return int_ops.Add(multipliers, 30, zero_point, clamp), shape, other, 2
            case "AdaptiveAveragePool2d":
                return int_ops.AdaptiveAveragePool2d((4, 5), requantizer(0.2)), (4, 4, 5), other, 1
            case "Multiply":
                return int_ops.Multiply(requantizer(1 / spec.qmax)), shape, other, 2
            case "Pad":
                return int_ops.Pad(((1, 0), (2, 1))), (4, 7, 9), x.params, 1
            case "Reshape":
                return int_ops.Reshape((12, 12)), (12, 12), x.params, 1
            case "Transpose":
                return int_ops.Transpose((2, 0, 1)), (6, 4, 6), x.params, 1
            case "UpsampleNearest2d":
                return int_ops.UpsampleNearest2d((2, 3)), (4, 12, 18), x.params, 1
            case "Softmax":
                softmax = int_ops.Softmax(0, exponential_table(1 / spec.qmax), 7, zero_point, clamp)
                return softmax, shape, qparams(2.0**-7, zero_point), 1
            case "Concat":
                return int_ops.Concat((requantizer(0.7), requantizer(0.6))), (8, 6, 6), other, 2
            case "Requantize":
                return int_ops.Requantize(requantizer(0.7)), shape, other, 1
            case "Flatten":
                return int_ops.Flatten(), (144,), x.params, 1
        raise SystemExit(f"There is no example of {name} yet: add one here.")

    takes_integers = x.is_index or spec.is_wide
    nodes = [
        IntNode("x", int_ops.Input(shape) if takes_integers else _BORDERS.get(name, int_ops.Quantize)(shape), (), x)
    ]
    if name == "ArgMax":
        nodes.append(IntNode("y", int_ops.ArgMax(0, False), ("x",), Tensor((6, 6), None, None, is_index=True)))
    elif name != "Quantize" and name not in _BORDERS:
        op, size, params, inputs = made()
        grid = _SHARES if name in ("SoftmaxFixedPoint", "SoftmaxByReciprocal") else spec
        if name == "SoftmaxPolynomial":
            grid = QuantSpec(8, signed=False)
        nodes.append(IntNode("y", op, ("x",) * inputs, Tensor(size, None if params is None else grid, params)))
    return IntGraph(tuple(nodes), (nodes[-1].name,))


def _of_sequences(
    name: str, x: Tensor, other: QParams, clamp: tuple[int, int], requantizer: Any, rng: np.random.Generator
) -> tuple[Any, tuple[int, ...], QParams, int]:
    """What `one_node` needs of an operation of transformers; ``requantizer`` makes one, ``clamp`` is that of the output."""
    if name == "Embedding":
        return int_ops.Embedding(_weights(8, (_ROWS, 5), rng), requantizer(0.7, _ROWS)), (5, *x.shape), other, 1
    if name == "MatMul":
        return int_ops.MatMul(requantizer(0.1), transpose_b=True), x.shape, other, 2
    if name == "SoftmaxPolynomial":
        known = exp_constants(1e-3)
        multiplier = FixedPointMultiplier.from_real(known.scale * 32767)
        return int_ops.SoftmaxPolynomial(known.ln2, known.b, known.c, multiplier, 8), x.shape, qparams(2.0**-8, 0), 1
    if name == "GeluPolynomial":
        found = gelu_constants(3e-4)
        return int_ops.GeluPolynomial(found.b, found.c, found.one, requantizer(1e-4)), x.shape, other, 1
    multipliers = rng.integers(-(2**20), 2**20, x.shape[0]).astype(np.int32)
    addends = rng.integers(-(2**40), 2**40, x.shape[0])
    return int_ops.LayerNorm(multipliers, addends, 45, clamp), x.shape, other, 1


def _of_runtimes(
    name: str, spec: QuantSpec, x: Tensor, other: QParams
) -> tuple[Any, tuple[int, ...], QParams, int] | None:
    """What `one_node` needs of an operation that computes as another runtime does; None where it is none."""
    clamp, zero_point, window = (spec.qmin, spec.qmax), int(other.zero_point), ((2, 2), (2, 2), _NONE)
    reals, ratio = np.array([0.7, 0.6], np.float32), np.array(1 / float(other.scale), np.float32)
    powers = np.exp(-0.05 * np.arange(256)).astype(np.float32)
    fixed = FixedPointMultiplier.from_real
    shares = qparams(2.0**-8, -128), (_SHARES.qmin, _SHARES.qmax)
    if x.params is None:
        return None
    match name:
        case "AddFixedPoint":
            parts = RoundingRule.GEMMLOWP, 20, fixed(np.array([0.5, 0.4])), fixed(2.0**-19)
            return int_ops.AddFixedPoint(*parts, zero_point, clamp), x.shape, other, 2
        case "AddFloat32":
            return int_ops.AddFloat32(reals, np.array(0.5, np.float32), clamp), x.shape, other, 2
        case "AddDequantized":
            scales = np.full(2, x.params.scale, np.float32)
            return int_ops.AddDequantized(scales, ratio, zero_point, clamp, 128), x.shape, other, 2
        case "AddAwayFromZero":
            multipliers = np.array([2**21, 2**20 + 1], np.int32)
            return int_ops.AddAwayFromZero(multipliers, 21, zero_point, clamp), x.shape, other, 2
        case "AveragePoolOfValid":
            return int_ops.AveragePoolOfValid(*window, clamp), (4, 3, 3), x.params, 1
        case "AveragePoolFloat32":
            return int_ops.AveragePoolFloat32(*window, False, clamp), (4, 3, 3), other, 1
        case "MeanFloat32":
            mean = int_ops.MeanFloat32((1, 2), np.array(0.03, np.float32), np.array(0.5, np.float32), clamp)
            return mean, (4, 1, 1), other, 1
        case "Lookup":
            return int_ops.Lookup("tanh", np.arange(256, dtype=np.int32).clip(*clamp)), x.shape, other, 1
        case "Constant":
            values: Any = np.arange(36).reshape(1, 6, 6) % (spec.qmax - spec.qmin + 1) + spec.qmin
            return int_ops.Constant(values.astype(spec.dtype)), (1, 6, 6), other, 0
        case "SoftmaxFixedPoint":
            op = int_ops.SoftmaxFixedPoint(0, fixed(float(x.params.scale) * 2**26), -124, -128, shares[1])
            return op, x.shape, shares[0], 1
        case "SoftmaxByReciprocal":
            return int_ops.SoftmaxByReciprocal(0, powers, -128, shares[1]), x.shape, shares[0], 1
        case "SoftmaxFloat32":
            factor = np.array(2**7, np.float32)
            return (
                int_ops.SoftmaxFloat32(0, powers, factor, zero_point, clamp),
                x.shape,
                qparams(2.0**-7, zero_point),
                1,
            )
    return None


def qparams(scale: float, zero_point: int) -> QParams:
    """Parameters of a whole tensor."""
    return QParams(np.asarray(scale, np.float32), np.asarray(zero_point, np.int32))


def _multiplier(rule: RoundingRule, reals: NDArray[np.float64]) -> Any:
    wanted: dict[RoundingRule, Callable[[], Any]] = {
        RoundingRule.FLOAT32_EVEN: lambda: np.asarray(reals, np.float32),
        RoundingRule.FLOAT32_TWICE: lambda: np.asarray(reals / 0.7, np.float32),
        RoundingRule.FLOAT64_AWAY: lambda: np.asarray(reals, np.float64),
    }
    return wanted.get(rule, lambda: FixedPointMultiplier.from_real(reals))()


def _weights(bits: int, size: tuple[int, ...], rng: np.random.Generator) -> QTensor:
    grid = QuantSpec(bits, narrow=True, granularity=PerAxis(0))
    choices = [-1, 1] if grid.is_binary else list(range(grid.qmin, grid.qmax + 1))
    params = QParams(np.full(size[0], 0.01, np.float32), np.zeros(size[0], np.int32))
    return QTensor(rng.choice(choices, size).astype(np.int8), params, grid)
