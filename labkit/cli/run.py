"""``labkit run``: arrays through an integer network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["run"]


def run(
    net: Annotated[Path, typer.Argument(help="A .lab file.")],
    input_file: Annotated[Path, typer.Option("--input", help="Images, .npy, in the net's own layout.")],
    output_file: Annotated[Path, typer.Option("--output", help="Where the result goes, .npy.")],
    kernels: Annotated[str, typer.Option(help="numba or reference.")] = "numba",
    threads: Annotated[int, typer.Option(min=1, help="Threads of the numba kernels.")] = 1,
    purpose: Annotated[str, typer.Option(help="Of the numba kernels: speed, or memory for few bytes.")] = "speed",
    trace: Annotated[Path | None, typer.Option(help="Folder for every node's tensor, one .npy each.")] = None,
) -> None:
    """Run NET on an array and write its output."""
    import io
    from contextlib import nullcontext

    import numpy as np
    from rich.console import Console

    from labkit.cli.sources import read_array
    from labkit.errors import InputError
    from labkit.files import folder_for, folder_of, write_atomically
    from labkit.net import load

    def as_bytes(array: np.ndarray) -> bytes:
        buffer = io.BytesIO()
        np.save(buffer, array)
        return buffer.getvalue()

    if output_file.suffix != ".npy":
        raise InputError(f"The result is a NumPy array: --output must end in .npy, got {output_file}.")
    if output_file.resolve() in (net.resolve(), input_file.resolve()):
        raise InputError(f"--output {output_file} would overwrite what is read. Choose another name.")
    with folder_of(output_file), nullcontext() if trace is None else folder_for(trace):
        integer_net = load(net)
        x = read_array(input_file)
        results = integer_net.run(x, kernels=kernels, threads=threads, purpose=purpose)
        if isinstance(results, dict):
            for name, array in results.items():
                write_atomically(output_file.with_stem(f"{output_file.stem}-{name}"), as_bytes(array))
        else:
            write_atomically(output_file, as_bytes(results))
        if trace is not None:
            for name, array in integer_net.trace(x, kernels=kernels, purpose=purpose).items():
                write_atomically(trace / f"{name}.npy", as_bytes(array))
    console = Console()
    console.print(f"{len(x):,} images through {net}: {output_file}", highlight=False, soft_wrap=True, markup=False)
    if kernels == "numba":
        from labkit.engine.arena import arena_for

        prepared = integer_net.prepared(purpose)
        arena = arena_for(prepared, min(len(x), prepared.chunk), threads=threads)
        sizes = (
            f"{prepared.resident_bytes:,} bytes of packed weights and tables, {arena.bytes:,} bytes of working memory"
        )
        console.print(sizes, highlight=False, soft_wrap=True, markup=False)
