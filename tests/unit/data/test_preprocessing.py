from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from labkit.data import normalise
from labkit.data.preprocessing import PRESETS, Preprocessing
from labkit.data.torchvision_shim import import_torchvision
from labkit.errors import DataError, InputError

GREY = (0.5, 0.5, 0.5)


def picture(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """Coarse noise, enlarged: edges and gradients, as in photographs."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (max(1, height // 9), max(1, width // 9), 3), np.uint8)
    fine = rng.integers(-20, 20, (height, width, 3))
    whole = np.asarray(Image.fromarray(coarse).resize((width, height))) + fine
    return Image.fromarray(whole.clip(0, 255).astype(np.uint8)).convert(mode)


def of_torchvision(wanted: Preprocessing, image: Image.Image) -> np.ndarray:
    import_torchvision()
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms._presets import ImageClassification

    assert wanted.resize is not None
    transform = ImageClassification(
        crop_size=wanted.crop,
        resize_size=wanted.resize,
        mean=wanted.mean,
        std=wanted.std,
        interpolation=InterpolationMode(wanted.interpolation),
    )
    return np.asarray(transform(image.convert("RGB")).numpy())


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "CMYK", "1"])
@pytest.mark.parametrize("size", [(500, 375), (224, 300), (256, 256), (640, 120)], ids=str)
def test_imagenet_preset_is_that_of_torchvision(size: tuple[int, int], mode: str) -> None:
    image = picture(*size, mode)
    got = PRESETS["imagenet"].apply(image)
    assert got.shape == (3, 224, 224)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, of_torchvision(PRESETS["imagenet"], image))


@settings(max_examples=60)
@given(
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    resize=st.integers(1, 70),
    crop=st.integers(1, 80),
    interpolation=st.sampled_from(["bilinear", "bicubic"]),
    seed=st.integers(0, 9),
)
def test_every_size_is_as_in_torchvision(
    width: int, height: int, resize: int, crop: int, interpolation: str, seed: int
) -> None:
    """Also pictures of a few pixels, and crops beyond the picture, which are filled with black."""
    wanted = Preprocessing(resize, crop, (0.1, 0.5, 0.7), (0.2, 0.3, 0.4), interpolation)
    image = picture(width, height, seed=seed)
    if resize * max(width, height) // min(width, height) > 2000:
        return  # torchvision makes the same, slowly
    np.testing.assert_array_equal(wanted.apply(image), of_torchvision(wanted, image))


def test_labkit_preset_is_the_normalisation_of_the_data_sets() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (3, 32, 32), np.uint8)
    got = PRESETS["labkit"].apply(Image.fromarray(pixels.transpose(1, 2, 0)))
    np.testing.assert_array_equal(got, normalise(pixels))


def test_nothing_is_resized_where_resize_is_none() -> None:
    image = picture(50, 41)
    got = Preprocessing(None, 20, (0, 0, 0), (1, 1, 1)).apply(image)
    pixels = np.asarray(image)[10:30, 15:35].transpose(2, 0, 1)  # round(10.5) is 10
    np.testing.assert_array_equal(got, pixels / np.float32(255))


@pytest.mark.parametrize(
    ("preset", "crop", "resize"),
    [("imagenet", 96, 110), ("imagenet", 224, 256), ("labkit", 64, 64), ("imagenet", 1, 1)],
)
def test_resize_keeps_its_ratio_to_the_crop(preset: str, crop: int, resize: int) -> None:
    got = PRESETS[preset].resized_to(crop)
    assert (got.resize, got.crop) == (resize, crop)
    assert (got.mean, got.std) == (PRESETS[preset].mean, PRESETS[preset].std)


@pytest.mark.parametrize(
    "wanted", [*PRESETS.values(), Preprocessing(None, 7, (0, 0.25, 1), (1, 2, 3), "bicubic")], ids=str
)
def test_json_round_trip(wanted: Preprocessing) -> None:
    assert Preprocessing.from_json(json.loads(json.dumps(wanted.to_json()))) == wanted


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        ((0, 32, GREY, GREY), "resize must be"),
        ((32.0, 32, GREY, GREY), "resize must be"),
        ((32, None, GREY, GREY), "crop must be"),
        ((32, -1, GREY, GREY), "crop must be"),
        ((32, True, GREY, GREY), "crop must be"),
        ((32, 32, (0.5, 0.5), GREY), "mean must be three"),
        ((32, 32, "abc", GREY), "mean must be three"),
        ((32, 32, (0.5, 0.5, float("nan")), GREY), "finite"),
        ((32, 32, GREY, (0.5, 0.0, 0.5)), "above 0"),
        ((32, 32, GREY, ("a", "b", "c")), "std must be three"),
        ((32, 32, GREY, GREY, "nearest"), "bilinear or bicubic"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: tuple[Any, ...], fragment: str) -> None:
    with pytest.raises(InputError, match=fragment):
        Preprocessing(*arguments)


@pytest.mark.parametrize("values", [None, 3, [], {"crop": 3}, {**PRESETS["labkit"].to_json(), "more": 1}])
def test_what_is_no_preprocessing_is_refused(values: Any) -> None:
    with pytest.raises(InputError, match="no preprocessing"):
        Preprocessing.from_json(values)


def test_grey_of_16_bits_keeps_its_shades() -> None:
    ramp = np.linspace(0, 65535, 32 * 32).astype(np.uint16).reshape(32, 32)
    deep, shallow = Image.fromarray(ramp), Image.fromarray((ramp >> 8).astype(np.uint8))
    assert deep.mode.startswith("I;16")
    got = PRESETS["labkit"].apply(deep)
    assert np.array_equal(got, PRESETS["labkit"].apply(shallow))
    assert got.min() == -1
    assert got.max() == 1
    assert len(np.unique(got)) == 256


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_numbers_without_a_white_are_refused(kind: type[np.generic]) -> None:
    with pytest.raises(DataError, match=r"of mode [IF] holds numbers without a white"):
        PRESETS["labkit"].apply(Image.fromarray(np.zeros((32, 32), kind)))
