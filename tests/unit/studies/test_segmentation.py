"""The segmentation bench: pictures against geometry by hand, scores against sets, and the network bit for bit."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest

import labkit
from labkit.errors import InputError
from labkit.studies.adaround.table_9 import class_colours
from labkit.studies.figures import svg
from labkit.studies.picture import Picture
from labkit.studies.segmentation.network import FOLDER, SceneNet, load_scene_net, scene_net_recipe
from labkit.studies.segmentation.scenes import CLASSES, SIDE, draw_scenes, shape_mask
from labkit.studies.segmentation.scores import confusion, mean_iou
from labkit.studies.segmentation.training import TEST_SEED, Recipe, miou_of, write_checkpoint
from labkit.studies.study import Figure

# ---- pictures


def test_a_picture_depends_on_its_seed_and_index_alone() -> None:
    five, two, other = draw_scenes(5, 7, 1), draw_scenes(2, 7, 1), draw_scenes(2, 7, 2)
    np.testing.assert_array_equal(five.pixels[:2], two.pixels)
    np.testing.assert_array_equal(five.labels[:2], two.labels)
    assert not np.array_equal(two.pixels, other.pixels)
    assert (five.pixels.shape, five.labels.shape) == ((5, 3, SIDE, SIDE), (5, SIDE, SIDE))
    assert len({picture.tobytes() for picture in five.pixels}) == 5
    np.testing.assert_allclose(five.images, five.pixels / 127.5 - 1, atol=1e-6)
    with pytest.raises(InputError, match="got count 0"):
        draw_scenes(0, 1)


def test_every_class_is_common_and_the_background_is_most() -> None:
    counts = np.bincount(draw_scenes(100, 11).labels.reshape(-1), minlength=len(CLASSES)) / (100 * SIDE * SIDE)
    assert counts[0] > 0.5
    assert np.all(counts[1:] > 0.03)


def corners(kind: str, centre: tuple[float, float], radius: float, angle: float, aspect: float) -> list[complex]:
    """Corners in order of a turned rectangle or triangle, as column + i row."""
    if kind == "rectangle":
        flat = [complex(a * radius, b * aspect * radius) for a, b in ((1, 1), (-1, 1), (-1, -1), (1, -1))]
    else:
        flat = [1.5 * radius * complex(math.cos(a), math.sin(a)) for a in (math.pi / 3, math.pi, -math.pi / 3)]
    turn = complex(math.cos(angle), math.sin(angle))
    return [complex(centre[1], centre[0]) + point * turn for point in flat]


@pytest.mark.parametrize("kind", CLASSES[1:])
@pytest.mark.parametrize("seed", range(8))
def test_shapes_are_where_their_corners_say(kind: str, seed: int) -> None:
    """Each pixel against the signed areas of the triangles that it makes with the sides."""
    rng = np.random.default_rng(seed)
    centre = (float(rng.uniform(5, 43)), float(rng.uniform(5, 43)))
    radius, angle, aspect = float(rng.uniform(5, 13)), float(rng.uniform(0, 6)), float(rng.uniform(0.6, 1))
    got = shape_mask(kind, centre, radius, angle, aspect)
    for row in range(SIDE):
        for column in range(SIDE):
            if kind == "circle":
                margin = radius - math.hypot(row - centre[0], column - centre[1])
            else:
                points = corners(kind, centre, radius, angle, aspect)
                sides = zip(points, [*points[1:], points[0]], strict=True)
                here = complex(column, row)
                margin = min(((b - a).conjugate() * (here - a)).imag / abs(b - a) for a, b in sides)
            if abs(margin) > 1e-9:
                assert got[row, column] == (margin > 0), (row, column, margin)
    assert got.any()


def test_an_unknown_shape_is_refused() -> None:
    with pytest.raises(InputError, match="circle, rectangle, triangle, got 'star'"):
        shape_mask("star", (5, 5), 3, 0, 1)


# ---- scores


@pytest.mark.parametrize("classes", [1, 2, 4])
@pytest.mark.parametrize("seed", range(4))
def test_scores_against_sets_of_pixels(classes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    got, wanted = rng.integers(0, classes, (2, 3, 5, 4))
    if classes == 4:
        wanted[wanted == 3] = 0
        got[got == 3] = 1  # a class that occurs nowhere does not count
    table = confusion(got, wanted, classes)
    shares = []
    for c in range(classes):
        given = {i for i, label in enumerate(got.reshape(-1)) if label == c}
        true = {i for i, label in enumerate(wanted.reshape(-1)) if label == c}
        if given | true:
            shares.append(len(given & true) / len(given | true))
        for d in range(classes):
            assert table[c, d] == sum(1 for i in true if got.reshape(-1)[i] == d)
    assert mean_iou(table) == pytest.approx(100 * sum(shares) / len(shares), abs=1e-9)


def test_scores_refuse_what_cannot_be_labels() -> None:
    with pytest.raises(InputError, match=r"got \(2,\) and \(3,\)"):
        confusion(np.zeros(2, int), np.zeros(3, int), 2)
    with pytest.raises(InputError, match=r"given must be in 0\.\.1, got 0\.\.2"):
        confusion(np.array([0, 2]), np.array([0, 1]), 2)
    with pytest.raises(InputError, match=r"wanted must be in 0\.\.1, got -1\.\.1"):
        confusion(np.array([0, 1]), np.array([-1, 1]), 2)


# ---- the network


def test_the_shipped_weights_do_what_their_recipe_says() -> None:
    path = FOLDER / "scene-net.safetensors"
    made = scene_net_recipe()
    assert path.stat().st_size < 300_000
    assert hashlib.sha256(path.read_bytes()).hexdigest() == made["sha256"]
    assert made["parameters"] == sum(p.numel() for p in SceneNet().parameters())
    module, net = load_scene_net(), draw_scenes(150, TEST_SEED)
    score = miou_of(lambda x: _scores(module, x), net)
    assert score == pytest.approx(made["test_miou"], abs=4)  # of the first 150 of 1,000 pictures
    assert score > 75


def _scores(module: SceneNet, x: np.ndarray) -> np.ndarray:
    import torch

    with torch.inference_mode():
        return module(torch.from_numpy(x)).numpy()


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("kernels", ["numba", "reference"])
def test_the_integer_network_is_what_pytorch_computes(per_channel: bool, kernels: str) -> None:
    module, images = load_scene_net(), draw_scenes(24, 5).images
    net = labkit.quantize(module, images, weights=4, per_channel=per_channel)
    assert sum(type(node.op).__name__ == "UpsampleNearest2d" for node in net.graph) == 3
    assert labkit.verify(net, module, images[:3], kernels=kernels).passed


def test_training_gives_the_same_bytes_again(tmp_path) -> None:  # type: ignore[no-untyped-def]
    recipe = Recipe(scenes=6, epochs=2, batch_size=3, test_scenes=2)
    records = [write_checkpoint(tmp_path / name, recipe) for name in "ab"]
    assert records[0]["sha256"] == records[1]["sha256"]
    assert (tmp_path / "a" / "scene-net.safetensors").read_bytes() == (
        tmp_path / "b" / "scene-net.safetensors"
    ).read_bytes()
    assert len(records[0]["mean_training_loss"]) == 2


# ---- pictures on a page


def test_a_picture_survives_as_text() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    picture = Picture.of("noise", pixels)
    np.testing.assert_array_equal(picture.pixels, pixels)
    with pytest.raises(InputError, match=r"uint8 \[height, width, 3\], got int64 \[5, 7\]"):
        Picture.of("flat", np.zeros((5, 7), np.int64))  # type: ignore[arg-type]
    for broken in (picture.data[:-8], "no base64", ""):
        with pytest.raises(InputError, match="'noise' is damaged"):
            Picture("noise", 5, 7, broken).pixels  # noqa: B018
    with pytest.raises(InputError, match="'noise' is damaged"):
        Picture("noise", 5, 8, picture.data).pixels  # noqa: B018


def test_a_figure_of_pictures_shows_each_and_survives_json() -> None:
    labels = np.arange(4).reshape(2, 2)
    pictures = tuple(Picture.of(f"picture {i}", class_colours((labels + i) % 4)) for i in range(5))
    figure = Figure("pictures", "What they show", "line", "", "", (), pictures=pictures, across=3)
    drawn = svg(figure)
    assert drawn == svg(figure)
    assert drawn.count("<image ") == 5
    for text in (figure.title, *(picture.label for picture in pictures)):
        assert f">{text}<" in drawn
    from dataclasses import asdict

    assert Figure.from_json(asdict(figure)) == figure
    assert len(np.unique(class_colours(labels).reshape(-1, 3), axis=0)) == 4
