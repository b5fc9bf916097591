"""Files are written whole or not at all, and a failure leaves nothing behind that was made for it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from labkit.errors import OutputError
from labkit.files import folder_for, folder_of, write_atomically, written_atomically


class Stop(BaseException):
    """Stands for Ctrl-C, which would end the tests."""


def fail_in(folder: Path, *, leaving: Path | None = None) -> None:
    with folder_for(folder) as made:
        assert made.is_dir()
        if leaving is not None:
            leaving.write_text("result")
        raise Stop


def test_success_keeps_even_an_empty_folder(tmp_path: Path) -> None:
    with folder_for(tmp_path / "a" / "b") as made:
        pass
    assert made.is_dir()


def test_failure_removes_what_was_made(tmp_path: Path) -> None:
    (tmp_path / "before").mkdir()
    with pytest.raises(Stop):
        fail_in(tmp_path / "before" / "a" / "b")
    assert list(tmp_path.rglob("*")) == [tmp_path / "before"], "and not the folder that was there, empty as it is"


def test_failure_keeps_an_empty_folder_that_was_there(tmp_path: Path) -> None:
    with pytest.raises(Stop):
        fail_in(tmp_path)
    assert tmp_path.is_dir()


@pytest.mark.parametrize("place", ["a/b/file", "a/file"])
def test_failure_keeps_what_holds_something(tmp_path: Path, place: str) -> None:
    with pytest.raises(Stop):
        fail_in(tmp_path / "a" / "b", leaving=tmp_path / place)
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()] == [place]
    assert (tmp_path / "a" / "b").exists() == (place == "a/b/file")


def test_folder_that_cannot_be_made_leaves_no_parents(tmp_path: Path) -> None:
    too_long = "x" * 300
    with pytest.raises(OutputError, match="Cannot write to the folder"), folder_for(tmp_path / "a" / too_long):
        pass
    assert list(tmp_path.iterdir()) == []


def test_folder_is_no_file(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    with pytest.raises(OutputError, match="there is a folder of that name. Name a file"):
        write_atomically(folder, "text")
    with pytest.raises(OutputError, match="there is a folder of that name"), folder_of(folder):
        pytest.fail("found out before the work")
    assert list(tmp_path.rglob("*")) == [folder]


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="there is no folder .*missing. Make it first"):
        write_atomically(tmp_path / "missing" / "file", "text")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="Choose a folder that exists"):
        write_atomically(tmp_path / "file" / "below", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(("number", "space"), [(errno.ENOSPC, True), (errno.EIO, False)])
def test_space_is_spoken_of_where_it_lacks(tmp_path: Path, number: int, space: bool) -> None:
    with pytest.raises(OutputError) as caught, written_atomically(tmp_path / "file"):
        raise OSError(number, os.strerror(number))
    assert ("Free some space" in str(caught.value)) == space
    assert os.strerror(number) in str(caught.value)
    assert list(tmp_path.iterdir()) == []
