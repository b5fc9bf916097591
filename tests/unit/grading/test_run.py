"""A folder: the same marks at any number of jobs, after a stop, and on a cluster that loses a worker; open questions."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from labkit import __version__
from labkit.errors import InputError, LabkitError
from labkit.grading.cluster import collect_there
from labkit.grading.collecting import Parcel
from labkit.grading.isolation import Isolation, levels
from labkit.grading.outcomes import SubmissionVerdict
from labkit.grading.records import verdict_from, verdict_record
from labkit.grading.run import Graded, grade_folder

pytestmark = pytest.mark.usefixtures("sandbox")


@pytest.fixture
def mixed(hand_in: Callable[..., Path], right: str) -> Path:
    """Right, wrong, blank and damaged submissions."""
    folder = hand_in(
        alice=right,
        bob=right.replace("np.rint", "np.trunc"),
        carol=right.replace("    return np.rint", "    raise NotImplementedError\n    return np.rint").replace(
            "Because.", ""
        ),
        dave=right.replace("v @ product(v)", "undefined"),
    )
    (folder / "eve.ipynb").write_text("{")
    return folder


def graded(mixed: Path, course: Path, out: Path, **options: Any) -> Graded:
    out.mkdir(exist_ok=True)
    (out / "seed.txt").write_text("a secret of the tests\n")
    return grade_folder(mixed, course, "m90", out, **options)


def rows(out: Path) -> list[dict[str, str]]:
    with open(out / "grades.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_a_folder_is_graded_and_written(mixed: Path, course: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    found = graded(mixed, course, tmp_path / "out", roster=("alice", "zoe"), tell=lambda d, t, _: told.append((d, t)))
    assert told == [(n, 5) for n in range(1, 6)]
    assert found.missing == ("zoe",)
    assert found.commonest_mistakes == [("m90.q1", "truncates", 1)]
    table = {row["student"]: row for row in rows(tmp_path / "out")}
    assert list(table) == ["alice", "bob", "carol", "dave", "eve", "zoe"]
    assert [table[name]["points"] for name in table] == ["10", "4", "4", "6", "0", "0"]
    assert [table[name]["status"] for name in table] == [
        "pending",
        "pending",
        "graded",
        "pending",
        "unreadable",
        "missing",
    ]
    assert table["alice"]["m90.e1"] == "pending"
    assert table["carol"]["m90.e1"] == "0", "no answer"
    assert "no notebook" in table["eve"]["notes"]
    for student in ("alice", "eve"):
        folder = tmp_path / "out" / student
        results = json.loads((folder / "results.json").read_text())
        assert set(results) <= {"score", "output", "output_format", "visibility", "tests"}
        assert all({"name", "max_score", "output"} <= set(test) for test in results["tests"])
        page = (folder / "feedback.html").read_text()
        assert "m90.q1" in page
        assert "a reason" in page, "the rubric"
        assert "://" not in page, "self-contained"
    assert "You cut the fraction off." in (tmp_path / "out" / "bob" / "feedback.html").read_text()
    summary = (tmp_path / "out" / "summary.html").read_text()
    assert "truncates" in summary
    assert "zoe" in summary


def test_the_same_table_at_any_number_of_jobs(mixed: Path, course: Path, tmp_path: Path) -> None:
    for jobs in (1, 3):
        graded(mixed, course, tmp_path / f"out{jobs}", jobs=jobs)
    assert (tmp_path / "out1" / "grades.csv").read_bytes() == (tmp_path / "out3" / "grades.csv").read_bytes()


def test_fresh_sandboxes_give_the_same_table_and_are_said(
    mixed: Path, course: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cannot(*_: object) -> None:
        raise OSError("no process here can be forked")

    graded(mixed, course, tmp_path / "forked")
    monkeypatch.setattr("labkit.grading.pool._Forker", cannot)
    assert graded(mixed, course, tmp_path / "fresh").why_fresh == "no process here can be forked"
    assert (tmp_path / "forked" / "grades.csv").read_bytes() == (tmp_path / "fresh" / "grades.csv").read_bytes()


def test_a_second_run_keeps_what_is_there(mixed: Path, course: Path, tmp_path: Path, right: str) -> None:
    out = tmp_path / "out"
    graded(mixed, course, out)
    before = (out / "grades.csv").read_bytes()
    assert graded(mixed, course, out).resumed == 5
    assert (out / "grades.csv").read_bytes() == before
    cells = json.dumps({"cells": [{"cell_type": "code", "source": right}]})
    (mixed / "bob.ipynb").write_text(cells)
    assert graded(mixed, course, out).resumed == 4, "bob handed in something else"
    (out / "alice" / "verdict.json").write_text("{")
    assert graded(mixed, course, out).resumed == 4, "a damaged record is graded again"
    (out / "seed.txt").write_text("another secret of the tests\n")
    assert grade_folder(mixed, course, "m90", out).resumed == 0, "other cases"
    assert graded(mixed, course, out, regrade=True).resumed == 0


def test_one_student_alone(mixed: Path, course: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    graded(mixed, course, out)
    found = graded(mixed, course, out, only=("bob",), regrade=True)
    assert found.resumed == 0
    assert len(rows(out)) == 5, "the others keep their rows"
    with pytest.raises(InputError, match="no submission of mallory"):
        graded(mixed, course, out, only=("mallory",))


def test_open_questions_are_merged(mixed: Path, course: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    graded(mixed, course, out)
    graded(mixed, course, out, manual={("alice", "m90.e1"): Fraction(3, 2), ("carol", "m90.e1"): Fraction(1)})
    table = {row["student"]: row for row in rows(out)}
    assert (table["alice"]["points"], table["alice"]["status"], table["alice"]["m90.e1"]) == ("11.5", "graded", "1.5")
    assert table["carol"]["points"] == "5"
    assert table["bob"]["status"] == "pending"


def test_records_come_back_exactly(mixed: Path, course: Path, tmp_path: Path) -> None:
    found = graded(mixed, course, tmp_path / "out", manual={("alice", "m90.e1"): Fraction(1, 3)})
    for verdict in found.verdicts:
        back = verdict_from(json.loads(json.dumps(verdict_record(verdict))))
        assert isinstance(back, SubmissionVerdict)
        assert back == verdict


_RUN = """
import sys
from pathlib import Path
from labkit.grading.run import grade_folder
grade_folder(Path(sys.argv[1]), Path(sys.argv[2]), "m90", Path(sys.argv[3]), jobs=2)
"""


def test_killed_half_way_it_goes_on_to_the_same_table(
    hand_in: Callable[..., Path], course: Path, tmp_path: Path, right: str
) -> None:
    folder = hand_in(**{f"s{n:02d}": right.replace("np.rint", "np.rint" if n % 3 else "np.trunc") for n in range(12)})
    outs = [tmp_path / "whole", tmp_path / "killed"]
    for out in outs:
        out.mkdir()
        (out / "seed.txt").write_text("a secret of the tests\n")
    grade_folder(folder, course, "m90", outs[0])
    run = subprocess.Popen([sys.executable, "-c", _RUN, str(folder), str(course), str(outs[1])])
    deadline = time.monotonic() + 120
    while len(list(outs[1].glob("s*/verdict.json"))) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    assert not (outs[1] / "grades.csv").exists()
    found = grade_folder(folder, course, "m90", outs[1])
    assert 4 <= found.resumed < 12
    assert (outs[0] / "grades.csv").read_bytes() == (outs[1] / "grades.csv").read_bytes()


def test_a_cluster_that_loses_a_worker_loses_nothing(
    hand_in: Callable[..., Path], course: Path, tmp_path: Path, right: str
) -> None:
    distributed = pytest.importorskip("distributed")
    slow = right.replace("    return np.rint", "    import time; time.sleep(0.05)\n    return np.rint")
    folder = hand_in(**{f"s{n:02d}": slow for n in range(10)})
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None, scheduler_port=0
    ) as cluster:
        victim = next(iter(cluster.workers.values()))
        done: list[int] = []

        def tell(count: int, total: int, student: str) -> None:
            done.append(count)
            if count == 3:
                os.kill(victim.pid, signal.SIGKILL)

        found = graded(folder, course, tmp_path / "out", cluster=cluster.scheduler_address, tell=tell)
    assert done == list(range(1, 11))
    assert found.ungraded == ()
    assert {row["points"] for row in rows(tmp_path / "out")} == {"10"}


def test_the_isolation_that_is_asked_for_travels_to_a_cluster(
    hand_in: Callable[..., Path], course: Path, tmp_path: Path, right: str
) -> None:
    """A worker of the cluster would take the best level by itself; each of the levels here is asked for in turn."""
    distributed = pytest.importorskip("distributed")
    folder = hand_in(alice=right)
    names = [level.name.split()[0] for level in levels()]
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, dashboard_address=None, scheduler_port=0
    ) as cluster:
        for name in reversed(names):
            found = graded(folder, course, tmp_path / name, cluster=cluster.scheduler_address, isolation=name)
            assert [verdict.facts["isolation"].split(":")[0] for verdict in found.verdicts] == [name]


def test_a_cluster_takes_no_other_isolation(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `collect_there` is handed is what it looks for, whatever the machine offers."""
    asked: list[tuple[bool, str]] = []

    def looked_for(unsafe: bool = False, level: str = "") -> Isolation:
        asked.append((unsafe, level))
        raise LabkitError("it is not here")

    monkeypatch.setattr("labkit.grading.cluster.probe", looked_for)
    with pytest.raises(LabkitError, match="it is not here"):
        collect_there(Parcel("", ()), (), __version__, False, "lockdown")
    assert asked == [(False, "lockdown")]


def test_no_cluster_is_told(mixed: Path, course: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed")
    from labkit.errors import LabkitError

    monkeypatch.setattr("labkit.grading.cluster._CONNECT_SECONDS", 2)
    with pytest.raises(LabkitError, match="No Dask scheduler answers at tcp://127.0.0.1:1"):
        graded(mixed, course, tmp_path / "out", cluster="tcp://127.0.0.1:1")
