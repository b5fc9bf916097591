"""Small integer graphs with random parameters, built by hand."""

from __future__ import annotations

from dataclasses import replace

import llvmlite.binding
import numpy as np

from labkit.arithmetic.affine import PerAxis, PerTensor, QParams, QTensor, QuantSpec
from labkit.arithmetic.fixedpoint import FixedPointMultiplier
from labkit.arithmetic.ibert import exp_constants, gelu_constants
from labkit.arithmetic.requantize import Requantizer, RoundingRule
from labkit.arithmetic.softmax import exponential_table
from labkit.arithmetic.windows import common_area
from labkit.graph import float_ops, int_ops
from labkit.graph.ir import IntGraph, IntNode, Tensor
from labkit.graph.shapes import window_output
from labkit.kernels.fast.tile import Dot, Registers, fastest_dots
from labkit.quantization import convert_sequences

FULL_S8 = QuantSpec(8, symmetric=False)
S8, U8, S4, U4 = QuantSpec(8), QuantSpec(8, signed=False), QuantSpec(4), QuantSpec(4, signed=False)
S16 = QuantSpec(16, narrow=True)


def can_run(registers, dot):
    """Whether this processor has the instruction of ``dot`` for ``registers``. What is portable runs everywhere."""
    if dot is Dot.NIBBLES_AVX2:  # `fastest_dots` leaves it out where there is a better one
        wanted = {Registers.BITS_256: "avx2", Registers.BITS_512: "avx512bw"}[registers]
        return bool(llvmlite.binding.get_host_cpu_features().get(wanted, False))
    return not dot.is_native or dot in fastest_dots(registers)


# Every way to multiply that this processor has: the width of registers, and a Dot before the one that is always there
WAYS = [(registers, (dot, Dot.PAIRS)) for dot in Dot for registers in Registers if can_run(registers, dot)]


def way_name(way):
    registers, dots = way
    return f"{registers.value}-{dots[0].value}"


def affine(spec):
    """The same grid with any zero point."""
    return QuantSpec(spec.bits, signed=spec.signed, symmetric=False)


def image_shape(shape):
    """(C, H, W) of an image or of a sequence (C, L)."""
    return shape if len(shape) == 3 else (shape[0], 1, shape[1])


class Builder:
    """Adds one node at a time; each method returns the new node's name.

    ``ties`` : multipliers are powers of two, so that rounding ties are common.
    ``extreme`` : weights take only the two ends of their grid.
    ``biased`` : requantizers of FLOAT32_EVEN and FLOAT32_TWICE have a float bias.
    """

    def __init__(self, seed, *, rule=RoundingRule.SINGLE, ties=False, extreme=False, inside=False, biased=False):
        self.rng = np.random.default_rng(seed)
        self.rule, self.ties, self.extreme, self.inside, self.biased = rule, ties, extreme, inside, biased
        self.nodes = []

    def graph(self, *outputs):
        return IntGraph(tuple(self.nodes), outputs or (self.nodes[-1].name,))

    def __getitem__(self, name):
        return next(node.output for node in self.nodes if node.name == name)

    def _add(self, op, inputs, shape, spec, params, carries=()):
        name = f"{type(op).__name__.lower()}{len(self.nodes)}"
        self.nodes.append(IntNode(name, op, tuple(inputs), Tensor(tuple(shape), spec, params), tuple(carries)))
        return name

    def params(self, spec, scale=None):
        zero_point = 0 if spec.symmetric else int(self.rng.integers(spec.qmin, spec.qmax + 1))
        return QParams(np.float32(scale or self.rng.uniform(0.01, 0.1)), np.int32(zero_point))

    def requantizer(self, spec, params, real, channels=None):
        """About ``real``, one for each of ``channels``; a power of two where ties are wanted."""
        count = () if channels is None else (channels,)
        real = real * self.rng.uniform(0.5, 2, count)
        if self.ties:
            real = 2.0 ** np.round(np.log2(real))
        multiplier = {
            RoundingRule.FLOAT32_EVEN: lambda: np.asarray(real, np.float32),
            RoundingRule.FLOAT32_TWICE: lambda: np.asarray(real, np.float32),
            RoundingRule.FLOAT64_AWAY: lambda: np.asarray(real, np.float64),
        }.get(self.rule, lambda: self.fixed(real))()
        fields = {}
        if self.rule is RoundingRule.FLOAT32_TWICE:
            factor = 2.0 ** self.rng.integers(-3, 4) if self.ties else self.rng.uniform(0.2, 5)
            multiplier, fields["second"] = multiplier / np.float32(factor), np.asarray(factor, np.float32)
        if self.biased and self.rule in (RoundingRule.FLOAT32_EVEN, RoundingRule.FLOAT32_TWICE):
            steps = self.rng.normal(0, 2.0 ** (spec.bits - 3), count)
            steps = np.round(2 * steps) / 2 if self.ties else steps
            fields["bias"] = np.asarray(steps / (real if "second" not in fields else factor), np.float32)
        low, high = spec.qmin, spec.qmax
        if self.rng.random() < 0.3:  # a fused ReLU, or its mirror image where that would leave little
            low, high = sorted((int(params.zero_point), max(low, high, key=lambda end: abs(end - params.zero_point))))
        return Requantizer(self.rule, multiplier, int(params.zero_point), (low, high), self.inside, **fields)

    def fixed(self, real):
        """About ``real`` with a mantissa of 31 bits, or now and then of 30, as LiteRT's MEAN has them."""
        made = FixedPointMultiplier.from_real(real)
        if self.rng.random() < 0.8 or np.any(made.exponent >= 30):
            return made
        return FixedPointMultiplier(made.mantissa >> 1, made.exponent + 1)

    def weights(self, shape, spec):
        if self.extreme:
            values = self.rng.choice([spec.qmin, spec.qmax], shape).astype(spec.dtype)
        elif spec.is_binary:
            values = self.rng.choice([-1, 1], shape).astype(spec.dtype)
        else:
            values = self.rng.integers(spec.qmin, spec.qmax + 1, shape).astype(spec.dtype)
        count = () if isinstance(spec.granularity, PerTensor) else (shape[0],)
        zero_point = np.zeros(count, np.int32)
        if not spec.symmetric:
            zero_point = np.asarray(self.rng.integers(spec.qmin, spec.qmax + 1, count), np.int32)
        scale = np.asarray(self.rng.uniform(0.001, 0.01, count), np.float32)
        return QTensor(values, QParams(scale, zero_point), spec)

    def quantize(self, shape, spec=S8, scale=None):
        return self._add(int_ops.Quantize(tuple(shape)), (), shape, spec, self.params(spec, scale))

    def quantize_by_reciprocal(self, shape, spec=S8):
        inside = bool(self.rng.integers(2))
        return self._add(int_ops.QuantizeByReciprocal(tuple(shape), inside), (), shape, spec, self.params(spec))

    def quantize_away_from_zero(self, shape, spec=S8):
        return self._add(int_ops.QuantizeAwayFromZero(tuple(shape)), (), shape, spec, self.params(spec))

    def input(self, shape, spec=S8):
        return self._add(int_ops.Input(tuple(shape)), (), shape, spec, self.params(spec))

    def constant(self, shape, spec=S8):
        values = self.rng.integers(spec.qmin, spec.qmax + 1, shape).astype(spec.dtype)
        return self._add(int_ops.Constant(values), (), shape, spec, self.params(spec))

    def dequantize(self, x):
        return self._add(int_ops.Dequantize(), (x,), self[x].shape, None, None)

    def conv(
        self,
        x,
        outputs,
        kernel,
        *,
        stride=(1, 1),
        padding=((0, 0), (0, 0)),
        dilation=(1, 1),
        groups=1,
        weights=None,
        spec=S8,
        gain=1.0,
        channels=True,
    ):
        size, weights = image_shape(self[x].shape), weights or QuantSpec(8, narrow=True, granularity=PerAxis(0))
        tensor = self.weights((outputs, size[0] // groups, *kernel), weights)
        out = [window_output(size[1 + i], kernel[i], stride[i], padding[i], dilation[i]) for i in range(2)]
        bias, params, requantizer = self._finish(tensor, x, spec, gain, channels)
        op = int_ops.Conv2d(tensor, bias, requantizer, stride, padding, dilation, groups)
        return self._add(op, (x,), self.like(x, (outputs, *out)), spec, params, (f"relu{len(self.nodes)}",))

    def linear(self, x, outputs, *, weights=None, spec=S8, gain=1.0, channels=True):
        weights = weights or QuantSpec(8, narrow=True, granularity=PerAxis(0))
        tensor = self.weights((outputs, self[x].shape[0]), weights)
        bias, params, requantizer = self._finish(tensor, x, spec, gain, channels)
        return self._add(int_ops.Linear(tensor, bias, requantizer), (x,), (outputs,), spec, params)

    def _finish(self, tensor, x, spec, gain, channels):
        """Such that the sums of random inputs lie around real 0 and spread over the grid: a constant result shows nothing."""
        outputs, depth = tensor.values.shape[0], tensor.values[0].size
        zero_point = tensor.params.zero_point.reshape([-1] + [1] * (tensor.values.ndim - 1))
        weights = (tensor.values.astype(np.int64) - zero_point).reshape(outputs, depth)
        grid, inputs = self[x].spec, self[x].params
        spread = np.sqrt(depth * np.maximum(np.mean(weights**2.0), 0.25)) * 2.0 ** (grid.bits - 1)
        middle = (grid.qmin + grid.qmax) / 2 - float(inputs.zero_point)
        bias = self.rng.integers(-int(spread / 2), int(spread / 2) + 1, outputs) - np.rint(middle * weights.sum(axis=1))
        bias, params = bias.astype(np.int32), self.params(spec)
        real = gain * 2.0 ** (spec.bits - 1) / spread
        return bias, params, self.requantizer(spec, params, real, outputs if channels else None)

    def max_pool(self, x, kernel, *, stride=None, padding=((0, 0), (0, 0)), dilation=(1, 1), ceil_mode=False):
        t, stride, size = self[x], stride or kernel, image_shape(self[x].shape)
        out = [window_output(size[1 + i], kernel[i], stride[i], padding[i], dilation[i], ceil_mode) for i in range(2)]
        op = int_ops.MaxPool2d(kernel, stride, padding, dilation, ceil_mode)
        return self._add(op, (x,), self.like(x, (size[0], *out)), t.spec, t.params)

    def average_pool(self, x, kernel, *, stride=None, padding=((0, 0), (0, 0)), spec=S8):
        size, stride = image_shape(self[x].shape), stride or kernel
        out = [window_output(size[1 + i], kernel[i], stride[i], padding[i]) for i in range(2)]
        params = self.params(spec)
        requantizer = self.requantizer(spec, params, 1.5 / (kernel[0] * kernel[1]))
        op = int_ops.AveragePool2d(kernel, stride, padding, requantizer)
        return self._add(op, (x,), self.like(x, (size[0], *out)), spec, params)

    def adaptive_average_pool(self, x, size, *, spec=S8):
        params, area = self.params(spec), common_area(*image_shape(self[x].shape)[1:], size)
        op = int_ops.AdaptiveAveragePool2d(size, self.requantizer(spec, params, 1.5 / area))
        return self._add(op, (x,), self.like(x, (self[x].shape[0], *size)), spec, params)

    def add(self, a, b, *, spec=S8, shift=30):
        params = self.params(spec)
        multipliers = self.rng.integers(1, 2**shift, 2).astype(np.int32)
        if self.ties:
            multipliers = np.array([2 ** (shift - 1), 2 ** max(shift - 2, 0)], np.int32)
        op = int_ops.Add(multipliers, shift, int(params.zero_point), (spec.qmin, spec.qmax))
        return self._add(op, (a, b), self[a].shape, spec, params)

    def add_fixed_point(self, a, b, *, spec=S8, rule=RoundingRule.GEMMLOWP, subtracts=False, bits=20):
        params, scales = self.params(spec), [float(self[x].params.scale) for x in (a, b)]
        most = 2 * max(scales)
        ratios = np.array(scales) / most
        out = most / (2**bits * float(params.scale)) * 2.0 ** (spec.bits - 9)
        if self.ties:
            ratios, out = np.array([0.5, 0.25]), 2.0 ** np.round(np.log2(out))
        fixed = FixedPointMultiplier.from_real(ratios), FixedPointMultiplier.from_real(out)
        op = int_ops.AddFixedPoint(rule, bits, *fixed, int(params.zero_point), self.clamp(spec), subtracts)
        return self._add(op, (a, b), self[a].shape, spec, params)

    def add_float32(self, a, b, *, spec=S8):
        params, span = self.params(spec), 2.0 ** (spec.bits - 9)
        ratios = 2.0 ** -self.rng.integers(0, 4, 2) if self.ties else self.rng.uniform(0.1, 1.5, 2)
        ratios = np.asarray(ratios * span * 2.0 ** (9 - self[a].spec.bits), np.float32)
        zeros = [np.float32(self[x].params.zero_point) for x in (a, b)]
        addend = np.float32(params.zero_point) - (ratios[0] * zeros[0] + ratios[1] * zeros[1])
        op = int_ops.AddFloat32(ratios, np.asarray(addend, np.float32), self.clamp(spec))
        return self._add(op, (a, b), self[a].shape, spec, params)

    def add_dequantized(self, a, b, *, spec=S8, fused=None):
        """``fused`` : by default what fills whole vectors of 64."""
        params = self.params(spec)
        scales = np.array([self[x].params.scale for x in (a, b)], np.float32)
        reciprocal = np.float32(1) / params.scale
        if self.ties:
            scales, reciprocal = np.array([0.5, 0.25], np.float32), np.float32(1)
        count = int(np.prod(self[a].shape))
        fused = count // 64 * 64 if fused is None else fused
        op = int_ops.AddDequantized(scales, np.asarray(reciprocal), int(params.zero_point), self.clamp(spec), fused)
        return self._add(op, (a, b), self[a].shape, spec, params)

    def add_away_from_zero(self, a, b, *, spec=S8):
        params = self.params(spec)
        multipliers = np.array([2**21, 2**20]) if self.ties else self.rng.integers(2**20, 2**22 + 1, 2)
        shift = 22 if self.ties else int(self.rng.integers(20, 24))
        op = int_ops.AddAwayFromZero(multipliers.astype(np.int32), shift, int(params.zero_point), self.clamp(spec))
        return self._add(op, (a, b), self[a].shape, spec, params)

    def clamp(self, spec):
        """The whole grid, or a part of it."""
        if self.rng.random() < 0.7:
            return spec.qmin, spec.qmax
        low, high = sorted(self.rng.integers(spec.qmin, spec.qmax + 1, 2).tolist())
        return low, high

    def lookup(self, x, *, spec=S8):
        table = self.rng.integers(spec.qmin, spec.qmax + 1, 256).astype(np.int32)
        return self._add(int_ops.Lookup("tanh", table), (x,), self[x].shape, spec, self.params(spec))

    def pool_of_valid(self, x, kernel, *, stride=None, padding=((0, 0), (0, 0)), offset=0):
        t, stride, size = self[x], stride or kernel, image_shape(self[x].shape)
        out = [window_output(size[1 + i], kernel[i], stride[i], padding[i]) for i in range(2)]
        op = int_ops.AveragePoolOfValid(kernel, stride, padding, self.clamp(t.spec), offset)
        return self._add(op, (x,), self.like(x, (size[0], *out)), t.spec, t.params)

    def pool_float32(self, x, kernel, *, stride=None, padding=((0, 0), (0, 0)), spec=S8, counts_padding=False):
        stride, size = stride or kernel, image_shape(self[x].shape)
        out = [window_output(size[1 + i], kernel[i], stride[i], padding[i]) for i in range(2)]
        params = self.params(spec, float(self[x].params.scale) * 2.0 ** (self[x].spec.bits - spec.bits - self.ties))
        op = int_ops.AveragePoolFloat32(kernel, stride, padding, counts_padding, self.clamp(spec))
        return self._add(op, (x,), self.like(x, (size[0], *out)), spec, params)

    def mean_float32(self, x, axes, *, spec=S8):
        t, params = self[x], self.params(spec)
        count = int(np.prod([t.shape[axis] for axis in axes]))
        multiplier = np.float32(1 / count) if self.ties else np.float32(self.rng.uniform(0.5, 1.5) / count)
        addend = np.float32(self.rng.integers(-40, 41) / 2)
        offset = int(self.rng.choice([0, 128]))
        op = int_ops.MeanFloat32(tuple(axes), multiplier, addend, self.clamp(spec), offset)
        shape = [1 if axis in axes else size for axis, size in enumerate(t.shape)]
        return self._add(op, (x,), shape, spec, params)

    def softmax_fixed_point(self, x, axis, *, spec=FULL_S8):
        multiplier = FixedPointMultiplier.from_real(float(self[x].params.scale) * 2**26)
        lowest = -(31 * 2**26 >> int(multiplier.exponent))
        op = int_ops.SoftmaxFixedPoint(axis, multiplier, lowest, spec.qmin, self.clamp(spec))
        return self._add(op, (x,), self[x].shape, spec, QParams(np.float32(2.0**-8), np.int32(spec.qmin)))

    def softmax_by_reciprocal(self, x, axis, *, spec=FULL_S8):
        table = np.exp(-float(self[x].params.scale) * np.arange(256)).astype(np.float32)
        op = int_ops.SoftmaxByReciprocal(axis, table, spec.qmin, self.clamp(spec))
        return self._add(op, (x,), self[x].shape, spec, QParams(np.float32(2.0**-8), np.int32(spec.qmin)))

    def softmax_float32(self, x, axis, *, spec=U8):
        params = self.params(spec, 2.0**-spec.bits)
        table = np.exp(-float(self[x].params.scale) * np.arange(256)).astype(np.float32)
        op = int_ops.SoftmaxFloat32(
            axis, table, np.asarray(2.0**spec.bits, np.float32), int(params.zero_point), self.clamp(spec)
        )
        return self._add(op, (x,), self[x].shape, spec, params)

    def multiply(self, a, b, *, spec=S8, gain=None):
        """``gain`` : of the multiplier; by default such that few products are clamped."""
        params, widest = self.params(spec), max(self[a].shape, self[b].shape, key=np.prod)
        real = gain or 2.0 ** (spec.bits - self[a].spec.bits - self[b].spec.bits)
        op = int_ops.Multiply(self.requantizer(spec, params, real))
        return self._add(op, (a, b), widest, spec, params)

    def pad(self, x, padding):
        channels, height, width = image_shape(self[x].shape)
        size = (channels, height + sum(padding[0]), width + sum(padding[1]))
        return self._add(int_ops.Pad(padding), (x,), self.like(x, size), self[x].spec, self[x].params)

    def reshape(self, x, shape):
        return self._add(int_ops.Reshape(tuple(shape)), (x,), shape, self[x].spec, self[x].params)

    def transpose(self, x, axes):
        shape = [self[x].shape[axis] for axis in axes]
        return self._add(int_ops.Transpose(tuple(axes)), (x,), shape, self[x].spec, self[x].params)

    def upsample(self, x, factor):
        channels, height, width = image_shape(self[x].shape)
        size = self.like(x, (channels, height * factor[0], width * factor[1]))
        return self._add(int_ops.UpsampleNearest2d(factor), (x,), size, self[x].spec, self[x].params)

    def softmax(self, x, axis, *, spec=U8, bits=8):
        zero_point = 0 if spec.symmetric else int(self.rng.integers(spec.qmin, spec.qmax + 1))
        params = QParams(np.float32(2.0**-bits), np.int32(zero_point))
        table = exponential_table(float(self[x].params.scale))
        op = int_ops.Softmax(axis, table, bits, zero_point, (spec.qmin, spec.qmax))
        return self._add(op, (x,), self[x].shape, spec, params)

    def argmax(self, x, axis, *, keepdims=False):
        shape = self[x].shape
        name = self._add(
            int_ops.ArgMax(axis, keepdims), (x,), (*shape[:axis], *[1] * keepdims, *shape[axis + 1 :]), None, None
        )
        node = self.nodes[-1]
        self.nodes[-1] = replace(node, output=replace(node.output, is_index=True))
        return name

    def index(self, length):
        """Indices for an `embedding`; `images_for` draws them for the smallest table that takes them."""
        name = self._add(int_ops.Input((length,)), (), (length,), None, None)
        node = self.nodes[-1]
        self.nodes[-1] = replace(node, output=replace(node.output, is_index=True))
        return name

    def embedding(self, x, rows, features, *, spec=S16, per_row=True, signed=True):
        grid = QuantSpec(8, signed=signed, narrow=signed, granularity=PerAxis(0) if per_row else PerTensor())
        values = self.rng.integers(grid.qmin, grid.qmax + 1, (rows, features)).astype(grid.dtype)
        count = (rows,) if per_row else ()
        scale = np.asarray(self.rng.uniform(0.001, 0.01, count), np.float32)
        params = self.params(spec)
        requantizer = self.requantizer(
            spec, params, 2.0 ** (spec.bits - 8), rows if per_row and self.is_fixed else None
        )
        op = int_ops.Embedding(QTensor(values, QParams(scale, np.zeros(count, np.int32)), grid), requantizer)
        return self._add(op, (x,), (features, *self[x].shape), spec, params)

    @property
    def is_fixed(self):
        """Whether multipliers are fixed-point, so that an embedding may have one for each row."""
        return self.rule.is_integer_only

    def matmul(self, a, b, *, transpose_a=False, transpose_b=False, spec=S8, gain=1.0):
        shape_a, shape_b = self[a].shape, self[b].shape
        batch, rows, inner = shape_a if not transpose_a else (shape_a[0], shape_a[2], shape_a[1])
        columns = shape_b[1] if transpose_b else shape_b[2]
        params = self.params(spec)
        bits = self[a].spec.bits + self[b].spec.bits
        real = gain * 2.0 ** (spec.bits + 1 - bits) / np.sqrt(inner)
        op = int_ops.MatMul(self.requantizer(spec, params, real), transpose_a, transpose_b)
        return self._add(op, (a, b), (batch, rows, columns), spec, params)

    def softmax_polynomial(self, x, mask=None, *, spec=U8, bits=8, scale=None):
        """``scale`` : of the scores, from which alone the constants follow; by default one at which shares differ."""
        bits = min(bits, spec.bits if not spec.signed else spec.bits - 1)
        scale = scale or float(np.clip(16 * 2.0 ** -self[x].spec.bits * self.rng.uniform(0.5, 4), 1e-4, 0.6))
        found = exp_constants(scale)
        multiplier = FixedPointMultiplier.from_real(found.scale * 32767)
        op = int_ops.SoftmaxPolynomial(found.ln2, found.b, found.c, multiplier, bits)
        params = QParams(np.float32(2.0**-bits), np.int32(0))
        return self._add(op, (x,) if mask is None else (x, mask), self[x].shape, spec, params)

    def gelu(self, x, *, spec=U8, scale=None):
        found, params = gelu_constants(scale or float(self.rng.uniform(2.55e-4, 1e-3))), self.params(spec)
        real = 2.0 ** (spec.bits - 1) / abs(found.one) / 2.0 ** (self[x].spec.bits - 1)
        op = int_ops.GeluPolynomial(found.b, found.c, found.one, self.requantizer(spec, params, real))
        return self._add(op, (x,), self[x].shape, spec, params)

    def layer_norm(self, x, *, spec=S16):
        features = self[x].shape[0]
        gamma = self.rng.normal(0, 1, features) * self.rng.choice([0.0, 1.0, 3.0], features)
        norm = float_ops.LayerNorm(gamma.astype(np.float32), self.rng.normal(0, 1, features).astype(np.float32), 0.0)
        params = QParams(np.float32(2.0 ** (3 - spec.bits)), np.int32(0))
        op = convert_sequences.layer_norm(norm, self[x], Tensor(self[x].shape, spec, params))
        return self._add(replace(op, clamp=self.clamp(spec)), (x,), self[x].shape, spec, params)

    def like(self, x, image):
        """The shape ``image`` (C, H, W), without its height where ``x`` is a sequence."""
        return image if len(self[x].shape) == 3 else (image[0], image[2])

    def concat(self, *parts, spec=S8):
        params = self.params(spec)
        requantizers = tuple(self.requantizer(spec, params, 0.7) for _ in parts)
        channels = sum(self[part].shape[0] for part in parts)
        return self._add(int_ops.Concat(requantizers), parts, (channels, *self[parts[0]].shape[1:]), spec, params)

    def requantize(self, x, *, spec=S8, gain=0.8):
        params = self.params(spec)
        op = int_ops.Requantize(self.requantizer(spec, params, gain))
        return self._add(op, (x,), self[x].shape, spec, params)

    def flatten(self, x):
        t = self[x]
        return self._add(int_ops.Flatten(), (x,), (int(np.prod(t.shape)),), t.spec, t.params)


def images_for(graph, count, seed=0):
    """Input for each border in: integers of the grid for an Input node, else real numbers.

    Real numbers are spread over the grid, beyond both ends of it, and often on a rounding tie.
    """
    rng = np.random.default_rng(seed)
    result = {}
    for name in graph.inputs:
        tensor = graph[name].output
        if tensor.is_index:
            result[name] = rng.integers(0, rows_for(graph, name), (count, *tensor.shape)).astype(np.int32)
            continue
        spec, params = tensor.quantized
        if masks_a_softmax(graph, name) and isinstance(graph[name].op, int_ops.Input):
            result[name] = masks_for(rng, spec, params, (count, *tensor.shape))
        elif isinstance(graph[name].op, int_ops.Input):
            result[name] = rng.integers(spec.qmin, spec.qmax + 1, (count, *tensor.shape)).astype(spec.dtype)
        if name in result:
            continue
        low, high = spec.qmin - int(params.zero_point), spec.qmax - int(params.zero_point)
        real = rng.uniform(low - 3, high + 3, (count, *tensor.shape))
        real = np.where(rng.random(real.shape) < 0.3, np.round(2 * real) / 2, real)
        real = np.where(rng.random(real.shape) < 0.1, rng.choice([low, high], real.shape), real)
        result[name] = (real * float(params.scale)).astype(np.float32)
    return result


def masks_a_softmax(graph, name):
    """Whether the node ``name`` says which elements take part in a softmax."""
    return any(isinstance(node.op, int_ops.SoftmaxPolynomial) and name in node.inputs[1:] for node in graph)


def masks_for(rng, spec, params, shape):
    """The zero point where an element is left out, and anything else elsewhere; the first leaves none out, the second all."""
    given = rng.integers(spec.qmin, spec.qmax + 1, shape)
    given = np.where(
        given == params.zero_point, params.zero_point + (1 if params.zero_point < spec.qmax else -1), given
    )
    hidden = rng.random(shape) < rng.random((shape[0], 1))
    hidden[:1], hidden[1:2] = False, True
    return np.where(hidden, params.zero_point, given).astype(spec.dtype)


def rows_for(graph, name):
    """How many rows the smallest table has that takes the indices of the node ``name``."""
    tables = [node.op.weight.values for node in graph if isinstance(node.op, int_ops.Embedding) and name in node.inputs]
    return min(map(len, tables), default=10)


def encoder(seed, length, *, features=48, heads=3, inner=40, layers=1, table=50, **kind):
    """A small transformer for sentences of ``length`` tokens with random weights; ``kind`` of a `Builder`."""
    b = Builder(seed, **kind)
    ids, mask = b.index(length), b.input((length,), U8)
    mask_node = b.nodes[-1]
    b.nodes[-1] = replace(mask_node, output=replace(mask_node.output, params=QParams(np.float32(1), np.int32(0))))
    words = b.embedding(ids, table, features)
    x = b.layer_norm(b.add(words, b.constant((features, length), S16), spec=S16))
    split = heads, features // heads, length
    for _ in range(layers):
        y = b.requantize(x, spec=affine(U8), gain=2.0**-8)
        query, key, value = (b.reshape(b.conv(y, features, (1, 1), spec=affine(U8)), split) for _ in range(3))
        shares = b.softmax_polynomial(b.matmul(query, key, transpose_a=True, spec=S16), mask)
        context = b.matmul(value, shares, transpose_b=True, spec=affine(U8), gain=8.0)
        y = b.conv(b.reshape(context, (features, length)), features, (1, 1), spec=S16)
        x = b.layer_norm(b.add(y, x, spec=S16))
        y = b.gelu(b.conv(b.requantize(x, spec=affine(U8), gain=2.0**-8), inner, (1, 1), spec=S16), spec=affine(U8))
        x = b.layer_norm(b.add(b.conv(y, features, (1, 1), spec=S16), x, spec=S16))
    return b.graph(b.dequantize(b.transpose(x, (1, 0))))


def lenet(seed=0, rule=RoundingRule.SINGLE, spec=S8, weights=None):
    """The EE219 LeNet with random weights: conv 3-12 5x5, conv 12-32 3x3, fully connected 1152-256-64-10."""
    b = Builder(seed, rule=rule)
    x = b.quantize((3, 32, 32), affine(spec), 2 / 255)
    x = b.max_pool(b.conv(x, 12, (5, 5), spec=affine(spec), weights=weights), (2, 2))
    x = b.max_pool(b.conv(x, 32, (3, 3), spec=affine(spec), weights=weights), (2, 2))
    x = b.flatten(x)
    for outputs in (256, 64, 10):
        x = b.linear(x, outputs, spec=affine(spec), weights=weights)
    return b.graph(b.dequantize(x))
