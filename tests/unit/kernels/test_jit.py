"""The disk cache of compiled kernels: fast where it may be used, never stale, never in the way."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numba
import pytest

import labkit
from labkit.errors import InputError
from labkit.kernels import jit as jit_module
from labkit.kernels.jit import entry_point, jit

CALLEE = """
from labkit.kernels.jit import jit

@jit
def callee(x):
    return x + 1
"""
CALLER = """
from labkit.kernels.fast.callee import callee
from labkit.kernels.jit import jit

@jit
def caller(x):
    return callee(x) * 10
"""
CALL = """
from labkit.kernels.fast.caller import caller
print(caller(4), sum(caller.stats.cache_hits.values()))
"""


@pytest.fixture
def copy(tmp_path):
    """A copy of labkit's code with two more kernels, of which one calls the other."""
    package = tmp_path / "labkit"
    package.mkdir()
    for part in ("__init__.py", "errors.py", "files.py"):
        shutil.copy(Path(labkit.__file__).parent / part, package / part)
    for part in ("kernels", "arithmetic", "engine"):
        shutil.copytree(Path(labkit.__file__).parent / part, package / part)
    (package / "kernels" / "fast" / "callee.py").write_text(CALLEE)
    (package / "kernels" / "fast" / "caller.py").write_text(CALLER)
    return tmp_path


def run_in(folder, code):
    """What a new Python prints when it runs ``code`` with the copy in ``folder``; it must not warn."""
    environment = os.environ | {"PYTHONPATH": str(folder), "LABKIT_CACHE": str(folder / "cache")}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


def edit(folder):
    path = folder / "labkit" / "kernels" / "fast" / "callee.py"
    path.write_text(CALLEE.replace("x + 1", "x + 2"))


def test_a_second_process_loads_and_an_edited_callee_is_seen(copy):
    assert run_in(copy, CALL) == ["50", "0"]
    assert run_in(copy, CALL) == ["50", "1"]
    files = list((copy / "cache" / "kernels").rglob("*.bin"))
    assert len(files) == 2
    for path in files:  # as a crash may leave them
        path.write_bytes(path.read_bytes()[:1000])
    assert run_in(copy, CALL) == ["50", "0"]
    edit(copy)
    assert run_in(copy, CALL) == ["60", "0"]
    assert not list(copy.rglob("*.nbi")), "Numba's own cache was used"


def test_sources_edited_while_a_process_runs_are_not_mixed_up(copy):
    """The kernels of the running process are old and the files new: nothing may be kept under the name of either."""
    path = copy / "labkit" / "kernels" / "fast" / "callee.py"
    edited = CALLEE.replace("x + 1", "x + 2")
    assert run_in(copy, CALL.replace("print", f"open({str(path)!r}, 'w').write({edited!r})\nprint", 1)) == ["50", "0"]
    assert run_in(copy, CALL) == ["60", "0"]


@pytest.fixture
def no_reasons(monkeypatch):
    """As in a process that has not warned yet."""
    monkeypatch.setattr(jit_module, "_reasons", [])
    monkeypatch.setattr(jit_module, "_key", lambda: jit_module._KEY)  # whoever edits a kernel meanwhile


def two_kernels():
    @jit
    def plus_one(x):
        return x + 1

    @jit
    def plus_two(x):
        return plus_one(x) + 1

    return plus_one, plus_two


def assert_works_with_one_warning(match):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        plus_one, plus_two = two_kernels()
        assert (plus_one(1), plus_two(1)) == (2, 3)
    assert [warning.category for warning in caught] == [RuntimeWarning]
    assert match in str(caught[0].message)
    assert "LABKIT_CACHE" in str(caught[0].message)


@pytest.mark.usefixtures("no_reasons")
def test_a_folder_that_cannot_be_made_costs_one_warning(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path / "file" / "cache"))
    assert_works_with_one_warning("file/cache")


@pytest.mark.usefixtures("no_reasons")
def test_a_full_disk_costs_one_warning(monkeypatch, tmp_path):
    def write_atomically(path, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path))
    monkeypatch.setattr(jit_module, "write_atomically", write_atomically)
    assert_works_with_one_warning("No space left")


@pytest.mark.usefixtures("no_reasons")
def test_a_changed_numba_costs_the_cache_only(monkeypatch):
    def refuse(*arguments):
        raise TypeError("another interface")

    monkeypatch.setattr(jit_module, "_DiskCache", refuse)
    assert_works_with_one_warning("another interface")


@pytest.mark.usefixtures("no_reasons")
def test_a_good_folder_costs_no_warning(monkeypatch, tmp_path):
    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert two_kernels()[1](1) == 3
    assert len(list(jit_module.cache_folder().iterdir())) == 2


def test_only_the_newest_folders_are_kept(tmp_path):
    for number in range(12):
        (tmp_path / f"{number:02}").mkdir()
        os.utime(tmp_path / f"{number:02}", (number, number))
    jit_module._drop_old_folders(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{number:02}" for number in range(4, 12)]


def test_without_the_compiler_the_error_names_the_cause(monkeypatch):
    monkeypatch.setattr(numba.config, "DISABLE_JIT", 1)
    with pytest.raises(InputError, match="NUMBA_DISABLE_JIT"):
        entry_point(two_kernels()[0], (1,))
