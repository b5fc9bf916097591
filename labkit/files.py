"""Where labkit keeps its files, and how it writes one so that nothing is ever half-written."""

from __future__ import annotations

import errno
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from labkit.errors import OutputError

__all__ = ["folder_for", "folder_of", "make_folder", "user_cache", "write_atomically", "written_atomically"]

_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))  # Windows has no quota of that name


def user_cache() -> Path:
    """The folder for things that can be made or fetched again (compiled kernels, data sets).

    ``LABKIT_CACHE`` where it is set, else the platform's cache folder. The folder need not exist.
    """
    if chosen := os.environ.get("LABKIT_CACHE"):
        return Path(chosen)
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "labkit"


def make_folder(folder: str | Path) -> Path:
    """Make ``folder`` (and its parents) and prove that a file can be written in it.

    Raises
    ------
    OutputError
        The folder cannot be made or written to.
    """
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise OutputError(
            f"Cannot write to the folder {path}: {error.strerror or error}. "
            f"Choose another folder, or make this one writable."
        ) from error
    return path


@contextmanager
def folder_for(folder: str | Path) -> Iterator[Path]:
    """Do work whose results go into ``folder``, which is made first; work that fails leaves no empty folder behind.

    Only folders that were made here are removed, and only while they are empty.

    Raises
    ------
    OutputError
        The folder cannot be made or written to.
    """
    path = Path(folder)
    made = [place for place in (path, *path.parents) if not os.path.lexists(place)]
    try:
        yield make_folder(path)
    except BaseException:  # Ctrl-C too
        for place in made:
            with suppress(OSError):  # what holds something stays, and so does all above it
                place.rmdir()
        raise


@contextmanager
def folder_of(file: str | Path) -> Iterator[Path]:
    """Do work whose result is ``file``: as `folder_for` with the folder it lies in, which is made first.

    Raises
    ------
    OutputError
        The folder cannot be made or written to, or ``file`` is a folder itself.
    """
    path = Path(file)
    _refuse_folder(path)
    with folder_for(path.parent) as folder:
        yield folder


@contextmanager
def written_atomically(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside ``path``; on success it becomes ``path``, on failure it is removed.

    Raises
    ------
    OutputError
        The folder does not exist or cannot be written to, or ``path`` is a folder itself.
    """
    target = Path(path)
    _refuse_folder(target)
    try:
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
        os.close(handle)
    except FileNotFoundError as error:
        raise OutputError(
            f"Cannot write {target}: there is no folder {target.parent}. Make it first, or choose another folder."
        ) from error
    except OSError as error:
        raise OutputError(
            f"Cannot write {target}: {error.strerror or error}. Choose a folder that exists and that you may write to."
        ) from error
    part = Path(name)
    try:
        yield part
        umask = os.umask(0)
        os.umask(umask)
        part.chmod(0o666 & ~umask)  # mkstemp makes the file private; a result is an ordinary file
        os.replace(part, target)
    except OSError as error:
        advice = "Free some space or choose" if error.errno in _FULL else "Choose"
        raise OutputError(f"Cannot write {target}: {error.strerror or error}. {advice} another place.") from error
    finally:
        part.unlink(missing_ok=True)


def write_atomically(path: str | Path, content: bytes | str) -> None:
    """Write ``content`` (text as UTF-8) to ``path`` whole or not at all.

    Raises
    ------
    OutputError
        The folder does not exist or cannot be written to, or ``path`` is a folder itself.
    """
    data = content.encode() if isinstance(content, str) else content
    with written_atomically(path) as part:
        part.write_bytes(data)


def _refuse_folder(path: Path) -> None:
    if os.path.isdir(path):  # never raises, unlike the method
        raise OutputError(
            f"Cannot write the file {path}: there is a folder of that name. Name a file in it, or another file."
        )
