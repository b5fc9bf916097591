"""Measure `labkit grade` on a class of three hundred: time, memory, the same table after a kill and at another number of jobs.

    python tools/measure_grading.py --module m02 --out FOLDER

Of ten submissions eight are honest (a third of them right, the others with one answer changed in a small way) and one is blank;
of twenty, one is damaged, and one is hostile: each of its answers is a loop that never ends. Processor time is that of all
processes that are started, user and system, as the kernel counts it when they end. Memory is looked at once a second: each page
once, however many processes share it. Run it as root, or the workers' memory cannot be read. Exit 1 where a figure misses its
target.
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
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from labkit.course.build import answered_notebook, built
from labkit.course.loading import find_course, load_module
from labkit.course.source import solution_ranges
from labkit.course.verify.mutants import mutants
from labkit.grading.watching import descendants_of

__all__ = ["main", "write_class"]

_CLASS = 300
_LOOK, _TICK = 1.0, 0.05
_ONE, _MANY = 1, 21


@dataclass(frozen=True)
class Run:
    """What one run of the command took: seconds of the wall clock and of processors, and bytes at its peak."""

    wall: float
    processors: float
    memory: int


def write_class(course: Path, name: str, folder: Path, count: int = _CLASS, seed: int = 0) -> None:
    """Write ``count`` submissions for the module ``name`` of ``course`` into ``folder``, the same ones for the same ``seed``."""
    blank_count, broken_count, loops_count = count // 10, count // 20, count // 20
    rng = np.random.default_rng(seed)
    module = load_module(course, name)
    text = (course / "solutions" / f"{module.stem}.py").read_text("utf-8")
    ranges = solution_ranges(text)
    right = answered_notebook(course, module.stem)
    changed = [m.source for task in module.tasks for m in mutants(text, task.function, ranges[task.function])]
    loops = "\n\n".join(f"def {t.function}(*args, **kwargs):\n    while True:\n        pass" for t in module.tasks)
    (blank,) = [made.text for made in built(course, name) if made.path.suffix == ".ipynb"]
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count - blank_count - broken_count - loops_count):
        extra = [] if number % 3 == 0 else [changed[int(rng.integers(len(changed)))]]
        (folder / f"honest{number:03d}.ipynb").write_text(_with_cells(right, extra))
    for number in range(blank_count):
        (folder / f"blank{number:02d}.ipynb").write_text(blank)
    for number in range(broken_count):
        (folder / f"broken{number:02d}.ipynb").write_text(right[: int(rng.integers(10, len(right) - 10))])
    for number in range(loops_count):
        (folder / f"loops{number:02d}.ipynb").write_text(_with_cells(right, [loops]))


def _with_cells(notebook: str, sources: list[str]) -> str:
    data: dict[str, Any] = json.loads(notebook)
    for source in sources:
        data["cells"].append({"cell_type": "code", "source": source, "metadata": {}, "outputs": []})
    return json.dumps(data)


def _graded(folder: Path, name: str, out: Path, jobs: int, stop_at: int | None = None) -> Run:
    """Grade ``folder``; with ``stop_at`` the command is killed when so many verdicts are there."""
    command = [sys.executable, "-m", "labkit.cli", "grade", str(folder), "--module", name, "--out", str(out)]
    begun, used = time.perf_counter(), _processor_seconds()
    run = subprocess.Popen([*command, "--jobs", str(jobs)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    peak, looked = 0, begun
    while run.poll() is None:
        if time.perf_counter() - looked > _LOOK:
            peak, looked = max(peak, _memory_of_tree(run.pid)), time.perf_counter()
        if stop_at is not None and sum((one / "verdict.json").exists() for one in out.iterdir()) >= stop_at:
            os.kill(run.pid, signal.SIGKILL)
            run.wait()
            break
        time.sleep(_TICK)
    if stop_at is None and run.returncode != 0:
        raise SystemExit(f"labkit grade ended with {run.returncode}")
    return Run(time.perf_counter() - begun, _processor_seconds() - used, peak)


def _processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _memory_of_tree(pid: int) -> int:
    """The proportional memory of ``pid`` and all below it, in bytes; pages that they share count once."""
    total = 0
    for member in (pid, *descendants_of(pid)):
        with suppress(OSError), open(f"/proc/{member}/smaps_rollup") as file:
            total += next((int(line.split()[1]) * 1024 for line in file if line.startswith("Pss:")), 0)
    return total


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and say whether every target is met: 0 where it is."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--module", default="m02")
    parser.add_argument("--out", type=Path, required=True, help="a folder that is not there yet")
    parser.add_argument("--count", type=int, default=_CLASS, help="submissions, for a quick look at fewer")
    options = parser.parse_args(arguments)
    course = find_course()
    folder = options.out / "submissions"
    write_class(course, options.module, folder, options.count)
    outs = {jobs: options.out / f"jobs{jobs}" for jobs in (2, 1)}
    killed = options.out / "killed"
    for out in (*outs.values(), killed):
        out.mkdir()
        (out / "seed.txt").write_text("the seed of a measurement\n")
    two = _graded(folder, options.module, outs[2], 2)
    _graded(folder, options.module, killed, 2, stop_at=options.count // 2)
    _graded(folder, options.module, killed, 2)
    one = _graded(folder, options.module, outs[1], 1)
    tables = [(out / "grades.csv").read_bytes() for out in (outs[2], killed, outs[1])]
    honest = _for_one_honest(folder, options)
    checks = {
        f"{options.count} submissions, 2 jobs: {two.wall:.0f} s ({options.count} at most)": two.wall <= options.count,
        f"memory of all processes at most: {two.memory / 1e9:.2f} GB (1 at most)": 0 < two.memory < 1e9,
        "killed half-way and gone on: the same table": tables[0] == tables[1],
        f"1 job ({one.wall:.0f} s): the same table": tables[0] == tables[2],
        f"one honest submission: {honest.wall:.2f} s (1.0 at most)": honest.wall <= 1.0,
    }
    for said, good in checks.items():
        print("ok  " if good else "MISS", said)
    print(f"processor time: {two.processors:.0f} s for {options.count}, {honest.processors:.2f} s for an honest one")
    return 0 if all(checks.values()) else 1


def _for_one_honest(folder: Path, options: argparse.Namespace) -> Run:
    """What one honest submission takes when they are graded one after another, without the start of the command."""
    few, runs = options.out / "few", []
    for count in (_ONE, _MANY):
        place = few / str(count)
        place.mkdir(parents=True)
        for path in sorted(folder.glob("honest*.ipynb"))[:count]:
            (place / path.name).write_bytes(path.read_bytes())
        runs.append(_graded(place, options.module, few / f"out{count}", 1))
    more = _MANY - _ONE
    first, last = runs
    return Run((last.wall - first.wall) / more, (last.processors - first.processors) / more, last.memory)


if __name__ == "__main__":
    sys.exit(main())
