"""Merging, expanding and the divergence, against the seed's example and the definition."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from labkit.errors import QuantizationError
from labkit.quantization.clipping.divergence import clipped_divergences, even_borders, kl_divergence, merge_and_expand

COUNTS = st.lists(st.one_of(st.just(0), st.integers(0, 1000)), min_size=1, max_size=40)


def test_the_example_of_the_slides() -> None:
    """EE219 lab, section V.E, figure 5: eight bins, two levels, step by step."""
    p = [1, 0, 2, 3, 5, 3, 1, 7]
    assert [sum(p[:4]), sum(p[4:])] == [6, 16]
    q = merge_and_expand(p, 2)
    assert q.tolist() == [6 / 3, 0, 6 / 3, 6 / 3, 16 / 4, 16 / 4, 16 / 4, 16 / 4] == [2, 0, 2, 2, 4, 4, 4, 4]
    wanted = math.fsum(a / 22 * math.log(a / b) for a, b in zip(p, q.tolist(), strict=True) if a)
    assert kl_divergence(p, q) == pytest.approx(wanted, rel=1e-14)
    at_once = clipped_divergences(np.array(p), even_borders(np.array([8]), 2))
    assert at_once.tolist() == pytest.approx([wanted], rel=1e-13)


@given(counts=COUNTS, data=st.data())
def test_merging_keeps_every_group_and_every_gap(counts: list[int], data: st.DataObject) -> None:
    levels = data.draw(st.integers(1, len(counts)))
    q, size = merge_and_expand(counts, levels), len(counts) // levels
    assert [x == 0 for x in q] == [c == 0 for c in counts]
    for g in range(levels):
        part = slice(g * size, None if g == levels - 1 else (g + 1) * size)
        assert q[part].sum() == pytest.approx(sum(counts[part]))
        assert len({x for x in q[part].tolist() if x}) <= 1


@pytest.mark.parametrize("levels", [0, 9, -1])
def test_levels_that_cannot_be_made_are_refused(levels: int) -> None:
    with pytest.raises(QuantizationError, match="8 bins cannot be merged"):
        merge_and_expand([1] * 8, levels)


@given(p=st.lists(st.integers(0, 50), min_size=2, max_size=20).filter(any), seed=st.integers(0, 99))
def test_divergence_is_scipys(p: list[int], seed: int) -> None:
    q = np.random.default_rng(seed).integers(0, 5, len(p)) + np.array(p) * (seed % 2)
    if not q.any():
        return
    wanted = stats.entropy(p, q)
    assert kl_divergence(p, q) == pytest.approx(wanted, rel=1e-9, abs=1e-12)
    assert kl_divergence(p, p) == 0
    assert kl_divergence(p, q) >= -1e-12


def test_two_lengths_are_refused() -> None:
    with pytest.raises(QuantizationError, match="one length"):
        kl_divergence([1, 2], [1, 2, 3])


@given(counts=COUNTS.filter(any), data=st.data())
def test_all_candidates_at_once_are_those_one_by_one(counts: list[int], data: st.DataObject) -> None:
    levels = data.draw(st.integers(1, len(counts)))
    ends = np.arange(levels, len(counts) + 1)
    borders = even_borders(ends, levels)
    got = clipped_divergences(np.array(counts), borders)
    for end, row, divergence in zip(ends.tolist(), borders.tolist(), got.tolist(), strict=True):
        kept = np.array(counts[:end], float)
        p, q = kept.copy(), np.zeros(end)
        p[-1] += sum(counts[end:])
        for a, b in itertools.pairwise(row):
            filled = kept[a:b] > 0
            q[a:b] = np.where(filled, kept[a:b].sum() / max(1, filled.sum()), 0)
        wanted = kl_divergence(p, q) if q.any() else math.inf
        assert divergence == pytest.approx(wanted, rel=1e-9, abs=1e-12)


@given(end=st.integers(1, 300), levels=st.integers(1, 300))
def test_even_borders_are_those_of_linspace(end: int, levels: int) -> None:
    (borders,) = even_borders(np.array([end]), levels)
    groups = [j * levels // end for j in range(end)]
    assert [borders[g] for g in groups] <= list(range(end))
    assert all(borders[g] <= j < borders[g + 1] for j, g in enumerate(groups))
    if levels & (levels - 1) == 0:  # then linspace is exact
        assert (np.digitize(range(end), np.linspace(0, end, levels + 1)) - 1).tolist() == groups
