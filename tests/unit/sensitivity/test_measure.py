"""Every method by one call; the ones that look at no derivatives against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from unit.sensitivity.nets import NETS, Branched, images, objective, outputs_of

from labkit.errors import InputError
from labkit.sensitivity.candidates import nearest_candidates
from labkit.sensitivity.direct import direct_sensitivity, loss_change
from labkit.sensitivity.hawq import hawq_sensitivity
from labkit.sensitivity.hessian import full_hessian
from labkit.sensitivity.measure import METHODS, measure_sensitivity
from labkit.sensitivity.objective import LOSSES
from labkit.sensitivity.sqnr import decibels, noise_to_signal
from labkit.sensitivity.traces import layer_traces

BITS = (2, 4, 8)


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_a_table_that_falls_with_bits(method: str, given: bool) -> None:
    torch.manual_seed(0)
    module, x, told = Branched().eval(), images((2, 4, 4), 40), []
    labels = np.random.default_rng(0).integers(0, 3, 40) if given else None
    tell = lambda done, most: told.append((done, most))  # noqa: E731
    table = measure_sensitivity(module, x, labels, BITS, method, progress=tell, seed=3)
    assert table.layers == ("stem", "grouped", "short", "fc")
    assert table.bits == BITS
    assert table.method == method
    assert told[-1][0] == told[-1][1]
    assert (np.abs(table.values[:, 0]) > np.abs(table.values[:, 2])).all()
    assert table.errors.shape == (4, 3)
    assert (table.errors > 0).any()
    again = measure_sensitivity(module, x, labels, BITS, method, seed=3)
    assert np.array_equal(again.values, table.values)
    few = measure_sensitivity(module, x, labels, BITS, method, layers=["fc"], seed=3)
    assert few.layers == ("fc",)
    if method != "fisher":  # whose draws are the same, but whose pieces need not be
        np.testing.assert_allclose(few.values[0], table.values[3], rtol=1e-5)


def test_second_order_estimates_the_divergence_of_small_changes() -> None:
    """Without labels the loss has its minimum at the float weights: at 8 bits the second order is nearly all there is."""
    torch.manual_seed(1)
    module, x = Branched().eval(), images((2, 4, 4), 60)
    tables = [measure_sensitivity(module, x, None, (7, 8), m, dtype=torch.float64) for m in ("gauss-newton", "direct")]
    np.testing.assert_allclose(tables[0].values, tables[1].values, rtol=0.1)
    hawq = measure_sensitivity(module, x, None, (7, 8), "hawq-v2", dtype=torch.float64)
    gap = [np.abs(np.log(t.values / tables[1].values)).max() for t in (tables[0], hawq)]
    assert gap[0] < gap[1]


@pytest.mark.parametrize("compare", ["divergence", "loss"])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", NETS)
def test_direct_is_the_loss_with_one_layer_changed(name: str, loss: str, compare: str) -> None:
    found = objective(name, count=40, loss=loss)
    rounded = nearest_candidates(found.graph, BITS)
    table = direct_sensitivity(found, rounded, compare)
    for layer in found.layers:
        for bits in BITS:
            weight = torch.from_numpy(rounded.weights[layer][bits].astype(np.float64))
            outputs = outputs_of(found, {layer: weight})
            if compare == "loss":
                terms = found.losses(outputs) - found.losses(found.outputs)
            else:
                terms = found.divergences(outputs)
            assert table.value(layer, bits) == pytest.approx(float(terms.mean()), rel=1e-9, abs=1e-14)
            value, error = loss_change(found, {layer: rounded.weights[layer][bits]}, compare)
            assert value == pytest.approx(table.value(layer, bits), rel=1e-9, abs=1e-14)
            assert error == pytest.approx(float(terms.std()) / 40**0.5, rel=1e-9, abs=1e-14)
    if compare == "divergence":
        assert (table.values > 0).all()


def test_several_layers_may_change_at_once() -> None:
    found = objective("branched", count=10)
    rounded = nearest_candidates(found.graph, (2,))
    chosen = {name: rounded.weights[name][2] for name in ("stem", "fc")}
    outputs = outputs_of(found, {name: torch.from_numpy(w.astype(np.float64)) for name, w in chosen.items()})
    wanted = float((found.losses(outputs) - found.losses(found.outputs)).mean())
    assert loss_change(found, chosen)[0] == pytest.approx(wanted, rel=1e-9)


def test_hawq_is_the_average_trace_times_the_squared_change() -> None:
    found = objective("branched", count=10)
    rounded = nearest_candidates(found.graph, BITS)
    traces = layer_traces(found)
    table = hawq_sensitivity(found, rounded, traces)
    for row, layer in enumerate(found.layers):
        block = full_hessian(found, [layer])
        squares = np.square(rounded.changes(found.graph, layer)).reshape(3, -1).sum(1)
        np.testing.assert_allclose(table.values[row], np.trace(block) / len(block) * squares, rtol=1e-9)
        np.testing.assert_allclose(
            table.errors[row] / table.values[row], traces.errors[row] / traces.traces[row], rtol=1e-9
        )
    other = objective("branched", count=10, layers=("fc",))
    with pytest.raises(InputError, match="The traces are those of"):
        hawq_sensitivity(other, rounded, traces)


def test_noise_to_signal_is_the_quotient_of_powers() -> None:
    found = objective("branched", count=40)
    rounded = nearest_candidates(found.graph, BITS)
    weights = noise_to_signal(found, rounded, "weights")
    change, weight = rounded.changes(found.graph, "fc"), found.graph["fc"].op.weight  # type: ignore[union-attr]
    wanted = np.square(change).sum((1, 2)) / np.square(weight).sum()
    np.testing.assert_allclose(weights.values[3], wanted, rtol=1e-9)
    np.testing.assert_allclose(decibels(weights)[3], 10 * np.log10(1 / wanted), rtol=1e-9)
    table = noise_to_signal(found, rounded, "outputs")
    conv = torch.nn.functional.conv2d
    pieces = [
        torch.from_numpy(array) for array in (found.graph["stem"].op.weight, rounded.changes(found.graph, "stem")[0])
    ]  # type: ignore[union-attr]
    power, noise = (conv(found.images, piece, padding=1).square().flatten(1).mean(1).numpy() for piece in pieces)
    assert table.value("stem", 2) == pytest.approx(noise.mean() / power.mean(), rel=1e-9)
    generator = np.random.default_rng(0)
    picks = generator.integers(0, 40, (4000, 40))
    spread = (noise[picks].mean(1) / power[picks].mean(1)).std()  # the bootstrap's idea of the error
    assert table.errors[0, 0] == pytest.approx(spread, rel=0.15)


def test_more_bits_are_six_decibels_each() -> None:
    found = objective("branched", count=10)
    table = noise_to_signal(found, nearest_candidates(found.graph, (5, 8)), "weights")
    gains = np.diff(decibels(table), axis=1)
    assert (np.abs(gains - 18.6) < 3).all()  # 20 log10(127 / 15)


def test_given_weights_are_taken() -> None:
    torch.manual_seed(0)
    module, x = Branched().eval(), images((2, 4, 4), 10)
    own = {"fc": {4: np.zeros((3, 16), np.float32)}}
    table = measure_sensitivity(module, x, method="sqnr", layers=["fc"], candidates=own)
    np.testing.assert_allclose(table.values, 1, rtol=1e-5)  # all of the signal is gone
    assert table.notes["rounding"] == "given"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"method": "guess"}, "The method must be one of gauss-newton"),
        ({"method": "mpqco", "label_choice": "given"}, "hand in the images' labels"),
        ({"candidates": {"fc": {4: np.zeros((3, 16), np.float32)}}}, "no candidate weights for 'stem'"),
        ({"method": "direct", "candidates": {"fc": {4: np.zeros((3, 16), np.float32)}}}, "no candidate weights"),
        ({"method": "sqnr", "candidates": {"fc": {4: np.zeros((3, 16), np.float32)}}}, "no candidate weights"),
        ({"method": "hawq-v2", "candidates": {"fc": {4: np.zeros((3, 16), np.float32)}}}, "no candidate weights"),
    ],
)
def test_what_does_not_fit_is_refused(given: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        measure_sensitivity(Branched().eval(), images((2, 4, 4), 4), **given)  # type: ignore[arg-type]


def test_unknown_comparisons_and_signals_are_refused() -> None:
    found = objective("branched", count=4)
    rounded = nearest_candidates(found.graph, BITS)
    with pytest.raises(InputError, match="divergence, loss"):
        direct_sensitivity(found, rounded, "accuracy")
    with pytest.raises(InputError, match="divergence, loss"):
        loss_change(found, {}, "accuracy")
    with pytest.raises(InputError, match="weights, outputs"):
        noise_to_signal(found, rounded, "inputs")
    with pytest.raises(InputError, match="table of noise to signal"):
        decibels(direct_sensitivity(found, rounded))
