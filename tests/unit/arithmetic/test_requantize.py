"""The rounding rules and the Requantizer against Python integers: equations 10, 13 to 18, 28 and 29."""

from __future__ import annotations

from typing import Any

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
ONE_FACTOR = (*INTEGER_RULES, *FLOAT_RULES)  # all but FLOAT32_TWICE, which has two
DOUBLE_ROUNDING = (RoundingRule.GEMMLOWP, RoundingRule.GEMMLOWP_UP)


def fixed(mantissa: int, exponent: int) -> FixedPointMultiplier:
    return FixedPointMultiplier(np.array(mantissa, np.int32), np.array(exponent, np.int32))


def rounded(rule: RoundingRule, accumulators: list[int], mantissa: int, exponent: int) -> list[int]:
    return scale_and_round(np.array(accumulators, np.int64), fixed(mantissa, exponent), rule).tolist()


def by_real(rule: RoundingRule, multiplier: float, accumulators: list[int]) -> list[int]:
    """``rule`` with the multiplier in the form that it takes."""
    form = FLOAT_RULES[rule][1](multiplier) if rule in FLOAT_RULES else FixedPointMultiplier.from_real(multiplier)
    return scale_and_round(np.array(accumulators), form, rule).tolist()  # type: ignore[arg-type]


def requantizer_of(rule: RoundingRule, multiplier: float, *rest: Any) -> Requantizer:
    """``rule`` with ``multiplier``, the second factor of FLOAT32_TWICE being 1/4."""
    if rule is RoundingRule.FLOAT32_TWICE:
        first, second = np.array(4 * multiplier, np.float32), np.array(0.25, np.float32)
        return Requantizer(rule, first, *rest, second=second)
    if rule in FLOAT_RULES:
        return Requantizer(rule, np.asarray(multiplier, FLOAT_RULES[rule][1]), *rest)
    return Requantizer(rule, FixedPointMultiplier.from_real(multiplier), *rest)


int32 = st.one_of(
    st.integers(INT32_MIN, INT32_MAX),
    st.integers(-600, 600),
    st.sampled_from([INT32_MIN, INT32_MIN + 1, INT32_MAX, INT32_MAX - 1, -(2**30), 2**30, 0, 1, -1]),
)
mantissas = st.one_of(st.integers(2**29, 2**31 - 1), st.sampled_from([0, 2**29, 2**30, 3 * 2**29, 2**31 - 1]))
small_reals = st.one_of(st.floats(2.0**-20, 2.0**4, width=32), st.integers(-20, 2).map(lambda e: 2.0**e))
biases = st.one_of(
    st.floats(-(2.0**20), 2.0**20, width=32),
    st.integers(-(2**20), 2**20).map(float),
    st.integers(-600, 600).map(lambda k: k / 2),
    st.sampled_from([0.0, 2.0**-149, 2.0**60, -(2.0**60)]),
)


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


@given(
    accumulators=st.lists(int32, min_size=1, max_size=20),
    multiplier=small_reals,
    bias=biases,
    inside=st.integers(-128, 255),
)
def test_a_float_bias_is_added_to_the_sum_in_float32(
    accumulators: list[int], multiplier: float, bias: float, inside: int
) -> None:
    for addend in (0, inside):
        rest = (RoundingRule.FLOAT32_EVEN, 1, addend, np.array(bias, np.float32))
        got = scale_and_round(np.array(accumulators), np.array(multiplier, np.float32), *rest)
        assert got.tolist() == [_held(oracle.float32_biased(a, multiplier, bias, addend)) for a in accumulators]


@given(
    accumulators=st.lists(int32, min_size=1, max_size=20),
    first=small_reals,
    second=small_reals,
    bias=st.one_of(st.none(), biases),
    inside=st.integers(-128, 255),
)
def test_two_factors_are_rounded_one_by_one(
    accumulators: list[int], first: float, second: float, bias: float | None, inside: int
) -> None:
    held = None if bias is None else np.array(bias, np.float32)
    for addend in (0, inside):
        rest = (RoundingRule.FLOAT32_TWICE, 1, addend, held, np.array(second, np.float32))
        got = scale_and_round(np.array(accumulators), np.array(first, np.float32), *rest)
        wanted = [oracle.float32_twice(a, first, bias or 0.0, second, addend) for a in accumulators]
        assert got.tolist() == [_held(value) for value in wanted]


def _held(value: int) -> int:
    """What is far beyond any clamp is cut off at 2**62."""
    return min(max(value, -(2**62)), 2**62)


TWO_FACTORS = [  # a, first factor, bias, second factor, result
    (5, 1.0, 0.0, 0.5, 2),  # 2.5, ties to even
    (5, 0.5, 0.5, 1.0, 3),  # 2.5 + 0.5
    (3, 0.5, 1.0, 1.0, 2),  # 1.5 + 1 = 2.5
    (16_777_217, 5 / 2**25, 0.0, 1.0, 2),  # the accumulator is rounded to 2**24 first
    (3, 1 / 3, 0.0, 1.5, 2),  # float32(1/3) * 3 rounds to 1.0, so it is a tie: 1.5
    (1, 1.0, 2.0**25, 0.5, 2**24),  # the bias swallows the sum
]


@pytest.mark.parametrize(("accumulator", "first", "bias", "second", "wanted"), TWO_FACTORS)
def test_known_vectors_of_two_factors(accumulator: int, first: float, bias: float, second: float, wanted: int) -> None:
    parts = [np.array(value, np.float32) for value in (first, bias, second)]
    made = Requantizer(RoundingRule.FLOAT32_TWICE, parts[0], 0, (-128, 127), bias=parts[1], second=parts[2])
    assert made.before_clamp(np.array([accumulator])).tolist() == [wanted]
    assert oracle.float32_twice(accumulator, float(parts[0]), bias, second) == wanted


def test_one_product_and_two_differ() -> None:
    """oneDNN's rule is not ONNX Runtime's, even without a bias: the first product is rounded before the second."""
    sums = np.arange(-(2**20), 2**20, 7)
    first, second = np.array(0.0123, np.float32), np.array(0.37, np.float32)
    one = scale_and_round(sums, first * second, RoundingRule.FLOAT32_EVEN)
    two = scale_and_round(sums, first, RoundingRule.FLOAT32_TWICE, second=second)
    assert 0 < np.count_nonzero(one != two) < sums.size / 100


FLOAT_BIASES = [(3, -1.0, 0.5, 1), (3, 0.0, 0.5, 2), (2, 0.5, 1.0, 2), (2, -1e30, 1.0, -(2**62)), (0, 3e38, 1e-38, 3)]


@pytest.mark.parametrize(("accumulator", "bias", "multiplier", "wanted"), FLOAT_BIASES)
def test_known_vectors_of_a_float_bias(accumulator: int, bias: float, multiplier: float, wanted: int) -> None:
    parts = [np.array(value, np.float32) for value in (multiplier, bias)]
    made = Requantizer(RoundingRule.FLOAT32_EVEN, parts[0], 0, (-128, 127), bias=parts[1])
    assert made.before_clamp(np.array([accumulator])).tolist() == [wanted]


def test_a_huge_bias_ends_at_the_clamp() -> None:
    """A float32 infinity has no integer: it must not reach the conversion, whose result C leaves undefined."""
    huge, second = np.array([3e38, -3e38], np.float32), np.array(2.0**20, np.float32)
    sums = np.array([[2**31 - 1, -(2**31)]])
    for rule, rest in ((RoundingRule.FLOAT32_EVEN, {}), (RoundingRule.FLOAT32_TWICE, {"second": second})):
        made = Requantizer(rule, np.array(2.0**20, np.float32), 5, (-100, 100), bias=huge, **rest)
        assert made.channels == 2
        assert made.apply(sums).tolist() == [[100, -100]]


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
    assert tuple(by_real(rule, multiplier, [accumulator])[0] for rule in ONE_FACTOR) == wanted


def test_any_two_rules_differ_somewhere() -> None:
    accumulators = [*range(-40, 41), 2**24 + 1, -(2**24) - 1]
    results = {
        rule: tuple(tuple(by_real(rule, m, accumulators)) for m in (0.5, 0.25, 0.125, 5 / 2**25)) for rule in ONE_FACTOR
    }
    assert len(set(results.values())) == len(ONE_FACTOR) == len(RoundingRule) - 1 == 6


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
        requantizer_of(rule, 0.25, 0, (0, 255)).apply(np.array([0, outside]))


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
    requantizer = requantizer_of(rule, 0.5, 10, (10, 200))
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
    twice = rule is RoundingRule.FLOAT32_TWICE
    wanted = np.float32 if twice else FLOAT_RULES[rule][1] if rule in FLOAT_RULES else FixedPointMultiplier
    second = np.array(1.0, np.float32) if twice else None
    Requantizer(rule, forms.pop(wanted), 0, (0, 255), second=second)  # type: ignore[call-overload]
    assert len(forms) == 2
    for form in forms.values():
        with pytest.raises(QuantizationError, match=f"{rule.name} takes a multiplier of"):
            Requantizer(rule, form, 0, (0, 255))


def _real(value: Any) -> np.ndarray[Any, Any]:
    return np.array(value, np.float32)


@pytest.mark.parametrize(
    ("rule", "fields", "words"),
    [
        (RoundingRule.FLOAT32_TWICE, {}, "FLOAT32_TWICE, and no other, has a second factor"),
        (RoundingRule.FLOAT32_EVEN, {"second": _real(1)}, "FLOAT32_EVEN is named"),
        (RoundingRule.FLOAT32_TWICE, {"second": _real(0)}, r"positive and below 2\*\*30, got 0"),
        (RoundingRule.FLOAT32_TWICE, {"second": _real(-1)}, "must be positive"),
        (RoundingRule.FLOAT32_TWICE, {"second": _real(2.0**30)}, "must be positive and below"),
        (RoundingRule.FLOAT32_TWICE, {"second": _real([1, 1])}, r"second must be finite float32 of shape \(\)"),
        (RoundingRule.FLOAT32_TWICE, {"second": np.array(1.0)}, "got float64"),
        (RoundingRule.FLOAT32_EVEN, {"bias": _real(np.inf)}, "bias must be finite"),
        (RoundingRule.FLOAT32_EVEN, {"bias": _real([1, np.nan, 1])}, "bias must be finite"),
        (RoundingRule.FLOAT32_EVEN, {"bias": _real([1, 2])}, r"bias must be .* of shape \(3,\), got float32 \(2,\)"),
        (RoundingRule.FLOAT32_EVEN, {"bias": np.array(1)}, "got int64"),
        (RoundingRule.FLOAT64_AWAY, {"bias": _real(1)}, "FLOAT64_AWAY has no float32 bias"),
        (RoundingRule.SINGLE, {"bias": _real(1)}, "SINGLE has no float32 bias: put it into the sums"),
    ],
)
def test_a_bias_or_second_factor_that_does_not_fit_is_refused(
    rule: RoundingRule, fields: dict[str, Any], words: str
) -> None:
    multiplier: Any = _real([0.5, 0.25, 1.0])
    if rule is RoundingRule.FLOAT64_AWAY:
        multiplier = np.array(0.5)
    elif rule is RoundingRule.SINGLE:
        multiplier = FixedPointMultiplier.from_real(0.5)
    with pytest.raises(QuantizationError, match=words):
        Requantizer(rule, multiplier, 0, (0, 255), **fields)


def test_a_bias_for_each_channel_may_stand_beside_one_multiplier() -> None:
    made = Requantizer(RoundingRule.FLOAT32_EVEN, _real(0.5), 0, (-128, 127), bias=_real([0, 2, -4]))
    assert made.channels == 3
    assert made.apply(np.full((2, 3, 1, 2), 10))[1, :, 0, 1].tolist() == [5, 6, 3]


@pytest.mark.parametrize("clamp", [(5, 4), (-32769, 0), (0, 32768)])
def test_a_clamp_that_is_empty_or_leaves_16_bits_is_refused(clamp: tuple[int, int]) -> None:
    with pytest.raises(QuantizationError, match="clamp must run upwards"):
        Requantizer(RoundingRule.SINGLE, FixedPointMultiplier.from_real(0.5), 0, clamp)


@pytest.mark.parametrize("rule", [16777216, "single", None], ids=repr)
def test_a_rule_is_one_of_those_with_a_name(rule: object) -> None:
    multiplier = FixedPointMultiplier.from_real(0.5)
    with pytest.raises(QuantizationError, match="A rule must be a RoundingRule"):
        Requantizer(rule, multiplier, 0, (0, 255))  # type: ignore[arg-type]
