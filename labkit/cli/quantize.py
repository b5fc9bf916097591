"""``labkit quantize``: a float network in, a ``.lab`` file out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from labkit.cli import planning
from labkit.cli.pictures import ImageSize, Mean, PictureOptions, Preset, Resize, Std

__all__ = ["quantize"]

_IMAGES = 512


def quantize(
    model: Annotated[
        str,
        typer.Argument(
            help="A shipped net (lenet, ...), minilm, module:callable of your own, torchvision.models:resnet18, or a float "
            ".onnx file."
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="The .lab file to write.")],
    data: Annotated[
        str,
        typer.Option(
            help="Calibration images: auto, cifar10, mnist5k, an .npy file or a folder. For minilm sentences: auto, stsb or a "
            "text file, one a line."
        ),
    ] = "auto",
    weights_file: Annotated[
        Path | None,
        typer.Option(
            "--weights",
            help="A .safetensors or .pth file to fill the model with; for a net of torchvision.models also the name of its "
            "own weights, DEFAULT or IMAGENET1K_V1.",
        ),
    ] = None,
    weight_bits: Annotated[
        int | None, typer.Option("-w", "--weight-bits", help="1..8, the same for all layers; not given: 8.")
    ] = None,
    activation_bits: Annotated[int, typer.Option("-a", "--activation-bits", help="2..8.")] = 8,
    ranges: Annotated[
        str | None,
        typer.Option(
            help="Activation ranges: minmax, 3sigma, ema, percentile, mse, l2.4, kl, aciq or lapq; not given: minmax, for "
            "minilm percentile."
        ),
    ] = None,
    rounding: Annotated[
        str, typer.Option(help="Weight rounding: nearest, gptq, adaround, brecq, ... (all: docs/support.md).")
    ] = "nearest",
    method: Annotated[
        str | None, typer.Option(help="A preset: best, or the name of one of the ranges or roundings.")
    ] = None,
    plan: Annotated[Path | None, typer.Option(help="A bit plan in JSON: bits layer by layer.")] = None,
    write_plan: Annotated[Path | None, typer.Option(help="Write the bit plan that was used to this file.")] = None,
    average_bits: planning.AverageBits = None,
    max_bytes: planning.MaxBytes = None,
    max_bit_operations: planning.MaxBitOperations = None,
    max_microseconds: planning.MaxMicroseconds = None,
    bits: planning.Bits = None,
    sensitivity: planning.Sensitivity = None,
    solver: planning.Solver = None,
    first_and_last: planning.FirstAndLast = None,
    tie_residual: planning.TieResidual = False,
    write_sensitivity: planning.WriteSensitivity = None,
    plan_figure: planning.PlanFigure = None,
    verify: Annotated[
        bool | None,
        typer.Option(
            "--verify/--no-verify",
            help="Compare the network with PyTorch, bit for bit, and print the certificate. Not given: where a budget is.",
        ),
    ] = None,
    per_channel: Annotated[bool, typer.Option(help="One weight scale for each output channel, or each layer.")] = True,
    activation_scheme: Annotated[str, typer.Option(help="affine or symmetric.")] = "affine",
    weight_ranges: Annotated[
        str,
        typer.Option(help="Ranges of weights rounded to nearest: minmax, 3sigma, percentile, mse, l2.4, kl or aciq."),
    ] = "minmax",
    images: Annotated[
        int | None,
        typer.Option(help="How many calibration images; not given: 512, or 256 sentences.", min=1),
    ] = None,
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
    """Quantize MODEL after training and write an integer network.

    With a budget (--average-bits, --max-bytes, ...) the bits of each layer are chosen too: labkit measures how sensitive each
    layer is, finds the best plan within the budget, and proves the network that it writes.
    """
    from contextlib import ExitStack
    from functools import partial

    from rich.console import Console

    from labkit import data as data_sets
    from labkit.allocation.request import PlanOptions
    from labkit.cli.analyse import Wanted, show
    from labkit.cli.pictures import preset_of_model
    from labkit.cli.planning import PlanWishes, certify, make_plan, proof_images, show_plan
    from labkit.cli.progress import progress_bars
    from labkit.cli.quantize_sentences import SentenceRequest, quantize_minilm, refuse_what_is_for_images
    from labkit.cli.sources import as_module, find_images, find_network, is_onnx, watched
    from labkit.data.preprocessing import PRESETS
    from labkit.errors import InputError
    from labkit.files import folder_of
    from labkit.graph.costs import costs
    from labkit.models.brought import remark_on
    from labkit.models.zoo import MINILM
    from labkit.quantization.pipeline import chosen_methods
    from labkit.quantization.pipeline import quantize as quantize_module
    from labkit.quantization.plan import BitPlan

    wishes = PlanWishes(
        average_bits, max_bytes, max_bit_operations, max_microseconds, bits, sensitivity, solver, first_and_last,
        tie_residual, write_sensitivity, plan_figure,
    )  # fmt: skip
    wishes.check(plan, weight_bits)
    sentences = model == MINILM
    if not sentences:
        used = chosen_methods(method, ranges or "minmax", rounding)[1]  # refused now where there is none of that name
    layers = None if plan is None else BitPlan.load(plan)
    given = (weight_bits, activation_bits, per_channel, activation_scheme, weight_ranges)
    if layers is not None and given != (None, 8, True, "affine", "minmax"):
        raise InputError(
            "A plan says all about bits and grids: give either --plan, or -w, -a, --no-per-channel, --activation-scheme and "
            "--weight-ranges."
        )
    console = Console()
    say = partial(console.print, highlight=False, soft_wrap=True, markup=False)
    wanted = Wanted(analyse, analyse_images, analyse_json, analyse_plot)
    options = PictureOptions(preprocessing, image_size, resize, mean, std)
    uniform = {
        "weights": 8 if weight_bits is None else weight_bits,
        "activations": activation_bits,
        "per_channel": per_channel,
        "activation_scheme": activation_scheme,
        "weight_ranges": weight_ranges,
    }
    grids: dict[str, Any] = uniform if layers is None else {"plan": layers}
    if sentences:
        refuse_what_is_for_images(wishes, wanted, options, weights_file)
        request = SentenceRequest(
            output, write_plan, data, data_dir, images, ranges, rounding, method, seed, grids, bool(verify)
        )
        if not quantize_minilm(console, request):
            raise typer.Exit(1)
        return
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
    named = weights_file is None and ":" not in model and not is_onnx(model)
    if named:  # so that `labkit verify` finds the float net by itself
        notes |= {"model": model, "trained_on": trained_on}
    with ExitStack() as folders:
        plan_files = (*(() if write_plan is None else (write_plan,)), *wishes.files)
        for path in (output, *plan_files, *wanted.files_beside(output)):  # found out before the work, not after it
            folders.enter_context(folder_of(path))
        calibration = find_images(data, data_dir, images or _IMAGES, chosen, "train")
        seen = wanted.find(data, data_dir, chosen, calibration)
        network = find_network(model, weights_file, trained_on)
        if (remark := remark_on(model, weights_file)) is not None:
            say(remark)
        if is_folder:
            say(f"{len(calibration):,} pictures of {data}: {chosen}.")
        planned = None
        with progress_bars(console) as tell:
            if wishes.wanted:
                rounds = "nearest" if used == "nearest" else "best"
                fixed = PlanOptions(
                    rounding=rounds,
                    activations=activation_bits,
                    weight_ranges=weight_ranges,
                    per_channel=per_channel,
                    activation_scheme=activation_scheme,
                    seed=seed,
                )
                planned = make_plan(as_module(network), calibration, wishes, fixed, tell)
                grids, notes["planned"] = {"plan": planned.plan}, planned.notes
            net = quantize_module(
                network,
                watched(calibration, tell, "Calibrate"),
                ranges=ranges or "minmax",
                rounding=rounding,
                method=method,
                seed=seed,
                progress=tell,
                **grids,
            ).with_notes(**notes)
            net.save(output)
            if write_plan is not None:
                BitPlan.from_json(net.graph.notes["plan"]).save(write_plan)
        if planned is not None:
            show_plan(console, planned, wishes, model)
        found = costs(net.graph)
        if planned is None:
            say(str(net))
        say(
            f"{output}: {found.size_bytes:,} bytes of weights and biases, {found.total_macs:,} MACs and "
            f"{found.total_bops:,} bit operations an image."
        )
        if seen is not None:
            show(console, net, wanted, seen)
        if planned is not None and max_microseconds is not None:
            from labkit.allocation.planning import check_latency

            say(str(check_latency(planned, calibration)))
        if verify or (verify is None and planned is not None):
            x = proof_images(net, data, data_dir, chosen, calibration)
            if not certify(console, net, as_module(network), x, output.name):
                raise typer.Exit(1)
