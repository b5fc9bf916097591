"""``labkit demo``: the main job, end to end."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["demo"]


def demo(
    data: Annotated[str, typer.Option(help="auto, cifar10 (downloaded if it is nowhere) or mnist5k.")] = "auto",
    out: Annotated[Path, typer.Option(help="Folder for report.html, report.json and the nets.")] = Path("labkit-demo"),
    net: Annotated[
        str, typer.Option(help="lenet, or lenet-short (trained as briefly as the EE219 report's net).")
    ] = "lenet",
    data_dir: Annotated[Path | None, typer.Option(help="Folder in which CIFAR-10 lies.")] = None,
    calibration: Annotated[int, typer.Option(help="Training images that choose the ranges.", min=1)] = 512,
    images: Annotated[int | None, typer.Option(help="Test images; all where not given.", min=1)] = None,
) -> None:
    """Quantize a trained net, run it in integers on real images, prove it bit for bit, write a report."""
    import json

    from rich.console import Console

    from labkit.cli.progress import progress_bars
    from labkit.files import folder_for, write_atomically

    console = Console()
    from labkit.reporting.demo import run_demo
    from labkit.reporting.html import render_html
    from labkit.reporting.json_file import to_json
    from labkit.reporting.tables import accuracy_table, certificate_panel

    command = shlex.join(["labkit", *sys.argv[1:]])
    with folder_for(out), progress_bars(console) as tell:  # an unusable folder is found out before the work
        result, nets = run_demo(data, net, data_dir, calibration, images, command, tell)
        tell("Write the report", 0, 1)
        write_atomically(out / "report.html", render_html(result))
        write_atomically(out / "report.json", json.dumps(to_json(result), indent=1, allow_nan=False) + "\n")
        for name, integer_net in nets.items():
            integer_net.save(out / f"{net}-{integer_net.graph.notes['data']}-{name.lower()}.lab")
        tell("Write the report", 1, 1)
    console.print(f"Data: {result.dataset_reason}", highlight=False, soft_wrap=True)
    console.print(accuracy_table(result))
    console.print(certificate_panel(result.certificates))
    console.print(f"Report: {(out / 'report.html').resolve()}", highlight=False, soft_wrap=True)
    if not all(report.passed for report in result.certificates.values()):
        raise typer.Exit(1)
