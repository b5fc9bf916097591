"""A card in Markdown."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from labkit.reporting.cards.results import LayerFacts, NetworkCard
from labkit.reporting.cards.text import card_text, summary_table, table


def rows(text: str) -> list[list[str]]:
    """The cells of each line of the tables in ``text``."""
    return [
        [cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line.startswith("|")
    ]


def test_text_says_what_the_card_says(lenet_card: NetworkCard) -> None:
    text = card_text(lenet_card, "lenet.svg")
    assert text.startswith("### lenet\n")
    assert f"float network: {lenet_card.accuracy:.2f} %" in text
    assert "](lenet.svg)" in text
    assert "Made by `labkit card lenet` with labkit " in text
    assert "316,292 parameters (316,292 in the module), 1,515,200 MACs, activations of 12.5 kB" in text
    assert "20 images; SQNR over 60 images" in text
    for plan in lenet_card.plans:
        row = next(row for row in rows(text) if row[0] == plan.name)
        assert row[5] == f"{plan.accuracy:.2f}"
        assert row[6].endswith(f"± {plan.change_error:.2f}")
        assert row[7] == f"{plan.median_sqnr_db:.1f} dB"
        assert row[8] == f"{plan.lowest_sqnr[1]:.1f} dB, `{plan.lowest_sqnr[0]}`"
        assert row[9] == f"0 of {plan.certificate.elements:,}"
        assert f"- {plan.name}: {plan.rule}." in text
    assert "8 bits to 4 layers with 6.8 % of the parameters, 4 bits to 1 layer with 93.2 % of" in text


def test_rules_of_even_plans_may_stand_elsewhere(lenet_card: NetworkCard) -> None:
    text = card_text(lenet_card, rules=False)
    assert "- mixed: " in text
    assert "- W8A8: " not in text
    assert "](" not in text  # no figure, no link


def test_layers_are_rows(lenet_card: NetworkCard, branches_card: NetworkCard) -> None:
    text = card_text(lenet_card)
    found = {row[0]: row for row in rows(text)}
    assert found["`conv2`"][1:10] == [
        "Conv2d + relu",
        "12x14x14",
        "32x12x12",
        "3x3",
        "1x1",
        "1",
        "3,456",
        "497,664",
        "8",
    ]
    assert found["`pool1`"][1:] == ["MaxPool2d", "12x28x28", "12x14x14", "2x2", "2x2", *["-"] * 8]
    assert found["`conv2`"][10] == f"{lenet_card.plans[0].sqnr_db['conv2']:.1f} dB"
    depthwise = next(row for row in rows(card_text(branches_card)) if row[0] == "`depthwise`")
    assert depthwise[6] == "8"
    assert "No accuracy: the images have no labels." in card_text(branches_card)


def test_long_tables_are_folded(lenet_card: NetworkCard) -> None:
    assert "<details>" not in card_text(lenet_card)
    node = LayerFacts("more", "Conv2d", "none", ((1, 2, 2),), (1, 2, 2), (1, 1), (1, 1), (2, 1), 1, 1, 4)
    text = card_text(replace(lenet_card, layers=(*lenet_card.layers, *(replace(node, name=f"m{i}") for i in range(9)))))
    assert "<summary>All 18 nodes of lenet</summary>\n\n|" in text
    assert text.index("| `x` |") < text.index("</details>")
    assert "Conv2d, dilation 2x1" in text


def test_a_difference_is_shown(lenet_card: NetworkCard) -> None:
    first = lenet_card.plans[0]
    wrong = replace(first.certificate, differing=3, first="tensor conv1, index [0]: expected 1, labkit has 2")
    card = replace(lenet_card, plans=(replace(first, certificate=wrong), *lenet_card.plans[1:]))
    assert "3 of 5" in card_text(card).replace(f"{wrong.elements:,}", "5")
    assert "expected 1, labkit has 2" in card_text(card)
    assert rows(summary_table([card]))[-1][-1].startswith("3 of ")


def test_summary_has_a_row_for_each_card(lenet_card: NetworkCard, branches_card: NetworkCard) -> None:
    heads, _, first, second = rows(summary_table([lenet_card, branches_card]))
    assert len(heads) == len(first) == len(second) == 3 + 5 + 5 + 1
    assert first[0] == "[lenet](#lenet)"
    cells = dict(zip(heads, first, strict=True))
    assert cells["float32, %"] == f"{lenet_card.accuracy:.2f}"
    assert cells["W4A4, %"] == f"{lenet_card.plans[2].accuracy:.2f}"
    assert (cells["size: float32"], cells["size: W8A8"], cells["size: W4A4"]) == ("1.27 MB", "316 kB", "158 kB")
    assert set(second[3:8]) == {"-"}
    assert rows(summary_table([branches_card], linked=False))[2][0] == "branches"


@pytest.mark.parametrize("name", ["lenet-bias-cifar10", "mobilenet_v2", "My Net 2"])
def test_links_lead_to_headings(lenet_card: NetworkCard, name: str) -> None:
    """GitHub's rule: lower case, spaces as hyphens, punctuation other than - and _ dropped."""
    text = summary_table([replace(lenet_card, name=name)])
    target = re.search(r"\]\(#([^)]+)\)", text)
    assert target is not None
    assert target.group(1) == name.lower().replace(" ", "-")


def test_text_is_the_same_each_time(lenet_card: NetworkCard) -> None:
    again = NetworkCard.from_json(lenet_card.to_json())
    assert card_text(again, "f.svg") == card_text(lenet_card, "f.svg")


def test_table_sets_numbers_to_the_right() -> None:
    assert table(("a", "b", "c"), [("1", "2", "3")], left=2) == "| a | b | c |\n| --- | --- | ---: |\n| 1 | 2 | 3 |"
