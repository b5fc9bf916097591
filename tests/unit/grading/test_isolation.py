"""Whatever level a machine offers, a submission inside it computes, and reaches nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import labkit
from labkit.course.values import encode
from labkit.errors import InputError, LabkitError
from labkit.grading import isolation
from labkit.grading.isolation import LEVELS, Isolation, levels, probe
from labkit.grading.kit import Kit, write_kit
from labkit.grading.outcomes import Outcome
from labkit.grading.pool import Pool
from labkit.grading.spare import USERS, Spare, processes_of
from labkit.grading.worker import Asked, Reply, Worker

IS_ROOT = sys.platform == "linux" and os.geteuid() == 0
needs_root = pytest.mark.skipif(not IS_ROOT, reason="only root can give a worker a user of its own")

# Each function says what it could do that it should not; "" is well.
SOURCE = """
import os
import numpy as np


def tried(what, action, *arguments):
    try:
        action(*arguments)
    except (OSError, ValueError, AttributeError):
        return ""
    return what + "; "


def call(number, *arguments):
    import ctypes
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(number, *arguments) < 0:
        raise OSError(ctypes.get_errno(), "refused")


def reads(places):
    return "".join(tried(f"reads {place}", lambda p=place: open(p).close()) for place in places)


def writes(places):
    return "".join(tried(f"writes {place}", lambda p=place: open(p, "a").close()) for place in places)


def connects(kind, family):
    import socket

    def go():
        with socket.socket(family, kind) as s:
            s.settimeout(0.3)
            s.connect(("1.1.1.1", 53) if family == socket.AF_INET else "/var/run/docker.sock")
            s.send(b"x")
            s.recv(1)

    return tried("has a network", go)


def meets(pid):
    return tried("signals a process outside", os.kill, pid, 0) + reads([f"/proc/{pid}/environ", f"/proc/{pid}/maps"])


def rises():
    found = tried("becomes root", os.setuid, 0) + tried("changes its group", os.setgid, 0)
    found += "" if os.getuid() else "is root; "
    found += tried("makes a user namespace", call, {"x86_64": 272, "aarch64": 97}[os.uname().machine], 0x10000000)
    found += tried("mounts", call, {"x86_64": 165, "aarch64": 40}[os.uname().machine], b"none", b"/tmp", b"tmpfs", 0, 0)
    return found


def user():
    return os.getuid()


def environment():
    return sorted(os.environ)


def descriptors():
    found = []
    for fd in range(64):
        try:
            os.fstat(fd)
        except OSError:
            continue
        found.append(fd)
    return len(found)


def leaves_a_daemon():
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            import time
            while True:
                time.sleep(1)
        os._exit(0)
    return "left"


def bombs():
    children = 0
    try:
        for _ in range(500):
            if os.fork() == 0:
                import time
                time.sleep(60)
                os._exit(0)
            children += 1
    except OSError:
        pass
    return children


def kills_all():
    os.kill(-1, 9)
    return "lives"


def kills_the_nursery():
    os.kill(os.getppid(), 9)
    import time
    time.sleep(5)
    return "lives"


def trains():
    import torch
    w = torch.ones(2, requires_grad=True)
    optimizer = torch.optim.SGD([w], lr=0.25)
    (w * torch.tensor([1.0, 2.0])).sum().backward()
    optimizer.step()
    return w.detach()


def compiles():
    import numba

    @numba.njit
    def total(x):
        s = 0.0
        for i in range(x.size):
            s += x[i]
        return s

    return total(np.arange(5.0))


def tests():
    from scipy import optimize, stats
    return [float(stats.norm.cdf(0.0)), float(optimize.brentq(lambda x: x - 2.0, 0.0, 5.0))]


def parses():
    import datetime
    import fractions
    import statistics
    year = datetime.datetime.strptime("2026-01-02", "%Y-%m-%d").year
    return [year, float(fractions.Fraction(1, 4)), statistics.mean([1, 2])]
"""

Ask = Callable[..., Reply]


def _found() -> dict[str, Isolation]:
    found = {level.name: level for level in levels()}
    if "lockdown as root" in found:
        found["lockdown, empty root folder"] = isolation._locked(False)
    return found


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Kit:
    folder = tmp_path_factory.mktemp("kit")
    folder.chmod(0o755)
    return write_kit(folder, ())


@pytest.fixture(scope="module", params=["bubblewrap", "lockdown as root", "lockdown, empty root folder"])
def level(request: pytest.FixtureRequest) -> Isolation:
    found = _found()
    for name in (request.param, f"{request.param} as root"):
        if name in found:
            return found[name]
    pytest.skip(f"this machine does not offer {request.param}")


@pytest.fixture(scope="module", params=["forked", "in a sandbox of its own"])
def pool(request: pytest.FixtureRequest, level: Isolation, kit: Kit) -> Iterator[Pool | None]:
    if request.param != "forked":
        yield None
        return
    with Pool(level, kit) as made:
        yield made
        assert made.why == "", "a worker could not be forked, and this was not tested"


@pytest.fixture(scope="module")
def worker(level: Isolation, kit: Kit, pool: Pool | None) -> Iterator[Worker]:
    with Worker(level, kit, SOURCE, ("torch", "numba", "scipy", "numpy"), pool=pool) as made:
        yield made


@pytest.fixture
def ask(worker: Worker) -> Ask:
    def answer(function: str, seconds: float = 10.0, **inputs: object) -> Reply:
        return asked_of(worker, function, seconds, **inputs)

    return answer


def asked_of(worker: Worker, function: str, seconds: float = 5.0, **inputs: object) -> Reply:
    sent = {name: encode(value) for name, value in inputs.items()}
    return worker.ask(Asked("m90.q1", function, (), seconds, (sent,)), 0, seconds)


def value(reply: Reply) -> object:
    assert reply.outcome is None, reply
    return reply.value


def test_it_computes(ask: Ask) -> None:
    assert value(ask("compiles")) == 10.0
    assert value(ask("tests")) == [0.5, 2.0]
    assert value(ask("parses")) == [2026, 0.25, 1.5]
    assert list(value(ask("trains"))) == [0.75, 0.5]


def test_it_reads_nothing_of_the_grader(ask: Ask, kit: Kit, tmp_path: Path) -> None:
    planted = tmp_path / "planted"
    planted.write_text("the seed")
    planted.chmod(0o644)
    library = Path(labkit.__file__).parent
    places = [
        planted,
        library / "net.py",
        library / "grading" / "grade.py",
        "/etc/passwd",
        "/etc/shadow",
        Path.home() / ".bashrc",
    ]
    assert value(ask("reads", places=[str(place) for place in places])) == ""


def test_it_writes_nothing_outside(ask: Ask, tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    planted = tmp_path / "planted"
    planted.write_text("mine")
    planted.chmod(0o666)
    places = [str(planted), str(tmp_path / "new"), sys.base_prefix + "/new", "/usr/new", "/new"]
    assert value(ask("writes", places=places)) == ""
    assert [path.name for path in tmp_path.iterdir()] == ["planted"]
    assert planted.read_text() == "mine"


@pytest.mark.parametrize(("kind", "family"), [(1, 2), (2, 2), (1, 1)], ids=["tcp", "udp", "unix"])
def test_it_has_no_network(ask: Ask, kind: int, family: int) -> None:
    assert value(ask("connects", kind=kind, family=family)) == ""


def test_it_meets_nobody(ask: Ask) -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as other:
        try:
            assert value(ask("meets", pid=other.pid)) == ""
            assert value(ask("meets", pid=os.getpid())) == ""
        finally:
            other.kill()


def test_it_does_not_rise(ask: Ask) -> None:
    assert value(ask("rises")) == ""


def test_it_inherits_nothing(ask: Ask) -> None:
    names = set(value(ask("environment")))  # type: ignore[call-overload]
    settings = {f"{name}_NUM_THREADS" for name in ("OMP", "OPENBLAS", "MKL", "NUMBA")}
    assert names <= settings | {
        "LANG",
        "LC_CTYPE",
        "MPLBACKEND",
        "PATH",
        "PWD",
        "PYTHONDONTWRITEBYTECODE",
        "HOME",
        "LD_LIBRARY_PATH",
    } | {
        name
        for name in names
        if name.startswith(("KMP_", "TORCH", "PYTORCH", "TRITON"))  # a library's own
    }
    assert value(ask("descriptors")) <= 8  # type: ignore[operator]


def test_what_kills_its_own_costs_itself_only(ask: Ask) -> None:
    lost = (Outcome.KILLED, Outcome.ERROR, None)  # whoever may kill nobody gets an error, or nothing happens
    assert ask("kills_all").outcome in lost
    assert ask("kills_the_nursery", seconds=1.0).outcome in lost
    assert value(ask("compiles")) == 10.0


@needs_root
def test_leftovers_end_with_the_worker(level: Isolation, kit: Kit, pool: Pool | None) -> None:
    with Worker(level, kit, SOURCE, (), pool=pool) as worker:
        uid = int(asked_of(worker, "user").value)
        assert uid in USERS
        assert processes_of(uid)
        assert asked_of(worker, "leaves_a_daemon").value == "left"
    assert not processes_of(uid)


@needs_root
def test_processes_are_few_and_all_end(level: Isolation, kit: Kit, pool: Pool | None) -> None:
    with Worker(level, kit, SOURCE, (), pool=pool) as worker:
        uid = int(asked_of(worker, "user").value)
        reply = asked_of(worker, "bombs")
        assert reply.outcome is Outcome.KILLED or 0 < reply.value < 100
    assert not processes_of(uid)


@needs_root
def test_two_workers_are_two_users(level: Isolation, kit: Kit, pool: Pool | None) -> None:
    with Worker(level, kit, SOURCE, (), pool=pool) as one, Worker(level, kit, SOURCE, (), pool=pool) as two:
        assert asked_of(one, "user").value != asked_of(two, "user").value


@needs_root
def test_a_spare_user_is_held_and_emptied() -> None:
    with Spare() as one, Spare() as two:
        assert one.uid != two.uid
        process = subprocess.Popen(["sleep", "60"], user=one.uid)
        stopped = subprocess.Popen(["sleep", "60"], user=one.uid)
        os.kill(stopped.pid, 19)
        assert set(processes_of(one.uid)) == {process.pid, stopped.pid}
    assert process.wait() == stopped.wait() == -9
    assert not processes_of(one.uid)


@needs_root
def test_no_user_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("labkit.grading.spare.USERS", range(61_000, 61_001))
    with Spare(), pytest.raises(LabkitError, match="Wait for other graders on this machine"):
        Spare()


def test_the_safest_level_comes_first() -> None:
    names = [level.name.split()[0] for level in levels()]
    assert names == [name for name in LEVELS if name in names]
    if names:
        assert probe().name == levels()[0].name


@pytest.mark.parametrize("name", LEVELS)
def test_a_level_is_chosen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name not in [level.name.split()[0] for level in levels()]:
        with pytest.raises(LabkitError, match="Nothing here can shut a submission in"):
            probe(level=name)
        return
    assert probe(level=name).name.startswith(name)
    monkeypatch.setenv("LABKIT_ISOLATION", name)
    assert probe().name.startswith(name)


def test_there_is_no_other_level() -> None:
    with pytest.raises(InputError, match="no isolation 'jail'; there are bubblewrap and lockdown"):
        probe(level="jail")


def test_nothing_is_refused_unless_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolation, "_level", lambda name: (None, f"{name} is not here"))
    with pytest.raises(LabkitError, match="bubblewrap is not here; lockdown is not here"):
        probe()
    assert probe(unsafe=True).name == "none"
    assert levels() == []


@needs_root
def test_a_broken_promise_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The probe of lockdown sees what a border that is missing lets through."""
    level = isolation._locked(True)
    if isolation._try_lockdown(level):
        pytest.skip("this kernel has no Landlock")
    weak = "import lockdown\nlockdown.{} = {}\n"
    for name, instead, said in (
        ("_allow", "lambda *a: None", ""),  # nothing at all is allowed: safe
        ("forbid_calls", "lambda program: None", "it can open a socket"),
        ("trees_without", "lambda folder, hidden: (['/'], [])", "it can read a file"),
    ):
        checks = isolation._INSIDE_LOCKDOWN.replace("import lockdown\n", weak.format(name, instead), 1)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(isolation, "_INSIDE_LOCKDOWN", checks)
            assert isolation._try_lockdown(level) == said


@needs_root
def test_bubblewrap_without_root(tmp_path_factory: pytest.TempPathFactory, kit: Kit) -> None:
    """A user without privileges gets bubblewrap and no lockdown; the interpreter is one that such a user may start."""
    python = Path(f"/usr/bin/python{sys.version_info.major}.{sys.version_info.minor}")
    packages = Path(isolation.sysconfig.get_path("purelib"))
    readable = all(folder.stat().st_mode & 1 for folder in (packages, *packages.parents, Path(labkit.__file__).parent))
    if not python.exists() or not readable or not shutil.which("setpriv"):
        pytest.skip("there is no interpreter of this version, or no packages, that another user may read")
    place = Path("/tmp") / f"labkit-unprivileged-{os.getpid()}"
    try:
        subprocess.run([python, "-m", "venv", "--without-pip", place], check=True)
        theirs = next(place.glob("lib/python3*/site-packages"))
        theirs.rmdir()
        theirs.symlink_to(packages)
        program = (
            "import sys, tempfile; from pathlib import Path\n"
            "from labkit.grading.isolation import probe; from labkit.grading.kit import write_kit\n"
            "from labkit.grading.pool import Pool; from labkit.grading.worker import Asked, Worker\n"
            "level = probe(); print(level.name)\n"
            "with tempfile.TemporaryDirectory() as folder:\n"
            "    kit = write_kit(Path(folder), ())\n"
            "    with Pool(level, kit) as made:\n"
            "        for pool in (None, made):\n"
            "            with Worker(level, kit, sys.argv[1], ('numpy',), pool=pool) as worker:\n"
            "                for function in ('rises', 'parses', *['bombs'] * (pool is made)):\n"
            "                    print(worker.ask(Asked('m90.q1', function, (), 5.0, ({},)), 0, 5.0).value)\n"
            "        print(made.why)\n"
        )
        command = [
            "setpriv",
            "--reuid",
            "65534",
            "--regid",
            "65534",
            "--clear-groups",
            place / "bin" / "python",
            "-c",
            program,
            SOURCE,
        ]
        path = str(Path(labkit.__file__).parents[1])
        environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": path, "HOME": "/nonexistent"}
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=60, cwd="/", env=environment, check=False
        )
        if "Nothing here can shut a submission in" in done.stderr:
            pytest.skip("this machine gives users without privileges no namespaces")
        name, *said, children, why = done.stdout.rstrip("\n").split("\n") + [""] * done.stdout.endswith("\n\n")
        assert (name, said, why) == ("bubblewrap", ["", "[2026, 0.25, 1.5]"] * 2, ""), done.stderr
        assert 0 < int(children) < 100, "a namespace of its own counts its own processes"
    finally:
        shutil.rmtree(place, ignore_errors=True)


def test_an_installed_labkit_is_covered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever a place that is shown inside holds labkit or the course."""
    packages = tmp_path / "usr" / "lib" / "packages"
    for name in ("labkit", "exercises", "numpy"):
        (packages / name).mkdir(parents=True)
    monkeypatch.setattr(isolation.sysconfig, "get_path", lambda name: str(packages))
    shown = {str(tmp_path / "usr"): "/usr", str(packages): "/packages", str(tmp_path / "us"): "/other"}
    inside = ["/packages/exercises", "/packages/labkit", "/usr/lib/packages/exercises", "/usr/lib/packages/labkit"]
    assert isolation._hidden_in(shown) == inside
    assert {str(packages / "labkit"), str(Path(labkit.__file__).parent)} <= set(isolation._locked(True).lock["hidden"])


def test_all_of_a_library_is_there(level: Isolation, kit: Kit, pool: Pool | None) -> None:
    source = "from numpy import *\nfrom scipy import *\ndef both():\n    return [float(sign(-2.0)), float(stats.norm.cdf(0.0))]\n"
    with Worker(level, kit, source, ("numpy", "scipy"), pool=pool) as worker:
        assert asked_of(worker, "both").value == [-1.0, 0.5]
