"""Sentences of a text file, and those that come with labkit."""

from __future__ import annotations

from pathlib import Path

import pytest

from labkit.data.sentences import read_sentences, shipped_sentences
from labkit.errors import DataError


def test_shipped_sentences_differ_and_vary_in_length() -> None:
    sentences = shipped_sentences()
    words = [len(sentence.split()) for sentence in sentences]
    assert len(set(sentences)) == len(sentences) == 64
    assert min(words) <= 3
    assert max(words) >= 25
    assert all(sentence.isascii() and sentence[-1] in ".?" for sentence in sentences)


def test_one_sentence_a_line(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes("\ufeffÄpfel fallen. \r\n  Two.\n\n\n".encode())
    assert read_sentences(tmp_path / "x.txt") == ("Äpfel fallen.", "Two.")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"One.\n\nThree.\n", "Line 2 of .* is empty. Put one sentence into each line"),
        (b"\n \n", "Line 1 of .* is empty"),
        (b"\xff\xfe\x00", "Cannot read sentences from .*: .* Give a text file in UTF-8"),
    ],
)
def test_what_is_no_list_of_sentences_is_refused(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "x.txt").write_bytes(content)
    with pytest.raises(DataError, match=says):
        read_sentences(tmp_path / "x.txt")
    with pytest.raises(DataError, match="Cannot read sentences"):
        read_sentences(tmp_path / "none.txt")
