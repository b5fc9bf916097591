"""A plan in a terminal: every number that is shown is the tables' own."""

from __future__ import annotations

import numpy as np
import pytest
from rich.console import Console
from unit.quantization.nets import images, small

from labkit.allocation.planning import Planned, plan_for
from labkit.allocation.request import Budgets, PlanOptions
from labkit.reporting.plan_tables import plan_lines, plan_table, sensitivity_table
from labkit.sensitivity.table import SensitivityTable

TABLE = SensitivityTable(
    ("0", "3"), (2, 4, 8), np.array([[0.5, 0.02, 0.0], [1.25e-7, 0.1, -3e-3]]), np.full((2, 3), 0.01), "made up", "nats"
)


@pytest.fixture(scope="module")
def planned() -> Planned:
    return plan_for(small(), images(16).numpy(), Budgets(average_bits=4), PlanOptions(), TABLE)


def text(shown: object, width: int = 80) -> str:
    console = Console(width=width)
    with console.capture() as captured:
        console.print(shown)
    return captured.get()


def test_every_cell_is_there_and_the_chosen_ones_are_in_brackets() -> None:
    found = text(sensitivity_table(TABLE, {"0": 4, "3": 2}))
    rows = [line.split() for line in found.splitlines() if line.strip()[:1] in ("0", "3")]
    assert rows == [["0", "5.0e-1", "[2.0e-2]", "0.0"], ["3", "[1.2e-7]", "1.0e-1", "-3.0e-3"]]
    assert "Predicted loss in nats, by made up" in found and "2 bits" in found and "8 bits" in found
    assert "[" not in text(sensitivity_table(TABLE)).split("\n", 1)[1]


def test_the_plan_shows_sizes_and_losses(planned: Planned) -> None:
    found = text(plan_table(planned))
    for layer, bits in planned.plan.weights.items():
        count = planned.size.value(layer, 8)
        row = next(line.split() for line in found.splitlines() if line.split()[:1] == [layer])
        assert row[1:4] == [f"{count:,.0f}", str(bits), f"{count * bits / 8:,.0f}"]
        assert float(row[4]) == pytest.approx(TABLE.value(layer, bits), rel=1e-2, abs=1e-12)


def test_the_lines_say_loss_gap_budget_and_size(planned: Planned) -> None:
    lines = " ".join(plan_lines(planned))
    after = planned.size.total(planned.plan.weights)
    before = 4 * sum(parameter.numel() for parameter in small().parameters())
    for words in (
        f"{planned.allocation.value:.4g} nats",
        "at most 0.02)",
        "proven best",
        "Budget, size",
        f"{after:,.0f} after",
    ):
        assert words in lines
    assert f"{planned.average_bits:.3f} bits a weight" in lines
    assert f"{before:,} bytes of float weights" in lines
