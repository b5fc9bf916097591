"""What the trusted end sees of a worker's processes, and what a worker may be asked."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from labkit.grading import watching
from labkit.grading.isolation import probe
from labkit.grading.kit import write_kit
from labkit.grading.watching import Watch, children_of, descendants_of
from labkit.grading.worker import Asked, Worker

_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="there is no /proc")


def _until(watch: Watch, seconds: float = 20.0) -> str:
    """What ends the patience of ``watch``."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            watch.look()
        except (MemoryError, TimeoutError) as error:
            return f"{type(error).__name__} {error}"
        time.sleep(0.05)
    return "nothing"


@_LINUX
@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("import time; time.sleep(60)", "TimeoutError nothing happened"),
        ("while True: pass", "TimeoutError it ran on"),
        ("a = b'x' * 80_000_000\nwhile True: pass", "MemoryError"),
    ],
)
def test_what_sleeps_spins_or_grows_is_seen(monkeypatch: pytest.MonkeyPatch, code: str, says: str) -> None:
    monkeypatch.setattr(watching, "_IDLE_SECONDS", 1.0)
    monkeypatch.setattr(watching, "_MEMORY", 60 << 20)
    inner = [sys.executable, "-c", f"import subprocess, sys; subprocess.run([sys.executable, '-c', {code!r}])"]
    with subprocess.Popen(inner) as process:
        try:
            assert _until(Watch(process.pid, 2.0)).startswith(says)
            assert len(descendants_of(process.pid)) == 1
        finally:
            for pid in descendants_of(process.pid):
                subprocess.run(["kill", "-9", str(pid)], check=False)
            process.kill()


def test_a_process_that_is_gone_has_no_children() -> None:
    assert children_of(2**22 + 1) == []
    assert descendants_of(2**22 + 1) == []


def test_inputs_may_be_called_like_the_marks_of_values(tmp_path: Path, sandbox: str) -> None:
    tmp_path.chmod(0o755)
    kit_folder = tmp_path / "kit"
    kit_folder.mkdir()
    kit = write_kit(kit_folder, ())
    asked = Asked("m90.q1", "f", (), 5.0, ({"real": 1.5, "array": 2, "made": 3},))
    with Worker(probe(), kit, "def f(real, array, made):\n    return [real, array, made]\n", ()) as worker:
        assert worker.ask(asked, 0, 5.0).value == [1.5, 2, 3]
