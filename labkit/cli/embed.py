"""``labkit embed``: sentences through an integer sentence encoder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray
    from rich.table import Table

__all__ = ["embed"]

_PAIRS = 10  # how many are shown


def embed(
    net: Annotated[Path, typer.Argument(help="A .lab file that labkit quantize minilm wrote.")],
    sentences: Annotated[Path, typer.Option(help="A text file in UTF-8, one sentence a line.")],
    output: Annotated[
        Path | None,
        typer.Option(
            help="Where the vectors go, .npy: float32 (sentences, 384). Not given: show the most alike pairs."
        ),
    ] = None,
    kernels: Annotated[str, typer.Option(help="numba or reference.")] = "numba",
    threads: Annotated[int, typer.Option(min=1, help="Threads of the numba kernels.")] = 1,
) -> None:
    """Turn sentences into vectors of length 1; the product of two vectors says how alike their sentences are."""
    import io
    from contextlib import nullcontext

    import numpy as np
    from rich.console import Console

    from labkit.cli.progress import progress_bars
    from labkit.cli.sentences import check_reads_sentences, embedded
    from labkit.data.sentences import read_sentences
    from labkit.errors import InputError
    from labkit.files import folder_of, write_atomically
    from labkit.net import load

    if output is not None and output.suffix != ".npy":
        raise InputError(f"The vectors are a NumPy array: --output must end in .npy, got {output}.")
    lines = read_sentences(sentences)
    if output is None and len(lines) < 2:
        raise InputError(
            f"{sentences} has one sentence, so there is no pair to show: say where its vector goes, --output."
        )
    console = Console()
    with nullcontext() if output is None else folder_of(output):
        loaded = load(net)
        check_reads_sentences(loaded, net)
        with progress_bars(console) as tell:
            vectors = embedded(loaded, lines, tell, "Embed", kernels=kernels, threads=threads).astype(np.float32)
        if output is None:
            console.print(_pairs(lines, vectors))
            return
        buffer = io.BytesIO()
        np.save(buffer, vectors)
        write_atomically(output, buffer.getvalue())
    count = "1 sentence" if len(lines) == 1 else f"{len(lines):,} sentences"
    console.print(
        f"{count} through {net}: {output}, float32 {vectors.shape}", highlight=False, soft_wrap=True, markup=False
    )


def _pairs(sentences: Sequence[str], vectors: NDArray[np.float32]) -> Table:
    """The most alike pairs of ``sentences`` by their unit ``vectors`` [N, D], the most alike first."""
    import numpy as np
    from rich import box
    from rich.table import Table
    from rich.text import Text

    first, second = np.triu_indices(len(sentences), 1)
    cosines = (vectors @ vectors.T)[first, second]
    order = np.argsort(-cosines, kind="stable")[:_PAIRS]
    table = Table(
        box=box.SIMPLE, title=f"The {len(order)} most alike of {len(cosines):,} pairs" if len(order) > 1 else None
    )
    for head in ("cosine", "sentence", "sentence"):
        table.add_column(head, justify="right" if head == "cosine" else "left")
    for i in order:
        table.add_row(f"{cosines[i]:.3f}", Text(sentences[first[i]]), Text(sentences[second[i]]))
    return table
