"""docs/arithmetic.md: what the code cites is there, and its figures are what labkit computes."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from labkit.arithmetic.affine import QuantSpec
from labkit.arithmetic.bounds import INT32_LIMIT, check_accumulator
from labkit.arithmetic.fixedpoint import FixedPointMultiplier
from labkit.arithmetic.requantize import RoundingRule, scale_and_round
from labkit.errors import BoundError

ROOT = Path(__file__).resolve().parents[3]
DOCUMENT = (ROOT / "docs" / "arithmetic.md").read_text("utf-8")
NUMBERS = re.findall(r"\\tag\{(\w+)\}", DOCUMENT)
SOURCES = sorted((ROOT / "labkit").rglob("*.py"))

_CITATION = re.compile(r"\b(?:eqs?\.|equations?)\s+(\d+[a-z]?(?:(?:,\s*|\s+and\s+|\s+to\s+)\d+[a-z]?)*)", re.I)


def cited(text: str) -> list[str]:
    """The equation numbers that ``text`` cites, ranges written out."""
    found: list[str] = []
    for match in _CITATION.finditer(text):
        for part in re.split(r",\s*|\s+and\s+", match[1]):
            ends = re.split(r"\s+to\s+", part)
            found += [str(n) for n in range(int(ends[0]), int(ends[1]) + 1)] if len(ends) == 2 else ends
    return found


def test_equations_are_numbered_once_and_in_order() -> None:
    wanted = [str(n) for n in range(1, 51)]
    for number in (8, 23):
        wanted.insert(wanted.index(str(number)) + 1, f"{number}a")
    assert wanted == NUMBERS


def test_every_cited_equation_exists() -> None:
    citations = {path: cited(path.read_text("utf-8")) for path in SOURCES}
    assert sum(map(len, citations.values())) > 40
    assert not {
        str(path): [n for n in given if n not in NUMBERS] for path, given in citations.items() if {*given} - {*NUMBERS}
    }


def test_the_code_cites_every_equation() -> None:
    assert {*NUMBERS} == {n for path in SOURCES for n in cited(path.read_text("utf-8"))}


def test_every_cited_section_exists() -> None:
    sections = set(re.findall(r"^## (\d+)", DOCUMENT, re.M))
    asked = {n for path in SOURCES for n in re.findall(r"arithmetic\.md,\s+section (\d+)", path.read_text("utf-8"))}
    assert len(asked) > 4
    assert asked <= sections


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("(eq. 2)", ["2"]),
        ("eqs. 22 and 23", ["22", "23"]),
        ("Equations 13 to 15 of", ["13", "14", "15"]),
        ("eqs. 7, 10).", ["7", "10"]),
        ("eqs. 2 and 4; one bit: eq. 6", ["2", "4", "6"]),
        ("at most 2**30 (eq. 8a)", ["8a"]),
        ("section 3, sequence 4", []),
    ],
)
def test_citations_are_read(text: str, numbers: list[str]) -> None:
    assert cited(text) == numbers


# The tables are made again and must be in the document, row by row.

VECTORS = [
    ("1/2", 0.5, 1),
    ("1/2", 0.5, 5),
    ("1/2", 0.5, -1),
    ("1/2", 0.5, -3),
    ("1/4", 0.25, 1),
    ("1/4", 0.25, 2),
    ("1/4", 0.25, -2),
    ("1/4", 0.25, -6),
    ("5/2^25", 5 / 2**25, 2**24 + 1),
    ("0.0111111119107", 0.0111111119107, 585),
]


ONE_FACTOR = [rule for rule in RoundingRule if rule is not RoundingRule.FLOAT32_TWICE]  # the rules of section 4


def _rounded(rule: RoundingRule, multiplier: float, accumulator: int) -> int:
    forms = {RoundingRule.FLOAT32_EVEN: np.float32(multiplier), RoundingRule.FLOAT64_AWAY: np.float64(multiplier)}
    form = forms.get(rule, FixedPointMultiplier.from_real(multiplier))
    return int(scale_and_round(np.array([accumulator]), form, rule)[0])  # type: ignore[arg-type]


def test_the_heading_of_the_vectors_names_the_rules() -> None:
    assert f"| M | a | M a | {' | '.join(rule.name for rule in ONE_FACTOR)} |\n" in DOCUMENT


@pytest.mark.parametrize(("name", "multiplier", "accumulator"), VECTORS)
def test_test_vectors_are_what_labkit_computes(name: str, multiplier: float, accumulator: int) -> None:
    results = [str(_rounded(rule, multiplier, accumulator)) for rule in ONE_FACTOR]
    row = " | ".join([name, f"{accumulator:,}", f"{multiplier * accumulator:.9g}", *results])
    assert f"\n| {row} |\n" in DOCUMENT


DEPTHS = [
    ("narrow int8 | affine 8 bits", 127, 255),
    ("full int8 | affine 8 bits", 128, 255),
    ("8 bits with a zero point | affine 8 bits", 255, 255),
    ("narrow int8 | symmetric 8 bits", 127, 127),
    ("narrow int4 | affine 8 bits", 7, 255),
    ("narrow int4 | affine 4 bits", 7, 15),
    ("one bit | affine 8 bits", 1, 255),
]


@pytest.mark.parametrize(("name", "weight", "activation"), DEPTHS)
def test_depths_are_the_deepest_that_pass(name: str, weight: int, activation: int) -> None:
    plain, biased = (limit // (weight * activation) for limit in (INT32_LIMIT, INT32_LIMIT - 2**30))
    assert f"\n| {name} | {weight} x {activation} | {plain:,} | {biased:,} |\n" in DOCUMENT
    if plain > 200_000:  # the same division; the arrays would only be large
        return
    for depth, bias in ((plain, 0), (biased, 2**30)):
        offset = np.array([bias])
        check_accumulator("layer", np.full((1, depth), weight), -activation, 0, offset)
        with pytest.raises(BoundError):
            check_accumulator("layer", np.full((1, depth + 1), weight), -activation, 0, offset)


def test_the_largest_factors_of_the_depth_table() -> None:
    narrow8, full8, narrow4 = QuantSpec(8, narrow=True), QuantSpec(8), QuantSpec(4, narrow=True)
    assert [max(-s.qmin, s.qmax) for s in (narrow8, full8, narrow4)] == [127, 128, 7]
    assert [QuantSpec(b, signed=False, symmetric=False).qmax for b in (8, 4)] == [255, 15]


def test_one_rounding_differs_from_two_in_a_quarter_of_sums() -> None:
    """What section 5 says of the add."""
    a, b = np.random.default_rng(0).uniform(-50, 50, (2, 200_000))
    assert np.mean(np.rint(a + b) != np.rint(a) + np.rint(b)) == pytest.approx(0.25, abs=0.01)
