"""Runs attacks against the grader, in a program of its own, and finds out for each what came of it."""

from __future__ import annotations

import csv
import ctypes
import html.parser
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from labkit.errors import InputError, LabkitError
from labkit.grading.outcomes import SubmissionVerdict
from labkit.grading.records import points_text, verdict_from
from labkit.grading.redteam.attacks import CATEGORIES, FULL, Attack, answers, script
from labkit.grading.redteam.canaries import Canaries
from labkit.grading.submissions import find_submissions
from labkit.grading.watching import descendants_of

__all__ = ["GRADER", "Report", "Result", "run"]

GRADER = (sys.executable, "-m", "labkit.grading.redteam.child")
"""The program that is attacked."""

_PATIENCE = 3.0  # seconds of the wall clock for a case of a slow attack
_SECONDS_EACH, _SECONDS_MORE = 20.0, 120.0
_GOING = 8.0  # seconds that killed processes have to be gone
_NEIGHBOURS = ("a-neighbour", "zz-neighbour")  # honest work, graded before and after the attacks


@dataclass(frozen=True)
class Result:
    """What came of one attack: a few words, and ``faults`` where the grader did not hold."""

    attack: Attack
    happened: str
    faults: tuple[str, ...] = ()


@dataclass(frozen=True)
class Report:
    """All results, how submissions were shut in, what was wrong that is nobody's in particular, and how long it took."""

    results: tuple[Result, ...]
    isolation: str
    faults: tuple[str, ...]
    seconds: float

    @property
    def held(self) -> bool:
        """Whether the grader held against everything."""
        return not self.faults and not any(result.faults for result in self.results)

    def record(self) -> dict[str, Any]:
        """The report as plain data."""
        rows = [
            {
                "name": result.attack.name,
                "category": result.attack.category,
                "tries": result.attack.tries,
                "happened": result.happened,
                "held": not result.faults,
                "faults": list(result.faults),
            }
            for result in self.results
        ]
        head = {
            "held": self.held,
            "isolation": self.isolation,
            "faults": list(self.faults),
            "seconds": round(self.seconds, 1),
        }
        return head | {"attacks": rows}


@dataclass(frozen=True)
class _Batch:
    """What came of attacks that were graded together: ``common`` faults are somebody's, and it is not known whose."""

    results: tuple[Result, ...]
    common: tuple[str, ...]
    isolation: str


def run(
    attacks: Sequence[Attack],
    *,
    jobs: int = 2,
    grader: Sequence[str] = GRADER,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> Report:
    """Grade all ``attacks`` among honest submissions, and look at marks, results, processes, files and sockets.

    Attacks of one category are graded together. Where something is wrong that may be anybody's, each is tried again alone.

    Parameters
    ----------
    attacks : from `labkit.grading.redteam.catalogue`
    jobs : submissions at a time
    grader : the program that grades
    tell : called with (done, total) as attacks are finished

    Raises
    ------
    LabkitError
        This is no Linux, or nothing here can shut a submission in.
    """
    from labkit.grading.isolation import probe

    if sys.platform != "linux":
        raise LabkitError("The red team needs Linux, as the sandbox does. Run it where you grade.")
    begun = time.monotonic()
    isolation = probe().says if tuple(grader) == GRADER else ""  # or an error that says what is missing
    results: list[Result] = []
    faults: list[str] = []
    with Canaries() as canaries, _gathering_orphans():
        number = 0
        for group in _groups(attacks):
            number += 1
            batch = _graded(canaries, group, jobs, grader, f"{number}")
            isolation = batch.isolation or isolation
            if batch.common and len(group) > 1:
                alone = []
                for attack in group:
                    number += 1
                    single = _graded(canaries, [attack], 1, grader, f"{number}")
                    (result,) = single.results
                    alone.append(Result(attack, result.happened, (*result.faults, *single.common)))
                if not any(result.faults for result in alone):
                    faults += [f"{group[0].category}, only together: {fault}" for fault in batch.common]
                results += alone
            else:
                results += [Result(r.attack, r.happened, (*r.faults, *batch.common)) for r in batch.results]
            tell(len(results), len(attacks))
    return Report(tuple(results), isolation, tuple(faults), time.monotonic() - begun)


def _groups(attacks: Sequence[Attack]) -> Iterator[list[Attack]]:
    for category in CATEGORIES:
        for slow in (False, True):
            group = [attack for attack in attacks if attack.category == category and attack.is_slow == slow]
            if group:
                yield group


def _graded(canaries: Canaries, attacks: Sequence[Attack], jobs: int, grader: Sequence[str], name: str) -> _Batch:
    """``attacks`` graded together, in folders called after ``name``."""
    submissions, out = canaries.root / f"submissions-{name}", canaries.root / f"out-{name}"
    submissions.mkdir()
    bait = canaries.bait(submissions, out)
    secret = f"# {canaries.secrets['neighbour']}\n"
    honest = [script(student, "honest", "nothing", secret + answers(), FULL) for student in _NEIGHBOURS]
    for attack in (*honest, *attacks):
        attack.build(submissions, bait)
    before, heard = set(descendants_of(os.getpid())), len(canaries.heard)
    is_slow = any(attack.is_slow for attack in attacks)
    patience = _PATIENCE if is_slow else 0.0
    jobs = 2 * jobs if is_slow and len(attacks) > 1 else jobs  # they wait more than they work
    command = [*grader, str(submissions), str(canaries.course), str(out), str(jobs), str(patience)]
    limit = _SECONDS_MORE + _SECONDS_EACH * len(attacks)
    said, ended = _run(command, canaries.environment(), limit)
    common = [] if not ended else [ended]
    common += _processes_left(before)
    common += [f"left the file {path.name} in {path.parent}" for path in canaries.left_files()]
    for path in canaries.left_files():
        with suppress(OSError):
            path.unlink()
    common += [f"left {path.name} among the temporary files" for path in canaries.temporary.iterdir()]
    subprocess.run(["rm", "-rf", "--", *map(str, canaries.temporary.iterdir())], check=False)
    called = canaries.heard[heard:]
    known = [what for what in called if any(attack.name in what for attack in attacks)]
    common += [f"connected to a socket outside: {what[:60]!r}" for what in called if what not in known]
    secrets = dict(canaries.secrets)
    with suppress(OSError):
        secrets["seed"] = (out / "seed.txt").read_text("utf-8").strip()
    common += [f"the {what} leaked into what the grader says" for what, text in secrets.items() if text in said]
    common += _complaints_on_tables(out)
    try:
        students = {
            submission.path.name: submission.student for submission in find_submissions(submissions).submissions
        }
    except InputError as error:
        students, common = {}, [*common, f"no submission was found: {error}"]
    results = []
    for attack in (*honest, *attacks):
        result = _result(attack, students.get(attack.file), out, canaries, secrets)
        calls = tuple(f"connected to a socket outside: {what[:60]!r}" for what in known if attack.name in what)
        results.append(Result(attack, result.happened, (*result.faults, *calls)))
    for result in results[: len(honest)]:
        common += [f"an honest neighbour: {fault} ({result.happened})" for fault in result.faults]
    isolation = ""
    with suppress(ValueError, KeyError, IndexError, TypeError):
        isolation = json.loads(said.strip().split("\n")[-1])["isolation"]
    return _Batch(tuple(results[len(honest) :]), tuple(common), isolation)


def _run(command: Sequence[str], environment: dict[str, str], seconds: float) -> tuple[str, str]:
    """What the grader says, and '' where it ended well. What it leaves behind is not waited for."""
    with tempfile.TemporaryFile() as file:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment)
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            for pid in (*descendants_of(process.pid), process.pid):
                with suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()
            code = None
        file.seek(0)
        text = file.read(1 << 24).decode("utf-8", "replace")
    if code is None:
        return text, f"the grader was not done after {seconds:g} s"
    last = text.strip().split("\n")[-1][:200]
    return text, "" if code == 0 else f"took the grader down (exit {code}: {last})"


def _result(attack: Attack, student: str | None, out: Path, canaries: Canaries, secrets: dict[str, str]) -> Result:
    if student is None:
        return Result(attack, "not taken for a submission", () if attack.most < 0 else ("was overlooked",))
    folder = out / student
    try:
        verdict = verdict_from(json.loads((folder / "verdict.json").read_text("utf-8"))["verdict"])
    except (OSError, ValueError, KeyError, InputError) as error:
        return Result(attack, "no verdict", (f"has no verdict: {type(error).__name__}",))
    faults = [*_wrong_points(attack, verdict), *_complaints_on_pages(folder)]
    for path in sorted(folder.iterdir()):
        text = path.read_bytes().decode("utf-8", "replace")
        if canaries.marker in text:
            place = text.index(canaries.marker) + len(canaries.marker)
            faults.append(f"reached {' '.join(text[place : place + 120].split())}")
            break
        leaked = [
            what for what, value in secrets.items() if value in text and (what, path.name) != ("seed", "receipt.json")
        ]
        faults += [f"the {what} leaked into {path.name}" for what in leaked]
    return Result(attack, _happened(verdict), tuple(faults))


def _wrong_points(attack: Attack, verdict: SubmissionVerdict) -> list[str]:
    if attack.most < 0:
        return ["was taken for a submission"]
    if verdict.earned is None:
        return ["made the grader fail"]
    if verdict.earned > attack.most:
        return [f"earned {points_text(verdict.earned)} points, and {attack.most} at most are right"]
    if verdict.earned < attack.least:
        return [f"earned {points_text(verdict.earned)} points, and {attack.least} are right"]
    return []


def _happened(verdict: SubmissionVerdict) -> str:
    points = "ungraded" if verdict.earned is None else f"{points_text(verdict.earned)} of {FULL}"
    if verdict.fault:
        return f"{points}: {' '.join(verdict.fault.split())[:90]}"
    firsts = []
    for task in verdict.tasks:
        failure = task.first_failure
        if failure is not None and task.earned != Fraction(task.points):
            message = " ".join(failure.message.split())
            firsts.append(f"{failure.outcome.value} ({message[:60]})" if message else failure.outcome.value)
    return points + (f": {'; '.join(dict.fromkeys(firsts))}" if firsts else "")


_ACTIVE = {"script", "img", "iframe", "object", "embed", "form", "link", "svg", "base", "audio", "video", "input", "a"}


class _Tags(html.parser.HTMLParser):
    """Tags and attributes of a page that could do something."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        active = [name for name, value in attrs if name.startswith("on") or "javascript:" in (value or "").lower()]
        if tag in _ACTIVE or active:
            self.found.append(f"<{tag} {' '.join(active)}>".replace(" >", ">"))


def _complaints_on_pages(folder: Path) -> list[str]:
    """What is wrong with the files of one student or of all: markup that does something, JSON that is none, pages too large."""
    found = []
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.is_symlink():
            continue
        if path.is_symlink() or path.stat().st_size > 8 << 20:
            found.append(f"{path.name} is a link, or too large")
        elif path.suffix == ".html":
            tags = _Tags()
            tags.feed(path.read_text("utf-8"))
            found += [f"{path.name} holds {tag}" for tag in tags.found[:1]]
        elif path.suffix == ".json":
            try:
                json.loads(path.read_text("utf-8"))
            except ValueError:
                found.append(f"{path.name} is no JSON")
    return found


def _complaints_on_tables(out: Path) -> list[str]:
    found = []
    if out.is_dir():
        with suppress(OSError):
            found += _complaints_on_pages(out) if not (out / "summary.html").is_dir() else ["summary.html is a folder"]
    try:
        with open(out / "grades.csv", newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file))
    except (OSError, ValueError, csv.Error) as error:
        return [*found, f"grades.csv cannot be read: {type(error).__name__}"]
    cells = [cell for row in rows for cell in row]
    found += [
        f"grades.csv holds the formula {cell[:40]!r}" for cell in cells if cell[:1] in ("=", "+", "-", "@", "\t", "\r")
    ]
    if any(len(row) != len(rows[0]) for row in rows):
        found.append("grades.csv has rows of different lengths")
    return found


@contextmanager
def _gathering_orphans() -> Iterator[None]:
    """Orphans below this process become its children meanwhile, so that none is lost from sight."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(36, ctypes.c_ulong(1), 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
    try:
        yield
    finally:
        libc.prctl(36, ctypes.c_ulong(0), 0, 0, 0)


def _processes_left(before: set[int]) -> list[str]:
    """Processes that are still there after a while, of which nothing was to be left; they are killed."""
    deadline = time.monotonic() + _GOING
    while left := [pid for pid in set(descendants_of(os.getpid())) - before if not _is_buried(pid)]:
        if time.monotonic() > deadline:
            for pid in left:
                with suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            return [f"left {len(left)} processes behind"]
        time.sleep(0.02)
    return []


def _is_buried(pid: int) -> bool:
    """Whether ``pid`` has ended; an orphan is buried here."""
    with suppress(OSError):
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] in "ZX"
    except (OSError, IndexError):
        return True
