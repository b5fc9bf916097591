"""Against a real HTTP server on this machine; nothing leaves it."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from labkit.data.download import download
from labkit.errors import DataError, OutputError

CONTENT = np.random.default_rng(0).bytes(700_001)
MD5 = hashlib.md5(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves CONTENT. ``breaks`` answers close after ``after`` bytes; every Range header is noted."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.breaks = 0
        self.after = 300_000
        self.understands_ranges = True
        self.status = 200
        self.asked: list[str | None] = []

    def handle_error(self, *_: object) -> None:
        """A client that hangs up is what some tests are about."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/file"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        asked = self.headers["Range"]
        self.server.asked.append(asked)
        if self.server.status != 200:
            self.send_error(self.server.status)
            return
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and self.server.understands_ranges else 0
        if start >= len(CONTENT):
            self.send_error(416)
            return
        body = CONTENT[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.server.breaks:
            self.server.breaks -= 1
            body = body[: self.server.after]
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def fetch(server: Server, path: Path, md5: str = MD5, tries: int = 4) -> None:
    download(server.url, path, md5=md5, title="the file", tries=tries, pause=0.001)


def test_plain(server: Server, tmp_path: Path) -> None:
    fetch(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert server.asked == [None]


def test_broken_connection_is_taken_up_where_it_broke(server: Server, tmp_path: Path) -> None:
    server.breaks = 2
    fetch(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert server.asked == [None, "bytes=300000-", "bytes=600000-"]


def test_next_call_goes_on_where_the_last_gave_up(server: Server, tmp_path: Path) -> None:
    server.breaks = 1
    with pytest.raises(DataError, match=r"300,000 bytes that arrived are kept"):
        fetch(server, tmp_path / "file", tries=1)
    assert [path.name for path in tmp_path.iterdir()] == ["file.part"]
    fetch(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert server.asked == [None, "bytes=300000-"]


def test_server_without_ranges_starts_again(server: Server, tmp_path: Path) -> None:
    server.breaks, server.understands_ranges = 1, False
    fetch(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert server.asked == [None, "bytes=300000-"]


def test_whole_part_file_is_only_checked(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(CONTENT)
    fetch(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_wrong_md5_removes_the_file_and_says_so(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"its MD5 is {MD5}, and must be {'0' * 32}. It was removed"):
        fetch(server, tmp_path / "file", md5="0" * 32)
    assert list(tmp_path.iterdir()) == []


def test_server_that_says_no_is_asked_once(server: Server, tmp_path: Path) -> None:
    server.status = 404
    with pytest.raises(DataError, match=r"Cannot download the file from .*: .*Not Found"):
        fetch(server, tmp_path / "file")
    assert len(server.asked) == 1
    assert list(tmp_path.iterdir()) == []


def test_server_in_trouble_is_asked_again(server: Server, tmp_path: Path) -> None:
    server.status = 503
    with pytest.raises(DataError, match=r"Service Unavailable"):
        fetch(server, tmp_path / "file", tries=3)
    assert len(server.asked) == 3


def test_unwritable_place(server: Server, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"Cannot write"):
        fetch(server, tmp_path / "no folder" / "file")
