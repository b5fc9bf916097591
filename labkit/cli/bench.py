"""``labkit bench``: paired timing against other runtimes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["bench"]


def bench(
    net: Annotated[
        str, typer.Option(help="Nets, comma-separated: lenet, resnet20, resnet18, mobilenet_v2.")
    ] = "lenet,resnet20,resnet18,mobilenet_v2",
    bits: Annotated[str, typer.Option(help="Bits of weights and activations, comma-separated.")] = "w8a8,w4a4",
    batch: Annotated[
        str | None, typer.Option(help="Images in a batch, comma-separated; else what suits each net.")
    ] = None,
    threads: Annotated[int, typer.Option(help="Threads of every contestant.", min=1)] = 1,
    against: Annotated[
        str, typer.Option(help="onnxruntime, torch, or both, comma-separated; none: only check our answers.")
    ] = "onnxruntime,torch",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write every figure to this file.")] = None,
    markdown_file: Annotated[Path | None, typer.Option("--markdown", help="Write the page to this file.")] = None,
    roofline_file: Annotated[
        Path | None,
        typer.Option("--roofline", help="Time single layers, draw them to this .svg or .png file."),
    ] = None,
    data: Annotated[str, typer.Option(help="Images: auto, cifar10 or mnist5k.")] = "auto",
    data_dir: Annotated[Path | None, typer.Option(help="Folder in which CIFAR-10 lies.")] = None,
    rounds: Annotated[int, typer.Option(help="Turns of each pair.", min=1)] = 31,
    seconds: Annotated[float, typer.Option(help="About the longest that a pair may take.", min=0.0)] = 8.0,
) -> None:
    """Check labkit's answers, then time it in pairs with other runtimes: ratios from one run."""
    import json
    import os
    import shlex
    import sys

    from rich.console import Console

    from labkit import data as data_sets
    from labkit.benchmark.bench import Settings, run_bench
    from labkit.benchmark.tables import bench_table, markdown, own_table
    from labkit.cli.progress import progress_bars
    from labkit.errors import InputError
    from labkit.files import make_folder, write_atomically

    if roofline_file is not None and roofline_file.suffix not in (".svg", ".png"):
        raise InputError(f"The roofline is drawn as .svg or .png, got {roofline_file.name}.")
    try:
        batches = None if batch is None else tuple(int(size) for size in _words(batch))
    except ValueError:
        raise InputError(f"Batches are numbers with commas between them, got {batch!r}.") from None
    rivals = () if against == "none" else _words(against)
    settings = Settings(_words(net), _words(bits), batches, threads, rivals, rounds, seconds, roofline_file is not None)
    for path in (json_file, markdown_file, roofline_file):
        if path is not None:
            make_folder(path.parent)  # found out before the work, not after it
    console = Console()
    images = data_sets.load(data, data_dir=data_dir)
    command = shlex.join(["labkit", *sys.argv[1:]])
    with progress_bars(console) as tell:
        result = run_bench(settings, images, command, tell)
    for reason in result.missing:
        console.print(reason, style="yellow", highlight=False, soft_wrap=True, markup=False)
    console.print(bench_table(result))
    console.print(own_table(result))
    for case in result.refused:
        what = f"{case.net} {case.bits}, batch {case.batch}: not timed, because labkit's own answer is wrong: {case.refused}"
        console.print(what, style="red", highlight=False, soft_wrap=True, markup=False)
    versions = ", ".join(f"{name} {version}" for name, version in result.versions.items())
    machine = ", ".join(result.machine.values())
    console.print(f"{machine}; {versions}", highlight=False, soft_wrap=True, markup=False)
    if json_file is not None:
        write_atomically(json_file, json.dumps(result.to_json(), indent=1, allow_nan=False) + "\n")
    if roofline_file is not None:
        from labkit.benchmark.roofline import roofline

        drawn = roofline(result.layers, result.limits, result.machine["processor"], roofline_file.suffix[1:])
        write_atomically(roofline_file, drawn)
    if markdown_file is not None:
        figure = None
        if roofline_file is not None:
            figure = Path(os.path.relpath(roofline_file, markdown_file.parent)).as_posix()
        write_atomically(markdown_file, markdown(result, figure))
    if not result.is_right:
        raise typer.Exit(1)


def _words(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
