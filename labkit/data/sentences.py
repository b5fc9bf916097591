"""Sentences to calibrate on: a few that come with labkit, or those of a text file."""

from __future__ import annotations

from pathlib import Path

from labkit.errors import DataError

__all__ = ["read_sentences", "shipped_sentences"]


def shipped_sentences() -> tuple[str, ...]:
    """Sixty-four plain English sentences of three to thirty words, written for labkit: enough to try things out.

    Raises
    ------
    DataError
        The file that belongs to the package is missing.
    """
    return read_sentences(Path(__file__).with_name("sentences.txt"))


def read_sentences(path: str | Path) -> tuple[str, ...]:
    """The sentences in the text file at ``path``, UTF-8, one a line.

    Raises
    ------
    DataError
        The file cannot be read, has no sentence, or an empty line before the last sentence.
    """
    try:
        lines = Path(path).read_text("utf-8-sig").rstrip().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(
            f"Cannot read sentences from {path}: {reason}. Give a text file in UTF-8 with one sentence a line."
        ) from error
    sentences = tuple(line.strip() for line in lines)
    for number, sentence in enumerate(sentences, 1):
        if not sentence:
            raise DataError(f"Line {number} of {path} is empty. Put one sentence into each line.")
    return sentences
