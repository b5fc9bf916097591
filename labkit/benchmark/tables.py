"""A benchmark as a table on the terminal, and as a Markdown page."""

from __future__ import annotations

import re
from collections.abc import Sequence
from statistics import median

from rich import box
from rich.markup import escape
from rich.table import Table

from labkit.benchmark.limits import MEMORY
from labkit.benchmark.results import BenchResult, Case, OwnPair, Pair, Purposes
from labkit.benchmark.timing import CPU, Paired

__all__ = ["bench_table", "markdown", "own_table"]

_QUIET = 1.1  # wall time over CPU time; above it others were using the machine

_HOW_TO_READ = """\
## How to read this

- **Ratio** is the peer's time over labkit's: above 1, labkit is faster. Two networks are called in turns in one process
  and each turn gives one ratio; the table has their median and, in brackets, the 10th and 90th percentile. Ratios
  carry over to other days of the same machine; single times do so less, and to other processors neither does.
- **Times** begin with a float32 image in memory and end with float32 logits, quantizing and dequantizing included, for
  every contestant. Each sample follows one untimed call. With one thread they are CPU time of that thread (a
  contestant that works elsewhere too moves its pair to wall time, which the table then says).
- **Peers.** onnxruntime int8 is a static QOperator network (per channel, uint8 activations, int8 weights) and torch int8
  is a chain of torch's quantized operators under the engine x86. Both are built from labkit's own integer network:
  the same weights, biases, scales and zero points. "s8s8" has the activations moved to int8. torch fp32 is the module
  as it is, called eagerly; onnxruntime fp32 has its batch norms folded.
- **Bits.** The peers have nothing below 8 bits, so w4a4 is timed against their int8 and against labkit's own w8a8; "direct" is
  that without Winograd's transform.

## Answers

labkit's integers are compared with its reference kernels before and after the timing, every tensor of the network, with
tolerance 0; a net with one wrong integer is not timed at all.

A peer rounds by a rule of its own (float32, ties to even) where labkit multiplies by a fixed-point number, so its integers
may rightly be off by 1, and such a step travels through the layers that follow. (torch starts off the grid already: it
quantizes an image by multiplying with 1 / scale, rounded, where ONNX and labkit divide.) "Differ" is the share of the last
integer tensor that is not labkit's number. "Wrong sums" is asked layer by layer, of the peer's own inputs: the share of
results of convolutions and linear layers that are off by more than 1, which no rounding of an exact sum explains.

What does explain it is saturation. The AVX2 instruction vpmaddubsw multiplies unsigned by signed bytes, adds two
neighbouring products in 16 bits and cuts the sum off at 32,767; 255 x 127 twice is 64,770. onnxruntime (u8s8) and torch
use it on an x86 processor without VNNI. Where there is VNNI (vpdpbusd), four products go to 32 bits and nothing is cut
off; only torch's depthwise 3x3 layers show the same cut even there. onnxruntime's s8s8 does not saturate. A processor's
line "instructions" at the top says whether it has VNNI.
"""


def bench_table(result: BenchResult) -> Table:
    """One row for each pair of ``result``, under a row that names the net."""
    title = f"Ratio = peer's time / labkit's, {result.threads} thread, {_clocks(result)}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("", "ms", "ratio", "[p10, p90]", "differ", "wrong sums"):
        table.add_column(escape(column), justify="right" if column else "left", no_wrap=True)
    for case in result.cases:
        ours = [pair.time.ours_ms for pair in case.pairs]
        table.add_row(f"[bold]{case.net} {case.bits}, batch {case.batch}[/bold]", _ms(median(ours)) if ours else "")
        for pair in case.pairs:
            ratio, interval = _ratio(pair).split(" ", 1)
            table.add_row(f"  {pair.peer}", _times(pair)[1], ratio, escape(interval), *_shares(pair))
        if not case.pairs:
            table.add_row("  [red]refused[/red]" if case.refused else f"  {case.checked:,} integers exact")
        table.add_section()
    return table


def own_table(result: BenchResult) -> Table:
    """How labkit does against itself: what few bytes cost and save, and what few bits gain."""
    table = Table(title="labkit against itself", title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("", "MB", "ratio", "[p10, p90]"):
        table.add_column(escape(column), justify="right" if column else "left", overflow="fold")
    for found in result.purposes:
        megabytes = " / ".join(f"{sum(sizes) / 1e6:.2f}" for sizes in (found.memory, found.speed))
        ratio, interval = _interval(found.time).split(" ", 1)
        name = f"{found.net} {found.bits}, batch {found.batch}: time and memory, few bytes over speed"
        table.add_row(name, megabytes, ratio, escape(interval))
    for pair in result.own:
        name = f"{pair.what} against {pair.rival}"
        if pair.time is None:
            table.add_row(name, "", "[red]refused[/red]", "")
        else:
            ratio, interval = _interval(pair.time).split(" ", 1)
            table.add_row(name, "", ratio, escape(interval))
    return table


def markdown(result: BenchResult, figure: str | None = None) -> str:
    """The whole page for ``result``: machine, tables, how to read them; ``figure`` is the name of the roofline's file."""
    lines = [
        "# Benchmarks",
        "",
        "This page is written by the program; do not edit it. To measure again:",
        "",
        "```bash",
        result.command,
        "```",
        "",
        *(f"- {name.capitalize()}: {value}" for name, value in result.machine.items()),
        f"- Threads: {result.threads}; {_clocks(result)}",
        "- Versions: " + ", ".join(f"{name} {version}" for name, version in result.versions.items()),
        f"- Images: {result.data}",
        f"- Noise: {_noise(result)}",
        *(f"- {reason}" for reason in result.missing),
        "",
        "## Ratios",
        "",
        *_matrix(result),
        "",
        "## Times, answers and memory",
        "",
        *_grid(_COLUMNS, [row for case in result.cases for row in _rows(case)], _SIDES),
        "",
        "MACs of one image, bytes of weights and biases in a file and as packed for the kernels, and of the memory in which a",
        "batch runs (the arena):",
        "",
        *_grid(
            ("net", "weights", "bits", "batch", "million MACs", "file", "resident", "arena"),
            [_sizes(case) for case in result.cases],
            ("left", "left", "left", *["right"] * 5),
        ),
        "",
        *_own(result),
        *_roofline(result, figure),
        *_HOW_TO_READ.splitlines(),
    ]
    return "\n".join(lines) + "\n"


_COLUMNS = ("net", "bits", "batch", "peer", "labkit ms", "peer ms", "ratio [p10, p90]", "differ", "wrong sums")
_SIDES = ("left", "left", "right", "left", "right", "right", "right", "right", "right")


def _rows(case: Case) -> list[list[str]]:
    head = [case.net, case.bits, str(case.batch)]
    if case.refused is not None:
        return [[*head, f"refused: {case.refused}", "", "", "", "", ""]]
    if not case.pairs:
        return [[*head, f"none; {case.checked:,} integers are exact", "", "", "", "", ""]]
    return [[*head, pair.peer, *_times(pair), _ratio(pair), *_shares(pair)] for pair in case.pairs]


def _shares(pair: Pair) -> tuple[str, str]:
    """The peer's answers, empty where they are not integers on our grid."""
    answer = pair.answer
    return ("", "") if answer is None else (_share(answer.differ), _share(answer.wrong_sums))


def _share(part: float) -> str:
    """A percentage that says 0 only of nothing at all."""
    return "0" if part == 0 else f"{part * 100:.1g}%" if part < 1e-4 else f"{part:.2%}"


def _times(pair: Pair) -> tuple[str, str]:
    mark = "" if pair.time.clock == CPU else " (wall)"
    return _ms(pair.time.ours_ms), _ms(pair.time.theirs_ms) + mark


def _ms(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _ratio(pair: Pair) -> str:
    return _interval(pair.time)


def _interval(time: Paired) -> str:
    return f"{time.ratio:.2f} [{time.p10:.2f}, {time.p90:.2f}]"


def _matrix(result: BenchResult) -> list[str]:
    """A row for each case, a column for each peer."""
    peers = list(dict.fromkeys(pair.peer for case in result.cases for pair in case.pairs))
    rows = []
    for case in result.cases:
        found = {pair.peer: _ratio(pair) for pair in case.pairs}
        empty = "refused" if case.refused is not None else ""
        rows.append([case.net, case.bits, str(case.batch), *(found.get(peer, empty) for peer in peers)])
    return _grid(("net", "bits", "batch", *peers), rows, ("left", "left", "right", *["right"] * len(peers)))


def _sizes(case: Case) -> list[str]:
    counts = (case.file_bytes, case.resident_bytes, case.arena_bytes)
    macs = f"{case.macs / 1e6:,.1f}"
    return [case.net, case.weights, case.bits, str(case.batch), macs, *(f"{count:,}" for count in counts)]


def _own(result: BenchResult) -> list[str]:
    """The tables of labkit against itself."""
    if not result.purposes and not result.own:
        return []
    sides = ("left", "left", *["right"] * 6)
    columns = (
        "net",
        "bits",
        "batch",
        "resident",
        "arena",
        "resident, few bytes",
        "arena, few bytes",
        "time, few bytes",
    )
    return [
        "## labkit against itself",
        "",
        "A net can be prepared for speed or for few bytes (`labkit run --purpose memory`): one image at a time, no Winograd,",
        "weights of four bits two to a byte. The last column is its time over that of the net prepared for speed.",
        "",
        *_grid(columns, [_footprint(purposes) for purposes in result.purposes], sides),
        "",
        'Fewer bits against more, ratio above 1 where fewer are faster. Rows "without VNNI" take the instructions of such a',
        "processor on any: vpmaddubsw for four bits, vpmaddwd for eight. (Where there is VNNI the compiler joins vpmaddwd with",
        "the addition after it, so that eight bits look better here than there.) A linear layer of one image is timed alone;",
        "eight in turns read their weights from beyond the second-level cache.",
        "",
        *_grid(
            ("labkit", "against", "ms", "its ms", "ratio [p10, p90]"),
            [_own_row(pair) for pair in result.own],
            _OWN_SIDES,
        ),
        "",
    ]


_OWN_SIDES = ("left", "left", "right", "right", "right")


def _footprint(purposes: Purposes) -> list[str]:
    counts = [f"{count:,}" for count in (*purposes.speed, *purposes.memory)]
    return [purposes.net, purposes.bits, str(purposes.batch), *counts, _interval(purposes.time)]


def _own_row(pair: OwnPair) -> list[str]:
    if pair.time is None:
        return [pair.what, pair.rival, "", "", "refused: a wrong answer"]
    return [pair.what, pair.rival, _ms(pair.time.ours_ms), _ms(pair.time.theirs_ms), _interval(pair.time)]


def _grid(columns: Sequence[str], rows: Sequence[Sequence[str]], sides: Sequence[str]) -> list[str]:
    rule = ["---:" if side == "right" else "---" for side in sides]
    return ["| " + " | ".join(re.sub(r"\|", r"\\|", cell) for cell in row) + " |" for row in (columns, rule, *rows)]


def _clocks(result: BenchResult) -> str:
    clocks = list(dict.fromkeys(pair.time.clock for case in result.cases for pair in case.pairs))
    return " and ".join(clocks) or CPU


def _noise(result: BenchResult) -> str:
    pairs = [pair.time for case in result.cases for pair in case.pairs]
    if not pairs:
        return "nothing was timed"
    busy = max(time.busy for time in pairs)
    width = max((time.p90 - time.p10) / time.ratio for time in pairs)
    words = f"the widest interval of a ratio is {width:.0%} of it; wall time was at most {busy:.2f} times CPU time"
    if busy > _QUIET:
        words += ", so other programs were using the machine meanwhile"
    loads = [f"{load:.1f}" for load in result.load if load is not None]
    return words + (f"; load average before and after: {' and '.join(loads)}" if loads else "")


def _roofline(result: BenchResult, figure: str | None) -> list[str]:
    if figure is None or not result.layers:
        return []
    limits = "; ".join(f"{name}: {rate:.0f}" for name, rate in result.limits.items() if name != MEMORY)
    return [
        "## Roofline",
        "",
        f"![GMAC/s of each layer over the MACs that it does for each byte]({figure})",
        "",
        "Each mark is one layer of a net at batch 1, timed inside its net: convolutions and linear layers, weights and",
        "activations counted as one byte each. The lines are what one core of this processor was measured to do, in GMAC/s:",
        f"{limits or 'not measured on this processor'}. The slope is its memory, read at {result.limits[MEMORY]:.0f} GB/s.",
        "A 3x3 convolution may lie above the instruction that it uses, because Winograd's transform does the same layer with",
        "fewer multiplications; any layer may lie above the slope while its weights and activations are in a cache.",
        "",
    ]
