"""Fake quantization: the kernels against PyTorch's own operations, and those against arithmetic done by hand."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.arithmetic.affine import QuantSpec, dequantize, params_from_range, quantize
from labkit.quantization.qat.fake_quantize import Levels, fake_quantize, reference, round_through, scale_gradient

SIZES = [(1,), (7,), (2, 3), (2, 3, 5, 4), (300, 33)]


def gradients(function, x, scale, levels, slope):  # type: ignore[no-untyped-def]
    x, scale = x.clone().requires_grad_(), scale.clone().requires_grad_()
    out = function(x, scale, levels)
    out.backward(slope)
    return out.detach(), x.grad, scale.grad


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(SIZES),
    st.integers(0, 2**31),
    st.floats(0.01, 3.0),
    st.integers(-130, 0),
    st.integers(1, 255),
    st.booleans(),
)
def test_kernels_do_what_the_reference_does(shape, seed, scale, low, width, counts):  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(seed)
    x = torch.from_numpy(rng.normal(0, 40 * scale, shape).astype(np.float32))
    slope = torch.from_numpy(rng.normal(size=shape).astype(np.float32))
    levels, step = Levels(low, low + width, counts), torch.tensor(scale, dtype=torch.float32)
    ours = gradients(fake_quantize, x, step, levels, slope)
    theirs = gradients(reference, x, step, levels, slope)
    assert torch.equal(ours[0], theirs[0])
    assert torch.equal(ours[1] == 0, theirs[1] == 0)
    assert torch.allclose(
        ours[1], theirs[1], rtol=1e-6, atol=0
    )  # the reference multiplies by the scale and divides again
    size = slope.abs().sum().item() * max(abs(low), abs(low + width))
    assert abs(float(ours[2]) - float(theirs[2])) <= 1e-6 * size + 1e-6


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("ends", [(-1.0, 1.0), (0.0, 6.0), (-0.3, 2.0)])
def test_values_are_those_of_the_integer_grid(bits: int, ends: tuple[float, float]) -> None:
    spec = QuantSpec(bits, signed=False, symmetric=False)
    params = params_from_range(*ends, spec)
    x = np.random.default_rng(bits).normal(0, 2, 1000).astype(np.float32)
    zero = int(params.zero_point)
    out = fake_quantize(torch.from_numpy(x), torch.tensor(params.scale), Levels(spec.qmin - zero, spec.qmax - zero))
    assert np.array_equal(out.numpy(), dequantize(quantize(x, params, spec), params, spec))


def test_ties_go_to_even_numbers() -> None:
    x = torch.tensor([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5])
    found = fake_quantize(x, torch.tensor(1.0), Levels(-10, 10))
    assert found.tolist() == [-2, -2, 0, 0, 2, 2]


def test_gradient_passes_inside_and_stops_outside() -> None:
    x = torch.tensor([-3.0, -1.2, 0.4, 2.4, 2.6, 9.0], requires_grad=True)
    fake_quantize(x, torch.tensor(1.0), Levels(-1, 2)).sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    assert x.grad.tolist() == [0, 1, 1, 1, 0, 0]


def test_gradient_by_the_scale_is_that_of_lsq() -> None:
    """Esser et al. 2020, equation 3: round(v/s) - v/s inside, the end of the grid outside."""
    x, scale = torch.tensor([-3.0, 0.4, 1.3, 9.0]), torch.tensor(0.5, requires_grad=True)
    for one, expected in zip(x, (-2, 1 - 0.8, 3 - 2.6, 3), strict=True):
        scale.grad = None
        fake_quantize(one.reshape(1), scale, Levels(-2, 3)).sum().backward()  # type: ignore[no-untyped-call]
        assert scale.grad is not None
        assert float(scale.grad) == pytest.approx(expected, abs=1e-6)


def test_gradient_by_the_end_is_that_of_pact() -> None:
    """Choi et al. 2018, equation 3: 1 where the number is beyond the end, 0 elsewhere; the end is 15 scales."""
    for value, expected in ((-1.0, 0.0), (0.3, 0.0), (5.0, 0.0), (7.9, 1.0)):
        end = torch.tensor(6.0, requires_grad=True)
        fake_quantize(torch.tensor([value]), end / 15, Levels(0, 15, rounding_counts=False)).sum().backward()  # type: ignore[no-untyped-call]
        assert end.grad is not None
        assert float(end.grad) == pytest.approx(expected)


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_memory_order_does_not_matter(order: torch.memory_format) -> None:
    x = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    slope = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(1))
    expected = gradients(reference, x, torch.tensor(0.2), Levels(-3, 4), slope)
    found = gradients(fake_quantize, x.to(memory_format=order), torch.tensor(0.2), Levels(-3, 4), slope)
    assert torch.equal(found[0], expected[0])
    assert torch.allclose(found[1], expected[1], rtol=1e-6, atol=0)
    assert float(found[2]) == pytest.approx(float(expected[2]), rel=1e-5)


def test_what_does_not_lie_densely_in_memory_is_right_too() -> None:
    x = torch.randn(6, 8)[:, ::2]
    assert torch.equal(
        fake_quantize(x, torch.tensor(0.2), Levels(-3, 4)), reference(x, torch.tensor(0.2), Levels(-3, 4))
    )


def test_helpers_change_gradients_and_not_values() -> None:
    x = torch.tensor([0.1, 1 / 3, 2.7], requires_grad=True)
    scaled = scale_gradient(x, 0.25)
    assert torch.equal(scaled, x)
    scaled.sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    assert x.grad.tolist() == [0.25] * 3
    x.grad = None
    assert round_through(x).tolist() == [0, 0, 3]
    round_through(x).sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad.tolist() == [1] * 3


def test_the_kernels_take_at_most_half_the_time_of_the_operations() -> None:
    """Processor time, both in turns in one run, the best of five: forward and both gradients, one million numbers."""
    x = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0))
    slope, scale, levels = torch.ones_like(x), torch.tensor(0.1), Levels(-8, 7)
    seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
    for _ in range(6):
        for name, function in (("ours", fake_quantize), ("theirs", reference)):
            began = time.process_time()
            gradients(function, x, scale, levels, slope)
            seconds[name].append(time.process_time() - began)
    assert min(seconds["ours"][1:]) <= 0.5 * min(seconds["theirs"][1:])  # the first call compiles
