"""The report in a terminal: the accuracy table and the certificates, as ``rich`` renderables."""

from __future__ import annotations

from collections.abc import Mapping

from rich import box
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from labkit.parity.report import ParityReport
from labkit.reporting.results import AccuracyRow, DemoResult
from labkit.reporting.summary import (
    change,
    image_counts,
    sections,
    short_count,
    short_milliseconds,
    short_size,
    signed_points,
    verdict,
)

__all__ = ["accuracy_table", "certificate_panel"]

_WIDE = 100  # columns from which every column fits beside a label of 37 characters


def accuracy_table(result: DemoResult, width: int | None = None) -> Table:
    """The main table: one row a network, grouped by section.

    Parameters
    ----------
    result
        What the demo found.
    width
        Columns of the terminal; None asks the terminal (80 where there is none). Below 100 the MACs, which hardly
        differ from row to row, move from a column of their own into the caption.

    Returns
    -------
    Table
        Accuracy in per cent, change in percentage points against the section's float row, size in decimal bytes, MACs
        and bit operations (MACs x weight bits x activation bits) an image, and milliseconds an image.
    """
    wide = (Console().width if width is None else width) >= _WIDE
    table = Table(
        title=Text(f"{result.network} on {result.dataset}, {image_counts(result.rows)} test images"),
        caption=_caption(result, wide),
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        title_justify="left",
        caption_justify="left",
        title_style="bold",
        caption_style="dim",
    )
    table.add_column("row", overflow="fold", min_width=18)
    table.add_column("W/A bits" if wide else "W/A", justify="right", no_wrap=True)
    table.add_column("accuracy %" if wide else "acc. %", justify="right", no_wrap=True)
    table.add_column("change", justify="right", no_wrap=True)
    table.add_column("size", justify="right", no_wrap=True)
    if wide:
        table.add_column("MACs", justify="right", no_wrap=True)
    table.add_column("BOPS", justify="right", no_wrap=True)
    table.add_column("ms/image" if wide else "ms/im.", justify="right", no_wrap=True)
    for number, (section, rows) in enumerate(sections(result.rows).items()):
        if number:
            table.add_section()
        table.add_row(Text(section, style="bold cyan"))
        for row in rows:
            table.add_row(*_cells(result, row, wide))
    return table


def _cells(result: DemoResult, row: AccuracyRow, wide: bool) -> list[RenderableType]:
    points = change(result.rows, row)
    # A point is where a reader should look twice; smaller changes are within the noise of a test set.
    colour = "" if points is None or abs(points) < 1 else ("red" if points < 0 else "green")
    cells: list[RenderableType] = [
        Padding(Text(row.label), (0, 0, 0, 2)),  # indents the second line of a long label too
        f"{row.weight_bits}/{row.activation_bits}",
        f"{row.accuracy:.2f}",
        Text("reference" if points is None and wide else "ref." if points is None else signed_points(points), colour),
        short_size(row.size_bytes),
    ]
    if wide:
        cells.append(short_count(row.macs))
    return [*cells, short_count(row.bops), short_milliseconds(row.ms_per_image)]


def _caption(result: DemoResult, wide: bool) -> Text:
    lines = ["Change: percentage points against the section's float row (ref.). BOPS: MACs x W bits x A bits."]
    macs = sorted({row.macs for row in result.rows if row.macs is not None})
    if macs and not wide:
        span = short_count(macs[0]) if len(macs) == 1 else f"{short_count(macs[0])} to {short_count(macs[-1])}"
        lines.append(f"MACs an image: {span}.")
    uniform = len({row.images for row in result.rows}) == 1
    for row in result.rows:
        facts = [row.note] if row.note else []
        if not uniform:
            facts.append(f"{row.images:,} images")
        if facts:
            lines.append(f"{row.section}, {row.label}: {'; '.join(facts)}")
    return Text("\n".join(lines))


def certificate_panel(certificates: Mapping[str, ParityReport]) -> Panel:
    """All certificates in one frame: what was compared over how many elements, and the first difference of each.

    Parameters
    ----------
    certificates
        Reports by the name of their configuration ("W8A8"). May be empty; the frame then says so.

    Returns
    -------
    Panel
        Says its verdict in words, so that nothing rests on colour alone.
    """
    status, sentence = verdict(certificates)
    colour = {"passed": "green", "failed": "red", "none": "yellow"}[status]
    parts: list[RenderableType] = [Text(sentence, style=f"bold {colour}")]
    if certificates:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for heading in ("net", "verdict"):
            table.add_column(heading, no_wrap=True)
        for heading in ("differing", "elements", "compared", "images"):
            table.add_column(heading, justify="right", no_wrap=True)
        for name, report in certificates.items():
            table.add_row(
                Text(name),
                Text("passes", "green") if report.passed else Text("FAILS", "bold red"),
                f"{report.differing:,}",
                f"{report.elements:,}",
                f"{len(report.comparisons):,}",
                f"{report.images:,}",
            )
        parts.append(table)
    parts += [Text(f"{name}, first difference: {r.first}") for name, r in certificates.items() if r.first is not None]
    against = sorted({report.against for report in certificates.values()})
    parts += [Text(f"Compared with {text}.", style="dim") for text in against]
    return Panel(Group(*parts), title="certificate", title_align="left", border_style=colour, box=box.ROUNDED)
