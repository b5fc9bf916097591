"""Files that are made to hurt whoever reads them."""

from __future__ import annotations

import os
import sys
import zipfile
from pathlib import Path

import pytest

from labkit.course.definitions import definitions_of, reachable, read_cells_of
from labkit.errors import InputError
from labkit.grading.grade import sha256_of
from labkit.grading.submissions import Submission, files_within, find_submissions, read_submission


def test_names_that_are_cleaned_to_the_same_are_two_students(tmp_path: Path) -> None:
    for name in ("ann;b.py", "ann,b.py", "ann_b.py", "ann_b.ipynb"):
        (tmp_path / name).touch()
    found = find_submissions(tmp_path).submissions
    students = {submission.student: submission.path.name for submission in found}
    assert students["ann_b"] in ("ann_b.py", "ann_b.ipynb")
    assert len(students) == 3
    assert all(student.startswith("ann_b") for student in students)


@pytest.mark.parametrize("packing", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_what_cannot_be_unpacked_bit_by_bit_is_not_unpacked(tmp_path: Path, packing: int) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", packing) as archive:
        archive.writestr("m90_tiny.ipynb", bytes(1000))
    with pytest.raises(InputError, match="unusual way"):
        read_submission(Submission("a", tmp_path / "a.zip"), "m90_tiny")


def test_a_long_list_of_members_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for number in range(50):
            archive.writestr(f"{number}.ipynb", b"")
    monkeypatch.setattr("labkit.grading.submissions._LARGE_ZIP", 100)
    monkeypatch.setattr("labkit.grading.submissions._MOST_LIST", 1000)
    with pytest.raises(InputError, match="holds more than"):
        read_submission(Submission("a", tmp_path / "a.zip"), "m90_tiny")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pipes among its files")
def test_pipes_are_not_waited_for(tmp_path: Path) -> None:
    for name in ("a.ipynb", "b.zip"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(InputError, match="no regular file"):
            read_submission(Submission("a", tmp_path / name), "m90_tiny")
        assert sha256_of(tmp_path / name)


def test_folders_are_not_followed_for_ever(tmp_path: Path) -> None:
    place = tmp_path / "deep"
    (place / "/".join("d" * 40)).mkdir(parents=True)
    with pytest.raises(InputError, match="more than 30 deep"):
        list(files_within(place))
    assert sha256_of(place) == sha256_of(place)


def test_a_hash_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(bytes(3 << 20))
    whole = sha256_of(tmp_path / "a")
    monkeypatch.setattr("labkit.grading.grade._MOST_HASHED", 1 << 20)
    assert sha256_of(tmp_path / "a") != whole


@pytest.mark.parametrize(
    "line",
    [f"a = 0x{'f' * 10_000}", "a = " + "-" * 3000 + "1", "a = [" + "[" * 95 + "]" * 95 + "]", "a = '\\ud800'"],
)
def test_one_line_costs_itself_at_most(line: str) -> None:
    found = definitions_of(["def f(x):\n    return x\n", line, "def g(x):\n    return x\n"])
    assert {"f", "g"} <= set(found.names)
    assert "def f" in reachable(found.source, ["f", "a"])


def test_code_without_end_is_cut_off() -> None:
    found = definitions_of(["def f(x):\n    return x\n", "a = '" + "x" * 1_100_000 + "'", "b = 1"])
    assert found.names == ("f",)
    assert "left out" in found.notes[-1]


def test_sixteen_bit_text_is_read() -> None:
    assert read_cells_of("def f(): 1".encode("utf-16"), "a.py") == ["def f(): 1"]


def test_star_imports_stay_for_whoever_needs_them() -> None:
    found = definitions_of(["from numpy import *\nimport os\ndef f(x):\n    return rint(x)\n"])
    assert "from numpy import *" in reachable(found.source, ["f"])
    assert "import os" not in reachable(found.source, ["f"])
