"""Finds the submissions in a folder: whose, which attempt counts, and the notebook's bytes. Nothing is unpacked to disk."""

from __future__ import annotations

import csv
import hashlib
import os
import re
import stat
import struct
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from labkit.course.definitions import Definitions, definitions_of, read_cells_of
from labkit.errors import InputError

__all__ = ["Found", "Submission", "files_within", "find_submissions", "read_roster", "read_submission", "student_of"]

_MOST_BYTES = 50 << 20  # of one notebook; an honest one with all its plots has a few million
_MOST_MEMBERS = 2000
_MOST_DEEP = 30  # folders in folders
_LARGE_ZIP = 10 << 20  # from here on the list of members is measured before it is read
_MOST_LIST = 2 << 20  # bytes of that list
_ENDINGS = (".ipynb", ".py")

# Canvas: name_LATE_12345_67890_file-2.ipynb; Moodle: "First Last_12345_assignsubmission_file_", a folder or a prefix.
_CANVAS = re.compile(r"^(?P<student>[^_]+?)_(?:LATE_)?\d+_\d+_.+?(?:-(?P<attempt>\d+))?$")
_MOODLE = re.compile(r"^(?P<student>.+?)_(?P<number>\d+)_assignsubmission_(?:file|onlinetext)(?:_.*)?$")
_TAKEN = ("grades.csv", "summary.html", "seed.txt")  # what else lies beside the students' folders
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
    match, said = _parts(name)
    attempt = int(match.groupdict().get("attempt") or 0) + 1 if match else 1
    student = _UNSAFE.sub("_", said).strip(" .")[:100].strip(" .") or "nameless"
    return f"{student}_" if student.lower() in _TAKEN else student, attempt


def _parts(name: str) -> tuple[re.Match[str] | None, str]:
    stem = name
    for ending in (*_ENDINGS, ".zip"):
        stem = stem.removesuffix(ending)
    match = _MOODLE.match(stem) or _CANVAS.match(stem)
    return match, match["student"] if match else stem


def _said_student(name: str) -> str:
    return _parts(name)[1]


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
    by_student = _told_apart(by_student)
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


def _told_apart(by_student: dict[str, list[Submission]]) -> dict[str, list[Submission]]:
    """``by_student``, where files whose names were cleaned to the same student are not taken for attempts of one."""
    found: dict[str, list[Submission]] = {}
    for student, several in by_student.items():
        said = [(_said_student(submission.path.name), submission) for submission in several]
        apart = len({name for name, _ in said}) > 1
        for name, one in said:
            mark = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:6]
            called = f"{student[:90]}-{mark}" if apart and name != student else student
            found.setdefault(called, []).append(Submission(called, one.path, one.attempt, one.notes))
    return found


def _bytes_of(path: Path) -> bytes:
    _regular(path)
    try:
        with path.open("rb") as file:
            raw = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path.name} cannot be read: {error.strerror}.") from error
    if len(raw) > _MOST_BYTES:
        raise InputError(f"{path.name} has too many bytes; {_MOST_BYTES:,} at most are read.")
    return raw


def _regular(path: Path) -> None:
    """Refuse what may never end when it is read (a pipe, a device), and what lies elsewhere (a link)."""
    try:
        state = path.lstat()
    except OSError as error:
        raise InputError(f"{path.name} cannot be read: {error.strerror}.") from error
    if not stat.S_ISREG(state.st_mode):
        raise InputError(f"{path.name} is no regular file.")


def files_within(folder: Path) -> Iterator[Path]:
    """The regular files below ``folder`` in a fixed order, no link followed; not too many of them, nor too deep.

    Raises
    ------
    InputError
        It holds too much.
    """
    waiting, seen = [(folder, 0)], 0
    while waiting:
        place, depth = waiting.pop()
        try:
            with os.scandir(place) as found:
                entries = []
                for entry in found:
                    seen += 1
                    if seen > _MOST_MEMBERS or depth > _MOST_DEEP:
                        raise InputError(
                            f"{folder.name} holds more than {_MOST_MEMBERS} files, or folders more than {_MOST_DEEP} deep."
                        )
                    entries.append(entry)
        except OSError as error:
            raise InputError(f"{place.name} cannot be read: {error.strerror}.") from error
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.is_dir(follow_symlinks=False):
                waiting.append((Path(entry.path), depth + 1))
            elif entry.is_file(follow_symlinks=False):
                yield Path(entry.path)


def _of_folder(folder: Path, stem: str) -> tuple[str, bytes, tuple[str, ...]]:
    names = []
    for path in files_within(folder):
        inside = path.relative_to(folder)
        if path.suffix in _ENDINGS and not any(part.startswith((".", "__")) for part in inside.parts):
            names.append(inside.as_posix())
    chosen, notes = _choose(sorted(names), stem, folder.name)
    return chosen, _bytes_of(folder / chosen), notes


def _of_zip(path: Path, stem: str) -> tuple[str, bytes, tuple[str, ...]]:
    _regular(path)
    try:
        _check_list(path)
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
            if archive.getinfo(chosen).compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                # the others are unpacked in one piece, however large
                raise InputError(f"{path.name} is packed in an unusual way. Pack it again as an ordinary zip.")
            with archive.open(chosen) as member:
                raw = member.read(_MOST_BYTES + 1)  # what the archive says of a member's size need not be true
    except InputError:
        raise
    except (
        Exception
    ) as error:  # a damaged archive raises whatever its decoder does: zlib.error, struct.error, EOFError, ...
        raise InputError(f"{path.name} is no readable zip: {error}.") from error
    if len(raw) > _MOST_BYTES:
        raise InputError(f"{path.name}: {chosen} unpacks to more than {_MOST_BYTES:,} bytes.")
    return chosen, raw, notes


def _check_list(path: Path) -> None:
    """Refuse a large archive whose list of members alone would fill the memory."""
    size = path.stat().st_size
    if size <= _LARGE_ZIP:
        return
    with path.open("rb") as file:
        file.seek(-min(size, (1 << 16) + 42), os.SEEK_END)
        tail = file.read()
    place = tail.rfind(b"PK\5\6")
    listed = struct.unpack_from("<I", tail, place + 12)[0] if 0 <= place <= len(tail) - 22 else 0
    if listed > _MOST_LIST or b"PK\6\7" in tail[max(0, place - 20) : max(0, place)]:
        raise InputError(f"{path.name} holds more than {_MOST_MEMBERS} files.")


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
