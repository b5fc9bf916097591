"""Traces against the whole matrix, and whether the standard errors that are stated are those that are seen."""

from __future__ import annotations

import numpy as np
import pytest
from unit.sensitivity.nets import objective

from labkit.errors import InputError
from labkit.sensitivity.hessian import HessianOperator, full_hessian
from labkit.sensitivity.objective import LOSSES, Objective
from labkit.sensitivity.traces import is_piecewise_linear, layer_traces


def blocks(found: Objective) -> list[np.ndarray]:
    return [full_hessian(found, [name]) for name in found.layers]


def traces_of(found: Objective) -> np.ndarray:
    return np.array([np.trace(block) for block in blocks(found)])


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", ["mlp", "branched", "sequence"])
def test_passes_give_the_exact_trace(name: str, loss: str) -> None:
    found = objective(name, count=70, loss=loss)
    traces = layer_traces(found)
    assert traces.way == "gauss-newton"
    np.testing.assert_allclose(traces.traces, traces_of(found), rtol=1e-9)
    assert not traces.probe_errors.any()
    assert (traces.probes == 3).all()
    np.testing.assert_allclose(traces.averages, traces.traces / found.sizes)


def test_image_errors_are_the_spread_over_images() -> None:
    found = objective("branched", count=200)
    traces = layer_traces(found)
    halves = np.array(
        [layer_traces(objective("branched", count=200, seed=0)).traces]
    )  # the same images: the same numbers
    assert np.array_equal(halves[0], traces.traces)
    single = np.array([_one_image(found, index) for index in range(60)])
    again = layer_traces(_first(found, 60))
    np.testing.assert_allclose(again.traces, single.mean(0), rtol=1e-9)
    np.testing.assert_allclose(again.image_errors, single.std(0, ddof=1) / np.sqrt(60), rtol=1e-9)


def _first(found: Objective, count: int, start: int = 0) -> Objective:
    from dataclasses import replace

    where = slice(start, start + count)
    return replace(found, images=found.images[where], targets=found.targets[where], outputs=found.outputs[where])


def _one_image(found: Objective, index: int) -> np.ndarray:
    return layer_traces(_first(found, 1, index)).traces


@pytest.mark.parametrize("way", ["gauss-newton", "hutchinson", "hutchinson-global"])
def test_random_probes_agree_on_average_with_errors_as_stated(way: str) -> None:
    found = objective("branched", count=5)
    wanted, runs, probes = traces_of(found), 120, 2 if way == "gauss-newton" else 16
    seen = [layer_traces(found, way, probes, seed=seed) for seed in range(runs)]
    values = np.array([run.traces for run in seen])
    spread = values.std(0, ddof=1)
    # the mean of the runs: 4 standard errors for four layers is 2e-4 by chance, and the seeds are fixed
    assert (np.abs(values.mean(0) - wanted) <= 4 * spread / np.sqrt(runs)).all()
    if way == "gauss-newton":  # images have probes of their own: their spread is more than that of the probes
        stated = np.array([run.probe_errors for run in seen])
        assert (np.sqrt(np.square(stated).mean(0)) >= 0.8 * spread).all()
        return
    stated = np.sqrt(np.mean([np.square(run.probe_errors) for run in seen], 0))
    # relative error of a standard deviation of `runs` values: 1 / sqrt(2 runs) = 6.5 % for normal ones; heavier tails, twice that
    np.testing.assert_allclose(stated, spread, rtol=0.3)


def test_variance_of_own_and_global_probes_is_what_the_matrix_says() -> None:
    found = objective("branched", count=5)
    whole, operator = full_hessian(found), HessianOperator(found)
    runs, probes = 100, 16
    for way in ("hutchinson", "hutchinson-global"):
        values = np.array([layer_traces(found, way, probes, seed=seed).traces for seed in range(runs)])
        for column, part in enumerate(operator.slices.values()):
            block = whole[part, part]
            variance = 2 * (np.square(block).sum() - np.square(np.diag(block)).sum())
            if way == "hutchinson-global":
                variance += np.square(whole[part]).sum() - np.square(block).sum()
            np.testing.assert_allclose(values[:, column].var(ddof=1) * probes, variance, rtol=0.6)
    beside = [np.square(whole[part]).sum() - np.square(whole[part, part]).sum() for part in operator.slices.values()]
    assert max(beside) > 0.1  # there is something for the global probe to suffer from


def test_probes_of_a_layer_are_its_own() -> None:
    found = objective("mlp", count=5)
    other = objective("mlp", count=5, layers=("1",))
    both, alone = layer_traces(found, "hutchinson", 16), layer_traces(other, "hutchinson", 16)
    assert both.traces[0] == alone.traces[0]
    assert layer_traces(found, "hutchinson", 16, seed=1).traces[0] != both.traces[0]


@pytest.mark.parametrize("way", ["hutchinson", "hutchinson-global"])
def test_target_is_reached_or_the_cap(way: str) -> None:
    found = objective("mlp", count=20)
    easy = layer_traces(found, way, target=0.3)
    assert (easy.probe_errors <= 0.3 * easy.traces).all()
    assert easy.probes.max() < 1000
    hard = layer_traces(found, way, target=1e-6, most=40)
    assert (hard.probes == 40).all()
    assert (hard.probe_errors > 1e-6 * hard.traces).any()


def test_networks_that_bend_are_probed() -> None:
    found = objective("gate", count=5)
    assert [is_piecewise_linear(found, name) for name in ("stem", "gate", "fc")] == [False, False, True]
    traces = layer_traces(found, probes=400)
    assert traces.way == "hutchinson"
    assert (np.abs(traces.traces - traces_of(found)) <= 4 * traces.probe_errors).all()
    assert np.isnan(traces.image_errors).all()
    assert np.array_equal(traces.errors, traces.probe_errors)
    with pytest.raises(InputError, match="not piecewise linear in the weights of 'stem'"):
        layer_traces(found, "gauss-newton")


def test_table_of_traces_can_be_read_and_progress_ends() -> None:
    found, told = objective("branched", count=40), []
    traces = layer_traces(found, "hutchinson", 8, progress=lambda done, most: told.append((done, most)))
    assert told[-1] == (4, 4)
    assert len(str(traces).splitlines()) == 2 + len(found.layers)
    for way in ("gauss-newton", "hutchinson-global"):
        told.clear()
        layer_traces(found, way, progress=lambda done, most: told.append((done, most)))
        assert told[-1][0] == told[-1][1]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"way": "exact"}, "must be one of auto, gauss-newton"),
        ({"way": "hutchinson", "probes": 1}, "at least two probes"),
        ({"target": 1.5}, "share of the trace"),
        ({"target": 0.1, "probes": 8}, "not both"),
        ({"target": 0.1, "most": 4}, "most must be at least 16"),
    ],
)
def test_numbers_out_of_range_are_refused(given: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        layer_traces(objective(), **given)  # type: ignore[arg-type]
