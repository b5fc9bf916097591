"""The red team: its list, a part of it against the real grader, and that it sees a grader that does not hold."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from labkit.cli.app import app
from labkit.errors import LabkitError
from labkit.grading.redteam.attacks import CATEGORIES, FULL, Attack, answers
from labkit.grading.redteam.catalogue import ATTACKS
from labkit.grading.redteam.runner import Report, run
from labkit.grading.submissions import find_submissions

_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="the red team needs Linux, as the sandbox does")

_QUICK = """honest-magics honest-given crash-os-exit crash-half-character exhaust-loop exhaust-daemon exhaust-forks
 forge-liar-array forge-made forge-late forge-main steal-environments steal-secret-links steal-tcp steal-library-files
 host-seed host-script-error host-pipe-zip host-not-utf8 damage-hex damage-deep""".split()


def _named(*names: str) -> list[Attack]:
    found = [attack for attack in ATTACKS if attack.name in names]
    assert len(found) == len(names)
    return found


def test_the_list_is_long_and_leaves_nothing_out() -> None:
    assert len(ATTACKS) > 200, "what docs/grading.md says"
    assert len({attack.name for attack in ATTACKS}) == len(ATTACKS)
    for category in CATEGORIES:
        assert sum(attack.category == category for attack in ATTACKS) >= 12
    assert {attack.category for attack in ATTACKS} == set(CATEGORIES)
    for attack in ATTACKS:
        assert -1 <= attack.least <= attack.most <= FULL
        assert attack.category != "honest" or attack.least == attack.most > 0
        assert attack.tries


@_LINUX
def test_the_grader_holds_against_some_of_each_kind(sandbox: str) -> None:
    report = run(_named(*_QUICK))
    assert not report.faults
    assert {result.attack.name: result.faults for result in report.results} == dict.fromkeys(_QUICK, ())
    assert report.held
    assert report.isolation


def _with_grader(tmp_path: Path, change: str, *names: str, jobs: int = 2) -> Report:
    """The report on a grader that was changed by Python text before it started."""
    program = tmp_path / "grader.py"
    program.write_text(
        "import sys\n" + change + "\nfrom labkit.grading.redteam.child import main\n"
        "if __name__ == '__main__':\n    main(*sys.argv[1:4], int(sys.argv[4]), float(sys.argv[5]))\n"
    )
    return run(_named(*names), jobs=jobs, grader=[sys.executable, str(program)])


_LIKES_ALL = """
from labkit.course.judges.values import Close, Exact, Items
for judge in (Close, Exact, Items):
    judge.compare = lambda self, got, expected, inputs: None
"""
_LIKES_NONE = """
from labkit.course.judges.base import Difference
from labkit.course.judges.values import Close, Exact, Items
for judge in (Close, Exact, Items):
    judge.compare = lambda self, got, expected, inputs: Difference("No.")
"""
_OPEN = """
import labkit.grading.isolation as isolation, labkit.grading.run as run
run.probe = isolation.probe = lambda *a, **k: isolation.Isolation("none", "nothing at all")
"""
_UNESCAPED = """
import labkit.grading.pages as pages
pages._environment().autoescape = False
"""
_FALLS = """
import os, labkit.grading.run as run
from labkit.grading.grade import grade_submission
def falls(plan, submission):
    if submission.student == "forge-verdict":
        os._exit(9)
    return grade_submission(plan, submission)
run.grade_submission = falls
"""
_LEAVES = """
import os, subprocess, sys, tempfile
if __name__ == '__main__':
    subprocess.Popen(['sleep', '60'], start_new_session=True)
    tempfile.mkdtemp(prefix='left-')
"""


@_LINUX
@pytest.mark.parametrize(
    ("change", "name", "says"),
    [
        (_LIKES_ALL, "forge-verdict", "earned 12 points, and 0 at most are right"),
        (_LIKES_NONE, "honest-plain", "earned 0 points, and 12 are right"),
        (_OPEN, "steal-secret", "reached"),
        (_OPEN, "steal-environments", "reached"),
        (_OPEN, "steal-udp", "connected to a socket outside"),
        (_OPEN, "steal-leave-files", "left the file"),
        (_UNESCAPED, "host-script-answer", "feedback.html holds <"),
        (_FALLS, "forge-verdict", "took the grader down (exit 9"),
        (_LEAVES, "honest-plain", "left 1 processes behind"),
        (_LEAVES, "honest-plain", "among the temporary files"),
    ],
)
def test_a_grader_that_does_not_hold_is_seen(
    tmp_path: Path, sandbox: str, monkeypatch: pytest.MonkeyPatch, change: str, name: str, says: str
) -> None:
    monkeypatch.setattr("labkit.grading.redteam.runner._GOING", 1.0)
    report = _with_grader(tmp_path, change, name)
    assert not report.held
    assert any(says in fault for result in report.results for fault in result.faults), report.record()
    assert report.record()["attacks"][0]["held"] is False


@_LINUX
def test_who_took_the_grader_down_is_found_among_many(tmp_path: Path, sandbox: str) -> None:
    report = _with_grader(tmp_path, _FALLS, "forge-nan", "forge-verdict")
    faults = {result.attack.name: result.faults for result in report.results}
    assert faults["forge-nan"] == ()
    assert any("took the grader down" in fault for fault in faults["forge-verdict"])


_SHARED = """
import labkit.grading.run as run
write_kit = run.write_kit
def weak(folder, wanted):
    kit = write_kit(folder, wanted)
    with open(folder / "labkit" / "grading" / "apart.py", "a") as file:
        file.write("really = _mount\\n_mount = lambda *a: None if a[1] == '/tmp' else really(*a)\\n")
        file.write("complaint = lambda before: ''\\n")
    return kit
run.write_kit = weak
"""


@_LINUX
@pytest.mark.parametrize("weak", [True, False])
def test_students_who_share_a_folder_are_seen(tmp_path: Path, sandbox: str, weak: bool) -> None:
    """And they do not share one where nothing was changed."""
    if not sandbox.startswith("bubblewrap"):
        pytest.skip("there is no folder that could be shared")
    report = _with_grader(tmp_path, _SHARED if weak else "", "siblings-files-a", "siblings-files-b", jobs=1)
    faults = [fault for result in report.results for fault in result.faults]
    assert any("reached" in fault and "planted" in fault for fault in faults) is weak, report.record()
    assert report.held is not weak


def test_elsewhere_the_red_team_says_that_it_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(LabkitError, match="needs Linux"):
        run(_named("honest-plain"))


@_LINUX
def test_the_command_prints_a_table_and_writes_json(tmp_path: Path, sandbox: str) -> None:
    file = tmp_path / "new" / "report.json"
    done = CliRunner().invoke(app, ["redteam", "--only", "forge-nan", "--json", str(file)])
    assert done.exit_code == 0, done.output
    assert "forge-nan" in done.output
    assert "held against 1 of 1" in done.output
    assert json.loads(file.read_text())["attacks"][0]["name"] == "forge-nan"


def test_the_command_refuses_unknown_names() -> None:
    done = CliRunner().invoke(app, ["redteam", "--only", "nobody"])
    assert done.exit_code != 0
    assert "no attack nobody" in str(done.exception)


@_LINUX
def test_every_attack_can_be_built(tmp_path: Path) -> None:
    from labkit.grading.redteam.canaries import Canaries

    with Canaries() as canaries:
        submissions = canaries.root / "submissions"
        submissions.mkdir()
        bait = canaries.bait(submissions, canaries.root / "out")
        for attack in ATTACKS:
            attack.build(submissions, bait)
        names = {submission.path.name for submission in find_submissions(submissions).submissions}
        wanted = {attack.file for attack in ATTACKS if attack.most >= 0}
        assert names == wanted
        root = canaries.root
    assert not root.exists()
    assert "def away" in answers()
