"""Each operator, in random networks of one operator: 0 elements differ from onnxruntime.

Every file is written with onnx.helper, read by labkit, and run by its readable tier. The fast tier gives the same integers
(tests/unit/engine).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from parity.onnxruntime.cases import OPERATORS, Draw, Model
from parity.onnxruntime.qdq_cases import QDQ

from labkit.errors import UnsupportedOperation
from labkit.frontends.onnx.importing import IN_FLOAT
from labkit.frontends.onnx.reading import read_file
from labkit.net import IntegerNet, load
from labkit.parity.runtimes.onnxruntime import run_onnxruntime

Case = Callable[[Draw, Model], dict[str, Any]]

MANY, FEW = 500, 50  # cases an operator; a third of each with scales that are powers of two
ALL: dict[str, Case] = {**OPERATORS, **{f"QDQ {name}": case for name, case in QDQ.items()}}
ALIKE = (
    "DequantizeLinear",
    "MaxPool",
    "QDQ moving",
    "QDQ Softmax",
    "QLinearSoftmax",
    "QuantizeLinear",
)  # no ties to tell


def made(case: Case, seed: int, folder: Path) -> tuple[Path, Any]:
    """The file of one case, and what goes in."""
    draw, model, path = Draw(seed), Model(), folder / "case.onnx"
    model.save(path, case(draw, model))
    return path, model.data


def traced(net: IntegerNet, data: Any) -> dict[str, Any]:
    return net.trace(data if len(data) > 1 else next(iter(data.values())), kernels="reference")


def differing(path: Path, data: Any) -> tuple[int, int]:
    """How many elements of all tensors that onnxruntime shows differ, and how many there are."""
    net, names = load(path), read_file(path).names
    assert IN_FLOAT not in net.graph.notes
    mine, number, elements = traced(net, data), 0, 0
    for name, theirs in run_onnxruntime(path, data).items():
        own = mine[names[name]]
        assert (own.shape, own.dtype) == (theirs.shape, theirs.dtype), name
        number += int(np.count_nonzero(own != theirs))
        elements += theirs.size
    return number, elements


def assert_equal(case: Case, seeds: range, folder: Path) -> None:
    for seed in seeds:
        path, data = made(case, seed, folder)
        number, elements = differing(path, data)
        assert (number, elements > 0) == (0, True), f"seed {seed}: {number} of {elements} elements differ"


@pytest.mark.parametrize("name", ALL)
def test_few_cases(name: str, tmp_path: Path) -> None:
    assert_equal(ALL[name], range(FEW), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_many_cases(name: str, tmp_path: Path) -> None:
    assert_equal(ALL[name], range(FEW, MANY), tmp_path)


def every_pair(kind: str, seed: int, folder: Path) -> tuple[Path, Any]:
    """All pairs of two integers of eight bits, with random scales: one in a million tells a fused sum from another."""
    draw, model, path = Draw(seed), Model(), folder / "case.onnx"
    limits = np.iinfo(draw.dtype)
    numbers = np.arange(limits.min, limits.max + 1).astype(draw.dtype)
    inputs = []
    for name, values in zip("ab", np.meshgrid(numbers, numbers), strict=True):
        inputs += [model.entry(name, values.reshape(1, 256, 16, 16)), *draw.grid().terms(model, name)]
    model.node(kind, [*inputs, *draw.grid(0.01, 0.2).terms(model, "y")], "y", "com.microsoft")
    model.save(path, {"y": draw.dtype})
    return path, model.data


@pytest.mark.parametrize(("first", "last"), [(0, 4), pytest.param(4, 100, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["QLinearAdd", "QLinearMul"])
def test_every_pair_of_integers(kind: str, first: int, last: int, tmp_path: Path) -> None:
    for seed in range(first, last):
        path, data = every_pair(kind, seed, tmp_path)
        assert differing(path, data) == (0, 2**16), f"seed {seed}"


@pytest.mark.parametrize("name", [name for name in ALL if name not in ALIKE])
def test_cases_can_tell_rules_apart(name: str, tmp_path: Path) -> None:
    """Under labkit's own rules, which round ties up, some element of the same cases comes out differently."""
    for seed in range(FEW):
        path, data = made(ALL[name], seed, tmp_path)
        try:
            own = traced(load(path, like="labkit"), data)
        except UnsupportedOperation:  # a mean that leaves the padding out
            continue
        theirs = traced(load(path), data)
        if any(np.any(own[name] != theirs[name]) for name in own):
            return
    pytest.fail("no case told ties to even from ties up")
