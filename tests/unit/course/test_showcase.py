"""The last section: the same images for every network, until the time or the images are over."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import labkit
from labkit.course.showcase import seconds_to_spend, show_accuracy
from labkit.errors import InputError

DATA = labkit.data.load("mnist5k")


def always(label: int) -> Any:
    return lambda x: np.eye(10)[np.full(len(x), label)]


def test_all_images_where_there_is_time() -> None:
    found = show_accuracy({"threes": always(3), "fours": always(4)}, DATA, seconds=60, batch=300)
    assert found.images == found.of == 1000
    assert found.correct == {"threes": int((DATA.test_labels == 3).sum()), "fours": int((DATA.test_labels == 4).sum())}
    assert found.percent("threes") == 100 * found.correct["threes"] / 1000
    assert "1,000 of 1,000 test images of mnist5k" in str(found)
    assert "<table>" in found._repr_html_()


def test_it_stops_when_the_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(np.arange(0, 1000, 1.0))  # each batch takes a second
    monkeypatch.setattr("labkit.course.showcase.time.perf_counter", lambda: float(next(ticks)))
    found = show_accuracy({"zeros": always(0)}, DATA, seconds=3, batch=10)
    assert found.images == 30
    assert found.seconds == {"zeros": 3.0}
    assert f"± {100 * (found.correct['zeros'] / 30 * (1 - found.correct['zeros'] / 30) / 30) ** 0.5:.1f}" in str(found)


def test_tensors_pass_and_other_forms_do_not() -> None:
    assert show_accuracy({"net": lambda x: torch.zeros(len(x), 10)}, DATA, seconds=1, batch=500).images == 1000
    with pytest.raises(InputError, match="25 rows of logits are wanted"):
        show_accuracy({"net": lambda x: np.zeros(10)}, DATA, seconds=1)
    with pytest.raises(InputError, match="no network"):
        show_accuracy({}, DATA)


def test_names_are_escaped() -> None:
    assert "<b>" not in show_accuracy({"<b>": always(0)}, DATA, seconds=1)._repr_html_()


@pytest.mark.parametrize(("said", "seconds"), [("", 20.0), ("3", 3.0), ("0.5", 0.5)])
def test_the_time_is_a_setting(monkeypatch: pytest.MonkeyPatch, said: str, seconds: float) -> None:
    monkeypatch.setenv("LABKIT_COURSE_SECONDS", said)
    assert seconds_to_spend() == seconds


@pytest.mark.parametrize("said", ["soon", "-1", "0", "inf", "nan"])
def test_a_time_that_makes_no_sense_is_named(monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    monkeypatch.setenv("LABKIT_COURSE_SECONDS", said)
    with pytest.raises(InputError, match="positive number of seconds"):
        seconds_to_spend()
