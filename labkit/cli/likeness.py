"""``labkit accuracy`` of a sentence encoder: whether its vectors order pairs of sentences as people do."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from labkit.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from rich.console import Console

    from labkit.data.sentence_pairs import SentencePairs
    from labkit.net import IntegerNet

__all__ = ["Likeness", "show_likeness"]


@dataclass(frozen=True)
class Likeness:
    """How well the cosines of pairs of sentences follow people's scores.

    pairs : of sentences.
    spearman, float_spearman : Spearman's correlation, per cent: of the integer network, and of the float one.
    cosine, lowest : of a sentence's vector and the float network's: mean and lowest over all sentences.
    """

    pairs: int
    spearman: float
    float_spearman: float
    cosine: float
    lowest: float


def show_likeness(
    console: Console,
    net: IntegerNet,
    file: Path,
    data: str | None,
    count: int | None,
    data_dir: Path | None,
    json_file: Path | None,
    **how: Any,
) -> None:
    """Measure ``net`` on the test pairs of STS-B, beside float MiniLM.

    Parameters
    ----------
    console : where the result is printed
    net, file : a sentence encoder, and where it was read
    data : "stsb", or None
    count : how many pairs, evenly spread; None for all
    data_dir : looked into first for STS-B
    json_file : for the figures, or None
    how : kernels and threads, as in `IntegerNet.run`

    Raises
    ------
    InputError
        Other data were named, there are not so many pairs, or the net is no encoder of MiniLM's tokens.
    DataError
        STS-B is not there.
    ModelError
        The extra labkit[text] is not installed.
    """
    import json

    from labkit.cli.progress import progress_bars
    from labkit.cli.sentences import check_reads_sentences, embedded
    from labkit.data.sentence_pairs import load_sentence_pairs
    from labkit.files import write_atomically
    from labkit.models.sentence_encoder import load_minilm

    check_reads_sentences(net, file)
    if data not in (None, "stsb"):
        raise InputError(f"A sentence encoder is measured on pairs that people scored: --data stsb, got {data!r}.")
    pairs = load_sentence_pairs("test", data_dir)
    if count is not None and not 3 <= count <= len(pairs.scores):
        raise InputError(f"STS-B has {len(pairs.scores):,} test pairs, and 3 are needed: got --images {count}.")
    rows = np.linspace(0, len(pairs.scores) - 1, count or len(pairs.scores)).astype(int)
    sentences = tuple(dict.fromkeys([side[i] for i in rows for side in (pairs.first, pairs.second)]))
    encoder = load_minilm()
    with progress_bars(console) as tell:
        found = embedded(net, sentences, tell, "Integer network", **how)
        reference = embedded(encoder, sentences, tell, "Float network")
    measured = _measured(pairs, rows, sentences, found, reference)
    change = measured.spearman - measured.float_spearman
    for line in (
        f"{file} on {measured.pairs:,} test pairs of STS-B, whose likeness people scored from 0 to 5.",
        f"Spearman's correlation: {measured.spearman:.2f} %, float {measured.float_spearman:.2f} %: {change:+.2f} points.",
        f"Cosine of a sentence's two vectors: {measured.cosine:.4f} on average, {measured.lowest:.4f} at worst.",
    ):
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    if json_file is not None:
        content = {"net": file.name, "data": "stsb", **asdict(measured)}
        write_atomically(json_file, json.dumps(content, indent=1, allow_nan=False) + "\n")


def _measured(
    pairs: SentencePairs,
    rows: NDArray[np.integer],
    sentences: tuple[str, ...],
    found: NDArray[np.float64],
    reference: NDArray[np.float64],
) -> Likeness:
    """For ``rows`` of ``pairs``, from the unit vectors of ``sentences`` that the two networks gave."""
    from labkit.studies.correlation import spearman

    place = {sentence: i for i, sentence in enumerate(sentences)}
    first, second = ([place[side[i]] for i in rows] for side in (pairs.first, pairs.second))

    def agreement(vectors: NDArray[np.float64]) -> float:
        return 100 * spearman((vectors[first] * vectors[second]).sum(1), pairs.scores[rows])

    same = (found * reference).sum(1)
    return Likeness(len(rows), agreement(found), agreement(reference), float(same.mean()), float(same.min()))
