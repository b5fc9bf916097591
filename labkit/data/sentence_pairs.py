"""STS-B: pairs of sentences and how alike people found them, read where the user keeps them.

The files are ``sts-dev.csv`` (1,500 pairs) and ``sts-test.csv`` (1,379), plain or gzipped, in a folder ``stsb`` under one of
the places that CIFAR-10 is looked for in; tab-separated, as the STS benchmark (Cer et al. 2017) publishes them.
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from labkit.data.cifar10 import places
from labkit.errors import DataError

__all__ = ["SentencePairs", "load_sentence_pairs"]

_SCORE, _FIRST, _SECOND = 4, 5, 6  # columns


@dataclass(frozen=True, eq=False)
class SentencePairs:
    """``first[i]`` and ``second[i]`` are as alike as ``scores[i]`` says, float64 0..5."""

    first: tuple[str, ...]
    second: tuple[str, ...]
    scores: NDArray[np.float64]


def load_sentence_pairs(part: str, data_dir: str | Path | None = None) -> SentencePairs:
    """The pairs of ``part``, "dev" or "test"; ``data_dir`` is looked into first.

    Raises
    ------
    DataError
        They are in none of the places, or a file is damaged.
    """
    looked = []
    for called, folder in places(data_dir):
        for name in (f"sts-{part}.csv", f"sts-{part}.csv.gz"):
            if (path := folder / "stsb" / name).is_file():
                return _read(path)
        looked.append(f"{folder / 'stsb'} ({called})")
    raise DataError(
        f"STS-B ({part}) is in none of these folders: {', '.join(looked)}. Put sts-{part}.csv of the STS benchmark there."
    )


def _read(path: Path) -> SentencePairs:
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        rows = [line.split("\t") for line in raw.decode("utf-8").splitlines()]
        scores = np.array([float(row[_SCORE]) for row in rows])
        return SentencePairs(tuple(row[_FIRST] for row in rows), tuple(row[_SECOND] for row in rows), scores)
    except (OSError, EOFError, ValueError, IndexError) as error:
        raise DataError(f"{path} cannot be read as pairs of sentences ({error}). Bring the file again.") from error
