"""What lies about to be stolen while attacks run, and who listens where nobody may call: so that a theft is seen."""

from __future__ import annotations

import os
import secrets
import selectors
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import labkit
from labkit.grading.redteam.attacks import Bait, answers
from labkit.grading.redteam.target import write_target

__all__ = ["Canaries"]


class Canaries:
    """A temporary folder with secrets in it, and sockets that are listened to; use it in a ``with`` statement.

    All of it can be read by everybody, so that nothing but the sandbox stands before it.
    """

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="labkit-redteam-")).resolve()
        self.root.chmod(0o755)
        self.prefix = f"canary{secrets.token_hex(6)}"
        self.planted = f"planted{secrets.token_hex(6)}"
        self.mark = ("reached", secrets.token_hex(3), secrets.token_hex(3))
        self.secrets = {
            what: f"{self.prefix}-{secrets.token_hex(6)}" for what in ("environment", "file", "neighbour", "solution")
        }
        (self.root / "secret.txt").write_text(self.secrets["file"], "utf-8")
        self.course = write_target(self.root / "course", f"# {self.secrets['solution']}\n{answers()}")
        self.temporary = self.root / "temporary"
        self.temporary.mkdir()
        self.heard: list[str] = []
        self._sockets = [socket.socket(socket.AF_INET), socket.socket(socket.AF_INET, socket.SOCK_DGRAM)]
        for one in self._sockets:
            one.bind(("127.0.0.1", 0))
        self._add_unix(str(self.root / "socket"))
        (self.root / "socket").chmod(0o777)
        self._abstract = f"\0{self.prefix}"
        self._add_unix(self._abstract)
        for one in self._sockets:
            if one.type == socket.SOCK_STREAM:
                one.listen(16)
        self._running = True
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _add_unix(self, address: str) -> None:
        one = socket.socket(socket.AF_UNIX)
        self._sockets.append(one)
        one.bind(address)

    def __enter__(self) -> Canaries:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._running = False
        self._thread.join(2)
        for one in self._sockets:
            one.close()
        for path in self.left_files():
            with suppress(OSError):
                path.unlink()
        subprocess.run(["rm", "-rf", "--", str(self.root)], check=False)  # folders too deep for Python
        shutil.rmtree(self.root, ignore_errors=True)

    def bait(self, submissions: Path, out: Path) -> Bait:
        """Where all of it lies, for attacks in the folder ``submissions`` whose results go to ``out``."""
        words = {
            "mark": self.mark,
            "prefix": self.prefix,
            "planted": self.planted,
            "secret_file": str(self.root / "secret.txt"),
            "seed_file": str(out / "seed.txt"),
            "out": str(out),
            "neighbour": str(submissions / "a-neighbour.py"),
            "solutions": str(self.course / "solutions" / "m99_target.py"),
            "exercises": str(self.course / "exercises" / "m99_target.py"),
            "library": str(Path(labkit.__file__).parent),
            "home": os.path.expanduser("~"),
            "cwd": os.getcwd(),
            "pids": [os.getpid(), os.getppid()],
            "tcp": self._sockets[0].getsockname()[1],
            "udp": self._sockets[1].getsockname()[1],
            "unix": str(self.root / "socket"),
            "abstract": self._abstract,
            "is_root": os.geteuid() == 0,
        }
        return Bait(words)

    @property
    def marker(self) -> str:
        """What a submission says when it has reached something."""
        return "".join(self.mark)

    def environment(self) -> dict[str, str]:
        """The environment of the grader: this one's, with a secret."""
        return {**os.environ, "LABKIT_SECRET": self.secrets["environment"], "TMPDIR": str(self.temporary)}

    def left_files(self) -> list[Path]:
        """Files outside the sandbox that a submission has made."""
        library = Path(labkit.__file__).parent
        places = {
            Path("/tmp"),
            Path("/dev/shm"),
            Path("/var/tmp"),
            Path(tempfile.gettempdir()),
            Path.home(),
            Path.cwd(),
        }
        places |= {
            self.root,
            self.temporary,
            self.course,
            library,
            library.parent,
            Path(sys.prefix),
            Path("/run"),
            Path("/"),
        }
        found = []
        for place in places:
            with suppress(OSError):
                found += [Path(entry.path) for entry in os.scandir(place) if self.planted in entry.name]
        return found

    def _listen(self) -> None:
        with selectors.DefaultSelector() as selector:
            for one in self._sockets:
                one.setblocking(False)
                selector.register(one, selectors.EVENT_READ)
            while self._running:
                for key, _ in selector.select(0.2):
                    with suppress(OSError):
                        self.heard.append(_said_by(key.fileobj))


def _said_by(one: object) -> str:
    assert isinstance(one, socket.socket)
    if one.type == socket.SOCK_DGRAM:
        return one.recv(200).decode("latin-1")
    caller, _ = one.accept()
    with caller:
        caller.settimeout(0.3)
        try:
            return caller.recv(200).decode("latin-1")
        except OSError:
            return "a caller"
