"""How the tests call the command line."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from labkit.cli import main

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def labkit_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run ``labkit`` with the words given: exit status, standard output, standard error of this call alone."""

    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["labkit", *map(str, words)])
        capsys.readouterr()
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call
