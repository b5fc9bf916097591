"""The committed study and the table in the README say what the committed reports say."""

from __future__ import annotations

import importlib.util

import pytest
from house.source import ROOT

_SPEC = importlib.util.spec_from_file_location("make_lenet_study", ROOT / "tools" / "make_lenet_study.py")
assert _SPEC is not None
assert _SPEC.loader is not None
STUDY = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(STUDY)


def test_pages_are_made_from_the_reports() -> None:
    found = STUDY.reports()
    assert (STUDY.STUDY / "README.md").read_text() == STUDY.study_page(found)
    readme = (ROOT / "README.md").read_text()
    assert readme == STUDY.with_table(readme, found["lenet"])


@pytest.mark.parametrize("net", STUDY.NETS)
def test_reports_are_whole_and_certified(net: str) -> None:
    report = STUDY.reports()[net]
    assert report["command"] == STUDY.COMMAND.format(net=net)
    assert {row["images"] for row in report["rows"]} == {10_000}
    for name in ("W8A8", "W4A8", "W4A4"):
        certificate = report["certificates"][name]
        assert (certificate["images"], certificate["differing"], certificate["passed"]) == (10_000, 0, True)


def test_accuracies_promised_in_the_project() -> None:
    """8 bits within 0.2 points of float, 4-bit weights within 1.0 point (per channel)."""
    rows = {row["label"]: row["accuracy"] for row in STUDY.reports()["lenet"]["rows"]}
    assert rows["Float network"] >= 69.0
    assert abs(rows["W8A8"] - rows["Float network"]) <= 0.2
    assert abs(rows["W4A8"] - rows["Float network"]) <= 1.0
