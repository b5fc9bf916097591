"""The dashed diagonal of scatter figures, and tick labels on logarithmic axes of little more than a decade."""

from __future__ import annotations

import re

import pytest

from labkit.studies.figures import svg
from labkit.studies.study import Figure, Series


def scatter(x: tuple[float, ...], diagonal: bool, log: bool = True) -> Figure:
    return Figure("f", "t", "scatter", "x", "y", (Series("s", x, x),), log_x=log, log_y=log, diagonal=diagonal)


def test_diagonal_is_drawn_only_where_asked() -> None:
    dashed = re.compile(r"stroke: #888888")
    assert len(dashed.findall(svg(scatter((1.0, 2.0), True)))) == 1
    assert not dashed.search(svg(scatter((1.0, 2.0), False)))


def labels(text: str) -> set[str]:
    return set(re.findall(r">([0-9.]+)</text>", text))


@pytest.mark.parametrize("log", [True, False])
def test_narrow_logarithmic_axes_have_labels_at_1_2_and_5(log: bool) -> None:
    found = labels(svg(scatter((0.03, 0.3), True, log)))
    assert ({"0.05", "0.1", "0.2"} <= found) == log
    assert "0.04" not in found or not log


def test_wide_logarithmic_axes_keep_their_decades() -> None:
    wide = labels(svg(scatter((1e-5, 1.0), True)))
    assert "0.001" not in wide and "0.0005" not in wide
