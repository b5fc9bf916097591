"""``labkit export``: an integer network as a file of ONNX or TFLite."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["export"]


def export(
    net: Annotated[Path, typer.Argument(help="A .lab, .onnx or .tflite file.")],
    onnx: Annotated[Path | None, typer.Option(help="The ONNX file to write.")] = None,
    tflite: Annotated[Path | None, typer.Option(help="The TFLite file to write.")] = None,
    style: Annotated[
        str | None,
        typer.Option(help="Of the ONNX file: qdq (the default), or qoperator for onnxruntime's own operators."),
    ] = None,
) -> None:
    """Write NET as a file that onnxruntime or LiteRT computes in integers: the same ones, under that runtime's rules."""
    from rich.console import Console

    from labkit.errors import InputError
    from labkit.files import folder_of
    from labkit.net import load

    if onnx is None and tflite is None:
        raise InputError("Name a file to write: --onnx FILE.onnx, --tflite FILE.tflite, or both.")
    if style is not None and onnx is None:
        raise InputError(f"--style {style} is that of an ONNX file: add --onnx FILE.onnx, or leave it out.")
    for path, suffix in ((onnx, ".onnx"), (tflite, ".tflite")):
        if path is not None and path.suffix.lower() != suffix:
            raise InputError(f"--{suffix[1:]} writes a file whose name ends in {suffix}, got {path}.")
        if path is not None and path.resolve() == net.resolve():
            raise InputError(f"--{suffix[1:]} {path} would overwrite the net that is read. Choose another name.")
    integer_net = load(net, like="labkit") if net.suffix.lower() in (".onnx", ".tflite") else load(net)
    console = Console()
    if onnx is not None:
        with folder_of(onnx):
            integer_net.to_onnx(onnx, style or "qdq")
        _tell(console, onnx, "onnxruntime")
    if tflite is not None:
        with folder_of(tflite):
            integer_net.to_tflite(tflite)
        _tell(console, tflite, "LiteRT")


def _tell(console: Console, path: Path, runtime: str) -> None:
    line = f"{path}: {path.stat().st_size:,} bytes for {runtime}"
    console.print(line, highlight=False, soft_wrap=True, markup=False)
