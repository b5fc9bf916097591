"""``labkit verify``: a bit-exact certificate, layer by layer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from labkit.cli.sources import Images
    from labkit.net import IntegerNet

__all__ = ["verify"]

_IMAGES = 1000
_LARGE = 100  # pixels of a side from which an image takes so long that
_LARGE_IMAGES = 16  # are enough: each has hundreds of thousands of elements a layer


def verify(
    net: Annotated[Path, typer.Argument(help="A .lab file.")],
    against: Annotated[str, typer.Option(help="torch: our integer emulation in PyTorch.")] = "torch",
    model: Annotated[
        str | None,
        typer.Option(help="The float model: a shipped net or module:callable; else the one named in the net."),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(help="A .safetensors or .pth file to fill the model with, or DEFAULT for a torchvision model."),
    ] = None,
    input_file: Annotated[
        Path | None,
        typer.Option("--input", help="Images, .npy, or a folder of pictures; else those that the net's notes name."),
    ] = None,
    kernels: Annotated[str, typer.Option(help="numba or reference.")] = "numba",
    images: Annotated[
        int | None,
        typer.Option(help="How many images; not given: 1000, of 100 pixels a side and more 16.", min=1),
    ] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder in which CIFAR-10 lies.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the certificate to this file.")] = None,
) -> None:
    """Compare NET with an independent computation; exit 1 and name the first differing element where it differs."""
    import json

    from rich.console import Console

    from labkit import models
    from labkit.cli.progress import progress_bars
    from labkit.cli.sources import find_module, float_source
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
    source = float_source(integer_net, model, data_dir)
    noted_data = integer_net.graph.notes.get("data")
    if source.name is None:
        console.print("No float model is given, so the net's own integers are compared: see --model.", soft_wrap=True)
    if input_file is not None:
        data = str(input_file)
    elif source.noted:
        data = source.trained_on
    elif isinstance(noted_data, str):
        data = noted_data
    elif source.name in models.names():
        data = source.trained_on
    else:
        raise InputError(
            f"{net} does not say which images it is for: give some, --input X.npy or a folder of pictures."
        )
    x = _images(integer_net, data, images, data_dir, model, weights)
    module = None if source.name is None else find_module(source.name, weights, source.trained_on)
    with progress_bars(console) as tell:
        report = compare(integer_net, module, x, kernels, lambda done: tell("Compare", done, len(x)))
    console.print(certificate_panel({net.name: report}))
    console.print(str(report), highlight=False, soft_wrap=True, markup=False)
    if json_file is not None:
        write_atomically(json_file, json.dumps(report.to_json(), indent=1) + "\n")
    if not report.passed:
        raise typer.Exit(1)


def _images(
    net: IntegerNet, data: str, count: int | None, data_dir: Path | None, model: str | None, weights: Path | None
) -> Images:
    from labkit.cli.pictures import default_for_net
    from labkit.cli.sources import find_images

    graph = net.graph
    shape = graph[graph.inputs[0]].output.shape
    if count is None:
        count = _LARGE_IMAGES if max(shape[1:], default=0) >= _LARGE else _IMAGES
    return find_images(data, data_dir, count, default_for_net(net, model, weights), "test", download=False)
