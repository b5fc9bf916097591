"""``labkit grade`` and ``labkit replay`` as an instructor types them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from labkit.cli import main

pytestmark = pytest.mark.usefixtures("sandbox")

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["labkit", *map(str, words)])
        capsys.readouterr()
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return code, " ".join(captured.out.split()), " ".join(captured.err.split())

    return call


def test_grade_and_replay(run: Run, hand_in: Callable[..., Path], course: Path, tmp_path: Path, right: str) -> None:
    folder = hand_in(alice=right, bob=right.replace("np.rint", "np.trunc"))
    (tmp_path / "roster.csv").write_text("student\nalice\nbob\nzoe\n")
    (tmp_path / "manual.csv").write_text("student,question,points\nalice,m90.e1,1.5\nbob,m90.e1,\n")
    out = tmp_path / "out"
    options = ["--module", "m90", "--course", course, "--out", out]
    code, said, _ = run(
        "grade", folder, *options, "--roster", tmp_path / "roster.csv", "--manual", tmp_path / "manual.csv"
    )
    assert code == 0
    assert "Isolation:" in said
    assert "2 submissions" in said
    table = (out / "grades.csv").read_text()
    assert "alice,m90,graded,11.5,12," in table
    assert "bob,m90,pending,4,12," in table
    assert "zoe,m90,missing,0,12," in table
    assert (out / "seed.txt").stat().st_mode & 0o077 == 0, "for its owner alone"
    code, said, _ = run("grade", folder, *options)
    assert "kept" in said
    code, said, _ = run("replay", out / "bob" / "receipt.json", folder / "bob.ipynb", "--course", course)
    assert (code, said) == (0, "The same marks.")
    code, said, _ = run("replay", out / "bob" / "receipt.json", folder / "alice.ipynb", "--course", course)
    assert code == 1
    assert "the submission is another one than was graded" in said
    assert "m90.q1: 0 points then, 6 now" in said


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("grade", "nowhere", "--module", "m90"), "nowhere is no folder"),
        (("grade", "SUBMISSIONS", "--module", "m77"), "no module 'm77'"),
        (("grade", "SUBMISSIONS", "--module", "m90", "--roster", "nowhere.csv"), "Cannot read the roster"),
        (("grade", "SUBMISSIONS", "--module", "m90", "--manual", "bad.csv"), "no question 'm90.e7'; there are m90.e1"),
        (("grade", "SUBMISSIONS", "--module", "m90", "--only", "zoe"), "no submission of zoe"),
        (("replay", "nowhere.json", "alice.py"), "is no receipt"),
        (("replay", "receipt.json", "nowhere.py"), "There is no nowhere.py"),
    ],
)
def test_mistakes_of_the_user_are_told(
    run: Run,
    hand_in: Callable[..., Path],
    course: Path,
    tmp_path: Path,
    right: str,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    says: str,
) -> None:
    folder = hand_in(alice=right)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.csv").write_text("student,question,points\nalice,m90.e7,1\n")
    receipt = {"seed": "s", "module": "m90", "student": "alice", "tasks": {}}
    (tmp_path / "receipt.json").write_text(json.dumps(receipt))
    given = [folder if word == "SUBMISSIONS" else word for word in words]
    extra = ["--course", course, *(["--out", tmp_path / "out"] if words[0] == "grade" else [])]
    code, _, err = run(*given, *extra)
    assert code == 2
    assert says in err
    assert "Traceback" not in err
