"""Download one file: with a progress bar, resumable after an interruption, checked, and never half-written."""

from __future__ import annotations

import hashlib
import http.client
import os
import socket
import ssl
import time
import urllib.error
import urllib.request
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from labkit.errors import DataError, OutputError

__all__ = ["download"]

_BLOCK = 1 << 18
_TIMEOUT = 30.0  # seconds without a byte
# What the network does; any other OSError comes from writing the file.
_BROKEN = (urllib.error.URLError, http.client.HTTPException, ssl.SSLError, TimeoutError, ConnectionError)


def download(url: str, path: Path, *, md5: str, title: str, tries: int = 4, pause: float = 1.0) -> None:
    """Fetch ``url`` into ``path``. What has arrived is kept in ``path.part``, and the next call goes on from there.

    Parameters
    ----------
    url
        An http or https address. A server that ignores the Range header is read again from the start.
    path
        Where the file goes, once it is whole and its MD5 is right.
    md5
        The MD5 that the whole file must have, 32 hex digits.
    title
        What the progress bar and the errors call the file.
    tries
        How often a broken connection is taken up again before giving up.
    pause
        Seconds before the second try; doubled before each further one.

    Raises
    ------
    DataError
        The network fails (what has arrived is kept), or the whole file has another MD5 (it is removed).
    OutputError
        The file cannot be written.
    """
    part = path.with_name(path.name + ".part")
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress:
        task = progress.add_task(f"Downloading {title}", total=None)
        for attempt in range(tries):
            try:
                _continue(url, part, progress, task)
                break
            except _BROKEN as error:
                if attempt + 1 == tries or _is_final(error):
                    arrived = part.stat().st_size if part.exists() else 0
                    kept = f" The {arrived:,} bytes that arrived are kept, and the next try goes on from there."
                    raise DataError(
                        f"Cannot download {title} from {url}: {getattr(error, 'reason', None) or error}."
                        + (kept if arrived else "")
                    ) from error
                time.sleep(pause * 2**attempt)
            except OSError as error:
                raise OutputError(
                    f"Cannot write {part}: {error.strerror or error}. Free some space or choose another folder."
                ) from error
    with part.open("rb") as file:
        got = hashlib.file_digest(file, "md5").hexdigest()
    if got != md5:
        part.unlink()
        raise DataError(
            f"What {url} sent is not {title}: its MD5 is {got}, and must be {md5}. It was removed. "
            f"Try again; if it stays so, something between here and there changes the file."
        )
    os.replace(part, path)


def _continue(url: str, part: Path, progress: Progress, task: TaskID) -> None:
    """Read what ``part`` lacks. Returns when the server has sent all, raises what urllib raises when it breaks."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(
        url, headers={"User-Agent": "labkit"} | ({"Range": f"bytes={have}-"} if have else {})
    )
    try:
        answer = urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing lies beyond what is here: it is whole, and the MD5 decides
            return
        raise
    with answer:
        if answer.status != 206:  # the whole file comes, whatever was asked for
            have = 0
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length else None
        progress.update(task, total=total, completed=have)
        with part.open("ab" if have else "wb") as file:
            while block := answer.read(_BLOCK):
                file.write(block)
                have += len(block)
                progress.update(task, completed=have)
    # A connection that closes early looks like an end of file to read(n).
    if total is not None and have < total:
        raise ConnectionError(f"the connection closed after {have:,} of {total:,} bytes")


def _is_final(error: Exception) -> bool:
    """Whether trying again at once is pointless: the server says no, or its name is not known (no network)."""
    if isinstance(error, urllib.error.HTTPError):
        return 400 <= error.code < 500
    return isinstance(error, urllib.error.URLError) and isinstance(error.reason, socket.gaierror)
