"""play(): sliders in a notebook that can show them, still pictures elsewhere."""

from __future__ import annotations

from typing import Any

import ipywidgets
import matplotlib.pyplot as plt
import pytest

from labkit.course import look


def test_without_a_notebook_every_still_is_drawn() -> None:
    drawn: list[Any] = []
    look.play(
        lambda bits, rule: drawn.append((bits, rule)),
        stills=[{"bits": 8, "rule": "up"}, {"bits": 2, "rule": "up"}],
        bits=[2, 8],
        rule=["up"],
    )
    assert drawn == [(8, "up"), (2, "up")]


def test_with_widgets_the_first_still_is_where_it_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    shown: list[Any] = []
    monkeypatch.setattr(look, "_widgets", lambda: ipywidgets)
    monkeypatch.setattr("IPython.display.display", shown.append)
    look.play(lambda bits: drawn.append(bits), stills=[{"bits": 4}], bits=[2, 4, 8])
    (slider, _) = shown[0].children
    assert slider.value == 4
    assert list(slider.options) == [2, 4, 8]
    slider.value = 2
    assert drawn == [4, 2]


def test_stills_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABKIT_STILLS", "1")
    assert look._widgets() is None


def test_the_look_is_set() -> None:
    with plt.rc_context():
        look.use_look()
        assert plt.rcParams["axes.grid"]
