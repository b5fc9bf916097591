"""Runs the mutants of a module against the cases of its tasks, in a process of its own that may hang or run out of memory."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from labkit.course.cases import Case, draw_cases, result_of
from labkit.course.definitions import definitions_of, reachable
from labkit.course.loading import load_module, module_of_text
from labkit.course.source import answered, solution_ranges
from labkit.course.tasks import Equivalent, Task
from labkit.course.verify.mutants import Mutant, mutants

__all__ = ["MARK_SEED", "Mutation", "TaskMutation", "mutation_of"]

MARK_SEED = 1
"""The seed of the cases that stand for those of a real grading run; students see another seed's."""

_PATIENCE = 40.0  # seconds of the wall clock without an answer, after which a mutant hangs in compiled code
_PROCESSOR_SECONDS = 4.0  # for one mutant; a solution takes milliseconds
_MEMORY = 4 << 30  # bytes beyond what the libraries map


@dataclass(frozen=True)
class TaskMutation:
    """What became of the mutants of one task.

    ``survivors`` were caught by no case and are not listed; ``equivalent`` are those listed and not caught; ``stale`` are listed
    ones that were caught or do not occur, and so have no place on the list.
    """

    task: str
    mutants: int
    survivors: tuple[Mutant, ...]
    equivalent: tuple[Mutant, ...]
    stale: tuple[Equivalent, ...]

    @property
    def caught(self) -> int:
        """How many mutants failed at least one case."""
        return self.mutants - len(self.survivors) - len(self.equivalent)


@dataclass(frozen=True)
class Mutation:
    """The mutants of one module, task by task."""

    module: str
    tasks: tuple[TaskMutation, ...]

    @property
    def mutants(self) -> int:
        """All of them."""
        return sum(task.mutants for task in self.tasks)

    @property
    def caught(self) -> int:
        """Those that failed at least one case."""
        return sum(task.caught for task in self.tasks)

    @property
    def equivalent(self) -> int:
        """Those held to be no mistakes, by hand and with a reason."""
        return sum(len(task.equivalent) for task in self.tasks)

    @property
    def score(self) -> float:
        """The share of all mutants that was caught, in per cent."""
        return 100.0 * self.caught / max(1, self.mutants)


def mutation_of(course: Path, name: str, tell: Callable[[int, int], None] = lambda done, total: None) -> Mutation:
    """The mutants of the module ``name`` of ``course``; ``tell(done, total)`` is called as they are tried."""
    module = load_module(course, name)
    text = (course / "solutions" / f"{module.stem}.py").read_text("utf-8")
    ranges = solution_ranges(text)
    jobs = [
        (task.name, mutant) for task in module.tasks for mutant in mutants(text, task.function, ranges[task.function])
    ]
    survived: dict[str, list[Mutant]] = {task.name: [] for task in module.tasks}
    for done, ((task_name, mutant), caught) in enumerate(_run(course, name, jobs), 1):
        if not caught:
            survived[task_name].append(mutant)
        tell(done, len(jobs))
    counts = {task.name: sum(job[0] == task.name for job in jobs) for task in module.tasks}
    return Mutation(name, tuple(_sorted_out(task, counts[task.name], survived[task.name]) for task in module.tasks))


def _sorted_out(task: Task, count: int, survived: list[Mutant]) -> TaskMutation:
    listed = {(item.before, item.after): item for item in task.equivalent}
    equivalent = tuple(m for m in survived if (m.before, m.after) in listed)
    survivors = tuple(m for m in survived if (m.before, m.after) not in listed)
    used = {(m.before, m.after) for m in equivalent}
    stale = tuple(item for key, item in listed.items() if key not in used)
    return TaskMutation(task.name, count, survivors, equivalent, stale)


_Job = tuple[str, Mutant]


def _run(course: Path, name: str, jobs: list[_Job]) -> Iterator[tuple[_Job, bool]]:
    """Each job with whether it was caught; a worker that hangs or dies is replaced, and its mutant was caught by that."""
    context = multiprocessing.get_context("spawn")
    place = 0
    while place < len(jobs):
        ours, theirs = context.Pipe()
        worker = context.Process(target=_work, args=(theirs, str(course), name, jobs[place:]), daemon=True)
        worker.start()
        theirs.close()
        try:
            patience = 6 * _PATIENCE  # the first answer waits for the libraries to load
            while place < len(jobs):
                answer = ours.recv() if ours.poll(patience) else None
                if isinstance(answer, str):
                    raise AssertionError(answer)  # a fault of the course, not of a mutant
                yield jobs[place], True if answer is None else bool(answer)
                place += 1
                patience = _PATIENCE
                if answer is None:
                    break
        except EOFError:  # the worker died, as by running out of memory
            yield jobs[place], True
            place += 1
        finally:
            worker.kill()
            worker.join()
            ours.close()


class _TooLong(BaseException):
    """The processor time of one mutant is over."""


def _work(pipe: Connection, course: str, name: str, jobs: list[_Job]) -> None:
    """In the worker: answer for each mutant whether a case catches it."""
    warnings.simplefilter("ignore")
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    folder = Path(course)
    module = load_module(folder, name)
    text = answered((folder / "solutions" / f"{module.stem}.py").read_text("utf-8"))
    definitions = reachable(definitions_of([text]).source, [task.function for task in module.tasks])
    tasks = {task.name: task for task in module.tasks}
    cases: dict[str, list[Case]] = {}
    _limit_memory()
    for task_name, mutant in jobs:
        task = tasks[task_name]
        if task_name not in cases:
            cases[task_name] = list(draw_cases(task, MARK_SEED, mistakes=False))
        pipe.send(_caught(task, cases[task_name], f"{definitions}\n\n{mutant.source}\n"))


def _caught(task: Task, cases: list[Case], source: str) -> bool:
    def stop(number: int, frame: Any) -> None:
        raise _TooLong

    has_timer = hasattr(signal, "setitimer") and hasattr(signal, "SIGVTALRM")
    if has_timer:
        signal.signal(signal.SIGVTALRM, stop)
        signal.setitimer(signal.ITIMER_VIRTUAL, _PROCESSOR_SECONDS)
    try:
        function = getattr(module_of_text(source, "mutant"), task.function)
        return any(
            task.judge.compare(result_of(function, case.inputs), case.expected, case.inputs) is not None
            for case in cases
        )
    except (Exception, _TooLong, SystemExit, RecursionError):
        return True
    finally:
        if has_timer:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def _limit_memory() -> None:
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + _MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
