"""The order in which the fast kernels read weights."""

from __future__ import annotations

import numpy as np
import pytest

from labkit.kernels.fast.packing import aligned_zeros, channels_first_order, pack_panels


@pytest.mark.parametrize(
    ("ends", "dtype"), [((-128, 127), np.int8), ((-128, 128), np.int16), ((-129, 0), np.int16), ((-255, 255), np.int16)]
)
def test_panels_are_as_narrow_as_the_weights_allow(ends, dtype):
    panels = pack_panels(np.array(ends, np.int16).reshape(2, 1, 1))
    assert panels.dtype == dtype
    assert panels[0, 0, 0, :2, 0].tolist() == list(ends)


def test_panels_hold_each_weight_once_and_zeros_besides():
    weights = np.arange(1, 17 * 3 * 5 + 1).reshape(17, 3, 5)
    panels = pack_panels(weights)
    assert panels.shape == (2, 3, 3, 16, 2)
    for o, run, k in np.ndindex(weights.shape):
        assert panels[o // 16, run, k // 2, o % 16, k % 2] == weights[o, run, k]
    assert panels.sum(dtype=np.int64) == weights.sum()


def test_columns_follow_their_input_into_the_buffer():
    rng = np.random.default_rng(0)
    weights, image = rng.integers(-9, 9, (4, 2 * 3 * 5)), rng.integers(-9, 9, (2, 3, 5))
    buffer = rng.integers(-99, 99, (6, 7, 16))  # what lies beside the image must not count
    buffer[1:4, 2:7, :2] = image.transpose(1, 2, 0)
    moved = channels_first_order(weights, (2, 3, 5), (6, 7, 16, 1, 2))
    assert (moved @ buffer.reshape(-1)).tolist() == (weights @ image.reshape(-1)).tolist()


@pytest.mark.parametrize("shape", [(1,), (1, 3), (5, 7, 16)])
def test_arrays_start_on_a_cache_line(shape):
    array = aligned_zeros(shape, np.int16)
    assert array.shape == shape
    assert array.ctypes.data % 64 == 0
    assert not array.any()
