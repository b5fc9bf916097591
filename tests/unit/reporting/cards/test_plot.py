"""The figure of a card."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import pytest

from labkit.reporting.cards.plot import sqnr_figure
from labkit.reporting.cards.results import NetworkCard

_SVG = "{http://www.w3.org/2000/svg}"


def texts(figure: bytes) -> list[str]:
    return ["".join(part.itertext()).strip() for part in ElementTree.fromstring(figure).iter(f"{_SVG}text")]


def with_ratios(card: NetworkCard, *ratios: float, name: str = "layer{}.0.conv1") -> NetworkCard:
    """``card`` with so many tensors, the same for each plan but for the level."""
    named = {name.format(at): ratio for at, ratio in enumerate(ratios)}
    return replace(
        card,
        plans=tuple(
            replace(plan, sqnr_db={tensor: ratio - 5 * place for tensor, ratio in named.items()})
            for place, plan in enumerate(card.plans)
        ),
    )


def test_figure_says_what_it_shows(lenet_card: NetworkCard) -> None:
    shown = texts(sqnr_figure(lenet_card))
    assert "lenet: error of each tensor against the float network, 60 images" in shown
    assert "SQNR in dB (higher is better)" in shown
    assert {"x", "conv1", "conv2", "fc1", "fc2", "fc3"} <= set(shown)
    for plan in lenet_card.plans:
        assert f"{plan.name}, median {plan.median_sqnr_db:.1f} dB" in shown


def test_the_same_card_gives_the_same_bytes(lenet_card: NetworkCard) -> None:
    first = sqnr_figure(lenet_card)
    assert sqnr_figure(lenet_card) == first
    assert b"<dc:date>" not in first
    assert sqnr_figure(replace(lenet_card, name="other")) != first
    assert sqnr_figure(lenet_card, "png").startswith(b"\x89PNG")


@pytest.mark.parametrize(("tensors", "named"), [(1, 1), (12, 12), (40, 40), (41, 21), (126, 32)])
def test_long_axes_name_some_tensors(lenet_card: NetworkCard, tensors: int, named: int) -> None:
    shown = texts(sqnr_figure(with_ratios(lenet_card, *(20.0 + at % 7 for at in range(tensors)))))
    labels = [text for text in shown if re.fullmatch(r"layer\d+\.0\.conv1", text)]
    assert len(labels) == named <= 40
    assert labels[0] == "layer0.0.conv1"


def test_long_names_keep_their_end(lenet_card: NetworkCard) -> None:
    card = with_ratios(lenet_card, 20.0, 21.0, name="encoder.stages.blocks.attention{}.projection")
    labels = [text for text in texts(sqnr_figure(card)) if "projection" in text]
    assert [len(label) for label in labels] == [26, 26]
    assert all(label.startswith("…") and label.endswith(f"{at}.projection") for at, label in enumerate(labels))


@pytest.mark.parametrize(
    "ratios", [(30.0, math.inf, 20.0), (30.0, -math.inf, 20.0), (math.inf, math.inf), (-math.inf, -math.inf)]
)
def test_ratios_without_a_number_leave_gaps(lenet_card: NetworkCard, ratios: tuple[float, ...]) -> None:
    figure = sqnr_figure(with_ratios(lenet_card, *ratios))
    assert b"nan" not in figure and b"inf" not in figure
    median = sorted(ratios)[len(ratios) // 2]
    word = {math.inf: "exact", -math.inf: "lost"}.get(median, f"{median:.1f} dB")
    assert f"W8A8, median {word}" in texts(figure)


def test_negative_numbers_have_a_minus(lenet_card: NetworkCard) -> None:
    shown = texts(sqnr_figure(with_ratios(lenet_card, -1.0, -2.0, -4.0)))
    assert "W8A8, median \N{MINUS SIGN}2.0 dB" in shown
