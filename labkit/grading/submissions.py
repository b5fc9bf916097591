"""Finds the submissions in a folder: whose, which attempt counts, and the notebook's bytes. Nothing is unpacked to disk."""

from __future__ import annotations

import csv
import re
import stat
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from labkit.course.definitions import Definitions, definitions_of, read_cells_of
from labkit.errors import InputError

__all__ = ["Found", "Submission", "find_submissions", "read_roster", "read_submission", "student_of"]

_MOST_BYTES = 50 << 20  # of one notebook; an honest one with all its plots has a few million
_MOST_MEMBERS = 2000
_ENDINGS = (".ipynb", ".py")

# Canvas: name_LATE_12345_67890_file-2.ipynb; Moodle: "First Last_12345_assignsubmission_file_", a folder or a prefix.
_CANVAS = re.compile(r"^(?P<student>[^_]+?)_(?:LATE_)?\d+_\d+_.+?(?:-(?P<attempt>\d+))?$")
_MOODLE = re.compile(r"^(?P<student>.+?)_(?P<number>\d+)_assignsubmission_(?:file|onlinetext)(?:_.*)?$")
_UNSAFE = re.compile(r"[^\w.@+ -]+", re.UNICODE)


@dataclass(frozen=True)
class Submission:
    """One entry of the folder: whose, which attempt, and where. ``notes`` tell what was decided on the way."""

    student: str
    path: Path
    attempt: int = 1
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Found:
    """What a folder holds: the submissions by student, and students of the roster without one."""

    submissions: tuple[Submission, ...]
    missing: tuple[str, ...] = ()


def student_of(name: str) -> tuple[str, int]:
    """The student and the attempt that the ``name`` of a download says, with what no file name may hold replaced."""
    stem = name
    for ending in (*_ENDINGS, ".zip"):
        stem = stem.removesuffix(ending)
    match = _MOODLE.match(stem) or _CANVAS.match(stem)
    student = match["student"] if match else stem
    attempt = int(match.groupdict().get("attempt") or 0) + 1 if match else 1
    student = _UNSAFE.sub("_", student).strip(" .") or "nameless"
    return student[:100], attempt


def find_submissions(folder: str | Path, roster: Iterable[str] = ()) -> Found:
    """The submissions in ``folder``: one for each student, the newest attempt, and who of ``roster`` is missing.

    Raises
    ------
    InputError
        There is no such folder, or nothing in it.
    """
    place = Path(folder)
    if not place.is_dir():
        raise InputError(
            f"{place} is no folder. Name the folder that holds one notebook, zip or folder for each student."
        )
    by_student: dict[str, list[Submission]] = {}
    for path in sorted(place.iterdir()):
        if path.name.startswith(".") or path.is_symlink():
            continue
        if path.is_dir() or path.suffix in (*_ENDINGS, ".zip"):
            student, attempt = student_of(path.name)
            by_student.setdefault(student, []).append(Submission(student, path, attempt))
    if not by_student:
        raise InputError(f"{place} holds no submission: notebooks (.ipynb), scripts (.py), zips or folders are wanted.")
    chosen = []
    for student, attempts in sorted(by_student.items()):
        newest = max(attempts, key=lambda s: (s.attempt, s.path.lstat().st_mtime_ns, s.path.name))
        notes = () if len(attempts) == 1 else (f"{len(attempts)} attempts; the newest counts: {newest.path.name}",)
        chosen.append(Submission(student, newest.path, newest.attempt, notes))
    return Found(tuple(chosen), tuple(name for name in roster if name not in by_student))


def read_roster(path: str | Path) -> list[str]:
    """The students of a CSV file: its column ``student``, ``name``, ``Student`` or the first.

    Raises
    ------
    InputError
        It cannot be read.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = [row for row in csv.reader(file) if any(cell.strip() for cell in row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            f"Cannot read the roster {path}: {error}. A CSV file with a column named student is wanted."
        ) from error
    if not rows:
        raise InputError(f"The roster {path} is empty; a column named student is wanted.")
    head = [cell.strip().lower() for cell in rows[0]]
    named = next((head.index(name) for name in ("student", "name", "id") if name in head), None)
    column, first = (named, 1) if named is not None else (0, 0)
    names = [row[column].strip() for row in rows[first:] if len(row) > column and row[column].strip()]
    return [student_of(name)[0] for name in names]


def read_submission(submission: Submission, stem: str) -> tuple[Definitions, tuple[str, ...]]:
    """The definitions in ``submission``, and notes on how they were found; ``stem`` is the notebook's expected name.

    Raises
    ------
    InputError
        There is no notebook in it, more than one and none has the expected name, or it is damaged.
    """
    path = submission.path
    if path.is_dir():
        name, raw, notes = _of_folder(path, stem)
    elif path.suffix == ".zip":
        name, raw, notes = _of_zip(path, stem)
    else:
        name, raw, notes = path.name, _bytes_of(path), ()
    definitions = definitions_of(read_cells_of(raw, name))
    return definitions, (*submission.notes, *notes, *definitions.notes)


def _bytes_of(path: Path) -> bytes:
    state = path.lstat()
    if not stat.S_ISREG(state.st_mode):
        raise InputError(f"{path.name} is no regular file.")
    if state.st_size > _MOST_BYTES:
        raise InputError(f"{path.name} has {state.st_size:,} bytes; {_MOST_BYTES:,} at most are read.")
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path.name} cannot be read: {error.strerror}.") from error


def _of_folder(folder: Path, stem: str) -> tuple[str, bytes, tuple[str, ...]]:
    names = []
    for number, path in enumerate(sorted(folder.rglob("*"))):
        if number > _MOST_MEMBERS:
            raise InputError(f"{folder.name} holds more than {_MOST_MEMBERS} files.")
        inside = not any(part.startswith((".", "__")) for part in path.relative_to(folder).parts)
        if path.suffix in _ENDINGS and inside and not path.is_symlink() and path.is_file():
            names.append(path.relative_to(folder).as_posix())
    chosen, notes = _choose(names, stem, folder.name)
    return chosen, _bytes_of(folder / chosen), notes


def _of_zip(path: Path, stem: str) -> tuple[str, bytes, tuple[str, ...]]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if len(members) > _MOST_MEMBERS:
                raise InputError(f"{path.name} holds more than {_MOST_MEMBERS} files.")
            names = [
                m.filename
                for m in members
                if not m.is_dir() and m.filename.endswith(_ENDINGS) and _is_plain(m.filename)
            ]
            chosen, notes = _choose(names, stem, path.name)
            with archive.open(chosen) as member:
                raw = member.read(_MOST_BYTES + 1)  # what the archive says of a member's size need not be true
    except (zipfile.BadZipFile, OSError, RuntimeError, NotImplementedError, EOFError, ValueError, KeyError) as error:
        raise InputError(f"{path.name} is no readable zip: {error}.") from error
    if len(raw) > _MOST_BYTES:
        raise InputError(f"{path.name}: {chosen} unpacks to more than {_MOST_BYTES:,} bytes.")
    return chosen, raw, notes


def _is_plain(name: str) -> bool:
    parts = PurePosixPath(name.replace("\\", "/")).parts
    return not any(part == ".." or part.startswith((".", "__", "/")) for part in parts)


def _choose(names: list[str], stem: str, where: str) -> tuple[str, tuple[str, ...]]:
    if not names:
        raise InputError(f"{where} holds no notebook (.ipynb) and no script (.py).")
    module = stem.split("_")[0]
    for wanted in (
        [n for n in names if PurePosixPath(n).name == f"{stem}.ipynb"],
        [n for n in names if n.endswith(".ipynb") and module in PurePosixPath(n).name],
        [n for n in names if n.endswith(".ipynb")],
        [n for n in names if module in PurePosixPath(n).name],
        names,
    ):
        if len(wanted) == 1:
            return wanted[0], (() if len(names) == 1 else (f"of {len(names)} files, {wanted[0]} was read",))
        if wanted:
            break
    raise InputError(
        f"{where} holds several notebooks ({', '.join(sorted(wanted)[:5])}); name the one for {module} {stem}.ipynb."
    )
