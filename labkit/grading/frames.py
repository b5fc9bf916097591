"""What goes through pipes, as it is written and read inside the sandbox: frames of JSON, a 4-byte length and then the text."""

from __future__ import annotations

import json
import os
import select
import struct
import time
from typing import Any

__all__ = ["FORK", "GOOD", "exactly", "read_frame", "write_frame"]

FORK = struct.Struct(">i?")
"""What `labkit.grading.forker` is asked for: the user (-1 to stay), and whether it is only to be tried out."""
GOOD = b"+"
"""What it answers where it could do what it was asked for."""

_MOST = 1 << 22  # bytes of one frame; a case's value has some hundred


def write_frame(fd: int, data: Any) -> None:
    """Write ``data`` to ``fd``.

    Raises
    ------
    ValueError
        It is larger than a frame may be, or JSON has no form for it.
    """
    text = json.dumps(data).encode()
    if len(text) > _MOST:
        raise ValueError("frame too large")
    frame = struct.pack(">I", len(text)) + text
    while frame:
        frame = frame[os.write(fd, frame) :]


def read_frame(fd: int, seconds: float | None = None) -> Any:
    """The next frame of ``fd``, waited for at most ``seconds``; None at the end of the pipe.

    Raises
    ------
    TimeoutError
        It did not come in time.
    ValueError
        It is larger than a frame may be, or no JSON.
    """
    deadline = None if seconds is None else time.monotonic() + seconds
    head = exactly(fd, 4, deadline)
    if head is None:
        return None
    (length,) = struct.unpack(">I", head)
    if length > _MOST:
        raise ValueError("frame too large")
    text = exactly(fd, length, deadline)
    return None if text is None else json.loads(text)


def exactly(fd: int, count: int, deadline: float | None = None) -> bytes | None:
    """The next ``count`` bytes of ``fd``, until ``deadline`` on the monotonic clock; None where it ends before.

    Raises
    ------
    TimeoutError
        They did not come in time.
    """
    parts = b""
    while len(parts) < count:
        if deadline is not None:
            ready, _, _ = select.select([fd], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError
        part = os.read(fd, count - len(parts))
        if not part:
            return None
        parts += part
    return parts
