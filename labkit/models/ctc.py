"""From frames to words and back: connectionist temporal classification (CTC), read greedily, and the word error rate."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from labkit.errors import InputError

__all__ = ["BLANK", "edits", "read_greedily", "word_error_rate"]

BLANK = 0  # the class of a frame in which no word begins or goes on; digit d is class d + 1


def read_greedily(best: NDArray[np.integer], frames: NDArray[np.int64]) -> tuple[tuple[int, ...], ...]:
    """What the most likely class of each frame says: runs of one class become one word, blanks fall away (Graves et al. 2006).

    Parameters
    ----------
    best
        Integers [N, T]: for each frame the class with the largest score, `BLANK` or a word + 1.
    frames
        int64 [N], in 0..T: how many frames count; those after them are padding.

    Returns
    -------
    N tuples of words

    Raises
    ------
    InputError
        The shapes do not fit, or more frames are to count than there are.
    """
    if best.ndim != 2 or frames.shape != best.shape[:1] or best.dtype.kind not in "iu":
        raise InputError(
            f"Classes must be integers [N, T] and frames [N], got {best.dtype} {list(best.shape)} and {list(frames.shape)}. "
            f"Take the argmax over the classes first."
        )
    if len(frames) and not 0 <= frames.min() <= frames.max() <= best.shape[1]:
        raise InputError(f"frames must be in 0..{best.shape[1]}, got {frames.min()}..{frames.max()}.")
    said = []
    for row, count in zip(best, frames, strict=True):
        kept = row[:count]
        begins = np.diff(kept, prepend=BLANK) != 0
        said.append(tuple(int(one) - 1 for one in kept[begins & (kept != BLANK)]))
    return tuple(said)


def edits(heard: Sequence[int], said: Sequence[int]) -> int:
    """The fewest insertions, deletions and exchanges of words that turn ``said`` into ``heard`` (Levenshtein 1966)."""
    above = list(range(len(said) + 1))
    for row, one in enumerate(heard, 1):
        here = [row]
        for column, other in enumerate(said, 1):
            here.append(min(above[column] + 1, here[-1] + 1, above[column - 1] + (one != other)))
        above = here
    return above[-1]


def word_error_rate(heard: Sequence[Sequence[int]], said: Sequence[Sequence[int]]) -> float:
    """Edits over words, in per cent, of all utterances together.

    Parameters
    ----------
    heard, said
        As many utterances of the one as of the other: what was read from the network, and what it should be.

    Raises
    ------
    InputError
        Their numbers differ, or nothing was said.
    """
    if len(heard) != len(said) or not any(said):
        raise InputError(
            f"A word error rate needs as many utterances heard as said, with words in them, got {len(heard)} and {len(said)}."
        )
    return 100 * sum(map(edits, heard, said)) / sum(map(len, said))
