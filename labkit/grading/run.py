"""Grades a folder: every submission once, several at a time, each written as soon as it is done; a stopped run goes on."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from labkit.course.loading import load_module
from labkit.course.tasks import Module
from labkit.course.values import encode
from labkit.errors import InputError
from labkit.files import make_folder, write_atomically
from labkit.grading.cluster import collected_on
from labkit.grading.grade import (
    Plan,
    drawn,
    grade_submission,
    judged_replies,
    kit_modules,
    parcel_of,
    read_for,
    read_or_make_seed,
    seed_number,
    sha256_of,
    ungraded,
    verdict_on,
)
from labkit.grading.isolation import Isolation, probe
from labkit.grading.kit import write_kit
from labkit.grading.outcomes import SubmissionVerdict
from labkit.grading.pages import feedback_page, summary_page
from labkit.grading.pool import Pool
from labkit.grading.records import as_json, grades_csv, gradescope_results, receipt, verdict_from, verdict_record
from labkit.grading.submissions import Submission, find_submissions

__all__ = ["Graded", "cases_hash", "grade_folder", "prepared"]


@dataclass(frozen=True)
class Graded:
    """A graded folder: all verdicts, sorted by student, who is missing, and how many were taken from an earlier run.

    ``why_fresh`` says why submissions got sandboxes of their own and were not forked; '' where they were, or a cluster ran them.
    """

    module: Module
    verdicts: tuple[SubmissionVerdict, ...]
    missing: tuple[str, ...]
    resumed: int
    level: Isolation
    why_fresh: str = ""

    @property
    def ungraded(self) -> tuple[str, ...]:
        """The students whose submission the grader failed on."""
        return tuple(verdict.student for verdict in self.verdicts if verdict.is_ungraded)

    @property
    def commonest_mistakes(self) -> list[tuple[str, str, int]]:
        """(task, known mistake, students), the commonest first."""
        counts = Counter((t.task, t.mistake) for v in self.verdicts for t in v.tasks if t.mistake)
        return [
            (task, mistake, count) for (task, mistake), count in sorted(counts.items(), key=lambda kv: (-kv[1], kv[0]))
        ]


@contextmanager
def prepared(
    course: Path,
    module_name: str,
    secret: str,
    manual: Mapping[tuple[str, str], Fraction] | None = None,
    *,
    unsafe: bool = False,
    isolation: str = "",
    patience: float | None = None,
) -> Iterator[Plan]:
    """A plan for grading a module; its kit is a temporary folder that goes with it.

    Parameters
    ----------
    course : a folder with ``exercises/``
    module_name : such as ``m02``
    secret : the private seed
    manual : points for open questions by (student, question)
    unsafe : go on without any isolation where there is none
    isolation : ``bubblewrap`` or ``lockdown`` and nothing else; '' for the best that works here
    patience : seconds of the wall clock for one case
    """
    module = load_module(course, module_name)
    seed = seed_number(secret, module_name)
    cases = drawn(module, seed)
    level = probe(unsafe, isolation)
    folder = Path(tempfile.mkdtemp(prefix="labkit-kit-"))
    try:
        folder.chmod(0o755)  # workers are other users
        kit = write_kit(folder, kit_modules(module, cases))
        with Pool(level, kit) as pool:
            yield Plan(module, cases, seed, level, kit, manual or {}, patience, pool)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def cases_hash(plan: Plan) -> str:
    """The hash of the inputs of all cases of ``plan``: what a receipt says was tried."""
    inputs = {
        task: [{name: encode(value) for name, value in case.inputs.items()} for case in cases]
        for task, cases in sorted(plan.cases.items())
    }
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def grade_folder(
    submissions: Path,
    course: Path,
    module_name: str,
    out: Path,
    *,
    roster: tuple[str, ...] = (),
    manual: Mapping[tuple[str, str], Fraction] | None = None,
    seed_file: Path | None = None,
    jobs: int = 1,
    only: tuple[str, ...] = (),
    regrade: bool = False,
    unsafe: bool = False,
    isolation: str = "",
    patience: float | None = None,
    cluster: str = "",
    tell: Callable[[int, int, str], None] = lambda done, total, student: None,
) -> Graded:
    """Grade every submission in a folder, and write grades, feedback, receipts and a summary.

    Parameters
    ----------
    submissions : one notebook, script, zip or folder a student
    course : a folder with ``exercises/``
    module_name : such as ``m02``
    out : the folder for the results; what is there from an earlier run of the same cases is kept
    roster : students who should have handed in
    manual : points for open questions by (student, question)
    seed_file : the private seed; ``seed.txt`` in ``out`` where left out, made where missing
    jobs : submissions at a time
    only : these students alone, where any are named
    regrade : grade again what was graded before
    unsafe : go on without any isolation where there is none
    isolation : ``bubblewrap`` or ``lockdown`` and nothing else; '' for the best that works here
    patience : seconds of the wall clock for one case
    cluster : the address of a Dask scheduler whose workers run the submissions, '' for this machine
    tell : called with (done, total, student) as submissions are finished

    Raises
    ------
    InputError
        There are no submissions, or none of ``only``.
    LabkitError
        Nothing here can shut a submission in.
    """
    found = find_submissions(submissions, roster)
    chosen = [s for s in found.submissions if not only or s.student in only]
    if unknown := sorted(set(only) - {s.student for s in chosen}):
        raise InputError(f"{submissions} holds no submission of {', '.join(unknown)}.")
    make_folder(out)
    secret = read_or_make_seed(seed_file or out / "seed.txt")
    with prepared(course, module_name, secret, manual, unsafe=unsafe, isolation=isolation, patience=patience) as plan:
        inputs = cases_hash(plan)
        earlier = {} if regrade else {s.student: v for s in chosen if (v := _earlier(out, s, inputs, plan)) is not None}
        verdicts = list(earlier.values())
        for number, verdict in enumerate(verdicts, 1):
            tell(number, len(chosen), verdict.student)
        rest = [submission for submission in chosen if submission.student not in earlier]
        running = _on_cluster(plan, rest, cluster, unsafe, isolation) if cluster else _here(plan, rest, jobs)
        for verdict in running:
            _write(out, verdict, plan, secret, inputs)
            verdicts.append(verdict)
            tell(len(verdicts), len(chosen), verdict.student)
        if only:  # the table is of everybody who was ever graded here
            others = [s for s in found.submissions if s not in chosen]
            verdicts += [v for s in others if (v := _earlier(out, s, inputs, plan)) is not None]
        verdicts.sort(key=lambda verdict: verdict.student)
        graded = Graded(
            plan.module, tuple(verdicts), found.missing, len(earlier), plan.level, _why_fresh(plan, cluster)
        )
        _put(out / "grades.csv", grades_csv(plan.module, graded.verdicts, graded.missing))
        _put(out / "summary.html", summary_page(graded.module, graded.verdicts, graded.missing, graded.level.says))
        return graded


def _here(plan: Plan, submissions: list[Submission], jobs: int) -> Iterator[SubmissionVerdict]:
    """The verdicts as they are done, ``jobs`` at a time; threads suffice, since each waits for a process of its own."""
    from joblib import Parallel, delayed

    running = Parallel(n_jobs=jobs, prefer="threads", return_as="generator_unordered")
    yield from running(delayed(grade_submission)(plan, submission) for submission in submissions)


def _why_fresh(plan: Plan, cluster: str) -> str:
    return "" if cluster or plan.pool is None else plan.pool.why


def _on_cluster(
    plan: Plan, submissions: list[Submission], address: str, unsafe: bool, isolation: str
) -> Iterator[SubmissionVerdict]:
    """The verdicts as the workers of a cluster bring values; what needs no worker comes first."""
    reads = {submission.student: read_for(plan, submission) for submission in submissions}
    parcels = {}
    for student, read in reads.items():
        parcel = None if read.is_ours else parcel_of(plan, read.definitions)
        if parcel is not None:
            parcels[student] = parcel
        else:
            yield verdict_on(plan, read, ungraded(plan, read.fault) if read.is_ours else judged_replies(plan, {}))
    if parcels:
        for student, replies, says in collected_on(
            address, parcels, sorted(kit_modules(plan.module, plan.cases)), unsafe, isolation
        ):
            if replies is None:
                yield verdict_on(plan, reads[student], ungraded(plan, says))
            else:
                yield verdict_on(plan, reads[student], judged_replies(plan, replies), says)


def _put(path: Path, text: str) -> None:
    """Write ``text``, in which a submission may have put halves of characters that UTF-8 has no form for."""
    write_atomically(path, text.encode("utf-8", "backslashreplace"))


def _record_path(out: Path, student: str) -> Path:
    return out / student / "verdict.json"


def _earlier(out: Path, submission: Submission, inputs: str, plan: Plan) -> SubmissionVerdict | None:
    """The verdict of an earlier run on the same file with the same cases; None where it must be graded."""
    path = _record_path(out, submission.student)
    try:
        record: dict[str, Any] = json.loads(path.read_text("utf-8"))
        verdict = verdict_from(record["verdict"])
    except (OSError, ValueError, KeyError, InputError):
        return None
    same = record.get("cases") == inputs and verdict.facts.get("sha256") == sha256_of(submission.path)
    if not same or verdict.is_ungraded:
        return None
    if all(q.given == plan.manual.get((submission.student, q.question)) for q in verdict.questions):
        return verdict
    return None


def _write(out: Path, verdict: SubmissionVerdict, plan: Plan, secret: str, inputs: str) -> None:
    folder = make_folder(out / verdict.student)
    _put(folder / "results.json", as_json(gradescope_results(verdict)))
    _put(folder / "feedback.html", feedback_page(plan.module, verdict))
    _put(folder / "receipt.json", as_json(receipt(verdict, secret, inputs)))
    # last of all: where this one is, the others are whole
    _put(folder / "verdict.json", as_json({"cases": inputs, "verdict": verdict_record(verdict)}))
