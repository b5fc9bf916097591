"""The parts of lockdown that can be looked at from outside: the filter's program, its numbers, and what may be read."""

from __future__ import annotations

import errno
import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from labkit.grading import lockdown
from labkit.grading.lockdown import DENIED, is_open_to_all, seccomp_program, trees_without

ALLOW, KILL, EPERM, ENOSYS = 0x7FFF0000, 0x80000000, 0x50000 | errno.EPERM, 0x50000 | errno.ENOSYS
AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
MACHINES = list(AUDIT)
# read, write, openat, mmap, futex, kill, exit_group, getrandom, clock_nanosleep, wait4, sched_getaffinity, prlimit64
NEEDED = {
    "x86_64": (0, 1, 257, 9, 202, 62, 231, 318, 230, 61, 204, 302),
    "aarch64": (63, 64, 56, 222, 98, 129, 94, 278, 115, 260, 123, 261),
}


def verdict(program: bytes, number: int, machine: int, first_argument: int = 0) -> int:
    """What the filter says of one call: a machine for the few instructions that it has."""
    data = struct.pack("=IIQ6Q", number, machine, 0, first_argument, 0, 0, 0, 0, 0)
    steps = [struct.unpack("=HBBI", program[i : i + 8]) for i in range(0, len(program), 8)]
    at = value = 0
    while True:
        code, if_true, if_false, operand = steps[at]
        at += 1
        if code == 0x06:
            return operand
        if code == 0x20:
            (value,) = struct.unpack_from("=I", data, operand)
            continue
        holds = {0x15: value == operand, 0x35: value >= operand, 0x45: bool(value & operand)}[code]
        at += if_true if holds else if_false


@pytest.mark.parametrize("machine", MACHINES)
def test_every_listed_call_is_denied_and_no_other(machine: str) -> None:
    program, column = seccomp_program(machine), MACHINES.index(machine)
    denied = {numbers[column] for numbers in DENIED.values()} - {None}
    said = {number: verdict(program, number, AUDIT[machine]) for number in range(600)}
    assert {number for number, answer in said.items() if answer == EPERM} == denied
    assert {number for number, answer in said.items() if answer == ENOSYS} == {435}  # clone3
    assert not denied & set(NEEDED[machine])


@pytest.mark.parametrize("machine", MACHINES)
def test_threads_and_children_yes_namespaces_no(machine: str) -> None:
    program, clone = seccomp_program(machine), {"x86_64": 56, "aarch64": 220}[machine]
    for flags in (0x11, 0x3D0F00, 0x1200011):  # fork, a thread, fork of a C library
        assert verdict(program, clone, AUDIT[machine], flags) == ALLOW
    for bit in (17, 25, 26, 27, 28, 29, 30):
        assert verdict(program, clone, AUDIT[machine], 1 << bit | 0x11) == EPERM


@pytest.mark.parametrize("machine", MACHINES)
def test_other_numbers_of_the_same_calls_are_no_way_round(machine: str) -> None:
    program = seccomp_program(machine)
    for other in {0x40000003, *AUDIT.values()} - {AUDIT[machine]}:  # 32-bit x86 among them
        assert verdict(program, 0, other) == KILL
    for number in (0x40000000, 0x40000000 + 41, 0xFFFFFFFF):
        assert verdict(program, number, AUDIT[machine]) == EPERM


def test_a_machine_without_a_table_is_refused() -> None:
    with pytest.raises(OSError, match="no table of system calls for riscv64"):
        seccomp_program("riscv64")


@pytest.mark.parametrize(
    ("machine", "header"),
    [("x86_64", "/usr/include/x86_64-linux-gnu/asm/unistd_64.h"), ("aarch64", "/usr/include/asm-generic/unistd.h")],
)
def test_the_numbers_are_the_kernels(machine: str, header: str) -> None:
    if not Path(header).exists():
        pytest.skip(f"{header} is not installed")
    found = re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)\b", Path(header).read_text())
    known = {name: int(number) for name, number in found}
    column = MACHINES.index(machine)
    compared = 0
    for name, numbers in DENIED.items():
        if name in known:
            assert numbers[column] == known[name], name
            compared += 1
        elif numbers[column] is not None:
            assert numbers[column] > max(known.values()), f"{name} is no call of this machine"  # type: ignore[operator]
    assert compared > 70


def test_what_is_hidden_is_left_out(tmp_path: Path) -> None:
    for name in ("numpy/core", "labkit/grading", "other"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "file.py").write_text("")
    (tmp_path / "single.py").write_text("")
    (tmp_path / "way").symlink_to(tmp_path)
    trees, listed = trees_without(str(tmp_path), [str(tmp_path / "labkit"), "/nowhere"])
    assert set(trees) == {str(tmp_path / name) for name in ("numpy", "other", "single.py")}
    assert listed == [str(tmp_path)]
    deep, names = trees_without(str(tmp_path), [str(tmp_path / "numpy" / "core")])
    assert str(tmp_path / "numpy") not in deep
    assert set(names) == {str(tmp_path), str(tmp_path / "numpy")}
    assert trees_without(str(tmp_path), []) == ([str(tmp_path)], [])
    assert trees_without(str(tmp_path), [str(tmp_path)]) == ([], [])


def test_a_hidden_name_is_not_a_beginning(tmp_path: Path) -> None:
    for name in ("lab", "labkit"):
        (tmp_path / name).mkdir()
    assert trees_without(str(tmp_path), [str(tmp_path / "lab")])[0] == [str(tmp_path / "labkit")]


def test_a_folder_is_open_when_every_folder_above_it_is(tmp_path: Path) -> None:
    assert is_open_to_all("/usr")
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    tmp_path.chmod(0o700)
    assert not is_open_to_all(str(inner))
    assert not is_open_to_all(str(tmp_path / "missing"))


needs_root = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="only root can become another user"
)


@pytest.mark.parametrize("uid", [0, -1])
def test_root_is_no_spare_user(uid: int) -> None:
    with pytest.raises(OSError, match="a spare one is wanted"):
        lockdown.enter(uid, [], [], "")


@needs_root
@pytest.mark.parametrize(
    ("before", "said"),
    [
        (
            "import threading, time; threading.Thread(target=time.sleep, args=(3,), daemon=True).start()",
            "has started a thread",
        ),
        ("open(root + '/file', 'w').close()", "is no empty folder of root's own"),
        ("os.chown(root, 61000, 61000)", "is no empty folder of root's own"),
        ("lockdown.platform.machine = lambda: 'riscv64'", "no table of system calls for riscv64"),
    ],
)
def test_it_refuses_what_would_stay_open(tmp_path: Path, before: str, said: str) -> None:
    program = (
        f"import os, sys; sys.path.insert(0, {str(Path(lockdown.__file__).parent)!r}); import lockdown\n"
        f"root = {str(tmp_path)!r}\n{before}\ntry:\n    lockdown.enter(61000, [], [], root, landlock=False)\n"
        "except OSError as error:\n    print(error)\nelse:\n    print('went in')\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", program], capture_output=True, text=True, timeout=30, check=False
    )
    assert said in done.stdout
    assert "went in" not in done.stdout


@needs_root
def test_every_denied_call_fails_inside(tmp_path: Path) -> None:
    """The calls that do no harm with arguments of nothing are really made."""
    column = {"x86_64": 0, "aarch64": 1}.get(os.uname().machine)
    if column is None:
        pytest.skip("no table of system calls for this machine")
    numbers = {name: pair[column] for name, pair in DENIED.items() if pair[column] is not None and name != "vhangup"}
    program = (
        "import ctypes, errno, os, sys\n"
        f"sys.path.insert(0, {str(Path(lockdown.__file__).parent)!r}); import lockdown\n"
        f"lockdown.enter(61000, [], [], {str(tmp_path / 'root')!r}, landlock=False)\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        f"for name, number in {numbers!r}.items():\n"
        "    result = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(-1)] * 6)\n"
        "    assert result == -1 and ctypes.get_errno() == errno.EPERM, (name, result, ctypes.get_errno())\n"
        "print(os.getresuid(), os.getgroups(), os.listdir('/'))\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", program], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.stdout.strip() == "(61000, 61000, 61000) [] []", done.stderr
