"""The studies of AdaRound's design choices: their searches, verdicts, counts, and the chain from V to logits."""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction
from math import floor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit.arithmetic.affine import PerAxis, PerTensor, QParams, QTensor, QuantSpec
from labkit.errors import InputError, QuantizationError
from labkit.models import load as load_model
from labkit.quantization.weight_rounding.grids import mse_grid
from labkit.quantization.weight_rounding.options import RoundedWeights, RoundingOptions
from labkit.quantization.weight_rounding.relaxation import annealed_temperature, decide, decided_levels
from labkit.reporting.rounding_counts import LayerChoices, decision_counts, layer_choices
from labkit.studies.adaround import chain as links
from labkit.studies.adaround.design import accuracy_panels, draws, held_out, judged, tried, undecided_share
from labkit.studies.adaround.figures_2_3 import penalty_curves, up_shares
from labkit.studies.adaround.table_3 import schedules, variance_verdict
from labkit.studies.adaround.table_4 import FORMS, form_options
from labkit.studies.adaround.table_5 import beyond_share, smaller_errors
from labkit.studies.evidence import Contrast
from labkit.studies.figures import svg
from labkit.studies.lab import Lab
from labkit.studies.study import Settings

QUICK = RoundingOptions(iterations=15, learning_rate=0.1, samples=2048, history=(15,))


@pytest.fixture(scope="module")
def lab() -> Lab:
    return next(draws("lenet", Settings("mnist5k", None, 1, 50, 64), 1))


@pytest.fixture(scope="module")
def rounded(lab: Lab) -> RoundedWeights:
    return lab.round(lab.plan(2, 8, per_channel=False), "adaround", QUICK)


def test_draws_differ_in_their_images_alone() -> None:
    one, other = draws("lenet", Settings("mnist5k", None, 1, 20, 32), 2)
    assert one.graph is other.graph and one.x is other.x and other.seed == 1
    assert not np.array_equal(one.images, other.images)
    assert one.calibration.ranges != other.calibration.ranges


def test_held_out_images_are_training_images_that_were_not_calibrated_with(lab: Lab) -> None:
    held = held_out(lab, 200)
    assert len(held.x) == len(held.labels) == 200
    seen = {image.tobytes() for image in lab.images}
    assert not seen & {image.tobytes() for image in held.x}
    by_image = {image.tobytes(): label for image, label in zip(lab.data.train()[0], lab.data.train_labels, strict=True)}
    assert all(by_image[image.tobytes()] == label for image, label in zip(held.x, held.labels, strict=True))
    every = held_out(lab, len(lab.data.train_images))
    assert len(every.x) <= len(lab.data.train_images) - len(seen)


def test_a_trial_is_measured_in_the_engine(lab: Lab, rounded: RoundedWeights) -> None:
    plan = lab.plan(2, 8, per_channel=False)
    trial = tried(lab, plan, "adaround", QUICK)
    assert trial.accuracy == pytest.approx(lab.integer_accuracy(plan, rounded))
    h = [
        rounded.history[name].decisions[15][one_up > one_down]
        for name in rounded.weights
        for one_down, one_up in [_choices(lab, rounded, name)]
    ]
    flat = np.concatenate(h)
    assert trial.undecided == pytest.approx(np.mean((flat > 0.01) & (flat < 0.99)))
    assert undecided_share(lab.round(plan, "nearest", replace(QUICK, samples=512))) is None


def _choices(lab: Lab, rounded: RoundedWeights, name: str) -> tuple[np.ndarray, np.ndarray]:
    weight, tensor = lab.graph[name].op.weight, rounded.weights[name]  # type: ignore[union-attr]
    exact = weight.reshape(len(weight), -1).astype(np.float64) / float(tensor.params.scale)
    return tuple(np.clip(np.floor(exact) + move, tensor.spec.qmin, tensor.spec.qmax) for move in (0, 1))  # type: ignore[return-value]


def test_verdicts() -> None:
    assert judged(Contrast(1.0, 0.4)) == "yes"
    assert judged(Contrast(1.0, 0.6)) == "partly"
    assert judged(Contrast(-1.0, 0.6)) == "no"
    assert variance_verdict([1, 2, 3, 4, 5], [0, 10, 20, 30, 40])[1:] == (True, True)
    assert variance_verdict([1, 2, 3, 4, 5], [1, 3, 5, 7, 9])[1:] == (True, False)
    assert variance_verdict([1, 3, 5, 7, 9], [1, 2, 3, 4, 5])[1:] == (False, False)
    assert variance_verdict([1], [2]) == ("one draw only", False, False)


def test_the_limit_of_the_variances_is_that_of_chance() -> None:
    """Five normal values each: one variance in twenty is so much larger by chance."""
    drawn = np.random.default_rng(0).normal(size=(40_000, 2, 5)).var(2, ddof=1)
    share = np.mean([variance_verdict([a, -a, 0, a, -a], [b, -b, 0, b, -b])[2] for a, b in np.sqrt(drawn[:4000])])
    assert 0.04 < np.mean(drawn[:, 1] > 6.39 * drawn[:, 0]) < 0.06
    assert 0.03 < share < 0.07


def test_schedules_are_all_different_and_reach_their_temperature() -> None:
    found = schedules(100)
    assert len({(one.learning_rate, one.last_temperature, one.cooling) for one in found}) == len(found) == 12
    for one in found:
        temperatures = [annealed_temperature(step, 100, one.last_temperature, one.cooling) for step in range(101)]
        assert temperatures[0] == 1
        assert temperatures[-1] == pytest.approx(one.last_temperature)
        assert np.all(np.diff(temperatures) < 0)
    assert annealed_temperature(50, 100, 0.01, "geometric") == pytest.approx(0.1)
    assert annealed_temperature(50, 100, 0.01, "linear") == pytest.approx(0.505)
    with pytest.raises(QuantizationError, match="cooling must be one of geometric, linear"):
        RoundingOptions(cooling="fast")
    with pytest.raises(QuantizationError, match="last_temperature must be above 0"):
        RoundingOptions(last_temperature=0.0)


def test_the_schedule_reaches_the_search(lab: Lab) -> None:
    plan = lab.plan(2, 8, per_channel=False)
    shares = []
    for last in (1.0, 0.003):
        options = replace(QUICK, iterations=60, history=(60,), last_temperature=last, cooling="linear")
        shares.append(undecided_share(lab.round(plan, "hopfield", options)))
    assert shares[1] < 0.5 * shares[0]  # type: ignore[operator]


def test_forms_differ_in_the_loss_alone() -> None:
    told = {form: form_options(form, 7, 5) for form in FORMS}
    assert {form: (one.asymmetric, one.with_activation) for form, one in told.items()} == {
        "layer": (False, False),
        "asymmetric": (True, False),
        "activation": (True, True),
    }
    assert len({replace(one, asymmetric=True, with_activation=False) for one in told.values()}) == 1
    for one in told.values():
        assert (one.iterations, one.history, one.batch_size, one.correct_bias, one.through_adds) == (
            7,
            (7,),
            5,
            False,
            False,
        )


def test_penalty_is_one_in_the_middle_and_zero_at_the_ends() -> None:
    sharp, soft = penalty_curves((20, 2), 11)
    assert (sharp.label, soft.label) == ("β = 20", "β = 2")
    for series in (sharp, soft):
        assert series.y[0] == series.y[-1] == 0
        assert series.y[5] == 1
    assert soft.y[2] == pytest.approx(1 - 0.6**2)
    assert all(a >= b for a, b in zip(sharp.y, soft.y, strict=True))


def test_shares_that_go_up_by_place() -> None:
    layers = [
        LayerChoices("a", 9, 0, 0, *(np.array(counts) for counts in ([4, 0, 2, 3], [1, 0, 2, 3], [1, 0, 0, 0]))),
        LayerChoices("b", 3, 0, 0, *(np.array(counts) for counts in ([1, 0, 2, 0], [0, 0, 1, 0], [0, 0, 1, 0]))),
    ]
    assert up_shares(layers) == ((0.125, 0.625, 0.875), (0.2, 0.75, 1.0))


def test_the_straight_through_estimator_moves_further_and_adaround_does_not(lab: Lab, rounded: RoundedWeights) -> None:
    straight = lab.round(
        lab.plan(2, 8, per_channel=False), "straight-through", replace(QUICK, learning_rate=0.3, history=())
    )
    assert beyond_share(rounded) == 0 < beyond_share(straight)
    smaller, quotient = smaller_errors(rounded, straight)
    pairs = [(rounded.error_after[name], straight.error_after[name]) for name in rounded.weights]
    assert smaller == sum(a < b for a, b in pairs)
    assert quotient == pytest.approx(np.prod([a / b for a, b in pairs]) ** (1 / len(pairs)))


@given(
    st.lists(st.floats(-40, 40, width=32), min_size=1, max_size=12),
    st.floats(2.0**-20, 8, width=32),
    st.integers(2, 8),
    st.sampled_from([0, -1]),
    st.integers(0, 2**12 - 1),
)
def test_integers_of_variables_are_those_of_fractions(
    weights: list[float], scale: float, bits: int, zero_point: int, ups: int
) -> None:
    spec = QuantSpec(bits, narrow=False, symmetric=zero_point == 0, granularity=PerAxis(0))
    tensor = QTensor(
        np.zeros((1, len(weights)), np.int8), QParams(np.float32([scale]), np.array([zero_point], np.int32)), spec
    )
    variables = np.array([[0.0 if ups >> k & 1 else -1e-30 for k in range(len(weights))]], np.float32)
    found = links.integers_from_variables(variables, np.array([weights], np.float32), tensor)
    for k, (value, integer) in enumerate(zip(weights, found[0].tolist(), strict=True)):
        level = floor(Fraction(float(np.float32(value))) / Fraction(float(np.float32(scale)))) + (ups >> k & 1)
        assert integer == max(spec.qmin, min(spec.qmax, level + zero_point))


@given(st.lists(st.integers(-8, 7), max_size=9))
def test_packing_is_undone_and_is_the_file_s(values: list[int]) -> None:
    from labkit.arithmetic.packing import pack_int4

    integers = np.array(values, np.int8)
    packed = links.packed_bytes(integers)
    assert packed == pack_int4(integers).tobytes()
    assert np.array_equal(links.unpacked(packed, integers.shape), integers)


def test_arrays_of_a_file_are_those_that_safetensors_reads(lab: Lab, rounded: RoundedWeights, tmp_path: Path) -> None:
    from safetensors.numpy import load

    net = links.net_of(lab.graph, lab.plan(2, 8, per_channel=False), rounded, load_model("lenet", "mnist5k"))
    net.save(tmp_path / "net.lab")
    data = (tmp_path / "net.lab").read_bytes()
    length = int.from_bytes(data[12:20], "little")
    json.loads(data[52 : 52 + length])
    expected = {name: array.tobytes() for name, array in load(data[52 + length :]).items()}
    assert links.file_arrays(data) == expected


@pytest.mark.parametrize("planted", [False, True])
def test_the_chain_counts_what_differs(lab: Lab, rounded: RoundedWeights, tmp_path: Path, planted: bool) -> None:
    module = load_model("lenet", "mnist5k")
    other = links.flipped(rounded, lab.graph, "conv2") if planted else None
    found = links.chain(
        module, lab.graph, lab.plan(2, 8, per_channel=False), rounded, lab.x, tmp_path / "net.lab", 10, other
    )
    sizes = [tensor.values.size for tensor in rounded.weights.values()]
    assert [link.elements for link in found[:3]] == [sum(sizes), sum(-(-size // 2) for size in sizes), sum(sizes)]
    assert [link.elements for link in found[4:]] == [50 * 10, 50 * 10]
    differing = [link.differing for link in found]
    if planted:
        assert differing[:4] == [1, 1, 0, 0]
        assert differing[4] == differing[5] > 0
    else:
        assert differing == [0] * 6


def test_a_flip_is_of_a_weight_that_has_a_choice(lab: Lab, rounded: RoundedWeights) -> None:
    for name, kept in ((name, rounded.history[name].variables) for name in rounded.weights):
        assert kept is not None
        (changed,) = links.flipped(rounded, lab.graph, name).values()
        weight, tensor = lab.graph[name].op.weight, rounded.weights[name]  # type: ignore[union-attr]
        before, after = (links.integers_from_variables(v, weight, tensor) for v in (kept, changed))
        assert np.sum(before != after) == 1
    with pytest.raises(InputError, match="variables of conv1 were not kept"):
        links.flipped(replace(rounded, history={}), lab.graph, "conv1")
    with pytest.raises(InputError, match="variables of some layer were not kept"):
        links.chain(
            load_model("lenet", "mnist5k"),
            lab.graph,
            lab.plan(2, 8, per_channel=False),
            replace(rounded, history={}),
            lab.x,
            Path("net.lab"),
        )


def test_kept_variables_are_what_was_decided_by(lab: Lab, rounded: RoundedWeights) -> None:
    for name, history in rounded.history.items():
        weight, tensor = lab.graph[name].op.weight, rounded.weights[name]  # type: ignore[union-attr]
        rows = weight.reshape(len(weight), -1).astype(np.float64)
        grid = mse_grid(rows, QuantSpec(2, narrow=True, granularity=PerTensor()))
        assert history.variables is not None
        levels = decided_levels(rows, decide(history.variables.astype(np.float64)), grid)
        assert np.array_equal(levels.reshape(weight.shape), tensor.values)
        assert np.array_equal(history.decisions[15] > 0.5, history.variables > 0)
    assert decision_counts(rounded)[-1].total == sum(int(one.starts.sum()) for one in layer_choices(rounded))


def test_panels_show_means_and_deviations() -> None:
    words = {"a": ("short a", "long a"), "b": ("short b", "long b")}
    figure = accuracy_panels("all", words, {"one": {"a": [1.0, 3.0], "b": [4.0]}, "two": {"a": [5.0], "b": [6.0, 6.0]}})
    assert [panel.title for panel in figure.panels] == ["one", "two"]
    first, second = figure.panels[0].series
    assert (first.label, first.x, first.y, first.error) == ("long a", ("short a",), (2.0,), (2**0.5,))
    assert (second.label, second.y, second.error) == ("long b", (4.0,), (0.0,))
    drawn = svg(figure)
    assert all(f">{text}<" in drawn for text in ("all", "one", "two", "short a", "long b"))
