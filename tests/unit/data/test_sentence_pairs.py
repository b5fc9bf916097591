"""STS-B as it is published, from the places where a user keeps it."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from labkit.data.sentence_pairs import load_sentence_pairs
from labkit.errors import DataError

TEXT = 'main\tMSRvid\t2012\t1\t2.5\tA dog "runs".\tA cat runs.\nmain\tnews\t2013\t2\t5.0\tOne.\tOne.\textra\n'


@pytest.mark.parametrize("is_zipped", [False, True])
def test_pairs_are_read(tmp_path: Path, is_zipped: bool) -> None:
    folder = tmp_path / "stsb"
    folder.mkdir()
    if is_zipped:
        (folder / "sts-test.csv.gz").write_bytes(gzip.compress(TEXT.encode()))
    else:
        (folder / "sts-test.csv").write_text(TEXT)
    pairs = load_sentence_pairs("test", tmp_path)
    assert pairs.first == ('A dog "runs".', "One.")
    assert pairs.second == ("A cat runs.", "One.")
    assert pairs.scores.tolist() == [2.5, 5.0]


def test_it_says_where_it_looked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LABKIT_DATA", raising=False)
    with pytest.raises(DataError, match=r"stsb \(--data-dir\).*Put sts-dev.csv of the STS benchmark there"):
        load_sentence_pairs("dev", tmp_path)


@pytest.mark.parametrize("content", [b"too\tfew\n", b"\xff\xfe", b"a\tb\tc\td\tnumber\tx\ty\n"])
def test_a_damaged_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "stsb").mkdir()
    (tmp_path / "stsb" / "sts-dev.csv").write_bytes(content)
    with pytest.raises(DataError, match="cannot be read as pairs"):
        load_sentence_pairs("dev", tmp_path)
