"""Where labkit keeps its files, and how it writes one so that nothing is ever half-written."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from labkit.errors import OutputError

__all__ = ["make_folder", "user_cache", "write_atomically", "written_atomically"]


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
def written_atomically(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside ``path``; on success it becomes ``path``, on failure it is removed.

    Raises
    ------
    OutputError
        The folder does not exist or cannot be written to.
    """
    target = Path(path)
    try:
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
        os.close(handle)
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
        raise OutputError(
            f"Cannot write {target}: {error.strerror or error}. Free some space or choose another place."
        ) from error
    finally:
        part.unlink(missing_ok=True)


def write_atomically(path: str | Path, content: bytes | str) -> None:
    """Write ``content`` (text as UTF-8) to ``path`` whole or not at all.

    Raises
    ------
    OutputError
        The folder does not exist or cannot be written to.
    """
    data = content.encode() if isinstance(content, str) else content
    with written_atomically(path) as part:
        part.write_bytes(data)
