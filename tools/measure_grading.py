"""Measure `labkit grade` on a class of three hundred: time, memory, the same table after a kill and at another number of jobs.

    python tools/measure_grading.py --module m02 --out FOLDER

240 honest notebooks (a third right, the others with one answer changed in a small way), 30 blank, 15 damaged, and 15 in
which every answer is a loop that never ends. Exit 1 where a figure misses its target.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from labkit.course.build import answered_notebook, built
from labkit.course.loading import find_course, load_module
from labkit.course.source import solution_ranges
from labkit.course.verify.mutants import mutants

__all__ = ["main", "write_class"]

_HONEST, _BLANK, _BROKEN, _LOOPS = 240, 30, 15, 15


def write_class(course: Path, name: str, folder: Path, seed: int = 0) -> None:
    """Write 300 submissions for the module ``name`` of ``course`` into ``folder``, the same ones for the same ``seed``."""
    rng = np.random.default_rng(seed)
    module = load_module(course, name)
    text = (course / "solutions" / f"{module.stem}.py").read_text("utf-8")
    ranges = solution_ranges(text)
    right = answered_notebook(course, module.stem)
    changed = [m.source for task in module.tasks for m in mutants(text, task.function, ranges[task.function])]
    loops = "\n\n".join(f"def {t.function}(*args, **kwargs):\n    while True:\n        pass" for t in module.tasks)
    (blank,) = [made.text for made in built(course, name) if made.path.suffix == ".ipynb"]
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(_HONEST):
        extra = [] if number % 3 == 0 else [changed[int(rng.integers(len(changed)))]]
        (folder / f"honest{number:03d}.ipynb").write_text(_with_cells(right, extra))
    for number in range(_BLANK):
        (folder / f"blank{number:02d}.ipynb").write_text(blank)
    for number in range(_BROKEN):
        (folder / f"broken{number:02d}.ipynb").write_text(right[: int(rng.integers(10, len(right) - 10))])
    for number in range(_LOOPS):
        (folder / f"loops{number:02d}.ipynb").write_text(_with_cells(right, [loops]))


def _with_cells(notebook: str, sources: list[str]) -> str:
    data: dict[str, Any] = json.loads(notebook)
    for source in sources:
        data["cells"].append({"cell_type": "code", "source": source, "metadata": {}, "outputs": []})
    return json.dumps(data)


def _graded(folder: Path, name: str, out: Path, jobs: int, stop_at: int | None = None) -> tuple[float, int]:
    """Grade ``folder``; the seconds it took, and the largest memory of any of its processes in bytes.

    With ``stop_at`` it is killed when so many verdicts are there.
    """
    command = [
        sys.executable,
        "-m",
        "labkit.cli",
        "grade",
        str(folder),
        "--module",
        name,
        "--out",
        str(out),
        "--jobs",
        str(jobs),
    ]
    begun = time.perf_counter()
    run = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    peak = 0
    while run.poll() is None:
        peak = max(peak, _memory_of_tree(run.pid))
        if stop_at is not None and len(list(out.glob("*/verdict.json"))) >= stop_at:
            os.kill(run.pid, signal.SIGKILL)
            run.wait()
            break
        time.sleep(0.1)
    if stop_at is None and run.returncode != 0:
        raise SystemExit(f"labkit grade ended with {run.returncode}")
    return time.perf_counter() - begun, peak


def _memory_of_tree(pid: int) -> int:
    """The proportional memory of ``pid`` and all its children, in bytes; pages that they share count once."""
    parents: dict[int, int] = {}
    for place in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = place.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(place.parent.name)] = int(fields[1])
    tree = {pid}
    while more := {child for child, parent in parents.items() if parent in tree} - tree:
        tree |= more
    total = 0
    for member in tree:
        try:
            rollup = Path(f"/proc/{member}/smaps_rollup").read_text()
        except OSError:
            continue
        total += next((int(line.split()[1]) * 1024 for line in rollup.splitlines() if line.startswith("Pss:")), 0)
    return total


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and say whether every target is met: 0 where it is."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--module", default="m02")
    parser.add_argument("--out", type=Path, required=True, help="a folder that is not there yet")
    options = parser.parse_args(arguments)
    course = find_course()
    folder = options.out / "submissions"
    write_class(course, options.module, folder)
    outs = {jobs: options.out / f"jobs{jobs}" for jobs in (2, 1)}
    killed = options.out / "killed"
    for out in (*outs.values(), killed):
        out.mkdir()
        (out / "seed.txt").write_text("the seed of a measurement\n")
    seconds, peak = _graded(folder, options.module, outs[2], 2)
    _graded(folder, options.module, killed, 2, stop_at=150)
    _graded(folder, options.module, killed, 2)
    slow, _ = _graded(folder, options.module, outs[1], 1)
    tables = [(out / "grades.csv").read_bytes() for out in (outs[2], killed, outs[1])]
    honest = _seconds_of_one(folder, options)
    checks = {
        f"300 submissions, 2 jobs: {seconds:.0f} s (300 at most)": seconds <= 300,
        f"memory of all processes at most: {peak / 1e9:.2f} GB (1 at most)": peak < 1e9,
        "killed half-way and gone on: the same table": tables[0] == tables[1],
        f"1 job ({slow:.0f} s): the same table": tables[0] == tables[2],
        f"one honest submission: {honest:.2f} s (1.0 at most)": honest <= 1.0,
    }
    for said, good in checks.items():
        print("ok  " if good else "MISS", said)
    print(f"processor time of all children: {resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime:.0f} s")
    return 0 if all(checks.values()) else 1


def _seconds_of_one(folder: Path, options: argparse.Namespace) -> float:
    """The seconds for one honest submission, from twenty of them graded one after another, without the start of the command."""
    few, times = options.out / "few", []
    for count in (1, 21):
        place = few / str(count)
        place.mkdir(parents=True)
        for path in sorted(folder.glob("honest*.ipynb"))[:count]:
            (place / path.name).write_bytes(path.read_bytes())
        times.append(_graded(place, options.module, few / f"out{count}", 1)[0])
    return (times[1] - times[0]) / 20


if __name__ == "__main__":
    sys.exit(main())
