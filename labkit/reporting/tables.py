"""The report in a terminal: the accuracy table and the certificates, as ``rich`` renderables."""

from __future__ import annotations

from collections.abc import Mapping

from rich import box
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from labkit.parity.certificate import Certificate
from labkit.parity.report import ParityReport
from labkit.reporting.results import AccuracyRow, DemoResult
from labkit.reporting.summary import (
    change,
    image_counts,
    is_clear,
    sections,
    short_count,
    short_milliseconds,
    short_size,
    signed_points,
    verdict,
)

__all__ = ["accuracy_table", "certificate_facts", "certificate_nodes", "certificate_panel"]

# Columns of a terminal from which a column fits beside a label of 37 characters.
_WIDE_FOR_ERRORS = 100
_WIDE_FOR_MACS = 110


def accuracy_table(result: DemoResult, width: int | None = None) -> Table:
    """The main table: one row a network, grouped by section.

    Parameters
    ----------
    result
        What the demo found.
    width
        Columns of the terminal; None asks the terminal (80 where there is none). Below 110 the MACs, which hardly
        differ from row to row, move from a column of their own into the caption; below 100 the changes' errors are left
        out.

    Returns
    -------
    Table
        Accuracy in per cent, change in percentage points against the section's float row and its standard error, size in
        decimal bytes, MACs and bit operations (MACs x weight bits x activation bits) an image, and milliseconds an image.
    """
    width = Console().width if width is None else width
    errors, macs = width >= _WIDE_FOR_ERRORS, width >= _WIDE_FOR_MACS
    table = Table(
        title=Text(f"{result.network} on {result.dataset}, {image_counts(result.rows)} test images"),
        caption=_caption(result, errors, macs),
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
        title_justify="left",
        caption_justify="left",
        title_style="bold",
        caption_style="dim",
    )
    table.add_column("row", overflow="fold", min_width=18)
    table.add_column("W/A", justify="right", no_wrap=True)
    table.add_column("acc. %", justify="right", no_wrap=True)
    table.add_column("change", justify="right", no_wrap=True)
    if errors:
        table.add_column("s.e.", justify="right", no_wrap=True)
    table.add_column("size", justify="right", no_wrap=True)
    if macs:
        table.add_column("MACs", justify="right", no_wrap=True)
    table.add_column("BOPS", justify="right", no_wrap=True)
    table.add_column("ms/im.", justify="right", no_wrap=True)
    for number, (section, rows) in enumerate(sections(result.rows).items()):
        if number:
            table.add_section()
        table.add_row(Text(section, style="bold cyan"))
        for row in rows:
            table.add_row(*_cells(result, row, errors, macs))
    return table


def _cells(result: DemoResult, row: AccuracyRow, errors: bool, macs: bool) -> list[RenderableType]:
    points = change(result.rows, row)
    colour = "" if points is None or not is_clear(result.rows, row) else ("red" if points < 0 else "green")
    cells: list[RenderableType] = [
        Padding(Text(row.label), (0, 0, 0, 2)),  # indents the second line of a long label too
        f"{row.weight_bits}/{row.activation_bits}",
        f"{row.accuracy:.2f}",
        Text("ref." if points is None else signed_points(points), colour),
    ]
    if errors:
        cells.append("" if row.change_error is None else f"{row.change_error:.2f}")
    cells.append(short_size(row.size_bytes))
    if macs:
        cells.append(short_count(row.macs))
    return [*cells, short_count(row.bops), short_milliseconds(row.ms_per_image)]


def _caption(result: DemoResult, errors: bool, macs: bool) -> Text:
    lines = ["Change: points against the section's float row (ref.). W/A: bits. BOPS: MACs x W x A."]
    if any(row.change_error is not None for row in result.rows):
        error = "s.e.: one standard error of the change, over the same images. " if errors else ""
        lines.append(f"{error}Coloured: changes of more than two standard errors.")
    if any(row.ms_per_image is not None for row in result.rows):
        lines.append("Time: wall time of one thread, batches of up to 32 images.")
    counts = sorted({row.macs for row in result.rows if row.macs is not None})
    if counts and not macs:
        span = short_count(counts[0]) if len(counts) == 1 else f"{short_count(counts[0])} to {short_count(counts[-1])}"
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


def certificate_nodes(certificate: Certificate) -> Table:
    """A row for each node of ``certificate``: its rule, its elements compared, and how many differ by itself and end to end."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("node", overflow="fold")
    table.add_column("rule", overflow="fold")
    for heading in ("elements", "differ", "end to end"):
        table.add_column(heading, justify="right", no_wrap=True)
    for node in certificate.nodes:
        (own, differing), (elements, through) = node.own, node.through
        not_seen = "" if node.operation == "Input" else "not shown"
        table.add_row(
            Text(node.name, "bold red" if differing else ""),
            Text(node.rule),
            f"{elements:,}" if elements else not_seen,
            f"{differing:,}" if own else "",
            f"{through:,}" if elements else "",
        )
    return table


def certificate_facts(certificate: Certificate) -> Text:
    """What went in, the versions and the processor of ``certificate``, a line each."""
    versions = ", ".join(f"{name} {version}" for name, version in certificate.versions.items())
    processor = ", ".join(certificate.processor.values())
    facts = {"Inputs": certificate.inputs, "Versions": versions, "Processor": processor}
    return Text("\n".join(f"{name}: {value}." for name, value in facts.items() if value))
