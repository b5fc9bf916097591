"""Small integer networks in which every number follows from scales, weights and bounds, as in those that labkit quantizes."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from labkit.arithmetic.affine import PerAxis, PerTensor, QParams, QTensor, QuantSpec
from labkit.arithmetic.windows import common_area
from labkit.graph import int_ops
from labkit.graph.ir import IntGraph, IntNode, Tensor
from labkit.graph.shapes import window_output
from labkit.kernels import reference
from labkit.net import IntegerNet
from labkit.runtimes import labkit_rules
from labkit.runtimes.labkit_rules import requantizer, scale_of

__all__ = ["NETS", "RELU", "RELU6", "Maker", "made", "real_inputs"]

NONE, RELU, RELU6, HARD_TANH = (None, None), (0.0, None), (0.0, 6.0), (-1.0, 1.0)


class _Unrounded:
    """In place of a requantizer: hands the int32 sums on."""

    def apply(self, sums, axis=1):
        return sums


class Maker:
    """Adds one node at a time and gives back its name.

    seed : of all that is random.
    ties : all scales are powers of two, so that rounding ties are common.
    weights : bits of the weights, in turn.
    activations : bits of the activations, in turn; the input has 8.
    signed : the grid of the activations.
    per_channel : a weight scale for each output channel.
    """

    def __init__(
        self, seed, *, ties=False, weights=(8,), activations=(8,), signed=False, narrow=False, per_channel=True
    ):
        self.rng = np.random.default_rng(seed)
        self.ties, self.signed, self.narrow, self.per_channel = ties, signed, narrow, per_channel
        self.weight_bits, self.bits, self.nodes = list(weights), list(activations), []
        self.sample = {}  # integers of every node, by name, so that each grid can fit what is really there

    def graph(self, *outputs):
        return IntGraph(tuple(self.nodes), outputs)

    def __getitem__(self, name):
        return next(node.output for node in self.nodes if node.name == name)

    def put(self, op, inputs, output, name=None):
        name = name or f"{type(op).__name__.lower()}{len(self.nodes)}"
        self.nodes.append(IntNode(name, op, tuple(inputs), output))
        if inputs:
            borders = [IntNode(x, int_ops.Input(self[x].shape), (), self[x]) for x in dict.fromkeys(inputs)]
            graph = IntGraph((*borders, self.nodes[-1]), (name,))
            taken = {x: self.sample[x] for x in inputs}
            self.sample[name] = IntegerNet(graph).run(taken, kernels="reference")
        else:
            spec = output.spec
            shape = (6, *output.shape)
            self.sample[name] = self.rng.integers(spec.qmin, spec.qmax + 1, shape).astype(spec.dtype)
        return name

    def scale(self, wish):
        """About ``wish``, float32; the nearest power of two where ties are wanted."""
        return np.asarray(2.0 ** np.round(np.log2(wish)) if self.ties else wish, np.float32)

    def tensor(self, shape, spread, bounds=NONE, bits=None):
        """A tensor whose grid holds real numbers of the standard deviation ``spread``."""
        bits = bits or self.bits[len(self.nodes) % len(self.bits)]
        spec = QuantSpec(bits, signed=self.signed, symmetric=self.narrow, narrow=self.narrow)
        if self.narrow:
            zero = 0
        elif bounds[0] == 0 and self.rng.random() < 0.5:
            zero = spec.qmin
        else:
            quarter = (spec.qmax - spec.qmin + 1) // 4
            zero = int(self.rng.integers(spec.qmin + quarter, spec.qmax - quarter + 1))
        return Tensor(tuple(shape), spec, QParams(self.scale(max(6 * spread, 1e-4) / 2**bits), np.int32(zero)))

    def real(self, name):
        params = self[name].params
        return (self.sample[name].astype(np.float64) - int(params.zero_point)) * float(params.scale)

    def spread(self, name):
        """The standard deviation of the real numbers of a node's sample."""
        return float(self.real(name).std())

    def image(self, shape, name, integers=False):
        tensor = self.tensor(shape, 0.4, bits=8)
        return self.put((int_ops.Input if integers else int_ops.Quantize)(tuple(shape)), (), tensor, name)

    def dequantize(self, x, name=None):
        return self.put(int_ops.Dequantize(), (x,), Tensor(self[x].shape, None, None), name)

    def weight(self, shape):
        bits = self.weight_bits[len(self.nodes) % len(self.weight_bits)]
        spec = QuantSpec(bits, narrow=True, granularity=PerAxis(0) if self.per_channel else PerTensor())
        values = self.rng.integers(spec.qmin, spec.qmax + 1, shape).astype(np.int8)
        if spec.is_binary:
            values = self.rng.choice([-1, 1], shape).astype(np.int8)
        count = (shape[0],) if self.per_channel else ()
        scale = self.scale(self.rng.uniform(0.3, 1.0, count) / 2**bits)
        return QTensor(values, QParams(scale, np.zeros(count, np.int32)), spec)

    def _layer(self, x, weight, sums):
        """A bias that brings each channel's sums near 0, their scale, and the spread of the real sums."""
        axes = tuple(axis for axis in range(sums.ndim) if axis != 1)
        deviation = sums.std(axis=axes)
        bias = np.rint(self.rng.uniform(-0.5, 0.5, len(deviation)) * deviation - sums.mean(axis=axes)).astype(np.int32)
        real = weight.params.scale.astype(np.float64) * scale_of(self[x])
        return bias, real, float(np.max(deviation * real))

    def _zeros(self, x, weight):
        zeros = {"input_zero_point": int(self[x].params.zero_point), "weight_zero_point": weight.params.zero_point}
        return {**zeros, "requantizer": _Unrounded()}

    def conv(self, x, outputs, kernel, stride=(1, 1), padding=((0, 0), (0, 0)), dilation=(1, 1), groups=1, bounds=NONE):
        channels, *sizes = _image(self[x].shape)
        weight = self.weight((outputs, channels // groups, *kernel))
        window = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        sample = self.sample[x].reshape(-1, channels, *sizes)
        sums = reference.conv2d(sample, weight.values, np.zeros(outputs, np.int32), **self._zeros(x, weight), **window)
        bias, real, spread = self._layer(x, weight, sums)
        out = [window_output(sizes[i], kernel[i], stride[i], padding[i], dilation[i]) for i in range(2)]
        output = self.tensor(self._like(x, (outputs, *out)), spread, bounds)
        made = requantizer(real / scale_of(output), output, bounds)
        return self.put(int_ops.Conv2d(weight, bias, made, stride, padding, dilation, groups), (x,), output)

    def linear(self, x, outputs, bounds=NONE):
        weight = self.weight((outputs, self[x].shape[0]))
        sums = reference.linear(self.sample[x], weight.values, np.zeros(outputs, np.int32), **self._zeros(x, weight))
        bias, real, spread = self._layer(x, weight, sums)
        output = self.tensor((outputs,), spread, bounds)
        return self.put(
            int_ops.Linear(weight, bias, requantizer(real / scale_of(output), output, bounds)), (x,), output
        )

    def max_pool(self, x, kernel, stride=None, padding=((0, 0), (0, 0)), dilation=(1, 1), ceil_mode=False):
        stride, (channels, *sizes) = stride or kernel, _image(self[x].shape)
        out = [window_output(sizes[i], kernel[i], stride[i], padding[i], dilation[i], ceil_mode) for i in range(2)]
        op = int_ops.MaxPool2d(kernel, stride, padding, dilation, ceil_mode)
        return self.put(op, (x,), replace(self[x], shape=self._like(x, (channels, *out))))

    def average_pool(self, x, kernel, stride=None, padding=((0, 0), (0, 0)), bounds=NONE):
        stride, (channels, *sizes) = stride or kernel, _image(self[x].shape)
        out = [window_output(sizes[i], kernel[i], stride[i], padding[i]) for i in range(2)]
        output = self.tensor(self._like(x, (channels, *out)), self.spread(x) / math.sqrt(math.prod(kernel)), bounds)
        made = requantizer(scale_of(self[x]) / (scale_of(output) * math.prod(kernel)), output, bounds)
        return self.put(int_ops.AveragePool2d(kernel, stride, padding, made), (x,), output)

    def adaptive_pool(self, x, size, bounds=NONE):
        channels, *sizes = _image(self[x].shape)
        area = common_area(*sizes, size)
        output = self.tensor(
            self._like(x, (channels, *size)), self.spread(x) * math.sqrt(math.prod(size) / math.prod(sizes))
        )
        made = requantizer(scale_of(self[x]) / (scale_of(output) * area), output, bounds)
        return self.put(int_ops.AdaptiveAveragePool2d(size, made), (x,), output)

    def add(self, a, b, bounds=NONE):
        output = self.tensor(self[a].shape, float((self.real(a) + self.real(b)).std()), bounds)
        return self.put(labkit_rules.add((self[a], self[b]), output, bounds), (a, b), output)

    def multiply(self, a, b, bounds=NONE):
        shape = max(self[a].shape, self[b].shape, key=math.prod)
        output = self.tensor(shape, float((self.real(a) * self.real(b)).std()), bounds)
        real = scale_of(self[a]) * scale_of(self[b]) / scale_of(output)
        return self.put(int_ops.Multiply(requantizer(real, output, bounds)), (a, b), output)

    def concat(self, *parts):
        channels = sum(self[part].shape[0] for part in parts)
        output = self.tensor((channels, *self[parts[0]].shape[1:]), max(map(self.spread, parts)))
        made = tuple(requantizer(scale_of(self[part]) / scale_of(output), output) for part in parts)
        return self.put(int_ops.Concat(made), parts, output)

    def requantize(self, x, bounds=NONE):
        output = self.tensor(self[x].shape, self.spread(x), bounds)
        return self.put(
            int_ops.Requantize(requantizer(scale_of(self[x]) / scale_of(output), output, bounds)), (x,), output
        )

    def softmax(self, x, axis=0):
        spec = QuantSpec(8, signed=False, symmetric=False)
        output = Tensor(self[x].shape, spec, QParams(np.float32(1 / 256), np.int32(0)))
        return self.put(labkit_rules.softmax(axis, self[x], output), (x,), output)

    def argmax(self, x, axis, keepdims=False):
        shape = self[x].shape
        output = Tensor((*shape[:axis], *[1] * keepdims, *shape[axis + 1 :]), None, None, is_index=True)
        return self.put(int_ops.ArgMax(axis, keepdims), (x,), output)

    def pad(self, x, padding):
        channels, height, width = _image(self[x].shape)
        shape = self._like(x, (channels, height + sum(padding[0]), width + sum(padding[1])))
        return self.put(int_ops.Pad(padding), (x,), replace(self[x], shape=shape))

    def upsample(self, x, factor):
        channels, height, width = _image(self[x].shape)
        shape = self._like(x, (channels, height * factor[0], width * factor[1]))
        return self.put(int_ops.UpsampleNearest2d(factor), (x,), replace(self[x], shape=shape))

    def flatten(self, x):
        return self.put(int_ops.Flatten(), (x,), replace(self[x], shape=(math.prod(self[x].shape),)))

    def reshape(self, x, shape):
        return self.put(int_ops.Reshape(shape), (x,), replace(self[x], shape=shape))

    def transpose(self, x, axes):
        shape = tuple(self[x].shape[axis] for axis in axes)
        return self.put(int_ops.Transpose(axes), (x,), replace(self[x], shape=shape))

    def _like(self, x, image):
        return image if len(self[x].shape) == 3 else (image[0], image[2])


def _image(shape):
    return shape if len(shape) == 3 else (shape[0], 1, shape[1])


def convolutions(m):
    x = m.image((4, 9, 8), "x")
    x = m.conv(x, 8, (3, 3), stride=(2, 1), padding=((1, 1), (0, 2)), bounds=RELU)
    x = m.conv(x, 16, (3, 3), padding=((1, 1), (1, 1)), groups=8, bounds=RELU6)
    x = m.conv(x, 8, (3, 2), dilation=(1, 2), padding=((1, 1), (2, 1)), bounds=HARD_TANH)
    x = m.conv(x, 8, (1, 1), groups=2)
    x = m.conv(x, 8, (3, 3), stride=(2, 2), padding=((1, 1), (1, 1)), groups=8, bounds=RELU)
    x = m.linear(m.linear(m.flatten(x), 12, bounds=RELU), 5)
    return m.graph(m.dequantize(x, "output"))


def sequences(m):
    x = m.image((4, 20), "x")
    x = m.conv(x, 8, (1, 3), stride=(1, 2), padding=((0, 0), (1, 1)), bounds=RELU)
    x = m.max_pool(x, (1, 3), stride=(1, 2), padding=((0, 0), (1, 1)))
    x = m.conv(m.pad(x, ((0, 0), (2, 1))), 8, (1, 2), dilation=(1, 2), groups=8)
    x = m.average_pool(x, (1, 2), stride=(1, 1))
    x = m.upsample(m.transpose(m.transpose(x, (1, 0)), (1, 0)), (1, 2))
    y = m.linear(m.flatten(x), 3)
    return m.graph(m.dequantize(x, "output"), y, x)


def max_pools(m):
    x = m.image((4, 11, 11), "x", integers=True)
    a = m.max_pool(x, (3, 3), stride=(2, 2), padding=((1, 0), (0, 1)), ceil_mode=True)
    b = m.max_pool(x, (2, 2), ceil_mode=True)
    c = m.max_pool(x, (2, 3), stride=(2, 1), padding=((0, 0), (1, 1)))
    return m.graph(a, b, c)


def mean_pools(m):
    x = m.image((4, 12, 12), "x")
    a = m.average_pool(x, (2, 3), stride=(2, 1))
    b = m.average_pool(x, (3, 3), stride=(2, 2), padding=((1, 1), (1, 1)))
    c = m.adaptive_pool(x, (3, 4))
    d = m.adaptive_pool(x, (1, 1))
    e = m.average_pool(x, (12, 12))
    return m.graph(a, b, c, d, e)


def sums(m):
    x, y = m.image((4, 6, 5), "x"), m.image((4, 6, 5), "y")
    a = m.add(m.conv(x, 4, (1, 1)), m.conv(y, 4, (1, 1)), bounds=RELU)
    b = m.add(a, x)
    gate = m.conv(m.max_pool(b, (6, 5)), 4, (1, 1))
    c = m.multiply(b, gate)
    d = m.multiply(c, y, bounds=RELU)
    return m.graph(m.dequantize(b, "sum"), m.dequantize(d, "product"))


def joins(m):
    x, y = m.image((4, 6, 5), "x"), m.image((3, 6, 5), "y")
    a = m.concat(x, m.conv(y, 2, (1, 1)), y)
    b = m.requantize(m.requantize(a), bounds=RELU)
    c = m.concat(b, b)
    return m.graph(m.dequantize(m.conv(c, 3, (1, 1)), "output"), m.flatten(c))


def moves(m):
    x = m.conv(m.image((4, 4, 6), "x"), 4, (1, 1))
    x = m.upsample(m.pad(x, ((1, 0), (2, 1))), (2, 3))
    x = m.transpose(x, (1, 2, 0))
    x = m.reshape(m.transpose(x, (2, 1, 0)), (27, 40))
    x = m.reshape(m.conv(x, 4, (1, 1)), (2, 4, 20))
    return m.graph(x, m.argmax(x, 0), m.argmax(x, 2), m.argmax(m.flatten(x), 0))


def heads(m):
    x = m.conv(m.image((5, 4, 3), "x"), 6, (1, 1))
    a, b = m.softmax(x), m.softmax(m.linear(m.flatten(x), 10))
    return m.graph(m.dequantize(a, "pixels"), m.dequantize(b, "image"))


NETS = {net.__name__: net for net in (convolutions, sequences, max_pools, mean_pools, sums, joins, moves, heads)}


def made(name, seed, **options):
    """The network called ``name``."""
    return NETS[name](Maker(seed, **options))


def real_inputs(graph, count, seed=0):
    """Input for each border: real numbers beyond both ends of the grid, some on its points, or integers; by name."""
    rng = np.random.default_rng(seed)
    result = {}
    for name in graph.inputs:
        tensor = graph[name].output
        spec, params = tensor.quantized
        shape = (count, *tensor.shape)
        integers = rng.integers(spec.qmin, spec.qmax + 1, shape)
        if isinstance(graph[name].op, int_ops.Input):
            result[name] = integers.astype(spec.dtype)
            continue
        beyond = (integers - (spec.qmin + spec.qmax) / 2) * 1.2 + (spec.qmin + spec.qmax) / 2
        real = np.where(rng.random(shape) < 0.5, beyond + rng.choice([0, 0.5, 0.25], shape), integers)
        result[name] = ((real - int(params.zero_point)) * float(params.scale)).astype(np.float32)
    return result
