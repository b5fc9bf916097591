"""What must hold of a module before students see it, each as a named proof with what is wrong."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from labkit.course.build import BuiltFile, built
from labkit.course.cases import PublicModule, PublicTask, draw_cases, public_cases, read_public, result_of
from labkit.course.checking import checked
from labkit.course.definitions import definitions_of, reachable
from labkit.course.feedback import Feedback
from labkit.course.judges.base import Difference
from labkit.course.judges.values import Close
from labkit.course.loading import load_module, module_of_text
from labkit.course.source import answered, task_signatures
from labkit.course.tasks import Module, Task
from labkit.course.verify.execution import Execution
from labkit.course.verify.leaks import leaks_in_notebook
from labkit.course.verify.mutation import MARK_SEED, Mutation

__all__ = ["Proof", "of_execution", "of_mutation", "static_proofs"]


@dataclass(frozen=True)
class Proof:
    """One thing that was looked at. ``faults`` says what is wrong, a line each; ``note`` what is worth knowing."""

    name: str
    faults: tuple[str, ...] = ()
    note: str = ""

    @property
    def holds(self) -> bool:
        """Whether nothing is wrong."""
        return not self.faults


def static_proofs(course: Path, name: str) -> Iterator[Proof]:
    """Everything that can be proved of the module ``name`` of ``course`` without running its notebook or its mutants."""
    module = load_module(course, name)
    text = (course / "solutions" / f"{module.stem}.py").read_text("utf-8")
    files = built(course, name)
    yield Proof("form", tuple(_form(module)))
    yield Proof("built", tuple(_built(module, files, text)))
    yield Proof("notebook", tuple(_notebook(module, files)))
    public = public_cases(module, task_signatures(answered(text)))
    yield Proof("blanks", tuple(_blanks(module, public, files)))
    solved = _defined([answered(text)], module, f"{name}_answered")
    yield Proof("solutions", tuple(_solutions(module, public, solved)))
    yield Proof("mistakes", tuple(_mistakes(module, public)))
    leaks = leaks_in_notebook(course, module.stem)
    yield Proof("no leaks", tuple(f"a line of an answer stands in the notebook: {line}" for line in leaks))
    yield Proof("library", tuple(_names(module)))


_WIDEST = 104
"""Columns of code that JupyterLab shows beside its file browser on a small screen."""


def _form(module: Module) -> Iterator[str]:
    tasks = [task for task in module.tasks if not task.is_bonus]
    if not 5 <= len(tasks) <= 9:
        yield f"5 to 9 tasks are wanted, got {len(tasks)}"
    if len(tasks) == len(module.tasks):
        yield "a challenge is missing"
    if len(module.questions) < 2:
        yield f"at least 2 open questions are wanted, got {len(module.questions)}"
    if not 35 <= module.points <= 60:
        yield f"35 to 60 points are wanted, got {module.points}"
    if not 60 <= module.minutes <= 120:
        yield f"60 to 120 minutes are wanted, got {module.minutes}"
    spent = sum(item.minutes for item in module.items if not item.name.split(".")[1].startswith("c"))
    if spent > module.minutes:
        yield f"its tasks and questions take {spent} minutes, more than the module's {module.minutes}"


def _built(module: Module, files: list[BuiltFile], text: str) -> Iterator[str]:
    for made in files:
        if made.path.suffix == ".ipynb" and not made.is_there:
            yield f"{made.path.name} is not what its source gives: run `labkit course build {module.name}`"
        elif made.path.suffix == ".json":
            yield from _cases_differ(made, module)


def _cases_differ(made: BuiltFile, module: Module) -> Iterator[str]:
    """Inputs and words must be the very same; a value may differ in its last digits on another processor."""
    again = f"run `labkit course build {module.name}`"
    if not made.path.exists():
        yield f"{made.path.name} is missing: {again}"
        return
    there, fresh = json.loads(made.path.read_text("utf-8")), json.loads(made.text)
    if _without_values(there) != _without_values(fresh):
        yield f"{made.path.name} is not what exercises/ gives: {again}"
        return
    committed = read_public(module.name, made.path.parent)
    for task, judged in zip(committed.tasks, module.tasks, strict=True):
        for old, new in zip(task.cases, draw_cases(judged, 0, public=True, mistakes=False), strict=True):
            if task.judge.compare(new.expected, old.expected, old.inputs) is not None:
                yield f"{made.path.name}, {task.name}: an expected value is another one by now: {again}"


def _without_values(data: object) -> object:
    if isinstance(data, dict):
        return {k: _without_values(v) for k, v in data.items() if k not in ("expected", "mistakes")}
    return [_without_values(item) for item in data] if isinstance(data, list) else data


def _notebook(module: Module, files: list[BuiltFile]) -> Iterator[str]:
    (text,) = [made.text for made in files if made.path.suffix == ".ipynb"]
    cells = json.loads(text)["cells"]
    ids = [cell["id"] for cell in cells]
    if len(set(ids)) < len(ids):
        yield "two cells have one id"
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    for line in code.split("\n"):
        if len(line) > _WIDEST:
            yield f"a line of code has {len(line)} columns, and a screen shows {_WIDEST}: {line.strip()[:60]}..."
    checks = re.findall(r'^check\("(m\d\d\.\w+)"\)', code, re.M)
    for item in module.items:
        if checks.count(item.name) != 1:
            yield f"{item.name} is checked {checks.count(item.name)} times; once is wanted"
        if item.name.replace(".", "-") not in ids:
            yield f"{item.name} has no cell of its own"
    if unknown := set(checks) - {item.name for item in module.items}:
        yield f"checks of tasks that do not exist: {', '.join(sorted(unknown))}"


def _defined(cells: list[str], module: Module, name: str) -> ModuleType:
    """What ``cells`` define for the tasks of ``module``, and the answers to its questions."""
    definitions = definitions_of(cells)
    made = module_of_text(reachable(definitions.source, [task.function for task in module.tasks]), name)
    vars(made).update(definitions.strings)
    return made


def _blanks(module: Module, public: PublicModule, files: list[BuiltFile]) -> Iterator[str]:
    (text,) = [made.text for made in files if made.path.suffix == ".ipynb"]
    cells = ["".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    blank = _defined(cells, module, f"{public.name}_blank")
    for item in public.items:
        found = checked(public, item.name, vars(blank))
        assert isinstance(found, Feedback)
        if found.status != "not attempted":
            yield f"{item.name}: the blank is reported as {found.status!r}, not as 'not attempted'"


def _solutions(module: Module, public: PublicModule, solved: ModuleType) -> Iterator[str]:
    for task, shown in zip(module.tasks, public.tasks, strict=True):
        found = checked(public, task.name, vars(solved))
        assert isinstance(found, Feedback)
        if not found.passed:
            yield f"{task.name}: the solution does not pass its public cases: {found}"
        if found.notes:
            yield f"{task.name}: {found.notes[0]}"
        for seed in (MARK_SEED, MARK_SEED + 1):
            for number, case in enumerate(draw_cases(task, seed, mistakes=False)):
                try:
                    value = result_of(getattr(solved, task.function), case.inputs)
                except Exception as error:
                    yield f"{task.name}: the solution raises, seed {seed}, case {number} ({case.kind}): {error!r}"
                    break
                if wrong := shown.judge.compare(value, case.expected, case.inputs):
                    yield f"{task.name}: solution and oracle differ, seed {seed}, case {number} ({case.kind}): {_said(wrong)}"
                    break


def _mistakes(module: Module, public: PublicModule) -> Iterator[str]:
    for task, shown in zip(module.tasks, public.tasks, strict=True):
        for mistake in task.mistakes:
            found = checked(public, task.name, {task.function: mistake.function})
            assert isinstance(found, Feedback)
            if found.passed:
                yield f"{task.name}: the mistake {mistake.name!r} passes the public cases"
            elif found.status != "wrong":
                yield f"{task.name}: the mistake {mistake.name!r} is reported as {found.status!r}: {found.failure}"
            elif found.hint != mistake.hint:
                yield f"{task.name}: the mistake {mistake.name!r} gets the hint {found.hint!r} in place of its own"
            if _full_marks(task, shown, mistake.function):
                yield f"{task.name}: the mistake {mistake.name!r} gets full marks"


def _full_marks(task: Task, shown: PublicTask, function: Callable[..., object]) -> bool:
    for case in draw_cases(task, MARK_SEED, mistakes=False):
        try:
            value = result_of(function, case.inputs)
        except Exception:
            return False
        if shown.judge.compare(value, case.expected, case.inputs) is not None:
            return False
    return True


def _names(module: Module) -> Iterator[str]:
    for task in module.tasks:
        for dotted in (*task.given, *([task.library] if task.library else [])):
            home, _, name = dotted.rpartition(".")
            try:
                found = hasattr(importlib.import_module(home), name)
            except ImportError:
                found = False
            if not found:
                yield f"{task.name}: labkit has no {dotted}"
        if isinstance(task.judge, Close) and task.judge.rtol > 0.05:
            yield f"{task.name}: a tolerance of {task.judge.rtol:g} lets almost anything pass"


def _said(difference: Difference) -> str:
    return f"{difference.message} At {difference.place or 'the value'}: {difference.expected}, {difference.got}."


def of_mutation(mutation: Mutation) -> Proof:
    """Whether the cases caught at least 95 of 100 mutants of ``mutation``, and every survivor is listed with a reason."""
    faults = []
    for task in mutation.tasks:
        faults += [f"{task.task}, line {m.line}: survived: {m.before}  ->  {m.after}" for m in task.survivors]
        faults += [
            f"{task.task}: listed as equivalent, but caught or gone: {e.before}  ->  {e.after}" for e in task.stale
        ]
    if mutation.score < 95:
        faults.append(f"{mutation.score:.1f} % of {mutation.mutants} mutants were caught; 95 % are wanted")
    if mutation.equivalent > 0.05 * mutation.mutants:
        faults.append(f"{mutation.equivalent} of {mutation.mutants} mutants are held to be equivalent, more than 5 %")
    note = f"{mutation.caught} of {mutation.mutants} caught, {mutation.equivalent} equivalent"
    return Proof("mutants", tuple(faults), note)


def of_execution(run: Execution, module: Module | None, limit: float | None = None) -> Proof:
    """Whether a notebook with answers ran to its end, said nothing on stderr, and passed every check within ``limit`` seconds.

    The seconds are of the processor, so that a busy machine fails nothing.

    ``run`` is the run, ``module`` what its checks are held against.
    """
    faults = [f"it stopped: {run.error[-1500:]}"] if run.error else []
    if run.warned:
        faults.append(f"it said on stderr: {run.warned[:300]}")
    faults += [f"a check did not pass: {line}" for line in run.checks if line[0] not in "✓●"]
    if module is not None and len(run.checks) != len(module.items) and not run.error:
        faults.append(f"{len(run.checks)} checks showed a result; {len(module.items)} are wanted")
    if limit is not None and run.processor > limit:
        faults.append(f"it took {run.processor:.1f} s of processor time; {limit:g} are allowed")
    return Proof(
        "runs", tuple(faults), f"{run.seconds:.1f} s ({run.processor:.1f} s of processor time), {run.figures} figures"
    )
