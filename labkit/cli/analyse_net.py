"""``labkit analyse``: accumulators and the ledger of bit widths of a network in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from labkit.cli.run import LIKE

__all__ = ["analyse"]


def analyse(
    net: Annotated[Path, typer.Argument(help="A .lab, .onnx or .tflite file.")],
    input_file: Annotated[
        Path | None,
        typer.Option(
            "--input", help="What to run, .npy or .npz as labkit run takes it; else what holds for all inputs."
        ),
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the analysis to this file.")] = None,
    plot_file: Annotated[Path | None, typer.Option("--plot", help="Draw the accumulators: .svg or .png.")] = None,
    like: Annotated[str | None, typer.Option(help=LIKE)] = None,
) -> None:
    """Show how many bits every sum and every intermediate of NET needs, at worst and on inputs."""
    from rich.console import Console

    from labkit.cli.analyse import Seen, Wanted, show
    from labkit.cli.sources import read_arrays
    from labkit.net import load

    wanted = Wanted(True, None, json_file, plot_file)
    wanted.files_beside(net)
    loaded = load(net, like=like)
    seen = None
    if input_file is not None:
        x = read_arrays(input_file)
        count = len(next(iter(x.values())) if isinstance(x, dict) else x)
        seen = Seen(x, count, input_file.name)
    show(Console(), loaded, wanted, seen)
