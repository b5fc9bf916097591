"""``labkit verify``: a bit-exact certificate, layer by layer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["verify"]


def verify(
    net: Annotated[Path, typer.Argument(help="A .lab file.")],
    against: Annotated[str, typer.Option(help="torch: our integer emulation in PyTorch.")] = "torch",
    model: Annotated[
        str | None,
        typer.Option(help="The float model: a shipped net or module:callable; else the one named in the net."),
    ] = None,
    weights: Annotated[Path | None, typer.Option(help="A safetensors file to fill the model with.")] = None,
    input_file: Annotated[
        Path | None, typer.Option("--input", help="Images, .npy; else test images of the net's data.")
    ] = None,
    kernels: Annotated[str, typer.Option(help="numba or reference.")] = "numba",
    images: Annotated[int, typer.Option(help="How many images.", min=1)] = 1000,
    data_dir: Annotated[Path | None, typer.Option(help="Folder in which CIFAR-10 lies.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the certificate to this file.")] = None,
) -> None:
    """Compare NET with an independent computation; exit 1 and name the first differing element where it differs."""
    import json

    from rich.console import Console

    from labkit import data as data_sets
    from labkit import models
    from labkit.cli.progress import progress_bars
    from labkit.cli.sources import find_module, read_array
    from labkit.errors import InputError
    from labkit.files import make_folder, write_atomically
    from labkit.net import load
    from labkit.parity.compare import verify as compare
    from labkit.reporting.tables import certificate_panel

    if against != "torch":
        raise InputError(f"A net can be verified against torch, got {against!r}.")
    if json_file is not None:
        make_folder(json_file.parent)
    console = Console()
    integer_net = load(net)
    saved, trained_on = (str(integer_net.graph.notes.get(key)) for key in ("model", "trained_on"))
    known = saved in models.names() and trained_on in models.data_for(saved)
    if model is None and not known:  # a file never says which code to run
        console.print("No float model is given, so the net's own integers are compared: see --model.", soft_wrap=True)
    trained_on = trained_on if known else data_sets.resolve("auto", data_dir)
    module = find_module(model or saved, weights, trained_on) if model or known else None
    if input_file is not None:
        x = read_array(input_file)[:images]
    elif known or model in models.names():
        x = data_sets.load(trained_on, data_dir=data_dir, download=False).test(images)[0]
    else:
        raise InputError(f"{net} does not say which images it is for: give some, --input X.npy.")
    with progress_bars(console) as tell:
        report = compare(integer_net, module, x, kernels, lambda done: tell("Compare", done, len(x)))
    console.print(certificate_panel({net.name: report}))
    console.print(str(report), highlight=False, soft_wrap=True, markup=False)
    if json_file is not None:
        write_atomically(json_file, json.dumps(report.to_json(), indent=1) + "\n")
    if not report.passed:
        raise typer.Exit(1)
