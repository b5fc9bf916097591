from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from rich.console import Console

from labkit.errors import InputError
from labkit.reporting.accuracy import Accuracies, accuracies_table, label_ranks, measure


@given(
    scores=hnp.arrays(
        np.float32, st.tuples(st.integers(1, 6), st.integers(1, 9)), elements=st.sampled_from([-1.0, 0.0, 0.5, 2.0])
    ),
    data=st.data(),
)
def test_ranks_are_places_in_a_stable_sort(scores: np.ndarray, data: st.DataObject) -> None:
    n, classes = scores.shape
    labels = np.array(data.draw(st.lists(st.integers(0, classes - 1), min_size=n, max_size=n)), np.int64)
    order = [sorted(range(classes), key=lambda c, row=row: (-row[c], c)) for row in scores]
    assert label_ranks(scores, labels).tolist() == [o.index(label) for o, label in zip(order, labels, strict=True)]
    np.testing.assert_array_equal(label_ranks(scores, labels) == 0, scores.argmax(1) == labels)


def test_a_score_that_is_no_number_is_never_right() -> None:
    scores = np.full((1, 20), np.nan, np.float32)
    assert label_ranks(scores, np.array([3]))[0] >= 19
    scores[0, 5] = 1
    assert label_ranks(scores, np.array([3]))[0] >= 19
    assert label_ranks(np.array([[np.nan, 1.0]]), np.array([1]))[0] == 1


def batches_of(labels: np.ndarray, size: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Images that are the position of their label, [N, 1]."""
    x = np.arange(len(labels), dtype=np.float32)[:, None]
    return [(x[i : i + size], labels[i : i + size]) for i in range(0, len(labels), size)]


@pytest.mark.parametrize("classes", [10, 11, 30])
@pytest.mark.parametrize("size", [1, 7, 64])
def test_accuracies_are_counted_over_all_batches(classes: int, size: int) -> None:
    rng = np.random.default_rng(classes)
    labels = rng.integers(0, classes, 50)
    first, second = rng.integers(-4, 4, (2, 50, classes)).astype(np.float32)
    told: list[int] = []
    found = measure(
        batches_of(labels, size),
        lambda x: first[x[:, 0].astype(int)],
        lambda x: second[x[:, 0].astype(int)],
        told.append,
    )
    assert told[-1] == 50
    assert found.tops == ((1,) if classes == 10 else (1, 5))
    for top in (1, 5):
        best = [np.argsort(-scores, 1, kind="stable")[:, :top] for scores in (first, second)]
        right, before = ((b == labels[:, None]).any(1) for b in best)
        assert found.percent(top) == (2 * right.sum(), 2 * before.sum())
        change = found.change(top)
        assert change is not None
        assert change[0] == 2 * (int(right.sum()) - int(before.sum()))
        assert change[1] == pytest.approx(2 * np.sqrt((right != before).sum()))
        if top in found.tops:
            assert found.to_json()[f"top{top}"] == {
                "integer": 2 * right.sum(),
                "float": 2 * before.sum(),
                "change": change[0],
                "change_standard_error": change[1],
            }
    assert ("top5" in found.to_json()) is (classes > 10)


@pytest.mark.parametrize("shape", [(6,), (6, 1)])
def test_a_network_that_ends_in_an_argmax(shape: tuple[int, ...]) -> None:
    labels = np.array([0, 1, 2, 3, 4, 5])
    best = np.array([0, 1, 2, 3, 0, 0], np.int32).reshape(shape)
    found = measure([(np.zeros((6, 1), np.float32), labels)], lambda x: best)
    assert found.classes is None
    assert found.tops == (1,)
    assert found.percent(1) == (100 * 4 / 6, None)
    assert found.change(1) is None


@pytest.mark.parametrize(
    ("scores", "fragment"),
    [
        (np.zeros((2, 3, 4), np.float32), "one score a class"),
        (np.zeros((1, 3), np.float32), "one score a class"),
        (np.zeros((2, 2), np.float32), "beyond the 2 classes"),
    ],
)
def test_what_is_no_score_is_refused(scores: Any, fragment: str) -> None:
    with pytest.raises(InputError, match=fragment):
        measure([(np.zeros((2, 1), np.float32), np.array([0, 2]))], lambda x: scores)


def test_no_images_are_refused() -> None:
    with pytest.raises(InputError, match="no images"):
        measure([], lambda x: x)


@pytest.mark.parametrize(("classes", "columns"), [(10, ["top-1 %"]), (1000, ["top-1 %", "top-5 %"])])
def test_table_shows_what_was_found(classes: int, columns: list[str]) -> None:
    found = Accuracies(classes, np.array([0, 3, 9, 0]), np.array([0, 0, 9, 1]))
    table = accuracies_table(found)
    assert [column.header for column in table.columns] == ["", *columns]
    console = Console(width=80, file=None, record=True)
    with console.capture() as shown:
        console.print(table)
    rows = {line.split("  ")[0].strip(): line.split()[-1] for line in shown.get().splitlines() if line.strip()}
    assert rows["Float network"] == ("50.00" if classes == 10 else "75.00")
    assert rows["Integer network"] == ("50.00" if classes == 10 else "75.00")
    assert rows["Change"] == ("35.36" if classes == 10 else "0.00")  # 100 sqrt(2) / 4: two images differ


def test_networks_of_different_classes_are_not_compared() -> None:
    x, labels = np.zeros((4, 3), np.float32), np.zeros(4, np.int64)
    with pytest.raises(InputError, match="tells 3 classes apart and the float network 5"):
        measure([(x, labels)], lambda x: np.zeros((len(x), 3)), lambda x: np.zeros((len(x), 5)))
