"""The six rounding rules and the Requantizer against Python integers: equations 10 and 13 to 18."""

from __future__ import annotations

import numpy as np
import oracle_arithmetic as oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit.arithmetic.fixedpoint import FixedPointMultiplier
from labkit.arithmetic.requantize import Requantizer, RoundingRule, round_half_away, scale_and_round
from labkit.errors import BoundError, QuantizationError

INT32_MIN, INT32_MAX = -(2**31), 2**31 - 1
INTEGER_RULES = {
    RoundingRule.SINGLE: oracle.single,
    RoundingRule.GEMMLOWP: oracle.gemmlowp,
    RoundingRule.GEMMLOWP_UP: oracle.gemmlowp_up,
    RoundingRule.DYADIC: oracle.dyadic,
}
FLOAT_RULES = {
    RoundingRule.FLOAT32_EVEN: (oracle.float32_even, np.float32),
    RoundingRule.FLOAT64_AWAY: (oracle.float64_away, np.float64),
}
DOUBLE_ROUNDING = (RoundingRule.GEMMLOWP, RoundingRule.GEMMLOWP_UP)


def fixed(mantissa: int, exponent: int) -> FixedPointMultiplier:
    return FixedPointMultiplier(np.array(mantissa, np.int32), np.array(exponent, np.int32))


def rounded(rule: RoundingRule, accumulators: list[int], mantissa: int, exponent: int) -> list[int]:
    return scale_and_round(np.array(accumulators, np.int64), fixed(mantissa, exponent), rule).tolist()


def by_real(rule: RoundingRule, multiplier: float, accumulators: list[int]) -> list[int]:
    """``rule`` with the multiplier in the form that it takes."""
    form = FLOAT_RULES[rule][1](multiplier) if rule in FLOAT_RULES else FixedPointMultiplier.from_real(multiplier)
    return scale_and_round(np.array(accumulators), form, rule).tolist()  # type: ignore[arg-type]


int32 = st.one_of(
    st.integers(INT32_MIN, INT32_MAX),
    st.integers(-600, 600),
    st.sampled_from([INT32_MIN, INT32_MIN + 1, INT32_MAX, INT32_MAX - 1, -(2**30), 2**30, 0, 1, -1]),
)
mantissas = st.one_of(st.integers(2**30, 2**31 - 1), st.sampled_from([0, 2**30, 3 * 2**29, 2**31 - 1]))


@pytest.mark.parametrize("rule", INTEGER_RULES)
@given(accumulators=st.lists(int32, min_size=1, max_size=30), mantissa=mantissas, exponent=st.integers(-31, 30))
def test_integer_rules_are_exact(rule: RoundingRule, accumulators: list[int], mantissa: int, exponent: int) -> None:
    if rule in DOUBLE_ROUNDING:  # a left shift must stay inside int32
        limit = 2 ** (31 - max(exponent, 0)) - 1
        accumulators = [min(max(a, -limit), limit) for a in accumulators]
    wanted = [INTEGER_RULES[rule](a, mantissa, exponent) for a in accumulators]
    assert rounded(rule, accumulators, mantissa, exponent) == wanted


@pytest.mark.parametrize("rule", INTEGER_RULES)
@pytest.mark.parametrize("exponent", [-31, -30, -8, -1, 0, 1])
def test_integer_rules_at_and_beside_every_tie(rule: RoundingRule, exponent: int) -> None:
    """m = 2**30 makes M a power of two: both signs of each tie and its two neighbours, as far as int32 reaches."""
    half = 2 ** max(-exponent, 0)  # with M = 2**(exponent - 1) these accumulators give n / 2, and what is next to it
    ties = [sign * (2 * k + 1) * half + off for k in range(40) for sign in (1, -1) for off in (-1, 0, 1)]
    accumulators = [a for a in ties if abs(a) < 2**30] + [INT32_MAX // 2, INT32_MIN // 2]
    wanted = [INTEGER_RULES[rule](a, 2**30, exponent) for a in accumulators]
    assert rounded(rule, accumulators, 2**30, exponent) == wanted


@pytest.mark.parametrize("rule", INTEGER_RULES)
def test_integer_rules_on_random_networks_numbers(rule: RoundingRule) -> None:
    rng = np.random.default_rng(0)
    for multiplier in 2.0 ** rng.uniform(-14, 0, 50):
        accumulators = rng.integers(-(2**20), 2**20, 200).tolist()
        mantissa, exponent = oracle.quantize_multiplier(multiplier)
        wanted = [INTEGER_RULES[rule](a, mantissa, exponent) for a in accumulators]
        assert by_real(rule, multiplier, accumulators) == wanted


@pytest.mark.parametrize("rule", FLOAT_RULES)
@given(
    accumulators=st.lists(int32, min_size=1, max_size=20),
    multiplier=st.one_of(st.floats(2.0**-20, 2.0**4, width=32), st.integers(-20, 2).map(lambda e: 2.0**e)),
    inside=st.integers(-128, 255),
)
def test_float_rules_are_exact(rule: RoundingRule, accumulators: list[int], multiplier: float, inside: int) -> None:
    model, kind = FLOAT_RULES[rule]
    for addend in (0, inside):
        got = scale_and_round(np.array(accumulators), kind(multiplier), rule, addend=addend)
        assert got.tolist() == [model(a, multiplier, addend) for a in accumulators]


def test_float64_rule_takes_a_float64_multiplier() -> None:
    rng = np.random.default_rng(1)
    accumulators = [int(a) for a in rng.integers(INT32_MIN, INT32_MAX, 200)]
    for multiplier in (*rng.uniform(1e-9, 1e-6, 20).tolist(), np.nextafter(0.5, 0)):
        got = scale_and_round(np.array([1, -1, *accumulators]), np.float64(multiplier), RoundingRule.FLOAT64_AWAY)
        assert got.tolist() == [oracle.float64_away(a, multiplier) for a in (1, -1, *accumulators)]


@given(st.one_of(st.floats(-(2.0**51), 2.0**51), st.integers(-(2**40), 2**40).map(lambda k: k + 0.5)))
def test_round_half_away(real: float) -> None:
    assert int(round_half_away(np.array(real))) == oracle.half_away(oracle.Fraction(real))


def test_round_half_away_just_below_a_half() -> None:
    below = np.nextafter(0.5, 0)  # below + 0.5 is 1.0 in float64
    assert round_half_away(np.array([below, -below, 0.5, -0.5])).tolist() == [0, 0, 1, -1]


# What tells the rules apart

VECTORS = [  # M, a: then SINGLE, GEMMLOWP, GEMMLOWP_UP, DYADIC, FLOAT32_EVEN, FLOAT64_AWAY
    (0.5, 1, (1, 1, 1, 0, 0, 1)),
    (0.5, -1, (0, 0, 0, 0, 0, -1)),
    (0.5, 3, (2, 2, 2, 2, 2, 2)),
    (0.5, -3, (-1, -1, -1, -2, -2, -2)),
    (0.5, 5, (3, 3, 3, 2, 2, 3)),
    (0.25, 1, (0, 1, 1, 0, 0, 0)),
    (0.25, -2, (0, -1, 0, 0, 0, -1)),
    (0.0111111119107, 585, (7, 7, 7, 7, 7, 7)),
]


@pytest.mark.parametrize(("multiplier", "accumulator", "wanted"), VECTORS)
def test_known_vectors(multiplier: float, accumulator: int, wanted: tuple[int, ...]) -> None:
    assert tuple(by_real(rule, multiplier, [accumulator])[0] for rule in RoundingRule) == wanted


def test_any_two_rules_differ_somewhere() -> None:
    accumulators = [*range(-40, 41), 2**24 + 1, -(2**24) - 1]
    results = {
        rule: tuple(tuple(by_real(rule, m, accumulators)) for m in (0.5, 0.25, 0.125, 5 / 2**25))
        for rule in RoundingRule
    }
    assert len(set(results.values())) == len(RoundingRule) == 6


def test_two_roundings_differ_from_one_as_often_as_the_document_says() -> None:
    rng = np.random.default_rng(2)
    for exponent in (-3, -5):
        mantissa = int(rng.integers(2**30, 2**31))
        accumulators = rng.integers(-(2**22), 2**22, 200_000)
        one, two = (
            scale_and_round(accumulators, fixed(mantissa, exponent), rule)
            for rule in (RoundingRule.SINGLE, RoundingRule.GEMMLOWP)
        )
        assert np.mean(one != two) == pytest.approx(2.0**exponent / 2, rel=0.05)
        assert np.abs(one - two).max() == 1


# What is refused


@pytest.mark.parametrize("rule", RoundingRule)
@pytest.mark.parametrize("outside", [INT32_MIN - 1, INT32_MAX + 1])
def test_a_sum_outside_int32_is_refused(rule: RoundingRule, outside: int) -> None:
    with pytest.raises(BoundError, match="must fit int32"):
        by_real(rule, 0.25, [0, outside])


@pytest.mark.parametrize("rule", DOUBLE_ROUNDING)
@pytest.mark.parametrize("exponent", [1, 5, 30])
def test_a_left_shift_out_of_int32_is_refused(rule: RoundingRule, exponent: int) -> None:
    most, least = (INT32_MAX >> exponent), (INT32_MIN >> exponent)
    assert rounded(rule, [most, least], 2**30, exponent) == [
        INTEGER_RULES[rule](a, 2**30, exponent) for a in (most, least)
    ]
    for outside in (most + 1, least - 1):
        with pytest.raises(BoundError, match="Use the rule SINGLE"):
            rounded(rule, [0, outside], 2**30, exponent)


@pytest.mark.parametrize("rule", [RoundingRule.SINGLE, RoundingRule.DYADIC])
def test_the_largest_left_shift_of_the_64_bit_rules(rule: RoundingRule) -> None:
    extremes = [INT32_MIN, INT32_MAX]
    assert rounded(rule, extremes, 2**31 - 1, 30) == [INTEGER_RULES[rule](a, 2**31 - 1, 30) for a in extremes]


# Requantizer


@pytest.mark.parametrize("rule", RoundingRule)
def test_requantizer_adds_the_zero_point_and_clamps(rule: RoundingRule) -> None:
    form = FLOAT_RULES[rule][1](0.5) if rule in FLOAT_RULES else FixedPointMultiplier.from_real(0.5)
    requantizer = Requantizer(rule, np.asarray(form) if rule in FLOAT_RULES else form, 10, (10, 200))  # type: ignore[arg-type]
    got = requantizer.apply(np.array([-7, 0, 8, 1000]))
    assert got.dtype == np.int32
    assert got.tolist() == [10, 10, 14, 200]
    assert requantizer.channels is None


def test_requantizer_runs_multipliers_along_the_channel_axis() -> None:
    requantizer = Requantizer(
        RoundingRule.SINGLE, FixedPointMultiplier.from_real(np.array([1.0, 0.5, 0.25])), 0, (-128, 127)
    )
    assert requantizer.channels == 3
    sums = np.full((2, 3, 4, 5), 100)
    assert requantizer.apply(sums)[1, :, 2, 3].tolist() == [100, 50, 25]
    assert requantizer.apply(np.full((4, 3), 100), axis=1)[2].tolist() == [100, 50, 25]
    assert requantizer.apply(np.full((3, 2), 100), axis=0)[:, 1].tolist() == [100, 50, 25]


def test_a_zero_point_inside_matters_for_ties_only() -> None:
    def both(rule: RoundingRule, sums: list[int]) -> list[list[int]]:
        form = np.asarray(0.5, FLOAT_RULES[rule][1])
        return [
            Requantizer(rule, form, 1, (-100, 100), inside).apply(np.array(sums)).tolist() for inside in (False, True)
        ]

    assert both(RoundingRule.FLOAT32_EVEN, [5, 1, 3, 4]) == [[3, 1, 3, 3], [4, 2, 2, 3]]
    assert both(RoundingRule.FLOAT64_AWAY, [-1, -3, 1, 4]) == [[0, -1, 2, 3], [1, -1, 2, 3]]


def test_which_rules_need_integers_only() -> None:
    assert [rule for rule in RoundingRule if rule.is_integer_only] == list(INTEGER_RULES)


@pytest.mark.parametrize("rule", RoundingRule)
def test_a_multiplier_of_another_form_is_refused(rule: RoundingRule) -> None:
    forms = {FixedPointMultiplier: FixedPointMultiplier.from_real(0.5), np.float32: np.array(0.5, np.float32)}
    forms[np.float64] = np.array(0.5)  # type: ignore[index]
    wanted = FLOAT_RULES[rule][1] if rule in FLOAT_RULES else FixedPointMultiplier
    Requantizer(rule, forms.pop(wanted), 0, (0, 255))  # type: ignore[call-overload]
    assert len(forms) == 2
    for form in forms.values():
        with pytest.raises(QuantizationError, match=f"{rule.name} takes a multiplier of"):
            Requantizer(rule, form, 0, (0, 255))


@pytest.mark.parametrize("clamp", [(5, 4), (-129, 0), (0, 256)])
def test_a_clamp_that_is_empty_or_outside_8_bits_is_refused(clamp: tuple[int, int]) -> None:
    with pytest.raises(QuantizationError, match="clamp must run upwards"):
        Requantizer(RoundingRule.SINGLE, FixedPointMultiplier.from_real(0.5), 0, clamp)
