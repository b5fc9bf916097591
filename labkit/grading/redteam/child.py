"""The grader as the red team runs it: a program of its own, so that what takes it down takes nothing else with it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

__all__ = ["main"]


def main(submissions: str, course: str, out: str, jobs: int, patience: float) -> None:
    """Grade a folder, and say on the last line how submissions were shut in.

    Parameters
    ----------
    submissions, course, out : folders
    jobs : submissions at a time
    patience : seconds of the wall clock for one case, 0 for the usual
    """
    from labkit.grading.redteam.target import MODULE
    from labkit.grading.run import grade_folder

    graded = grade_folder(Path(submissions), Path(course), MODULE, Path(out), jobs=jobs, patience=patience or None)
    print(json.dumps({"isolation": graded.level.says}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), float(sys.argv[5]))
