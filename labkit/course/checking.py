"""``check("m02.q1")``: the public cases of a task, run on a student's function where the student works."""

from __future__ import annotations

import builtins
import linecache
import sys
import sysconfig
import time
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from labkit.course.cases import Case, PublicModule, PublicQuestion, PublicTask, read_public, result_of
from labkit.course.definitions import reachable, read_definitions
from labkit.course.feedback import CaseReport, Feedback, ModuleFeedback
from labkit.course.judges.values import shortened
from labkit.course.loading import module_of_text
from labkit.course.source import BLANK_ANSWER
from labkit.errors import InputError

__all__ = ["check", "checked"]

_LIBRARY = str(Path(__file__).resolve().parents[1])
_FOREIGN = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib"))


def check(name: str, answer: Any = None) -> Feedback | ModuleFeedback:
    """Try a function on the public cases of a task; the result shows itself.

    Parameters
    ----------
    name : a task such as ``"m02.q1"``, or ``"m02"`` for every task of a module
    answer : the function, or a module, dict or file (``.ipynb``, ``.py``) that defines it; where it is left out, the caller's
        own names

    Raises
    ------
    InputError
        There is no such task, or the file cannot be read.
    """
    if answer is None:
        namespace: Mapping[str, Any] = sys._getframe(1).f_globals
    elif isinstance(answer, str | Path):
        namespace = _names_of(Path(answer), _public(name))
    elif isinstance(answer, types.ModuleType):
        namespace = vars(answer)
    elif isinstance(answer, Mapping):
        namespace = answer
    else:
        for task in _public(name).tasks:
            if task.name == name:
                return _of_function(task, answer)
        raise InputError(f"{name} is no task for a function. Name one task, such as {_public(name).tasks[0].name}.")
    return checked(_public(name), name, namespace)


def _public(name: str) -> PublicModule:
    module = str(name).split(".")[0]
    beside = Path.cwd() / "labkit-cases"  # what an instructor's own release puts beside the notebooks
    return read_public(module, beside if any(beside.glob(f"{module}_*.json")) else None)


def _names_of(path: Path, module: PublicModule) -> Mapping[str, Any]:
    """What the file ``path`` defines for the tasks of ``module``; of the rest nothing is run."""
    definitions = read_definitions(path)
    source = reachable(definitions.source, [task.function for task in module.tasks])
    try:
        return definitions.strings | vars(module_of_text(source, path.stem))
    except Exception as error:
        raise InputError(
            f"{path}: its definitions cannot be run ({type(error).__name__}: {error}). "
            "Run the notebook from top to bottom, see where it stops, and mend that first."
        ) from error


def _item(module: PublicModule, name: str) -> PublicTask | PublicQuestion:
    for item in module.items:
        if item.name == name:
            return item
    known = ", ".join(item.name for item in module.items)
    raise InputError(f"There is no task {name!r}; {module.name} has {known}.")


def checked(module: PublicModule, name: str, namespace: Mapping[str, Any]) -> Feedback | ModuleFeedback:
    """The feedback on task ``name`` of ``module`` (all of it for the module's own ``name``) for the names in ``namespace``.

    Raises
    ------
    InputError
        There is no such task.
    """
    if name == module.name:
        items = module.items
        return ModuleFeedback(module.name, module.title, tuple(_of_item(item, namespace) for item in items))
    return _of_item(_item(module, name), namespace)


def _of_item(item: PublicTask | PublicQuestion, namespace: Mapping[str, Any]) -> Feedback:
    if isinstance(item, PublicQuestion):
        return _of_answer(item, namespace.get(item.variable))
    return _of_function(item, namespace.get(item.function))


def _of_answer(question: PublicQuestion, answer: Any) -> Feedback:
    text = answer.strip() if isinstance(answer, str) else ""
    if not text or text == BLANK_ANSWER:
        return Feedback(question.name, question.title, "not attempted", question.points, False)
    words = len(text.split())
    note = f"{words} word{'s' if words != 1 else ''} in {question.variable}; a person will read them"
    return Feedback(question.name, question.title, "for a person", question.points, False, notes=(note,))


def _of_function(task: PublicTask, function: Any) -> Feedback:
    hidden = tuple((name, task.kinds[name]) for name in task.hidden)
    base = Feedback(task.name, task.title, "not attempted", task.points, ".c" in task.name, hidden=hidden)
    if function is None:
        return _with(base, notes=(f"There is no function {task.signature} here. Run the cell that defines it.",))
    if not callable(function):
        return _with(
            base,
            status="wrong",
            notes=(f"{task.function} is a {type(function).__name__}; a function {task.signature} is wanted.",),
        )
    outcomes: list[tuple[Case, Any, CaseReport | None]] = []
    slowest = 0.0
    for case in task.cases:
        begun = time.process_time()
        value, failure = _tried(task, case, function)
        slowest = max(slowest, time.process_time() - begun)
        if failure is not None and failure.message == _NOT_ATTEMPTED:
            return base
        outcomes.append((case, value, failure))
    failures = [failure for _, _, failure in outcomes if failure is not None]
    kinds = {case.kind: [0, 0] for case in task.cases}
    for case, _, failure in outcomes:
        kinds[case.kind][0] += failure is None
        kinds[case.kind][1] += 1
    notes = list(_foreign_names(task, function))
    if slowest > task.seconds:
        notes.append(f"A case took {slowest:.1f} s of processor time; the grader allows {task.seconds:g} s.")
    return _with(
        base,
        status="passed" if not failures else "error" if failures[0].line else "wrong",
        kinds=tuple((name, passed, cases) for name, (passed, cases) in kinds.items()),
        failure=failures[0] if failures else None,
        hint=_recognised(task, outcomes) if failures else "",
        notes=tuple(notes),
    )


_NOT_ATTEMPTED = "not attempted"


def _tried(task: PublicTask, case: Case, function: Callable[..., Any]) -> tuple[Any, CaseReport | None]:
    shown = tuple((name, shortened(value)) for name, value in case.inputs.items())

    def report(message: str, **more: str) -> CaseReport:
        return CaseReport(case.kind, task.kinds[case.kind], shown, message, **more)

    try:
        value = result_of(function, case.inputs)
    except NotImplementedError:
        return None, report(_NOT_ATTEMPTED)
    except InputError as error:  # a value of a type that no task wants
        return None, report(str(error))
    except Exception as error:
        wanted = f" The call was {task.signature}." if isinstance(error, TypeError) and _at_the_call(error) else ""
        return None, report(f"{type(error).__name__}: {error}{wanted}", line=_own_line(error) or task.signature)
    if value is None and case.expected is not None:
        return None, report(
            "Your function returned nothing. Is a return missing?", expected=shortened(case.expected), got="None"
        )
    found = task.judge.compare(value, case.expected, case.inputs)
    if found is None:
        return value, None
    return value, report(found.message, place=found.place, expected=found.expected, got=found.got)


def _recognised(task: PublicTask, outcomes: list[tuple[Case, Any, CaseReport | None]]) -> str:
    """The hint of the first known mistake that returns what this function returned, wherever the mistake shows at all."""
    for name, hint in task.hints.items():
        matches = [
            task.judge.same(value, case.mistakes[name]) if name in case.mistakes else failure is None
            for case, value, failure in outcomes
            if value is not None or failure is None or name in case.mistakes
        ]
        if matches and all(matches) and any(name in case.mistakes for case, _, _ in outcomes):
            return hint
    return ""


def _own_line(error: BaseException) -> str:
    """Where in the student's own text ``error`` arose: the innermost line that is neither labkit's nor a library's."""
    found = ""
    trace = error.__traceback__
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if not file.startswith((_LIBRARY, *_FOREIGN, "<frozen", "<__array_function__")):
            line = linecache.getline(file, trace.tb_lineno).strip()
            found = f"line {trace.tb_lineno} of {trace.tb_frame.f_code.co_name}: {line}" if line else found
        trace = trace.tb_next
    return found


def _at_the_call(error: BaseException) -> bool:
    return not _own_line(error)


def _foreign_names(task: PublicTask, function: Any) -> list[str]:
    """Notes on names of labkit that ``function`` uses, itself or through helpers, and that the grader does not give."""
    allowed = {name.rsplit(".", 1)[-1] for name in task.given}
    seen: set[int] = set()
    found: dict[str, None] = {}

    def look(code: types.CodeType, names: Mapping[str, Any]) -> None:
        if id(code) in seen:
            return
        seen.add(id(code))
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                look(constant, names)
        for name in code.co_names:
            value = names.get(name, getattr(builtins, name, None))
            home = value.__name__ if isinstance(value, types.ModuleType) else getattr(value, "__module__", "") or ""
            if str(home).split(".")[0] == "labkit":
                if getattr(value, "__name__", name) not in allowed:
                    found[f"{home}.{name}" if not isinstance(value, types.ModuleType) else str(home)] = None
            elif isinstance(value, types.FunctionType) and not value.__code__.co_filename.startswith(_FOREIGN):
                look(value.__code__, value.__globals__)

    if isinstance(function, types.FunctionType):
        look(function.__code__, function.__globals__)
    given = f"given are {', '.join(task.given)}" if task.given else "nothing of labkit is given"
    return [f"Your function uses {name}, which is not there when {task.name} is graded ({given})." for name in found]


def _with(base: Feedback, **changes: Any) -> Feedback:
    return Feedback(**(vars(base) | changes))
