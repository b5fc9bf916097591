"""Constants of the operations of transformers: what an integer stands for is what the real operation gives."""

from __future__ import annotations

import math

import numpy as np
import pytest

from labkit.arithmetic.affine import PerAxis, QParams, QuantSpec, params_from_values, quantize_tensor
from labkit.engine.sequence_nodes import compute_on_sequences, layer_norm_output
from labkit.errors import BoundError, QuantizationError
from labkit.graph import float_ops
from labkit.graph.ir import Tensor
from labkit.kernels.kernel_set import REFERENCE
from labkit.quantization import convert_sequences

WIDE, NARROW = QuantSpec(16, narrow=True), QuantSpec(8, signed=False, symmetric=False)


def tensor(shape: tuple[int, ...], scale: float, spec: QuantSpec = WIDE, zero_point: int = 0) -> Tensor:
    return Tensor(shape, spec, QParams(np.asarray(scale, np.float32), np.asarray(zero_point, np.int32)))


def real(q: np.ndarray, made: Tensor) -> np.ndarray:
    _, params = made.quantized
    return np.asarray((q.astype(np.float64) - int(params.zero_point)) * np.float64(params.scale))


def test_rows_of_an_embedding_have_scales_of_their_own() -> None:
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(6, 5)) * np.array([[1e-3], [1], [30], [1], [1], [0.1]])
    spec = QuantSpec(8, narrow=True, granularity=PerAxis(0))
    held = quantize_tensor(weight, params_from_values(weight, spec), spec)
    output = tensor((5, 4), 4 * 30 / 32767)
    indices = np.array([[0, 2, 5, 2]])
    op = convert_sequences.embedding(held, output)
    got = compute_on_sequences(op, [indices], [0], REFERENCE)
    step = float(output.quantized[1].scale)
    assert got.shape == (1, 5, 4)
    assert np.all(np.abs(real(got, output)[0] - held.dequantized()[indices[0]].T) <= 0.5001 * step)


@pytest.mark.parametrize("factor", [1.0, 64**-0.5])
@pytest.mark.parametrize(("transpose_a", "transpose_b"), [(False, False), (True, False), (False, True), (True, True)])
def test_a_product_has_its_factor_in_the_multiplier(factor: float, transpose_a: bool, transpose_b: bool) -> None:
    rng = np.random.default_rng(1)
    shape_a, shape_b = (2, 4, 3) if transpose_a else (2, 3, 4), (2, 5, 4) if transpose_b else (2, 4, 5)
    a, b = tensor(shape_a, 0.02, NARROW, 100), tensor(shape_b, 0.03, NARROW, 7)
    output = tensor((2, 3, 5), 0.002)
    q_a, q_b = rng.integers(0, 256, (3, *shape_a)), rng.integers(0, 256, (3, *shape_b))
    op = convert_sequences.matmul(float_ops.MatMul(transpose_a, transpose_b, factor), (a, b), output)
    got = compute_on_sequences(op, [q_a.astype(np.uint8), q_b.astype(np.uint8)], [100, 7], REFERENCE)
    left = real(q_a, a).swapaxes(2, 3) if transpose_a else real(q_a, a)
    right = real(q_b, b).swapaxes(2, 3) if transpose_b else real(q_b, b)
    assert np.all(np.abs(real(got, output) - factor * left @ right) <= 0.5001 * 0.002)


@pytest.mark.parametrize("scale", [2e-4, 1e-3, 5e-3])
def test_shares_are_those_of_a_softmax_under_the_mask(scale: float) -> None:
    rng = np.random.default_rng(2)
    source, output = tensor((3, 4, 9), scale), tensor((3, 4, 9), 2.0**-8, NARROW)
    q = rng.integers(-int(6 / scale), int(6 / scale), (5, 3, 4, 9)).astype(np.int16)
    mask = rng.integers(0, 2, (5, 9)).astype(np.uint8)
    mask[:, 0] = 1
    got = compute_on_sequences(convert_sequences.masked_softmax(source, output), [q, mask], [0, 0], REFERENCE)
    seen = mask[:, None, None, :] == 1
    powers = np.where(seen, np.exp(real(q, source) - real(q, source).max(-1, keepdims=True)), 0.0)
    assert np.all(got[np.broadcast_to(~seen, got.shape)] == 0)
    assert np.abs(real(got, output) - powers / powers.sum(-1, keepdims=True)).max() < 0.006  # half a step is .002


def test_gelu_comes_within_the_polynomial_and_half_a_step() -> None:
    source, output = tensor((1, 1), 8.2 / 32767), tensor((1, 1), 8.4 / 255, NARROW, 5)
    q = np.arange(-32767, 32768, dtype=np.int64).reshape(1, 1, -1)
    got = compute_on_sequences(convert_sequences.gelu(source, output), [q], [0], REFERENCE)
    x = real(q, source)
    gelu = x / 2 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
    assert (
        np.abs(real(got, output) - gelu).max() < 0.021 + 0.5 * 8.4 / 255
    )  # I-BERT: the polynomial is off by up to .018


@pytest.mark.parametrize(("scale", "refusal"), [(2e-3, QuantizationError), (1e-9, BoundError)])
def test_gelu_refuses_scales_that_its_shift_does_not_suit(scale: float, refusal: type[Exception]) -> None:
    with pytest.raises(refusal, match="16 bits first"):
        convert_sequences.gelu(tensor((1, 1), scale), tensor((1, 1), 0.03, NARROW))


def test_layer_norm_takes_gammas_of_either_sign_and_none() -> None:
    rng = np.random.default_rng(3)
    gamma = np.array([1.0, -0.5, 0.0, 1e-9, 2.0, 1.5, 0.1, -1e-30], np.float32)
    beta = rng.normal(size=8).astype(np.float32)
    output = tensor((8, 6), 6 / 32767)
    q = rng.integers(-30000, 30000, (4, 8, 6)).astype(np.int16)
    op = convert_sequences.layer_norm(float_ops.LayerNorm(gamma, beta, 1e-12), tensor((8, 6), 1.0), output)
    got = compute_on_sequences(op, [q], [0], REFERENCE)
    x = q.astype(np.float64)
    wanted = (x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True) * gamma[:, None] + beta[:, None]
    assert np.abs(real(got, output) - wanted).max() < 6 / 32767 + 2e-4  # the mean is rounded to whole numbers


def test_epsilon_keeps_tokens_of_little_variance_small() -> None:
    rng = np.random.default_rng(4)
    ones, zeros = np.ones(8, np.float32), np.zeros(8, np.float32)
    source, output = tensor((8, 6), 1e-6), tensor((8, 6), 6 / 32767)
    q = rng.integers(-3000, 3000, (4, 8, 6)).astype(np.int16)  # variances of about 3e-6, below epsilon
    got = compute_on_sequences(
        convert_sequences.layer_norm(float_ops.LayerNorm(ones, zeros, 1e-5), source, output), [q], [0], REFERENCE
    )
    x = real(q, source)
    wanted = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
    assert np.abs(real(got, output) - wanted).max() < 6 / 32767 + 5e-4
    assert np.abs(wanted).max() < 1.2  # without epsilon the largest would be above 2


def test_the_sums_of_a_layer_norm_fit_int64_at_its_ends() -> None:
    gamma, beta = np.array([4.0, -4.0], np.float32), np.array([1.5, -1.5], np.float32)
    op = convert_sequences.layer_norm(float_ops.LayerNorm(gamma, beta, 0.0), *[tensor((2, 1), 6 / 32767)] * 2)
    ends = np.array([[2**30, -(2**30)]], np.int64)
    got = layer_norm_output(ends, op)
    exact = [
        min(max((y * int(m) + int(b) + (1 << (op.shift - 1))) >> op.shift, -32767), 32767)
        for y, m, b in zip((2**30, -(2**30)), op.multipliers, op.addends, strict=True)
    ]
    assert got.tolist() == [exact]


def test_gamma_beyond_every_shift_is_refused() -> None:
    gamma = np.array([1e30, 1.0], np.float32)
    with pytest.raises(BoundError, match="gamma or beta of a LayerNorm is too large"):
        convert_sequences.layer_norm(float_ops.LayerNorm(gamma, gamma, 0.0), *[tensor((2, 1), 1e-4)] * 2)
