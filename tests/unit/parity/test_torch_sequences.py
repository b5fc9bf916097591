"""The emulation's own arithmetic of transformers, at numbers where it may be off by one: against Python's integers."""

from __future__ import annotations

import math
import weakref
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from parity.encoders import Sizes, encoder, sentences, whole_sentences

import labkit
from labkit.arithmetic.ibert import exp_constants, gelu_constants
from labkit.parity.emulate_sequences import SequenceEmulation
from labkit.parity.memory import image_bytes
from labkit.parity.torch_sequences import (
    exp_numbers,
    gelu_numbers,
    layer_norm_numbers,
    polynomial_shares,
    whole_mean,
    whole_root,
)
from labkit.quantization.calibration import Calibration


def test_roots_of_squares_and_their_neighbours() -> None:
    """Above 2**52 float64 rounds the square and its root: the correction must find every one of them."""
    rng = np.random.default_rng(0)
    roots = [
        *range(300),
        *(2**k + d for k in range(8, 31) for d in (-1, 0, 1)),
        *rng.integers(0, 2**31, 50_000).tolist(),
    ]
    numbers = [n for r in roots for n in (r * r - 1, r * r, r * r + 1) if 0 <= n <= 2**62]
    assert whole_root(torch.tensor(numbers)).tolist() == [math.isqrt(n) for n in numbers]


@given(st.lists(st.integers(-(2**40), 2**40), min_size=1, max_size=9))
def test_means_are_rounded_to_even(numbers: list[int]) -> None:
    column = torch.tensor(numbers).reshape(1, -1, 1)
    assert whole_mean(column, 1).item() == round(Fraction(sum(numbers), len(numbers)))


def test_shares_of_a_row_of_which_nothing_takes_part() -> None:
    x = torch.tensor([[[[5, 9, -7]]], [[[5, 9, -7]]]])
    mask = torch.tensor([[False, False, False], [True, False, True]])
    numbers = exp_numbers(0.1)
    shares = polynomial_shares(x, mask, numbers[:3], (2**30, -3), 8)
    assert shares[0].tolist() == [[[0, 0, 0]]]
    assert shares[1, 0, 0, 1] == 0
    assert 0 < shares[1, 0, 0, 2] < shares[1, 0, 0, 0] <= 255


@given(scale=st.floats(3.4e-5, 0.69))
def test_constants_of_an_exponential(scale: float) -> None:
    found = exp_constants(scale)
    ln2, linear, constant, real = exp_numbers(scale)
    assert (ln2, linear, constant) == (found.ln2, found.b, found.c)
    assert real == pytest.approx(found.scale, rel=1e-15)


@given(scale=st.floats(5e-5, 1e-3))
def test_constants_of_a_gelu(scale: float) -> None:
    found = gelu_constants(scale)
    b, c, one, real = gelu_numbers(scale)
    assert (b, c, one) == (found.b, found.c, found.one)
    assert real == pytest.approx(-found.scale, rel=1e-15)


def test_gamma_and_beta_that_leave_no_bits() -> None:
    with pytest.raises(ValueError, match="too large for an output scale"):
        layer_norm_numbers(torch.tensor([1e30]), torch.zeros(1), 1e-4)


def test_what_nobody_reads_any_more_is_gone() -> None:
    sizes = Sizes()
    graph = encoder(sizes)
    net = labkit.quantize(graph, whole_sentences(sizes, 4))
    notes = net.graph.notes
    plan = labkit.BitPlan.from_json(notes["plan"])
    emulation = SequenceEmulation(graph, Calibration.from_json(notes["calibration"]), plan)
    order = [node.name for node in net.graph]
    readers = {
        name: max(order.index(n.name) for n in net.graph if name in n.inputs) for n in net.graph for name in n.inputs
    }
    seen: dict[str, Any] = {}
    x = {name: torch.from_numpy(array) for name, array in sentences(sizes, 3).items()}
    for step, result in emulation.run(x):
        gone = [before for before in seen if readers.get(before, len(order)) < order.index(step)]
        assert not [before for before in gone if seen[before]() is not None], step
        seen[step] = weakref.ref(result)
        del result
    assert len(seen) == len(order) - 1  # all but the border out
    assert image_bytes(net.graph) > 0
