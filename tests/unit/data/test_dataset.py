from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from labkit.data import DataSet, normalise
from labkit.errors import InputError


def small(**changes: object) -> DataSet:
    rng = np.random.default_rng(3)
    fields: dict[str, object] = {
        "name": "small",
        "reason": "Because.",
        "class_names": ("a", "b"),
        "train_images": rng.integers(0, 256, (20, 3, 32, 32), dtype=np.uint8),
        "train_labels": rng.integers(0, 2, 20),
        "test_images": rng.integers(0, 256, (6, 3, 32, 32), dtype=np.uint8),
        "test_labels": rng.integers(0, 2, 6),
    }
    return DataSet(**(fields | changes))  # type: ignore[arg-type]


def test_normalisation_is_that_of_torchvision_to_the_last_bit() -> None:
    pixels = np.arange(256, dtype=np.uint8)
    ours = normalise(pixels)
    # ToTensor divides by 255, Normalize(0.5, 0.5) subtracts and divides, all in float32
    theirs = torch.from_numpy(pixels).to(torch.float32).div(255).sub(0.5).div(0.5).numpy()
    assert ours.dtype == np.float32
    np.testing.assert_array_equal(ours, theirs)
    assert (ours[0], ours[255]) == (-1, 1)


def test_calibration_draws_training_images_and_repeats_with_its_seed() -> None:
    data = small()
    drawn = data.calibration(20, seed=1)
    assert drawn.dtype == np.float32
    assert drawn.shape == (20, 3, 32, 32)
    key = {image.tobytes() for image in normalise(data.train_images)}
    assert {image.tobytes() for image in drawn} == key, "each training image once, and nothing else"
    np.testing.assert_array_equal(drawn, data.calibration(20, seed=1))
    assert not np.array_equal(drawn, data.calibration(20, seed=2))


@pytest.mark.parametrize("n", [0, -1, 21])
def test_calibration_of_an_impossible_size_is_refused(n: int) -> None:
    with pytest.raises(InputError, match=rf"must be in 1\.\.20, got {n}"):
        small().calibration(n)


def test_parts() -> None:
    data = small()
    x, y = data.test(4)
    np.testing.assert_array_equal(x, normalise(data.test_images)[:4])
    np.testing.assert_array_equal(y, data.test_labels[:4])
    assert len(data.test()[0]) == 6
    x, y = data.train()
    assert (x.shape, x.dtype, y.dtype) == ((20, 3, 32, 32), np.float32, np.int64)
    for n in (0, 7):
        with pytest.raises(InputError, match=r"test images must be in 1\.\.6"):
            data.test(n)


def test_is_frozen() -> None:
    data = small()
    with pytest.raises(dataclasses.FrozenInstanceError):
        data.name = "other"  # type: ignore[misc]
    with pytest.raises(ValueError, match=r"read-only"):
        data.train_images[0] = 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train_images": np.zeros((20, 32, 32, 3), np.uint8)}, "train_images must be uint8"),
        ({"test_images": np.zeros((6, 3, 32, 32), np.float32)}, "test_images must be uint8 .* got float32"),
        ({"train_labels": np.zeros(19, np.int64)}, r"train_labels must be int64 \[20\]"),
        ({"test_labels": np.full(6, 2)}, r"test_labels must lie in 0\.\.1, got 2\.\.2"),
    ],
)
def test_arrays_that_break_the_contract_are_refused(changes: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        small(**changes)
