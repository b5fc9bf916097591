"""The options of ``labkit quantize`` that ask for a bit plan under a budget, and what is shown and written of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from labkit.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console
    from torch import nn

    from labkit.allocation.planning import Planned
    from labkit.allocation.request import PlanOptions
    from labkit.cli.sources import Images
    from labkit.data.preprocessing import Preprocessing
    from labkit.net import IntegerNet

__all__ = [
    "AverageBits",
    "Bits",
    "FirstAndLast",
    "MaxBitOperations",
    "MaxBytes",
    "MaxMicroseconds",
    "PlanFigure",
    "PlanWishes",
    "Sensitivity",
    "Solver",
    "TieResidual",
    "WriteSensitivity",
    "certify",
    "make_plan",
    "proof_images",
    "show_plan",
]

_PANEL = "A plan under a budget"
_IMAGES = 256  # to verify with
_LARGE = 100  # pixels of a side from which
_LARGE_IMAGES = 16  # are enough

AverageBits = Annotated[
    float | None,
    typer.Option(help="Bits of a weight on average: 2.5. Chooses the bits of each layer.", rich_help_panel=_PANEL),
]
MaxBytes = Annotated[
    float | None,
    typer.Option(help="Bytes of weights, biases and scales at most, bits end to end.", rich_help_panel=_PANEL),
]
MaxBitOperations = Annotated[
    float | None,
    typer.Option(help="MACs x weight bits x input bits of an image at most.", rich_help_panel=_PANEL),
]
MaxMicroseconds = Annotated[
    float | None,
    typer.Option(help="Time of one image on one thread at most, measured on this machine.", rich_help_panel=_PANEL),
]
Bits = Annotated[str | None, typer.Option(help="Candidate bits. Not given: 2,3,4,5,6,8.", rich_help_panel=_PANEL)]
Sensitivity = Annotated[
    str | None,
    typer.Option(
        help="gauss-newton (the default), mpqco, fisher, hawq-v2, direct or sqnr; or a .json file that "
        "--write-sensitivity wrote.",
        rich_help_panel=_PANEL,
    ),
]
Solver = Annotated[
    str | None,
    typer.Option(
        help="exact (the default), greedy-up, greedy-down, ilp (the default for several budgets), random or evolutionary.",
        rich_help_panel=_PANEL,
    ),
]
FirstAndLast = Annotated[
    int | None,
    typer.Option("--keep-first-and-last", help="Bits of the first and the last layer.", rich_help_panel=_PANEL),
]
TieResidual = Annotated[
    bool,
    typer.Option("--tie-residual", help="Layers whose results are added get the same bits.", rich_help_panel=_PANEL),
]
WriteSensitivity = Annotated[
    Path | None, typer.Option(help="Write the sensitivity table to this .json file.", rich_help_panel=_PANEL)
]
PlanFigure = Annotated[
    Path | None, typer.Option(help="Draw the table and the chosen bits to this .svg file.", rich_help_panel=_PANEL)
]


@dataclass(frozen=True)
class PlanWishes:
    """What the user said of a plan; ``wanted`` where there is a budget.

    average_bits, max_bytes, max_bit_operations, max_microseconds : the budgets.
    bits, sensitivity, solver, first_and_last, tie_residual : how the plan is found.
    write_sensitivity, figure : what to write beside the network.
    """

    average_bits: float | None
    max_bytes: float | None
    max_bit_operations: float | None
    max_microseconds: float | None
    bits: str | None
    sensitivity: str | None
    solver: str | None
    first_and_last: int | None
    tie_residual: bool
    write_sensitivity: Path | None
    figure: Path | None

    @property
    def wanted(self) -> bool:
        """Whether there is a budget."""
        budgets = (self.average_bits, self.max_bytes, self.max_bit_operations, self.max_microseconds)
        return any(value is not None for value in budgets)

    def check(self, plan: Path | None, weight_bits: int | None) -> None:
        """Refuse what contradicts itself, with the ``plan`` file and the ``weight_bits`` that the user gave, or None.

        Raises
        ------
        InputError
            A budget stands beside a plan or uniform bits, or an option of a plan without a budget.
        """
        if self.wanted and (plan is not None or weight_bits is not None):
            other = "--plan" if plan is not None else "--weight-bits (-w)"
            raise InputError(
                f"A budget chooses the bits of every layer, and {other} says them: give one of the two. To begin with a plan "
                f"and change it by hand, write it with --write-plan."
            )
        given = {
            "--bits": self.bits,
            "--sensitivity": self.sensitivity,
            "--solver": self.solver,
            "--keep-first-and-last": self.first_and_last,
            "--tie-residual": self.tie_residual or None,
            "--write-sensitivity": self.write_sensitivity,
            "--plan-figure": self.figure,
        }
        alone = [name for name, value in given.items() if value is not None]
        if alone and not self.wanted:
            raise InputError(
                f"{alone[0]} belongs to a plan under a budget: give --average-bits, --max-bytes, --max-bit-operations or "
                f"--max-microseconds too."
            )
        if self.figure is not None and self.figure.suffix != ".svg":
            raise InputError(f"--plan-figure draws a .svg file, got {self.figure.name}.")
        if self.bits is not None and self.table_file is not None:
            raise InputError(f"The candidates are those of {self.table_file}: leave out --bits.")
        self.widths()

    @property
    def table_file(self) -> Path | None:
        """The sensitivity table that is to be read, or None where one is to be measured."""
        return Path(self.sensitivity) if self.sensitivity is not None and self.sensitivity.endswith(".json") else None

    @property
    def files(self) -> tuple[Path, ...]:
        """What is written beside the network."""
        return tuple(path for path in (self.write_sensitivity, self.figure) if path is not None)

    def widths(self) -> tuple[int, ...] | None:
        """The candidate bits, or None where they were not given.

        Raises
        ------
        InputError
            They are no whole numbers with commas between.
        """
        if self.bits is None:
            return None
        try:
            return tuple(sorted({int(part) for part in self.bits.split(",")}))
        except ValueError:
            raise InputError(
                f"--bits are whole numbers with commas between, such as 2,4,8, got {self.bits!r}."
            ) from None


def make_plan(
    module: nn.Module, images: Images, wishes: PlanWishes, fixed: PlanOptions, tell: Callable[[str, int, int], None]
) -> Planned:
    """The plan for ``module`` that ``wishes`` ask for.

    Parameters
    ----------
    module : the float network
    images : calibration images
    wishes : budgets and how the plan is found
    fixed : what other options of the command say of the plan: rounding, activations, grids, seed
    tell : called with (step, done, total)

    Raises
    ------
    LabkitError
        The budgets cannot be met, or something does not fit.
    """
    from labkit.allocation.planning import plan_for
    from labkit.allocation.request import Budgets
    from labkit.cli.sources import watched
    from labkit.sensitivity.table import SensitivityTable

    budgets = Budgets(wishes.average_bits, wishes.max_bytes, wishes.max_bit_operations, wishes.max_microseconds)
    options = replace(
        fixed, solver=wishes.solver, first_and_last=wishes.first_and_last, tie_residual=wishes.tie_residual
    )
    if (widths := wishes.widths()) is not None:
        options = replace(options, bits=widths)
    table = None if wishes.table_file is None else SensitivityTable.load(wishes.table_file)
    if table is None and wishes.sensitivity is not None:
        options = replace(options, sensitivity=wishes.sensitivity)
    return plan_for(module, watched(images, tell, "Read images"), budgets, options, table, tell)


def show_plan(console: Console, planned: Planned, wishes: PlanWishes, name: str) -> None:
    """Print the table and the plan for the network ``name`` on ``console`` and write what is wanted."""
    from labkit.files import write_atomically
    from labkit.reporting.plan_tables import plan_lines, plan_table, sensitivity_table

    weights = dict(planned.plan.weights)
    console.print(sensitivity_table(planned.sensitivity, weights))
    console.print(plan_table(planned))
    for line in plan_lines(planned):
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    if wishes.write_sensitivity is not None:
        planned.sensitivity.save(wishes.write_sensitivity)
    if wishes.figure is not None:
        from labkit.reporting.allocation_plots import sensitivity_map

        title = f"{name}: {planned.average_bits:.2f} bits a weight on average"
        write_atomically(wishes.figure, sensitivity_map(planned.sensitivity, "plan", title, weights) + "\n")


def proof_images(
    net: IntegerNet, data: str, data_dir: Path | None, preprocessing: Preprocessing, calibration: Images
) -> Images:
    """Images to compare ``net`` with PyTorch on: test images of shipped ``data``, else the first of ``calibration``.

    Parameters
    ----------
    net : the network
    data, data_dir, preprocessing : as in `find_images`
    calibration : the calibration images
    """
    from itertools import islice

    import numpy as np

    from labkit import data as data_sets
    from labkit.cli.sources import Images, find_images
    from labkit.quantization.batches import image_batches

    shape = net.graph[net.graph.inputs[0]].output.shape
    count = _LARGE_IMAGES if max(shape[1:], default=0) >= _LARGE else _IMAGES
    if data in data_sets.names():
        return find_images(data, data_dir, count, preprocessing, "test", download=False)
    count = min(count, len(calibration))
    one_by_one = (image[None] for batch in image_batches(calibration) for image in batch)
    first = np.concatenate(list(islice(one_by_one, count)))
    return Images(lambda: [first], count)


def certify(console: Console, net: IntegerNet, module: nn.Module, images: Images, name: str) -> bool:
    """Compare ``net``, called ``name``, with PyTorch on ``images``, print the certificate on ``console``; True if it passed."""
    from labkit.cli.progress import progress_bars
    from labkit.parity.compare import verify
    from labkit.reporting.tables import certificate_panel

    with progress_bars(console) as tell:
        report = verify(net, module, images, progress=lambda done: tell("Compare", done, len(images)))
    console.print(certificate_panel({name: report}))
    return report.passed
