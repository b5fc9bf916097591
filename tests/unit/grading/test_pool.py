"""Workers that are forked from one process: they share what it has loaded, and nothing else; where one could, none is forked."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from labkit.course.values import encode
from labkit.grading import pool as pool_module
from labkit.grading.apart import shared_mappings
from labkit.grading.grade import grade_submission
from labkit.grading.isolation import Isolation, levels, probe
from labkit.grading.kit import Kit, write_kit
from labkit.grading.outcomes import Outcome
from labkit.grading.pool import Pool
from labkit.grading.processes import Started
from labkit.grading.run import grade_folder, prepared
from labkit.grading.submissions import find_submissions
from labkit.grading.watching import children_of, descendants_of
from labkit.grading.worker import Asked, Worker, WorkerFault

pytestmark = pytest.mark.usefixtures("sandbox")

SOURCE = """
import os


def loaded(names):
    import sys
    return [name for name in names if name in sys.modules]


def leaves(places):
    done = []
    for place in places:
        try:
            with open(place + "/left", "w") as file:
                file.write("for the next one")
        except OSError:
            continue
        done.append(place)
    return done


def finds(places):
    return [place for place in places if os.path.exists(place + "/left")]


def process():
    return os.getpid()


def spoils():
    import numpy as np
    np.floor = np.rint = None
    os.environ["SPOILT"] = "yes"
    return os.getppid()


def spoilt():
    import numpy as np
    return np.floor is None or "SPOILT" in os.environ
"""
PLACES = [".", "/", "/tmp", "/dev/shm", "/dev", "/proc", "/kit", "/packages", "/var/tmp"]


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Kit:
    folder = tmp_path_factory.mktemp("kit")
    folder.chmod(0o755)
    return write_kit(folder, ())


@pytest.fixture(scope="module", params=["bubblewrap", "lockdown"])
def level(request: pytest.FixtureRequest) -> Isolation:
    for found in levels():
        if found.name.split()[0] == request.param:
            return found
    pytest.skip(f"this machine does not offer {request.param}")


@pytest.fixture
def pool(level: Isolation, kit: Kit) -> Iterator[Pool]:
    with Pool(level, kit) as made:
        yield made


@pytest.fixture
def started(level: Isolation, kit: Kit, pool: Pool) -> Callable[..., Worker]:
    return lambda *imports: Worker(level, kit, SOURCE, imports, pool=pool)


def asked(worker: Worker, function: str, **inputs: object) -> object:
    sent = {name: encode(value) for name, value in inputs.items()}
    reply = worker.ask(Asked("m90.q1", function, (), 5.0, (sent,)), 0, 5.0)
    assert reply.outcome is None, reply
    return reply.value


def test_what_is_loaded_depends_on_the_own_imports_alone(started: Callable[..., Worker], pool: Pool) -> None:
    names = ["numpy", "torch", "numba"]
    for imports, found in (((), ["numpy"]), (("torch",), ["numpy", "torch"]), (("os", "math"), ["numpy"])):
        with started(*imports) as worker:
            assert asked(worker, "loaded", names=names) == found
    assert pool.why == ""


def test_nothing_is_left_for_the_next_one(started: Callable[..., Worker], level: Isolation) -> None:
    with started() as first:
        left = asked(first, "leaves", places=PLACES)
        assert set(left) == ({".", "/tmp", "/dev/shm"} if level.bwrap else set())  # type: ignore[call-overload]
        with started() as beside:
            assert asked(beside, "finds", places=PLACES) == []
    with started() as after:
        assert asked(after, "finds", places=PLACES) == []


def test_memory_is_not_shared(started: Callable[..., Worker]) -> None:
    with started() as first, started() as beside:
        asked(first, "spoils")
        assert asked(beside, "spoilt") is False
    with started() as after:
        assert asked(after, "spoilt") is False


def test_a_worker_sees_itself_as_the_first(started: Callable[..., Worker], level: Isolation) -> None:
    if not level.bwrap:
        pytest.skip("lockdown has no process namespaces; another user and Landlock keep processes apart")
    with started() as one, started() as two:
        assert asked(one, "spoils") == asked(two, "spoils") == 1, "its parent, the nursery"
        assert asked(one, "process") == asked(two, "process") == 2


def test_all_processes_end_with_their_worker_and_with_the_pool(level: Isolation, kit: Kit) -> None:
    before = set(descendants_of(os.getpid()))
    with Pool(level, kit) as pool:
        with Worker(level, kit, SOURCE, (), pool=pool) as worker:
            asked(worker, "process")
            during = set(descendants_of(os.getpid()))
        time.sleep(0.1)  # until those that have ended are buried
        after = set(descendants_of(os.getpid()))
        assert before < after < during
    assert set(descendants_of(os.getpid())) == before


_HOLDS = """
import sys, time
from pathlib import Path
from labkit.grading.isolation import probe
from labkit.grading.kit import write_kit
from labkit.grading.pool import Pool
from labkit.grading.worker import Asked, Worker
level, kit = probe(level=sys.argv[1]), write_kit(Path(sys.argv[2]), ())
pool = Pool(level, kit)
worker = Worker(level, kit, "def f():\\n    return 1\\n", (), pool=pool)
print(worker.ask(Asked("m90.q1", "f", (), 5.0, ({},)), 0, 5.0).value, pool.why, flush=True)
time.sleep(60)
"""


def test_all_ends_with_a_grader_that_is_killed(level: Isolation, tmp_path: Path) -> None:
    (tmp_path / "kit").mkdir(mode=0o755)
    command = [sys.executable, "-c", _HOLDS, level.name.split()[0], str(tmp_path / "kit")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        assert run.stdout.readline().split() == ["1"]
        below = descendants_of(run.pid)
        assert len(below) > 1
        run.kill()
    deadline = time.monotonic() + 10
    while left := [pid for pid in below if _is_running(pid)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_what_is_forked_outlives_the_thread_that_asked_first(started: Callable[..., Worker], pool: Pool) -> None:
    def first() -> None:
        with started() as worker:
            asked(worker, "process")

    thread = threading.Thread(target=first)
    thread.start()
    thread.join()
    time.sleep(0.2)
    with started() as worker:
        assert asked(worker, "loaded", names=["numpy"]) == ["numpy"]
    assert pool.why == ""


def test_a_set_of_libraries_too_many_gets_a_sandbox_of_its_own(
    started: Callable[..., Worker], pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "_MOST", 1)
    with started():
        pass
    assert pool.fork(["scipy"], -1, 0, 0) is None
    with started("scipy") as worker:
        assert asked(worker, "loaded", names=["numpy", "scipy"]) == ["numpy", "scipy"]
    assert pool.why == ""


def test_a_worker_whose_origin_has_ended_is_no_fault_of_the_student(
    started: Callable[..., Worker], pool: Pool, level: Isolation
) -> None:
    with started() as worker:
        asked(worker, "process")
        (outer,) = (forker._process.pid for forker in pool._forkers.values())
        if level.bwrap:  # all that was forked goes with it
            os.kill(children_of(outer)[0], signal.SIGKILL)
            time.sleep(0.3)
            with pytest.raises(WorkerFault, match="What its worker was forked from has ended"):
                asked(worker, "process")
        else:
            os.kill(outer, signal.SIGKILL)
    with started() as worker:
        assert asked(worker, "loaded", names=["numpy"]) == ["numpy"], "it has got a sandbox of its own"
    assert pool.why


def _weaker(kit: Kit, folder: Path, name: str, before: str, after: str) -> Kit:
    """A copy of ``kit`` in ``folder`` with ``before`` replaced in one of its files: a sandbox that does not hold."""
    folder.mkdir(mode=0o755)
    made = write_kit(folder, ())
    file = folder / "labkit" / "grading" / f"{name}.py"
    text = file.read_text()
    assert before in text
    file.write_text(text.replace(before, after))
    return replace(made, folder=folder)


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ("| 0x20000000", "", "it is not the first process"),
        ("| 0x08000000", "", "namespaces are shared: ipc"),
        ("| 0x40000000", "", "namespaces are shared: net"),
        ('    _mount(new, "/proc", None, _BIND | _ALL_BELOW)\n', "", "it sees processes"),
        ('    _mount("tmpfs", "/tmp", "tmpfs", _NO_SUID | _NO_DEVICES, _ROOM)\n', "", "it shares a folder"),
        ('os.chdir("/tmp")', 'os.chdir("/tmp"); open("/tmp/left", "x").close()', "it finds files"),
        ('os.chdir("/tmp")', "pass", "it is elsewhere"),
        ("_control(_DROP_BOUND, capability)", "True", "it has capabilities"),
        ("forbid_calls(seccomp_program(os.uname().machine))", "pass", "it can open a socket"),
        ('_must("capset", struct.pack("Ii", _CAPABILITY_VERSION, 0), bytes(24))', "", "it has capabilities"),
        ('_must("unshare", _NEW)', "raise OSError('no namespaces here')", "no namespaces here"),
        ("    own_session()\n    for", "    os._exit(3)\n    for", "it ended while it was shut in"),
    ],
)
def test_a_border_that_is_missing_is_seen_and_nobody_is_forked(
    kit: Kit, tmp_path: Path, before: str, after: str, says: str
) -> None:
    level = next((level for level in levels() if level.bwrap), None)
    if level is None:
        pytest.skip("this machine does not offer bubblewrap")
    weak = _weaker(kit, tmp_path / "weak", "apart", before, after)
    with Pool(level, weak) as pool:
        with Worker(level, weak, SOURCE, (), pool=pool) as worker:
            assert isinstance(worker._process, Started), "it was forked"
            assert asked(worker, "loaded", names=["numpy"]) == ["numpy"]
        assert says in pool.why


@pytest.mark.parametrize(
    ("after", "says"),
    [
        ("import mmap; global kept; kept = mmap.mmap(-1, 4096); kept[0] = 1; os.chdir('/')", "memory is shared"),
        ("import threading, time; threading.Thread(target=time.sleep, args=(60,), daemon=True).start()", "a thread"),
    ],
)
def test_what_would_be_shared_is_seen(level: Isolation, kit: Kit, tmp_path: Path, after: str, says: str) -> None:
    weak = _weaker(kit, tmp_path / "weak", "forker", 'os.chdir("/")', after)
    with Pool(level, weak) as pool:
        assert pool.fork((), 61_000, 0, 0) is None
        assert says in pool.why


def test_shared_mappings_are_those_that_are_written_to() -> None:
    lines = [
        "7f00-7f10 rw-p 00000000 00:00 0",
        "7f10-7f20 rw-s 00000000 00:01 2 /dev/zero (deleted)",
        "7f20-7f30 r--s 00000000 00:01 2 /usr/lib/cache",
        "7f30-7f40 r-xp 00000000 00:01 2 /usr/lib/libs.so",
    ]
    assert shared_mappings("\n".join(lines)) == [lines[1]]


def test_without_a_sandbox_nobody_is_forked(kit: Kit) -> None:
    with Pool(Isolation("none", "nothing at all"), kit) as pool:
        assert pool.fork((), -1, 0, 0) is None
        assert pool.why == "nothing shuts workers in"


def test_marks_are_the_same_forked_or_not(
    hand_in: Callable[..., Path], course: Path, tmp_path: Path, right: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Right, wrong, crashing, endless and blank work, in another order and beside other work."""
    folder = hand_in(
        right=right,
        truncates=right.replace("np.rint", "np.trunc"),
        ends=right.replace("    return np.rint", "    import os; os._exit(0)\n    return np.rint"),
        endless=right.replace("    return v @", "    while True: pass\n    return v @"),
        state=right.replace("np.rint(x / step)", "np.rint(x / step) + np.random.randint(0, 1)"),
        torch="import torch\n"
        + right.replace("v @ product(v)", "float(torch.from_numpy(v) @ torch.from_numpy(product(v)))"),
    )
    tables = []
    for name, jobs, forks in (("one", 1, True), ("two", 2, True), ("none", 2, False)):
        if not forks:
            monkeypatch.setattr(Pool, "fork", lambda *a: None)
        (tmp_path / name).mkdir()
        (tmp_path / name / "seed.txt").write_text("a secret of the tests\n")
        assert not grade_folder(folder, course, "m90", tmp_path / name, jobs=jobs).ungraded
        tables.append((tmp_path / name / "grades.csv").read_bytes())
    assert tables[0] == tables[1] == tables[2]


def test_submissions_are_graded_by_forked_workers(
    hand_in: Callable[..., Path], course: Path, right: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*arguments: object) -> None:
        raise AssertionError("a sandbox of its own was started")

    monkeypatch.setattr("labkit.grading.worker.Started", never)
    (submission,) = find_submissions(hand_in(alice=right), ()).submissions
    with prepared(course, "m90", "a secret of the tests") as plan:
        verdict = grade_submission(plan, submission)
    assert [task.outcome for task in verdict.tasks] == [Outcome.PASS] * 2, verdict


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
def test_a_process_that_cannot_be_started_turns_forking_off(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*arguments: object) -> Started:
        raise OSError("no more processes")

    monkeypatch.setattr(pool_module, "Started", refuses)
    with Pool(probe(), kit) as pool:
        assert pool.fork((), -1, 0, 0) is None
        assert pool.why == "no more processes"
