"""``labkit quantize``: a float network in, a ``.lab`` file out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from labkit.cli.pictures import ImageSize, Mean, PictureOptions, Preset, Resize, Std

__all__ = ["quantize"]


def quantize(
    model: Annotated[
        str,
        typer.Argument(help="A shipped net (lenet, ...), module:callable of your own, or torchvision.models:resnet18."),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="The .lab file to write.")],
    data: Annotated[
        str, typer.Option(help="Calibration images: auto, cifar10, mnist5k, an .npy file or a folder.")
    ] = "auto",
    weights_file: Annotated[
        Path | None,
        typer.Option(
            "--weights",
            help="A .safetensors or .pth file to fill the model with; for a net of torchvision.models also the name of its "
            "own weights, DEFAULT or IMAGENET1K_V1.",
        ),
    ] = None,
    weight_bits: Annotated[int, typer.Option("-w", "--weight-bits", help="1..8.")] = 8,
    activation_bits: Annotated[int, typer.Option("-a", "--activation-bits", help="2..8.")] = 8,
    ranges: Annotated[
        str, typer.Option(help="Activation ranges: minmax, 3sigma, ema, percentile, mse, l2.4, kl, aciq or lapq.")
    ] = "minmax",
    rounding: Annotated[
        str, typer.Option(help="Weight rounding: nearest, gptq, adaround, brecq, ... (all: docs/support.md).")
    ] = "nearest",
    method: Annotated[
        str | None, typer.Option(help="A preset: best, or the name of one of the ranges or roundings.")
    ] = None,
    plan: Annotated[Path | None, typer.Option(help="A bit plan in JSON: bits layer by layer.")] = None,
    write_plan: Annotated[Path | None, typer.Option(help="Write the bit plan that was used to this file.")] = None,
    per_channel: Annotated[bool, typer.Option(help="One weight scale for each output channel, or each layer.")] = True,
    activation_scheme: Annotated[str, typer.Option(help="affine or symmetric.")] = "affine",
    weight_ranges: Annotated[
        str,
        typer.Option(help="Ranges of weights rounded to nearest: minmax, 3sigma, percentile, mse, l2.4, kl or aciq."),
    ] = "minmax",
    images: Annotated[int, typer.Option(help="How many calibration images.", min=1)] = 512,
    seed: Annotated[int, typer.Option(help="Of a rounding that draws at random.", min=0)] = 0,
    preprocessing: Preset = None,
    image_size: ImageSize = None,
    resize: Resize = None,
    mean: Mean = None,
    std: Std = None,
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
    from functools import partial

    from rich.console import Console

    from labkit import data as data_sets
    from labkit.cli.analyse import Wanted, show
    from labkit.cli.pictures import preset_of_model
    from labkit.cli.progress import progress_bars
    from labkit.cli.sources import find_images, find_module, watched
    from labkit.data.preprocessing import PRESETS
    from labkit.errors import InputError
    from labkit.files import folder_of
    from labkit.graph.costs import costs
    from labkit.models.brought import remark_on
    from labkit.quantization.pipeline import quantize as quantize_module
    from labkit.quantization.plan import BitPlan

    bits = None if plan is None else BitPlan.load(plan)
    given = (weight_bits, activation_bits, per_channel, activation_scheme, weight_ranges)
    if bits is not None and given != (8, 8, True, "affine", "minmax"):
        raise InputError(
            "A plan says all about bits and grids: give either --plan, or -w, -a, --no-per-channel, --activation-scheme and "
            "--weight-ranges."
        )
    console = Console()
    say = partial(console.print, highlight=False, soft_wrap=True, markup=False)
    wanted = Wanted(analyse, analyse_images, analyse_json, analyse_plot)
    options = PictureOptions(preprocessing, image_size, resize, mean, std)
    trained_on = data_sets.resolve(data, data_dir)
    shipped = data in data_sets.names()
    if shipped:
        options.refuse_for(data)
    preset = preset_of_model(model, weights_file)
    chosen = options.chosen(PRESETS["labkit"] if shipped or preset is None else preset)
    notes: dict[str, object] = {"data": trained_on if shipped else data}
    is_folder = not shipped and Path(data).is_dir()
    if shipped or preset is not None or options.given or is_folder:
        notes["preprocessing"] = chosen.to_json()
    if weights_file is None and ":" not in model:  # so that `labkit verify` finds the float net by itself
        notes |= {"model": model, "trained_on": trained_on}
    with ExitStack() as folders:
        plan_files = () if write_plan is None else (write_plan,)
        for path in (output, *plan_files, *wanted.files_beside(output)):  # found out before the work, not after it
            folders.enter_context(folder_of(path))
        calibration = find_images(data, data_dir, images, chosen, "train")
        seen = wanted.find(data, data_dir, chosen, calibration)
        module = find_module(model, weights_file, trained_on)
        if (remark := remark_on(model, weights_file)) is not None:
            say(remark)
        if is_folder:
            say(f"{len(calibration):,} pictures of {data}: {chosen}.")
        with progress_bars(console) as tell:
            net = quantize_module(
                module,
                watched(calibration, tell, "Calibrate"),
                weights=weight_bits,
                activations=activation_bits,
                ranges=ranges,
                rounding=rounding,
                method=method,
                seed=seed,
                progress=tell,
                plan=bits,
                per_channel=per_channel,
                activation_scheme=activation_scheme,
                weight_ranges=weight_ranges,
            ).with_notes(**notes)
            net.save(output)
            if write_plan is not None:
                BitPlan.from_json(net.graph.notes["plan"]).save(write_plan)
        found = costs(net.graph)
        say(str(net))
        say(
            f"{output}: {found.size_bytes:,} bytes of weights and biases, {found.total_macs:,} MACs and "
            f"{found.total_bops:,} bit operations an image."
        )
        if seen is not None:
            show(console, net, wanted, seen)
