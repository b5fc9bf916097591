"""A card as data: what follows from it, and its JSON."""

from __future__ import annotations

import json
import math
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest

from labkit.errors import InputError
from labkit.reporting.cards.results import SCHEMA, NetworkCard


@pytest.mark.parametrize("name", ["lenet", "branches"])
def test_json_round_trip(name: str, request: pytest.FixtureRequest) -> None:
    card: NetworkCard = request.getfixturevalue(f"{name}_card")
    text = json.dumps(card.to_json(), allow_nan=False)
    again = NetworkCard.from_json(json.loads(text))
    assert again == card
    assert json.dumps(again.to_json(), allow_nan=False) == text
    assert list(again.plans[0].sqnr_db) == list(card.plans[0].sqnr_db)  # running order


def test_ratios_without_a_number_survive(lenet_card: NetworkCard) -> None:
    plan = replace(lenet_card.plans[0], sqnr_db={"a": math.inf, "b": -math.inf, "c": 20.5})
    card = replace(lenet_card, plans=(plan,))
    values = json.loads(json.dumps(card.to_json(), allow_nan=False))
    assert values["plans"][0]["sqnr_db"] == {"a": "exact", "b": "lost", "c": 20.5}
    assert NetworkCard.from_json(values) == card
    assert plan.lowest_sqnr == ("b", -math.inf)
    assert plan.median_sqnr_db == 20.5


def test_median_and_lowest(lenet_card: NetworkCard) -> None:
    plan = replace(lenet_card.plans[0], sqnr_db={"a": 30.0, "b": 10.0, "c": 10.0, "d": 22.0})
    assert plan.lowest_sqnr == ("b", 10.0)  # the first of them
    assert plan.median_sqnr_db == 16.0


def test_card_is_frozen(lenet_card: NetworkCard) -> None:
    with pytest.raises(FrozenInstanceError):
        lenet_card.name = "other"  # type: ignore[misc]
    for table in (lenet_card.versions, lenet_card.plans[0].sqnr_db, lenet_card.plans[0].weight_bits):
        with pytest.raises(TypeError):
            table["x"] = 1  # type: ignore[index]


@pytest.mark.parametrize(
    "change",
    [
        {"schema": "labkit.card/0"},
        {"schema": None},
        {"plans": [{}]},
        {"layers": 3},
        {"strange": 1},
        {"name": ...},
    ],
)
def test_other_values_are_no_card(lenet_card: NetworkCard, change: dict[str, Any]) -> None:
    values = {key: value for key, value in (lenet_card.to_json() | change).items() if value is not ...}
    with pytest.raises(InputError, match=r"not a network's card|has the schema"):
        NetworkCard.from_json(values)
    assert lenet_card.to_json()["schema"] == SCHEMA
