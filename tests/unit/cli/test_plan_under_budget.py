"""``labkit quantize`` with a budget: one command from the float network to the proven one, and what is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import labkit
from labkit.allocation.costs import weight_bytes
from labkit.frontends.torch_fx import from_torch
from labkit.graph.passes import simplify
from labkit.quantization.plan import BitPlan
from labkit.sensitivity.table import SensitivityTable

SIZE = weight_bytes(simplify(from_torch(labkit.models.load("lenet", "mnist5k"), (3, 32, 32))))
WEIGHTS = SIZE.notes["weights"]

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, labkit_command: Run, tmp_path: Path) -> Run:
    """``labkit quantize lenet`` on the digits, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LABKIT_DATA", str(tmp_path / "nothing-here"))

    def call(*arguments: object) -> tuple[int, str, str]:
        common = ("quantize", "lenet", "--data", "mnist5k", "--images", 32, "-o", "net.lab")
        return labkit_command(*common, *arguments)

    return call


def average(plan: BitPlan) -> float:
    return (SIZE.total(plan.weights) - SIZE.fixed) * 8 / float(WEIGHTS)


def test_one_command_from_the_float_network_to_the_proven_one(run: Run, tmp_path: Path) -> None:
    code, out, err = run(
        *("--average-bits", 3.5, "--bits", "2,4,8", "--method", "best", "--write-plan", "plan.json"),
        *("--write-sensitivity", "table.json", "--plan-figure", "plan.svg"),
    )
    assert code == 0, err
    text = " ".join(out.split())
    for words in (
        "Round candidates", "Measure the sensitivity", "Predicted loss in nats an image, by gauss-newton", "chosen in brackets",
        "Bits of the weights, layer by layer", "proven best for this table", "Budget, size:", "bytes of float weights",
        "Bit for bit equal: 0 of",
    ):  # fmt: skip
        assert words in text, out
    plan, table = BitPlan.load("plan.json"), SensitivityTable.load("table.json")
    assert average(plan) <= 3.5 and set(plan.weights.values()) <= {2, 4, 8} == set(table.bits)
    for layer, bits in plan.weights.items():
        assert re.search(rf"^ ?{re.escape(layer)}  +[\d,]+ +{bits} ", out, re.M), out
    net = labkit.load("net.lab")
    assert BitPlan.from_json(net.graph.notes["plan"]) == plan
    made = net.graph.notes["planned"]
    assert made["budgets"] == {"average_bits": 3.5} and made["sensitivity"] == "gauss-newton"
    assert made["candidates"].startswith("gptq+descent")
    assert made["average_bits"] == pytest.approx(average(plan))
    assert made["predicted_loss"] == pytest.approx(table.predicted(plan.weights))
    assert Path("plan.svg").read_text().startswith("<svg ") and "framed: chosen" in Path("plan.svg").read_text()


def test_a_table_is_read_again_and_rounding_to_nearest_has_its_own(run: Run) -> None:
    first = run("--average-bits", 3, "--write-sensitivity", "table.json", "--no-verify")
    assert first[0] == 0 and "elements differ" not in first[1]
    assert SensitivityTable.load("table.json").notes["rounding"].startswith("nearest, minmax")
    again = run("--max-bytes", int(SIZE.uniform(3)), "--sensitivity", "table.json", "--no-verify")
    assert again[0] == 0 and "Measure the sensitivity" not in again[1]
    assert "measured on other weights" not in again[1]
    other = run("--average-bits", 3, "--sensitivity", "table.json", "--method", "best", "--no-verify")
    assert other[0] == 0 and "measured on other weights than the network will have" in " ".join(other[1].split())
    run("--max-bytes", int(SIZE.uniform(3)), "--sensitivity", "table.json", "--no-verify")
    assert labkit.load("net.lab").graph.notes["planned"]["budgets"] == {"bytes": int(SIZE.uniform(3))}


def test_several_budgets_and_rules(run: Run) -> None:
    code, out, err = run(
        *("--average-bits", 5, "--max-bit-operations", 70_000_000, "--max-microseconds", 1e6, "--bits", "2,4"),
        *("--keep-first-and-last", 8, "--sensitivity", "sqnr", "--tie-residual", "-a", 6),
    )
    assert code == 0, err
    plan = BitPlan.from_json(labkit.load("net.lab").graph.notes["plan"])
    assert plan.weights["conv1"] == plan.weights["fc3"] == 8 and average(plan) <= 5
    assert 6 in plan.activations.values()
    text = " ".join(out.split())
    assert "by ilp" in text and "Budget, latency" in text and "Latency of one image: predicted" in text


def test_verify_without_a_budget(run: Run) -> None:
    assert "elements differ" not in run("-w", 4)[1]
    code, out, _ = run("-w", 4, "--verify")
    assert code == 0 and "0 of" in out and "elements differ" in out


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (("--average-bits", 3, "-w", 8), ("A budget chooses", "--weight-bits (-w)")),
        (("--average-bits", 3, "--plan", "plan.json"), ("A budget chooses", "--plan says")),
        (("--bits", "2,4"), ("--bits belongs to a plan under a budget", "--average-bits")),
        (("--plan-figure", "x.svg"), ("--plan-figure belongs",)),
        (("--tie-residual",), ("--tie-residual belongs",)),
        (("--average-bits", 3, "--plan-figure", "x.png"), ("draws a .svg file", "x.png")),
        (("--average-bits", 3, "--bits", "two"), ("whole numbers with commas", "'two'")),
        (("--average-bits", 3, "--bits", "2,9"), ("integers in 1..8",)),
        (("--average-bits", 3, "--bits", "2,4", "--sensitivity", "t.json"), ("leave out --bits",)),
        (("--average-bits", 3, "--sensitivity", "nowhere.json"), ("nowhere.json",)),
        (("--average-bits", 3, "--sensitivity", "guess"), ("gauss-newton", "'guess'")),
        (("--average-bits", 3, "--solver", "guess"), ("exact, greedy-up", "'guess'")),
        (("--average-bits", 3, "--max-bit-operations", 1e9, "--solver", "exact"), ("knows one budget", "Use 'ilp'")),
        (("--average-bits", 1.5), ("cannot be met", "least possible")),
        (("--max-bytes", 1000), ("The budget of 1,000 bytes for size cannot be met",)),
        (("--max-microseconds", 0.001), ("latency cannot be met",)),
        (("--average-bits", 3, "--method", "magic"), ("'magic'",)),
        (("--average-bits", 3, "--weight-ranges", "kl"), ("minmax, 3sigma, mse", "'kl'")),
    ],
)
def test_what_is_refused_leaves_nothing(run: Run, tmp_path: Path, arguments: tuple[Any, ...], fragments: Any) -> None:
    (tmp_path / "plan.json").write_text(json.dumps({"weights": {}, "activations": {}}))
    code, _, err = run(*arguments)
    assert code == 2 and "Traceback" not in err
    text = " ".join(err[err.index("Error: ") :].split())
    for fragment in fragments:
        assert fragment in text, text
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]
