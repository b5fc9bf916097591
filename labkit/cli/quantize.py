"""``labkit quantize``: a float network in, a ``.lab`` file out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["quantize"]


def quantize(
    model: Annotated[
        str, typer.Argument(help="A shipped net (lenet, lenet-bias, ...) or module:callable of your own.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="The .lab file to write.")],
    data: Annotated[
        str, typer.Option(help="Calibration images: auto, cifar10, mnist5k, an .npy file or a folder.")
    ] = "auto",
    weights_file: Annotated[
        Path | None, typer.Option("--weights", help="A safetensors file to fill the model with.")
    ] = None,
    weight_bits: Annotated[int, typer.Option("-w", "--weight-bits", help="1..8.")] = 8,
    activation_bits: Annotated[int, typer.Option("-a", "--activation-bits", help="2..8.")] = 8,
    ranges: Annotated[str, typer.Option(help="Activation ranges: minmax or 3sigma.")] = "minmax",
    rounding: Annotated[str, typer.Option(help="Weight rounding: nearest.")] = "nearest",
    method: Annotated[str | None, typer.Option(help="A preset that fills the rest: minmax or 3sigma.")] = None,
    plan: Annotated[Path | None, typer.Option(help="A bit plan in JSON: bits layer by layer.")] = None,
    write_plan: Annotated[Path | None, typer.Option(help="Write the bit plan that was used to this file.")] = None,
    per_channel: Annotated[bool, typer.Option(help="One weight scale for each output channel, or each layer.")] = True,
    activation_scheme: Annotated[str, typer.Option(help="affine or symmetric.")] = "affine",
    images: Annotated[int, typer.Option(help="How many calibration images.", min=1)] = 512,
    image_size: Annotated[int, typer.Option(help="Side in pixels of the pictures in a folder.", min=1)] = 32,
    data_dir: Annotated[Path | None, typer.Option(help="Folder in which CIFAR-10 lies.")] = None,
    analyse: Annotated[
        bool,
        typer.Option("--analyse", help="Show each layer's accumulator and what its output's clamp cuts off."),
    ] = False,
    analyse_images: Annotated[
        int | None,
        typer.Option(help="Analyse on so many test images of the data; else on the calibration images.", min=1),
    ] = None,
    analyse_json: Annotated[Path | None, typer.Option(help="Write the analysis to this file.")] = None,
    analyse_plot: Annotated[
        Path | None, typer.Option(help="Draw the bits of the accumulators to this .svg or .png file.")
    ] = None,
) -> None:
    """Quantize MODEL after training and write an integer network."""
    from contextlib import ExitStack

    from rich.console import Console

    from labkit.cli.analyse import Wanted, show
    from labkit.cli.sources import find_images, find_module
    from labkit.data import resolve
    from labkit.files import folder_of
    from labkit.graph.costs import costs
    from labkit.quantization.pipeline import quantize as quantize_module
    from labkit.quantization.plan import BitPlan

    console = Console()
    wanted = Wanted(analyse, analyse_images, analyse_json, analyse_plot)
    trained_on = resolve(data, data_dir)
    with ExitStack() as folders:
        for path in (output, *wanted.files_beside(output)):  # found out before the work, not after it
            folders.enter_context(folder_of(path))
        with console.status("Calibrating and converting"):
            calibration = find_images(data, data_dir, images, image_size, "train")
            seen = wanted.find(data, data_dir, image_size, calibration)
            net = quantize_module(
                find_module(model, weights_file, trained_on),
                calibration,
                weights=weight_bits,
                activations=activation_bits,
                ranges=ranges,
                rounding=rounding,
                method=method,
                plan=None if plan is None else BitPlan.load(plan),
                per_channel=per_channel,
                activation_scheme=activation_scheme,
            ).with_notes(data=data)
            if weights_file is None and ":" not in model:  # so that `labkit verify` finds the float net by itself
                net = net.with_notes(model=model, trained_on=trained_on)
            net.save(output)
            if write_plan is not None:
                BitPlan.from_json(net.graph.notes["plan"]).save(write_plan)
        found = costs(net.graph)
        console.print(str(net), highlight=False, soft_wrap=True, markup=False)
        console.print(
            f"{output}: {found.size_bytes:,} bytes of weights and biases, {found.total_macs:,} MACs and "
            f"{found.total_bops:,} bit operations an image.",
            highlight=False,
            soft_wrap=True,
            markup=False,
        )
        if seen is not None:
            show(console, net, wanted, seen)
