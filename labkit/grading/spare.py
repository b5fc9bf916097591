"""Users that own nothing, one for each worker that root starts: found free, held, and emptied of processes at the end."""

from __future__ import annotations

import random
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from labkit.errors import LabkitError

__all__ = ["USERS", "Spare", "processes_of"]

# No distribution gives these to an account or a service: systemd's own begin at 61184. Other containers on the same machine may
# use them at the same time, and the kernel counts a user's processes over all of them, so one is drawn and not counted off.
USERS = range(61_000, 61_184)
_PATIENCE = 10.0  # seconds for a killed process to go

_KILL = "import os, sys; u = int(sys.argv[1]); os.setgroups([]); os.setresgid(u, u, u); os.setresuid(u, u, u); os.kill(-1, 9)"


class Spare:
    """One user (``uid``) that nobody else has, for one worker; root's. Use it in a ``with`` statement, or `close` it.

    Raises
    ------
    LabkitError
        None is free.
    """

    def __init__(self) -> None:
        self.uid, self._hold = _free_user()

    def __enter__(self) -> Spare:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Kill every process of the user and let it go; one whose processes stay is held for good."""
        deadline = time.monotonic() + _PATIENCE
        while processes_of(self.uid):
            if time.monotonic() > deadline:
                _KEPT.append(self._hold)
                return
            # As that user, "all processes" are its own, and nobody can fork away from it.
            subprocess.run(
                [sys.executable, "-I", "-S", "-c", _KILL, str(self.uid)], check=False, capture_output=True, env={}
            )
            time.sleep(0.01)
        self._hold.close()


_KEPT: list[socket.socket] = []


def processes_of(uid: int) -> list[int]:
    """The running processes whose real or effective user is ``uid``; those that are dead and not yet buried do not count."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        with suppress(OSError, ValueError, KeyError):  # it has just ended
            lines = (folder / "status").read_text("utf-8", "replace").split("\n")
            facts = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
            if uid in map(int, facts["Uid"].split()[:2]) and facts["State"][:1] not in ("Z", "X"):
                found.append(int(folder.name))
    return found


def _free_user() -> tuple[int, socket.socket]:
    """A user without processes, and what holds it: a name that one process of the machine can have, and loses when it ends."""
    for uid in random.sample(USERS, len(USERS)):
        hold = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            hold.bind(f"\0labkit-spare-user-{uid}")
        except OSError:
            hold.close()
            continue
        if not processes_of(uid) and not _has_account(uid):
            return uid, hold
        hold.close()
    raise LabkitError(
        f"Every user from {USERS[0]} to {USERS[-1]} has an account or processes here: no worker can have one of its own. "
        "Wait for other graders on this machine, or grade without being root, with bubblewrap."
    )


def _has_account(uid: int) -> bool:
    import pwd

    with suppress(KeyError):
        pwd.getpwuid(uid)
        return True
    return False
