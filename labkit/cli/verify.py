"""``labkit verify``: a bit-exact certificate, layer by layer, against PyTorch or a runtime."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from torch import nn

    from labkit.cli.sources import Images
    from labkit.net import IntegerNet
    from labkit.parity.report import ParityReport

__all__ = ["verify"]

_IMAGES = 1000
_LARGE = 100  # pixels of a side from which an image takes so long that
_LARGE_IMAGES = 16  # are enough: each has hundreds of thousands of elements a layer
_OF_RUNTIME, _LARGE_OF_RUNTIME = 64, 4  # against a runtime: of the data and as many random ones; each node is run twice


def verify(
    net: Annotated[Path, typer.Argument(help="A .lab, .onnx or .tflite file.")],
    against: Annotated[
        str,
        typer.Option(
            help="torch (our integer emulation in PyTorch), or a runtime: litert, litert-opt, xnnpack, onnxruntime, fbgemm, "
            "qnnpack, onednn; labkit compares the two tiers of kernels."
        ),
    ] = "torch",
    like: Annotated[
        str | None, typer.Option(help="Against a runtime: the rules to follow, if not that runtime's own.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="The float model: a shipped net, module:callable or a float .onnx file; else the one named in the net."
        ),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(help="A .safetensors or .pth file to fill the model with, or DEFAULT for a torchvision model."),
    ] = None,
    input_file: Annotated[
        Path | None,
        typer.Option(
            "--input",
            help="Images, .npy, or a folder of pictures; else those that the net's notes name, and against a runtime random "
            "ones too.",
        ),
    ] = None,
    kernels: Annotated[str, typer.Option(help="numba or reference.")] = "numba",
    images: Annotated[
        int | None,
        typer.Option(
            help="How many images; not given: 1000, of 100 pixels a side and more 16; against a runtime 64 of the data and 64 "
            "random ones, or 4 and 4.",
            min=1,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the random images.", min=0)] = 0,
    data_dir: Annotated[Path | None, typer.Option(help="Folder in which CIFAR-10 lies.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the certificate to this file.")] = None,
    html_file: Annotated[Path | None, typer.Option("--html", help="Write the certificate as a page.")] = None,
) -> None:
    """Compare NET with an independent computation; exit 1 and name the first differing element where it differs."""
    import json

    from rich.console import Console

    from labkit.errors import InputError
    from labkit.files import make_folder, write_atomically
    from labkit.parity.certificate import Certificate
    from labkit.reporting.tables import certificate_facts, certificate_nodes, certificate_panel
    from labkit.runtimes.rules import RUNTIMES

    if against not in ("torch", *RUNTIMES):
        raise InputError(f"A net can be verified against torch, {', '.join(RUNTIMES)}; got {against!r}.")
    if against == "torch" and like is not None:
        raise InputError("--like names a runtime's rules: give --against a runtime as well.")
    if against != "torch" and (model is not None or weights is not None):
        raise InputError(f"--model and --weights are for --against torch; {against} runs the net itself.")
    for file in (json_file, html_file):
        if file is not None:
            make_folder(file.parent)
    console = Console()
    if against == "torch":
        report = _against_torch(console, net, model, weights, input_file, kernels, images, data_dir)
    else:
        report = _against_runtime(console, net, against, like, input_file, kernels, images, seed, data_dir)
    if isinstance(report, Certificate):
        console.print(certificate_nodes(report))
        console.print(certificate_facts(report), soft_wrap=True)
    console.print(certificate_panel({net.name: report}))
    console.print(str(report), highlight=False, soft_wrap=True, markup=False)
    if json_file is not None:
        write_atomically(json_file, json.dumps(report.to_json(), indent=1) + "\n")
    if html_file is not None:
        from labkit.reporting.certificate_page import certificate_page

        write_atomically(html_file, certificate_page(net.name, report))
    if not report.passed:
        raise typer.Exit(1)


def _against_torch(
    console: Console,
    net: Path,
    model: str | None,
    weights: Path | None,
    input_file: Path | None,
    kernels: str,
    images: int | None,
    data_dir: Path | None,
) -> ParityReport:
    from labkit import models
    from labkit.cli.progress import progress_bars
    from labkit.cli.sources import find_module, float_source
    from labkit.errors import InputError
    from labkit.graph import int_ops
    from labkit.net import load
    from labkit.parity.compare import verify as compare

    integer_net = load(net)
    source = float_source(integer_net, model, data_dir)
    noted_data = integer_net.graph.notes.get("data")
    if source.name is None:
        console.print("No float model is given, so the net's own integers are compared: see --model.", soft_wrap=True)
    is_plain = len(integer_net.graph.inputs) == 1 and not isinstance(
        integer_net.graph[integer_net.graph.inputs[0]].op, int_ops.Input
    )
    is_from_file = net.suffix.lower() in (".tflite", ".onnx")
    if not is_plain or (source.name is None and is_from_file and input_file is None):
        module = None if source.name is None else find_module(source.name, weights, source.trained_on)
        return _whatever_it_takes(console, integer_net, module, input_file, kernels, images, data_dir)
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
        return compare(integer_net, module, x, kernels, lambda done: tell("Compare", done, len(x)))


def _whatever_it_takes(
    console: Console,
    net: IntegerNet,
    module: nn.Module | None,
    given: Path | None,
    kernels: str,
    images: int | None,
    data_dir: Path | None,
) -> ParityReport:
    """On inputs from the file ``given``, else on images that the notes name and random ones; None: the net's own integers."""
    from labkit.cli.certifying import inputs_for
    from labkit.cli.progress import progress_bars
    from labkit.parity.compare import verify as compare

    sides = [max(net.graph[name].output.shape[1:], default=0) for name in net.graph.inputs]
    count = images or (_LARGE_OF_RUNTIME if max(sides) >= _LARGE else _OF_RUNTIME)
    inputs = inputs_for(net, given, count, 0, data_dir)
    with progress_bars(console) as tell:
        return compare(net, module, inputs.batches(), kernels, lambda done: tell("Compare", done, inputs.count))


def _against_runtime(
    console: Console,
    path: Path,
    runtime: str,
    like: str | None,
    input_file: Path | None,
    kernels: str,
    images: int | None,
    seed: int,
    data_dir: Path | None,
) -> ParityReport:
    from labkit.benchmark.machine import machine
    from labkit.cli.certifying import inputs_for
    from labkit.cli.progress import progress_bars
    from labkit.net import load
    from labkit.parity.against_runtime import verify_against

    is_lab = path.suffix.lower() not in (".tflite", ".onnx")
    net = load(path) if is_lab else load(path, like="labkit")
    if images is None:
        sides = [max(net.graph[name].output.shape[1:], default=0) for name in net.graph.inputs]
        images = _LARGE_OF_RUNTIME if max(sides) >= _LARGE else _OF_RUNTIME
    inputs = inputs_for(net, input_file, images, seed, data_dir)
    facts = machine()
    processor = {name: facts[name] for name in ("processor", "architecture", "instructions")}
    with progress_bars(console) as tell:
        return verify_against(
            net,
            runtime,
            inputs.batches,
            path=None if is_lab else path,
            kernels=kernels,
            like=like,
            processor=processor,
            inputs=inputs.title,
            progress=lambda done: tell("Compare", done, inputs.count),
        )


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
