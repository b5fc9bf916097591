"""Grades the one submission in a container of Gradescope; `run_autograder` in the zip of `labkit.grading.autograder` calls it."""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from labkit.errors import LabkitError
from labkit.files import write_atomically
from labkit.grading.grade import grade_submission
from labkit.grading.records import as_json, gradescope_results
from labkit.grading.run import prepared
from labkit.grading.submissions import Submission

__all__ = ["grade_one", "main", "not_graded"]

_SORRY = "Not graded yet, by no fault of yours. Tell your instructor: {}"


def not_graded(why: str) -> dict[str, Any]:
    """A results.json without a score, which says to the student ``why`` there is none."""
    return {"output": _SORRY.format(why), "output_format": "text", "visibility": "visible", "tests": []}


def grade_one(
    submission: Path, course: Path, module: str, secret: str, *, isolation: str = "", unsafe: bool = False
) -> dict[str, Any]:
    """The results.json for what lies in the folder ``submission``, by the same way as ``labkit grade`` takes.

    It raises nothing. A fault of the grader, in any task, gives no score at all.

    Parameters
    ----------
    submission : the folder that a student's files were put in, or one file
    course : a folder with ``exercises/``
    module : such as ``m02``
    secret : the private seed
    isolation : ``bubblewrap`` or ``lockdown`` and nothing else; '' for the best that works here
    unsafe : go on without any isolation where there is none
    """
    try:
        with prepared(course, module, secret, isolation=isolation, unsafe=unsafe) as plan:
            print(f"Isolation: {plan.level.says}")
            verdict = grade_submission(plan, Submission("submission", submission))
            results = gradescope_results(verdict)
    except LabkitError as error:
        print(error)
        return not_graded("the grader cannot work in this container.")
    except Exception as error:
        traceback.print_exc(file=sys.stdout)
        return not_graded(f"the grader failed ({type(error).__name__}).")
    if not verdict.is_ungraded:
        return results
    for test in results["tests"]:  # Gradescope would add up what there is
        test.pop("score", None)
        test.pop("status", None)
    return (
        results
        | not_graded("the grader failed on a part of it; no score is given before all of it is graded.")
        | {"tests": results["tests"]}
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the results.json that the command line asks for; ``arguments`` replace those of the process."""
    parser = argparse.ArgumentParser(description="Grade one submission in a container of Gradescope.")
    for name in ("submission", "course", "seed-file", "results"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--module", required=True)
    asked = parser.parse_args(arguments)
    try:
        secret = asked.seed_file.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        print(f"The seed cannot be read: {error}")
        results = not_graded("the grader has no seed.")
    else:
        results = grade_one(asked.submission, asked.course, asked.module, secret)
    write_atomically(asked.results, as_json(results))


if __name__ == "__main__":
    main()
