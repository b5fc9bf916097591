"""``labkit run``: arrays through an integer network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Callable

    from labkit.net import IntegerNet

__all__ = ["LIKE", "run"]

LIKE = (
    "Whose rounding rules: labkit, litert, litert-opt, xnnpack, onnxruntime, fbgemm, qnnpack or onednn; not given: .lab as "
    "saved, .tflite like litert, .onnx like onnxruntime."
)


def run(
    net: Annotated[Path, typer.Argument(help="A .lab, .onnx or .tflite file.")],
    input_file: Annotated[
        Path,
        typer.Option(
            "--input",
            help="Images, .npy, in the net's own type and layout; several inputs: .npz, by name. Sequences may be shorter "
            "than the net's.",
        ),
    ],
    output_file: Annotated[Path, typer.Option("--output", help="Where the result goes, .npy.")],
    kernels: Annotated[str, typer.Option(help="numba or reference.")] = "numba",
    threads: Annotated[int, typer.Option(min=1, help="Threads of the numba kernels.")] = 1,
    like: Annotated[str | None, typer.Option(help=LIKE)] = None,
    purpose: Annotated[str, typer.Option(help="Of the numba kernels: speed, or memory for few bytes.")] = "speed",
    trace: Annotated[Path | None, typer.Option(help="Folder for every node's tensor, one .npy each.")] = None,
) -> None:
    """Run NET on an array and write its output; a net from a file takes and returns what the file declares."""
    import io
    from contextlib import nullcontext
    from functools import partial

    import numpy as np
    from rich.console import Console

    from labkit.cli.certifying import takes_tokens
    from labkit.cli.evaluated import load_or_evaluate
    from labkit.cli.sources import read_arrays
    from labkit.errors import InputError
    from labkit.files import folder_for, folder_of, write_atomically
    from labkit.net import IntegerNet

    say = partial(Console().print, highlight=False, soft_wrap=True, markup=False)

    def as_bytes(array: np.ndarray) -> bytes:
        buffer = io.BytesIO()
        has_no_type = array.dtype.kind == "V"  # integers of 2 and 4 bits
        np.save(buffer, array.astype(np.int8) if has_no_type else array)
        return buffer.getvalue()

    if output_file.suffix != ".npy":
        raise InputError(f"The result is a NumPy array: --output must end in .npy, got {output_file}.")
    if output_file.resolve() in (net.resolve(), input_file.resolve()):
        raise InputError(f"--output {output_file} would overwrite what is read. Choose another name.")
    with folder_of(output_file), nullcontext() if trace is None else folder_for(trace):
        loaded = load_or_evaluate(net, like, say)
        x = read_arrays(input_file)
        if isinstance(loaded, IntegerNet):
            loaded = _for_length_of(loaded, x, say)
            results = loaded.run(x, kernels=kernels, threads=threads, purpose=purpose)
        else:
            results = loaded.run(x)
        if isinstance(results, dict):
            for name, array in results.items():
                write_atomically(output_file.with_stem(f"{output_file.stem}-{name}"), as_bytes(array))
        else:
            write_atomically(output_file, as_bytes(results))
        if trace is not None:
            options = {"kernels": kernels, "purpose": purpose} if isinstance(loaded, IntegerNet) else {}
            for name, array in loaded.trace(x, **options).items():
                write_atomically(trace / f"{name}.npy", as_bytes(array))
    count = len(next(iter(x.values())) if isinstance(x, dict) else x)
    things = "sequences" if isinstance(loaded, IntegerNet) and takes_tokens(loaded) else "images"
    say(f"{count:,} {things} through {net}: {output_file}")
    if kernels == "numba" and isinstance(loaded, IntegerNet):
        from labkit.engine.arena import arena_for

        prepared = loaded.prepared(purpose)
        arena = arena_for(prepared, min(count, prepared.chunk), threads=threads)
        sizes = (
            f"{prepared.resident_bytes:,} bytes of packed weights and tables, {arena.bytes:,} bytes of working memory"
        )
        say(sizes)


def _for_length_of(net: IntegerNet, x: Any, say: Callable[[str], None]) -> IntegerNet:
    """``net`` at the length of the sequences ``x``, arrays [N, T] by input name, where it takes tokens; else as it is."""
    from labkit.cli.certifying import takes_tokens
    from labkit.graph.lengths import length_of

    if not takes_tokens(net) or not isinstance(x, dict) or set(x) != set(net.graph.inputs):
        return net  # what does not fit is refused where it is run
    lengths = {array.shape[-1] for array in x.values() if array.ndim > 1}
    longest = length_of(net.graph)
    if len(lengths) != 1 or lengths == {longest}:
        return net
    length = lengths.pop()
    shorter = net.at_length(length)
    say(f"The net is for up to {longest} tokens; it is run at {length}.")
    return shorter
