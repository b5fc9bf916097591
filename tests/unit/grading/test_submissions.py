"""Submissions are found by name, attempt and form; what cannot be read says why; nothing is unpacked."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path

import pytest

from labkit.errors import InputError
from labkit.grading.submissions import Submission, find_submissions, read_roster, read_submission, student_of

NOTEBOOK = json.dumps({"cells": [{"cell_type": "code", "source": "def f(x):\n    return x"}]})


@pytest.mark.parametrize(
    ("name", "student", "attempt"),
    [
        ("alice.ipynb", "alice", 1),
        ("alice.py", "alice", 1),
        ("Ümit Özgür.ipynb", "Ümit Özgür", 1),
        ("doejane_123_4567_m02_activations.ipynb", "doejane", 1),
        ("doejane_LATE_123_4567_m02_activations-2.ipynb", "doejane", 3),
        ("Jane Doe_98765_assignsubmission_file_", "Jane Doe", 1),
        ("Jane Doe_98765_assignsubmission_file_m02.ipynb", "Jane Doe", 1),
        ("a_b.zip", "a_b", 1),
        ("..ipynb", "nameless", 1),
        ("a" * 300 + ".py", "a" * 100, 1),
        ("x;rm -rf $HOME.ipynb", "x_rm -rf _HOME", 1),
        ("=1+1.ipynb", "_1+1", 1),
    ],
)
def test_students_are_read_from_names(name: str, student: str, attempt: int) -> None:
    assert student_of(name) == (student, attempt)


def test_the_newest_attempt_counts(tmp_path: Path) -> None:
    attempts = ("doejane_1_2_m.ipynb", "doejane_1_3_m-1.ipynb", "doejane_LATE_1_4_m-2.ipynb")
    for name in (*attempts, "bob.ipynb", ".hidden.ipynb", "a.txt"):
        (tmp_path / name).write_text(NOTEBOOK)
    found = find_submissions(tmp_path, ["bob", "doejane", "eve"])
    assert [(s.student, s.path.name) for s in found.submissions] == [
        ("bob", "bob.ipynb"),
        ("doejane", "doejane_LATE_1_4_m-2.ipynb"),
    ]
    assert found.missing == ("eve",)
    assert "3 attempts; the newest counts" in found.submissions[1].notes[0]


def test_of_equal_names_the_later_file_counts(tmp_path: Path) -> None:
    for when, name in ((200, "alice.py"), (100, "alice.ipynb")):
        (tmp_path / name).write_text(NOTEBOOK)
        os.utime(tmp_path / name, (when, when))
    (chosen,) = find_submissions(tmp_path).submissions
    assert chosen.path.name == "alice.py"


def test_nothing_to_grade_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no submission"):
        find_submissions(tmp_path)
    with pytest.raises(InputError, match="is no folder"):
        find_submissions(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("student\nalice\nbob\n", ["alice", "bob"]),
        ("id,Name\n1,alice\n2,bob\n", ["alice", "bob"]),
        ("alice\nbob\n", ["alice", "bob"]),
        ("\ufeffStudent,mail\nalice,a@b\n\n", ["alice"]),
    ],
)
def test_rosters(tmp_path: Path, text: str, names: list[str]) -> None:
    path = tmp_path / "roster.csv"
    path.write_text(text, "utf-8")
    assert read_roster(path) == names


def test_bad_rosters_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty.csv").write_text("\n")
    with pytest.raises(InputError, match="is empty"):
        read_roster(tmp_path / "empty.csv")
    with pytest.raises(InputError, match="Cannot read the roster"):
        read_roster(tmp_path / "nowhere.csv")


def zipped(path: Path, **members: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in members.items():
            archive.writestr(name.replace("__", "/").replace("DOT", "."), text)
    return path


def read(path: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    definitions, notes = read_submission(Submission("s", path), "m02_activations")
    return definitions.names, notes


def test_folders_and_zips(tmp_path: Path) -> None:
    folder = tmp_path / "alice"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "work.ipynb").write_text(NOTEBOOK)
    (folder / ".ipynb_checkpoints").mkdir()
    (folder / ".ipynb_checkpoints" / "work-checkpoint.ipynb").write_text("{")
    assert read(folder) == (("f",), ())
    (folder / "m02_activations.ipynb").write_text(NOTEBOOK.replace("def f", "def g"))
    names, notes = read(folder)
    assert names == ("g",)
    assert notes == ("of 2 files, m02_activations.ipynb was read",)
    archive = zipped(tmp_path / "bob.zip", aDOTtxt="x", sub__m02DOTipynb=NOTEBOOK, sub__helperDOTpy="h = 1")
    assert read(archive)[0] == ("f",)


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ({"aDOTtxt": "x"}, "holds no notebook"),
        ({"aDOTipynb": NOTEBOOK, "bDOTipynb": NOTEBOOK}, "holds several notebooks"),
        ({"DOTDOT__m02DOTipynb": NOTEBOOK}, "holds no notebook"),
        ({"aDOTipynb": "{"}, "is no notebook"),
    ],
)
def test_bad_archives_say_why(tmp_path: Path, members: dict[str, str], says: str) -> None:
    with pytest.raises(InputError, match=says):
        read(zipped(tmp_path / "x.zip", **members))


def test_a_zip_bomb_stays_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("labkit.grading.submissions._MOST_BYTES", 1000)
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.ipynb", " " * 5000)
    with pytest.raises(InputError, match="unpacks to more than 1,000 bytes"):
        read(tmp_path / "bomb.zip")
    (tmp_path / "large.ipynb").write_text(" " * 2000)
    with pytest.raises(InputError, match="1,000 at most"):
        read(tmp_path / "large.ipynb")


def test_damaged_zips_and_odd_files(tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_bytes(b"PK\x03\x04 nonsense")
    with pytest.raises(InputError, match="no readable zip"):
        read(tmp_path / "x.zip")
    secret = tmp_path / "secret.py"
    secret.write_text("password = 'x'")
    os.symlink(secret, tmp_path / "link.py")
    with pytest.raises(InputError, match="no regular file"):
        read(tmp_path / "link.py")
    assert "link" not in [s.student for s in find_submissions(tmp_path).submissions]
    os.mkfifo(tmp_path / "pipe.ipynb")
    with pytest.raises(InputError, match="no regular file"):
        read(tmp_path / "pipe.ipynb")
