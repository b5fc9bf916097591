"""Loss perturbations against gradients formed one by one, against forward derivatives and against the whole matrix."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from unit.sensitivity.nets import NETS, fitted, objective, outputs_of

from labkit.errors import InputError
from labkit.sensitivity.candidates import Candidates, nearest_candidates
from labkit.sensitivity.fisher import fisher_matrix, sample_gradients
from labkit.sensitivity.hessian import HessianOperator
from labkit.sensitivity.objective import LOSSES, Objective
from labkit.sensitivity.perturbation import project_changes
from labkit.sensitivity.slopes import Directions

BITS = (1, 2, 4)


def changes(found: Objective, rounded: Candidates) -> dict[str, np.ndarray]:
    """``Q_b(w) - w``, [B, n] by layer."""
    return {name: rounded.changes(found.graph, name).reshape(len(BITS), -1) for name in found.layers}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", NETS)
def test_projections_along_outputs_are_forward_derivatives(name: str, loss: str) -> None:
    found = objective(name, count=35, loss=loss)
    rounded = nearest_candidates(found.graph, BITS)
    got = project_changes(found, rounded, Directions("outputs"))
    for layer in found.layers:
        weight = torch.from_numpy(found.graph[layer].op.weight)  # type: ignore[union-attr]
        for column, change in enumerate(rounded.changes(found.graph, layer)):
            _, slope = torch.func.jvp(
                lambda w, at=layer: outputs_of(found, {at: w}), (weight,), (torch.from_numpy(change),)
            )
            np.testing.assert_allclose(got.values[layer][:, :, column], slope.numpy(), atol=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", NETS)
def test_mpqco_is_half_the_mean_of_squared_sample_gradients_along_the_change(name: str, loss: str) -> None:
    found = objective(name, count=9, loss=loss)
    rounded = nearest_candidates(found.graph, BITS)
    table = project_changes(found, rounded, Directions("labels")).table("mpqco")
    for row, layer in enumerate(found.layers):
        gradients, moved = sample_gradients(found, [layer]), changes(found, rounded)[layer]
        terms = np.square(gradients @ moved.T) / 2
        np.testing.assert_allclose(table.values[row], terms.mean(0), rtol=1e-9)
        np.testing.assert_allclose(table.errors[row], terms.std(0, ddof=1) / 3, rtol=1e-9)
        matrix = fisher_matrix(found, "empirical", [layer])
        np.testing.assert_allclose(table.values[row], np.einsum("bi,ij,bj->b", moved, matrix, moved) / 2, rtol=1e-9)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", ["mlp", "branched", "sequence"])
def test_gauss_newton_is_the_hessians_form_where_nothing_bends(name: str, loss: str) -> None:
    found = objective(name, count=9, loss=loss)
    rounded = nearest_candidates(found.graph, BITS)
    table = project_changes(found, rounded).table("gauss-newton")
    for row, layer in enumerate(found.layers):
        moved = changes(found, rounded)[layer]
        products = HessianOperator(found, [layer]).products(moved)
        np.testing.assert_allclose(table.values[row], (moved * products).sum(1) / 2, rtol=1e-8)


def test_square_of_the_mean_gradient_is_something_else() -> None:
    """In a fitted network the mean gradient is 0, and so is its square along any change; the curvature is not."""
    found = fitted("squared-error", 0, 300, count=20)
    rounded = nearest_candidates(found.graph, BITS)
    table = project_changes(found, rounded, Directions("labels")).table("mpqco")
    for row, layer in enumerate(found.layers):
        gradients, moved = sample_gradients(found, [layer]), changes(found, rounded)[layer]
        trap = np.square(gradients.mean(0) @ moved.T) / 2
        assert (trap < 1e-3 * table.values[row]).all()
        assert (table.values[row] > 1e-3).all()


@pytest.mark.parametrize("kind", ["drawn", "probes"])
@pytest.mark.parametrize("loss", LOSSES)
def test_random_directions_give_gauss_newton_on_average_with_errors_as_stated(loss: str, kind: str) -> None:
    found = objective("branched", count=6, loss=loss)
    rounded = nearest_candidates(found.graph, BITS)
    exact = project_changes(found, rounded).table("gauss-newton").values
    many = project_changes(found, rounded, Directions(kind, 2000)).table("fisher").values
    np.testing.assert_allclose(many, exact, rtol=0.12)
    runs = np.array(
        [project_changes(found, rounded, Directions(kind, 2, seed)).table("fisher").values for seed in range(80)]
    )
    spread = runs.std(0, ddof=1)
    assert (np.abs(runs.mean(0) - exact) <= 4 * spread / np.sqrt(80)).all()
    assert np.array_equal(runs[3], project_changes(found, rounded, Directions(kind, 2, 3)).table("fisher").values)


def test_predicted_and_drawn_labels_differ_from_given_ones() -> None:
    found = objective("mlp", count=20)
    rounded = nearest_candidates(found.graph, BITS)
    tables = {
        choice: project_changes(found.with_labels(choice), rounded, Directions("labels")).table("mpqco")
        for choice in ("given", "predicted", "drawn")
    }
    for a, b in (("given", "predicted"), ("given", "drawn"), ("predicted", "drawn")):
        assert not np.allclose(tables[a].values, tables[b].values, rtol=1e-3)
    assert tables["drawn"].notes["labels"] == "drawn"


def test_joint_form_has_what_couples_the_layers() -> None:
    found = objective("branched", count=9)
    rounded = nearest_candidates(found.graph, BITS)
    plan = dict(zip(found.layers, (1, 2, 4, 2), strict=True))
    moved = np.concatenate([changes(found, rounded)[name][BITS.index(plan[name])] for name in found.layers])
    for kind, matrix in (("fisher", "true"), ("labels", "empirical")):
        got = project_changes(found, rounded, Directions(kind))
        value, error = got.joint(plan)
        assert value == pytest.approx(moved @ fisher_matrix(found, matrix) @ moved / 2, rel=1e-9)
        assert error > 0
        assert abs(value - got.table("x").predicted(plan)) > 1e-3 * value
        alone, spread = got.joint({"fc": 2})
        assert alone == pytest.approx(got.table("x").value("fc", 2))
        assert spread == pytest.approx(got.table("x").errors[found.layers.index("fc"), 1])


def test_first_order_term_is_the_gradient_along_the_change() -> None:
    found = objective("branched", count=9)
    rounded = nearest_candidates(found.graph, BITS)
    moved = project_changes(found, rounded, Directions("labels")).moved({"stem": 2, "fc": 1})[:, 0].mean()
    both = changes(found, rounded)
    wanted = np.zeros(HessianOperator(found).size)
    operator = HessianOperator(found)
    wanted[operator.slices["stem"]], wanted[operator.slices["fc"]] = both["stem"][1], both["fc"][0]
    assert moved == pytest.approx(operator.gradient() @ wanted, rel=1e-9)


def test_errors_are_those_of_the_choice_of_images() -> None:
    """The spread of the mean over disjoint sets of images is the stated error."""
    from dataclasses import replace

    found = objective("branched", count=1200)
    rounded = nearest_candidates(found.graph, BITS)
    values, errors = [], []
    for start in range(0, 1200, 30):
        where = slice(start, start + 30)
        part = replace(found, images=found.images[where], targets=found.targets[where], outputs=found.outputs[where])
        table = project_changes(part, rounded).table("gauss-newton")
        values.append(table.values)
        errors.append(table.errors)
    stated, spread = np.sqrt(np.square(errors).mean(0)), np.std(values, 0, ddof=1)
    np.testing.assert_allclose(stated, spread, rtol=0.45)  # a standard deviation of 40 values: 11 % for normal ones


def test_progress_ends_and_what_does_not_fit_is_refused() -> None:
    found, told = objective("branched", count=70), []
    rounded = nearest_candidates(found.graph, BITS)
    got = project_changes(found, rounded, Directions("outputs"), lambda done, most: told.append((done, most)))
    assert told[-1] == (70, 70)
    with pytest.raises(InputError, match="no loss"):
        got.table("x")
    with pytest.raises(InputError, match="'fc' at 3 bits"):
        got.moved({"fc": 3})
    with pytest.raises(InputError, match="At least one layer"):
        got.moved({})
    with pytest.raises(InputError, match="no candidate weights for 'stem'"):
        project_changes(found, nearest_candidates(found.graph, BITS, layers=["fc"]))
    with pytest.raises(InputError, match="Directions must be one of"):
        Directions("up")
    with pytest.raises(InputError, match="at least one direction"):
        Directions("drawn", 0)
