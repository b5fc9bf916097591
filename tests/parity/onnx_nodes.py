"""Random models of one operator for onnxruntime, and what labkit's evaluator makes of the same model.

A third of the cases has scales that are powers of two and reals on a grid of halves, so that rounding ties occur. Weights that
meet unsigned activations stay within -64..64: processors with AVX2 and without VNNI add u8 x s8 products in 16 bits, which
saturate beyond that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, ValueInfoProto, helper, numpy_helper

Array = NDArray[Any]
Random = np.random.Generator
MICROSOFT = "com.microsoft"
CASES = 500
SMALL = {"int4": TensorProto.INT4, "uint4": TensorProto.UINT4, "int2": TensorProto.INT2, "uint2": TensorProto.UINT2}
ENDS = {"int2": (-2, 1), "uint2": (0, 3), "int4": (-8, 7), "uint4": (0, 15)}


@dataclass
class Case:
    """One node, its inputs (None where one is left out) and what else the model needs."""

    kind: str
    inputs: list[Array | None]
    attributes: dict[str, Any] = field(default_factory=dict)
    domain: str = ""
    opset: int = 21
    outputs: int = 1
    kinds: dict[int, str] = field(
        default_factory=dict
    )  # inputs that are integers of 2 or 4 bits, held as int8 or uint8
    narrow_output: bool = False  # read through a Cast to 8 bits

    def model(self) -> ModelProto:
        names = ["" if x is None else f"x{i}" for i, x in enumerate(self.inputs)]
        results = [f"y{i}" for i in range(self.outputs)]
        nodes = [helper.make_node(self.kind, names, results, domain=self.domain, **self.attributes)]
        constants = []
        for i, x in enumerate(self.inputs):
            if x is None:
                continue
            if i in self.kinds:
                constants.append(helper.make_tensor(names[i], SMALL[self.kinds[i]], x.shape, x.reshape(-1).tolist()))
            else:
                constants.append(numpy_helper.from_array(x, names[i]))
        if self.narrow_output:
            signed = not self.kinds[2].startswith("u")
            kind = TensorProto.INT8 if signed else TensorProto.UINT8
            nodes.append(helper.make_node("Cast", results, ["wide"], to=kind))
            results = ["wide"]
        # one input that is fed, so that nothing is folded away: it reaches the output through nothing but an Identity
        fed = helper.make_tensor_value_info("fed", TensorProto.FLOAT, [1])
        nodes.append(helper.make_node("Identity", ["fed"], ["same"]))
        outputs = [ValueInfoProto(name=name) for name in (*results, "same")]
        graph = helper.make_graph(nodes, "one", [fed], outputs, constants)
        opsets = [helper.make_opsetid("", self.opset), helper.make_opsetid(MICROSOFT, 1)]
        model = helper.make_model(graph, opset_imports=opsets)
        model.ir_version = 10
        return model


def by_onnxruntime(model: ModelProto) -> list[Array]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, {"fed": np.zeros(1, np.float32)}))[:-1]


def by_labkit(model: ModelProto) -> list[Array]:
    from labkit.frontends.onnx.backend import LabkitBackend

    return list(LabkitBackend.prepare(model).run([np.zeros(1, np.float32)]))[:-1]


def is_rich_in_ties(seed: int) -> bool:
    return seed % 3 == 0


def scale(rng: Random, seed: int, size: tuple[int, ...] = ()) -> Array:
    if is_rich_in_ties(seed):
        return np.exp2(rng.integers(-6, 2, size)).astype(np.float32)
    return np.exp(rng.uniform(-5, 1, size)).astype(np.float32)


def integers(rng: Random, dtype: Any, size: tuple[int, ...] = (), within: int | None = None) -> Array:
    info = np.iinfo(dtype)
    low, high = (info.min, info.max) if within is None else (max(info.min, -within), min(info.max, within))
    return rng.integers(low, high, size, endpoint=True).astype(dtype)


def weights(rng: Random, activations: Any, dtype: Any, size: tuple[int, ...]) -> Array:
    return integers(rng, dtype, size, 64 if activations is np.uint8 and dtype is np.int8 else None)


def quantize_linear(rng: Random, seed: int) -> Case:
    kind = ["uint8", "int8", "uint16", "int16", "uint4", "int4", "uint2", "int2"][seed % 8]
    shape, axis, block, size = _granularity(rng)
    steps = scale(rng, seed, size)
    low, high = ENDS.get(kind) or (np.iinfo(kind).min, np.iinfo(kind).max)
    spread = np.repeat(steps, block, axis)[tuple(slice(s) for s in shape)] if block else _along(steps, axis, len(shape))
    wide = rng.uniform(low - (high - low) / 4, high + (high - low) / 4, shape)
    if is_rich_in_ties(seed):
        wide = np.rint(2 * wide) / 2
    x = (wide * spread).astype(np.float32)
    zero = rng.integers(low, high, size, endpoint=True).astype(
        np.int8 if kind in ENDS and kind[0] == "i" else np.uint8 if kind in ENDS else kind
    )
    attributes = {"axis": axis} | ({"block_size": block} if block else {})
    kinds = {2: kind} if kind in ENDS else {}
    return Case("QuantizeLinear", [x, steps, zero], attributes, opset=25, kinds=kinds, narrow_output=bool(kinds))


def dequantize_linear(rng: Random, seed: int) -> Case:
    kind = ["uint8", "int8", "uint16", "int16", "int32", "uint4", "int4", "uint2", "int2"][seed % 9]
    shape, axis, block, size = _granularity(rng)
    holder = (np.int8 if kind[0] == "i" else np.uint8) if kind in ENDS else np.dtype(kind).type
    low, high = ENDS.get(kind) or (np.iinfo(kind).min, np.iinfo(kind).max)
    x = rng.integers(low, high, shape, endpoint=True).astype(holder)
    zero = None if kind == "int32" else rng.integers(low, high, size, endpoint=True).astype(holder)
    kinds = {0: kind, 2: kind} if kind in ENDS else {}
    attributes = {"axis": axis} | ({"block_size": block} if block else {})
    return Case("DequantizeLinear", [x, scale(rng, seed, size), zero], attributes, opset=25, kinds=kinds)


def _granularity(rng: Random) -> tuple[tuple[int, ...], int, int, tuple[int, ...]]:
    """A shape, an axis, a block's size (0: none) and the shape of the scales."""
    shape = tuple(int(s) for s in rng.integers(1, 9, int(rng.integers(2, 5))))
    axis = int(rng.integers(0, len(shape)))
    match int(rng.integers(0, 3)):
        case 0:
            return shape, axis, 0, ()
        case 1:
            return shape, axis, 0, (shape[axis],)
    blocks = int(rng.integers(1, 5))
    block = int(rng.integers(2, 5))
    shape = (*shape[:axis], blocks * block, *shape[axis + 1 :])
    return shape, axis, block, (*shape[:axis], blocks, *shape[axis + 1 :])


def _along(values: Array, axis: int, rank: int) -> Array:
    return values.reshape([-1 if i == axis else 1 for i in range(rank)]) if values.ndim else values


def dynamic_quantize_linear(rng: Random, seed: int) -> Case:
    shape = tuple(int(s) for s in rng.integers(1, 9, int(rng.integers(1, 5))))
    low, high = sorted(rng.uniform(-9, 9, 2))
    x = rng.uniform(low, high, shape).astype(np.float32)
    if is_rich_in_ties(seed):  # ends that make the scale a power of two
        step = np.exp2(rng.integers(-4, 3))
        start = int(rng.integers(0, 256))
        x = (step * rng.integers(-2 * start, 2 * (255 - start), shape, endpoint=True) / 2).astype(np.float32)
        ends = np.array([-start, 255 - start], np.float32) * np.float32(step)
        x = np.concatenate([x.reshape(-1), ends])
    return Case("DynamicQuantizeLinear", [x], outputs=3)


def _window(rng: Random, rank: int) -> tuple[list[int], dict[str, Any]]:
    kernel = [int(k) for k in rng.integers(1, 4, rank)]
    attributes: dict[str, Any] = {"strides": [int(s) for s in rng.integers(1, 3, rank)]}
    if rng.integers(0, 4) == 0:
        attributes["auto_pad"] = str(rng.choice(["SAME_UPPER", "SAME_LOWER", "VALID"]))
    else:
        attributes["pads"] = [int(p) for p in rng.integers(0, 2, 2 * rank) % np.array([*kernel, *kernel])]
    return kernel, attributes


def _convolution(rng: Random, x_type: Any, w_type: Any) -> tuple[Array, Array, dict[str, Any]]:
    group, rank = int(rng.integers(1, 4)), int(rng.choice([1, 2, 2, 2]))
    kernel, attributes = _window(rng, rank)
    if "auto_pad" not in attributes and rng.integers(0, 3) == 0:
        attributes["dilations"] = [int(d) for d in rng.integers(1, 3, rank)]
    each, out = int(rng.integers(1, 5)), int(rng.integers(1, 5))
    x = integers(rng, x_type, (int(rng.integers(1, 3)), group * each, *(int(s) for s in rng.integers(6, 10, rank))))
    w = weights(rng, x_type, w_type, (group * out, each, *kernel))
    return x, w, attributes | {"group": group}


def conv_integer(rng: Random, seed: int) -> Case:
    w_type = [np.int8, np.uint8][seed % 2]
    x, w, attributes = _convolution(rng, np.uint8, w_type)
    zeros = [integers(rng, np.uint8), weights(rng, np.uint8, w_type, ())]
    inputs = [x, w, *zeros[: int(rng.integers(0, 3))]]
    if len(inputs) == 4 and w_type is np.int8:  # the difference is what meets the activation
        inputs[3] = np.int8(0) * zeros[1]
    return Case("ConvInteger", inputs, attributes)


def qlinear_conv(rng: Random, seed: int) -> Case:
    x_type, w_type = [(np.uint8, np.int8), (np.uint8, np.uint8), (np.int8, np.int8)][seed % 3 if seed % 2 else 0]
    x, w, attributes = _convolution(rng, x_type, w_type)
    channels = len(w)
    size = (channels,) if rng.integers(0, 2) else ()
    w_zero = np.zeros(size, w_type) if w_type is np.int8 else np.full(size, integers(rng, w_type))
    bias = integers(rng, np.int32, (channels,), 5000) if rng.integers(0, 2) else None
    y_scale = _output_scale(rng, seed, int(np.prod(w.shape[1:])))
    inputs = [
        x,
        scale(rng, seed),
        integers(rng, x_type),
        w,
        scale(rng, seed, size),
        w_zero,
        y_scale,
        integers(rng, x_type),
    ]
    return Case("QLinearConv", inputs if bias is None else [*inputs, bias], attributes)


def _output_scale(rng: Random, seed: int, depth: int) -> Array:
    """Of a sum of ``depth`` products, so that its integers neither all vanish nor all saturate."""
    wanted = 60 * np.sqrt(depth) / rng.uniform(0.5, 4)
    return np.asarray(np.exp2(np.rint(np.log2(wanted))) if is_rich_in_ties(seed) else wanted, np.float32)


def _matrices(rng: Random, a_type: Any, b_type: Any) -> tuple[Array, Array]:
    m, k, n = (int(s) for s in rng.integers(1, 20, 3))
    outer = tuple(int(s) for s in rng.integers(1, 4, int(rng.integers(0, 3))))
    b_outer = outer if rng.integers(0, 2) else ()
    return integers(rng, a_type, (*outer, m, k)), weights(rng, a_type, b_type, (*b_outer, k, n))


def matmul_integer(rng: Random, seed: int) -> Case:
    a_type, b_type = [(np.uint8, np.int8), (np.uint8, np.uint8), (np.int8, np.int8), (np.int8, np.uint8)][seed % 4]
    a, b = _matrices(rng, a_type, b_type)
    inputs: list[Array | None] = [a, b]
    if rng.integers(0, 3):
        inputs.append(integers(rng, a_type))
        if rng.integers(0, 2):
            size = (b.shape[-1],) if b.ndim == 2 and rng.integers(0, 2) else ()
            inputs.append(
                np.zeros(size, b_type) if (a_type, b_type) == (np.uint8, np.int8) else integers(rng, b_type, size)
            )
    return Case("MatMulInteger", inputs)


def qlinear_matmul(rng: Random, seed: int) -> Case:
    a_type, b_type = [(np.uint8, np.int8), (np.uint8, np.uint8), (np.int8, np.int8)][seed % 3 if seed % 2 else 0]
    a, b = _matrices(rng, a_type, b_type)
    size = (b.shape[-1],) if b.ndim == 2 and rng.integers(0, 2) else ()
    b_zero = np.zeros(size, b_type) if b_type is np.int8 else integers(rng, b_type, size)
    y_scale = _output_scale(rng, seed, a.shape[-1])
    inputs = [
        a,
        scale(rng, seed),
        integers(rng, a_type),
        b,
        scale(rng, seed, size),
        b_zero,
        y_scale,
        integers(rng, a_type),
    ]
    return Case("QLinearMatMul", inputs)


def qgemm(rng: Random, seed: int) -> Case:
    a_type, b_type = [(np.uint8, np.int8), (np.uint8, np.uint8), (np.int8, np.int8)][seed % 3 if seed % 2 else 0]
    m, k, n = (int(s) for s in rng.integers(1, 20, 3))
    flips = {"transA": int(rng.integers(0, 2)), "transB": int(rng.integers(0, 2))}
    a = integers(rng, a_type, (k, m) if flips["transA"] else (m, k))
    b = weights(rng, a_type, b_type, (n, k) if flips["transB"] else (k, n))
    size = (n,) if rng.integers(0, 2) else ()
    b_zero = np.zeros(size, b_type) if b_type is np.int8 else integers(rng, b_type, size)
    c = integers(rng, np.int32, (n,), 5000) if rng.integers(0, 2) else None
    inputs = [a, scale(rng, seed), integers(rng, a_type), b, scale(rng, seed, size), b_zero, c]
    if rng.integers(0, 4):
        inputs += [_output_scale(rng, seed, k), integers(rng, a_type)]
    alpha = float(rng.choice([1.0, 0.5, 0.3]))
    return Case("QGemm", inputs, flips | {"alpha": alpha}, MICROSOFT)


def _near(rng: Random, seed: int, first: Array) -> Array:
    """A scale of the size of ``first``."""
    if is_rich_in_ties(seed):
        return np.asarray(first * np.exp2(rng.integers(-1, 3)), np.float32)
    return np.asarray(first * rng.uniform(0.4, 4), np.float32)


def _pair(kind: str) -> Callable[[Random, int], Case]:
    def case(rng: Random, seed: int) -> Case:
        dtype = [np.uint8, np.int8][seed % 2]
        shape = tuple(int(s) for s in rng.integers(1, 9, int(rng.integers(1, 5))))
        other = [shape, shape, (), tuple(1 if i else s for i, s in enumerate(shape))][int(rng.integers(0, 4))]
        a_scale = scale(rng, seed)
        b_scale = _near(rng, seed, a_scale)
        y_scale = _near(rng, seed, a_scale if kind == "QLinearAdd" else np.asarray(a_scale * b_scale * 40, np.float32))
        a, b = integers(rng, dtype, shape), integers(rng, dtype, other)
        if rng.integers(0, 2):
            a, b = b, a
        zeros = [integers(rng, dtype) for _ in range(3)]
        return Case(kind, [a, a_scale, zeros[0], b, b_scale, zeros[1], y_scale, zeros[2]], domain=MICROSOFT)

    return case


def qlinear_average_pool(rng: Random, seed: int) -> Case:
    dtype = [np.uint8, np.int8][seed % 2]
    kernel, attributes = _window(rng, 2)
    if rng.integers(0, 4) == 0:
        attributes |= {"ceil_mode": 1}
    attributes |= {"kernel_shape": kernel, "count_include_pad": int(rng.integers(0, 2))}
    x = integers(
        rng, dtype, (int(rng.integers(1, 3)), int(rng.integers(1, 5)), *(int(s) for s in rng.integers(3, 9, 2)))
    )
    x_scale = scale(rng, seed)
    inputs = [x, x_scale, integers(rng, dtype), _near(rng, seed, x_scale), integers(rng, dtype)]
    return Case("QLinearAveragePool", inputs, attributes, MICROSOFT)


def qlinear_global_average_pool(rng: Random, seed: int) -> Case:
    dtype = [np.uint8, np.int8][seed % 2]
    last = int(rng.integers(0, 2))
    x = integers(rng, dtype, tuple(int(s) for s in rng.integers(1, 9, 4)))
    x_scale = scale(rng, seed)
    inputs = [x, x_scale, integers(rng, dtype), _near(rng, seed, x_scale), integers(rng, dtype)]
    return Case("QLinearGlobalAveragePool", inputs, {"channels_last": last}, MICROSOFT)


def qlinear_concat(rng: Random, seed: int) -> Case:
    dtype = [np.uint8, np.int8][seed % 2]
    shape = [int(s) for s in rng.integers(1, 6, 4)]
    y_scale = scale(rng, seed)
    inputs: list[Array | None] = [y_scale, integers(rng, dtype)]
    for _ in range(int(rng.integers(1, 4))):
        shape[1] = int(rng.integers(1, 6))
        inputs += [integers(rng, dtype, tuple(shape)), _near(rng, seed, y_scale), integers(rng, dtype)]
    return Case("QLinearConcat", inputs, {"axis": 1}, MICROSOFT)


def max_pool(rng: Random, seed: int) -> Case:
    dtype = [np.uint8, np.int8][seed % 2]
    kernel, attributes = _window(rng, 2)
    attributes |= {"kernel_shape": kernel}
    if rng.integers(0, 4) == 0 and "auto_pad" not in attributes:
        attributes["ceil_mode"] = 1
    x = integers(rng, dtype, (2, 3, *(int(s) for s in rng.integers(4, 9, 2))))
    return Case("MaxPool", [x], attributes)


OPERATORS: dict[str, Callable[[Random, int], Case]] = {
    "ConvInteger": conv_integer,
    "DequantizeLinear": dequantize_linear,
    "DynamicQuantizeLinear": dynamic_quantize_linear,
    "MatMulInteger": matmul_integer,
    "MaxPool": max_pool,
    "QGemm": qgemm,
    "QLinearAdd": _pair("QLinearAdd"),
    "QLinearAveragePool": qlinear_average_pool,
    "QLinearConcat": qlinear_concat,
    "QLinearConv": qlinear_conv,
    "QLinearGlobalAveragePool": qlinear_global_average_pool,
    "QLinearMatMul": qlinear_matmul,
    "QLinearMul": _pair("QLinearMul"),
    "QuantizeLinear": quantize_linear,
}


def case_of(operator: str, seed: int) -> Case:
    return OPERATORS[operator](np.random.default_rng([seed, *operator.encode()]), seed)
