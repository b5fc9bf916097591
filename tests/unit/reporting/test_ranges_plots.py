"""The figures of range methods: complete, legible, the same each time, and fit for a page."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from unit.quantization.clipping.samples import GRIDS, SHAPES, histogram_of, sample

from labkit.errors import InputError
from labkit.quantization.clipping.kl import VARIANTS, kl_curve
from labkit.quantization.clipping.methods import CLIPPING, clipped_range
from labkit.reporting import plots
from labkit.reporting.ranges_plots import clipping_ranges, divergence_curves

SVG = "{http://www.w3.org/2000/svg}"


def texts(svg: str) -> list[str]:
    return ["".join(node.itertext()) for node in ET.fromstring(svg).iter(f"{SVG}text")]


@pytest.mark.parametrize("shape", SHAPES)
def test_four_searches_on_one_histogram(shape: str) -> None:
    seen = histogram_of(sample(shape, 3000))
    curves = [kl_curve(seen, GRIDS["s8"], variant) for variant in VARIANTS]
    svg = divergence_curves(seen, curves, "kl", "conv1: KL")
    found = texts(svg)
    assert {"conv1: KL", "divergence, log scale", "count, log scale"} <= set(found)
    assert "threshold, magnitude of a value (real units)" in found
    for curve in curves:
        assert f"{curve.variant} {curve.high[curve.best]:.3g}" in found
        assert f"{curve.variant}: least divergence" in ET.fromstring(svg).get("aria-label", "")
    assert svg == divergence_curves(seen, curves, "kl", "conv1: KL")


@pytest.mark.parametrize("shape", SHAPES)
def test_every_method_has_a_bar_and_its_numbers(shape: str) -> None:
    seen = histogram_of(sample(shape, 3000))
    ranges = {method: clipped_range(method, seen, GRIDS["s4"]) for method in CLIPPING}
    found = texts(clipping_ranges(seen, ranges, "r", "fc1: ranges"))
    assert {"fc1: ranges", "value (real units)", "count, log scale", *ranges} <= set(found)
    for low, high in ranges.values():
        assert f"{low:.3g} to {high:.3g}".replace("-", "\N{MINUS SIGN}") in found


def test_ids_start_with_the_key_and_nothing_leaks_into_the_page() -> None:
    seen = histogram_of(sample("relu", 3000))
    figures = [
        divergence_curves(seen, [kl_curve(seen, GRIDS["s8"])], "a", "t"),
        clipping_ranges(seen, {"mse": (0.0, 1.0)}, "b", "t"),
    ]
    for key, svg in zip("ab", figures, strict=True):
        ids = re.findall(r'\sid="([^"]+)"', svg)
        assert len(ids) == len(set(ids)) and all(i == key or i.startswith(f"{key}-") for i in ids)
        assert ET.fromstring(svg).get("role") == "img" and "$" not in "".join(texts(svg))
        assert not any(stand_in in svg for stand_in in plots.COLOURS)


def test_zeros_only_can_be_drawn() -> None:
    assert "t" in texts(clipping_ranges(histogram_of(np.zeros(3)), {"minmax": (0.0, 0.0)}, "r", "t"))


def test_what_cannot_be_drawn_is_refused() -> None:
    seen = histogram_of(sample("relu", 3000))
    curve = kl_curve(seen, GRIDS["s8"])
    for curves in ([], [curve] * 5):
        with pytest.raises(InputError, match="room for 1 to 4 curves"):
            divergence_curves(seen, curves, "k", "t")
    with pytest.raises(InputError, match="no ranges to draw"):
        clipping_ranges(seen, {}, "k", "t")
