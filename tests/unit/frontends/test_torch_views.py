"""Views: whatever is reshaped and permuted, the graph's tensor, permuted by the view, is the traced one."""

from __future__ import annotations

import numpy as np
import pytest

from labkit.frontends.torch_views import View, permuted, regrouped

rng = np.random.default_rng(0)


def traced(view: View, graph: np.ndarray) -> np.ndarray:
    """What PyTorch has where the graph has ``graph``."""
    return graph.transpose(view.axes)


def split(size: int, parts: int) -> list[int]:
    """``size`` as a product of ``parts`` factors, at random."""
    factors = []
    for _ in range(parts - 1):
        divisors = [d for d in range(1, size + 1) if size % d == 0]
        factors.append(int(rng.choice(divisors)))
        size //= factors[-1]
    return [*factors, size]


def random_view() -> tuple[View, np.ndarray]:
    shape = tuple(int(size) for size in rng.choice([1, 2, 3, 4, 6], rng.integers(1, 5)))
    axes = tuple(int(axis) for axis in rng.permutation(len(shape)))
    return View("x", shape, axes, ("",) * len(shape)), np.arange(np.prod(shape)).reshape(shape)


def test_a_regrouped_view_is_the_reshaped_tensor() -> None:
    free = 0
    for _ in range(3000):
        view, graph = random_view()
        before = traced(view, graph)
        shape = tuple(split(before.size, int(rng.integers(1, 6))))
        found = regrouped(view, shape)
        if found is None:
            continue
        free += 1
        assert found.traced_shape == shape
        assert np.array_equal(traced(found, graph.reshape(found.shape)), before.reshape(shape))
    assert free > 500


def test_what_is_in_order_can_always_be_regrouped() -> None:
    for _ in range(500):
        view, graph = random_view()
        plain = View("x", view.shape, tuple(range(len(view.shape))), view.roles)
        shape = tuple(split(graph.size, int(rng.integers(1, 6))))
        found = regrouped(plain, shape)
        assert found is not None
        assert np.array_equal(traced(found, graph.reshape(found.shape)), graph.reshape(shape))


@pytest.mark.parametrize("length", [1, 2, 5, 12])
def test_heads_cost_nothing(length: int) -> None:
    """(T, D) to heads (H, T, d) and back: a reshape of (D, T) each, and the axes keep what they count."""
    view = View("x", (12, length), (1, 0), ("feature", "place"))
    apart = regrouped(view, (length, 3, 4))
    assert apart is not None
    heads = permuted(apart, (1, 0, 2))
    assert (heads.shape, heads.axes) == ((3, 4, length), (0, 2, 1))
    assert heads.roles == ("feature", "feature", "place")
    assert heads.traced_shape == (3, length, 4)
    joined = regrouped(permuted(heads, (1, 0, 2)), (length, 12))
    assert joined is not None
    assert (joined.shape, joined.axes, joined.roles) == ((12, length), (1, 0), ("feature", "place"))


def test_places_and_features_do_not_join() -> None:
    assert regrouped(View("x", (3, 4), (1, 0), ("feature", "place")), (12,)) is None
    assert regrouped(View("x", (3, 4, 5), (0, 2, 1), ("", "", "")), (3, 20)) is None


def test_what_waits_is_not_plain() -> None:
    view = View("x", (2, 3), (1, 0), ("feature", "place"))
    assert view.is_plain
    for waiting in ({"factor": 2.0}, {"addend": np.zeros((3, 2))}, {"mask": "m"}):
        assert not View("x", (2, 3), (1, 0), ("feature", "place"), **waiting).is_plain
    values = np.arange(6.0).reshape(3, 2)
    assert np.array_equal(view.in_graph_order(values), values.T)
