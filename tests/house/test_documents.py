"""What the documents tell a reader to type exists, and what they point to is there."""

from __future__ import annotations

import itertools
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from house.repository import LABKIT, plain_environment, project_files
from house.source import ROOT

DOCUMENTS = [path for path in project_files() if path.suffix == ".md"]
_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^(?P=indent)```", re.M | re.S)


def blocks(text: str, *languages: str) -> list[str]:
    return [match["text"] for match in _FENCE.finditer(text) if match["language"] in languages]


def commands(text: str) -> list[list[str]]:
    """The commands in the shell blocks of a document, as words; in a console block only lines after a ``$``."""
    found = []
    for language in ("bash", "sh", "shell", "console"):
        for block in blocks(text, language):
            for line in block.replace("\\\n", " ").splitlines():
                if language == "console" and not line.lstrip().startswith("$"):
                    continue
                lexer = shlex.shlex(line.strip().removeprefix("$"), posix=True, punctuation_chars="&|;")
                lexer.whitespace_split = True
                words: list[str] = []
                for word in [*lexer, ";"]:
                    if set(word) <= set("&|;"):
                        found += [words] if words else []
                        words = []
                    else:
                        words.append(word)
    return found


def written(program: str) -> list[tuple[str, list[str]]]:
    """Every use of ``program`` in the documents: where, and the words after it."""
    uses = [(path, words) for path in DOCUMENTS for words in commands(path.read_text("utf-8"))]
    found = [(str(path.relative_to(ROOT)), words[1:]) for path, words in uses if words[0] == program]
    return sorted({(where, tuple(words)): (where, words) for where, words in found}.values())


def wrong_make(words: list[str]) -> list[str]:
    """The words after ``make`` that the Makefile knows neither as a target nor as a variable."""
    makefile = (ROOT / "Makefile").read_text("utf-8")
    targets = set(re.findall(r"^([a-z][a-z-]*):", makefile, re.M))
    variables = set(re.findall(r"^\s*([A-Z_]+) *[?:]?=", makefile, re.M))
    return [word for word in words if (word.split("=")[0] not in variables if "=" in word else word not in targets)]


@cache
def help_of(*command: str) -> str | None:
    """The help of a (sub)command, or None where there is no such command."""
    asked = subprocess.run(
        [*LABKIT, *command, "--help"], capture_output=True, text=True, check=False, env=plain_environment()
    )
    return asked.stdout if asked.returncode == 0 else None


def wrong_labkit(words: list[str]) -> list[str]:
    """The options and subcommands among the words after ``labkit`` that the command line does not have.

    An argument may look like a subcommand (``labkit train lenet``): a command asked for help with one more word gives
    its own, a group of commands fails.
    """
    names = list(itertools.takewhile(re.compile(r"[a-z][a-z-]*").fullmatch, words))
    text = help_of(*names)
    if text is None:
        return names
    options = [word.split("=")[0] for word in words if re.match(r"--?[a-z]", word)]
    return [o for o in options if o not in ("--help", "--version") and not re.search(rf"(?<![\w-]){o}(?![\w-])", text)]


@pytest.mark.parametrize(("where", "words"), written("make"), ids=str)
def test_documented_make_target_exists(where: str, words: list[str]) -> None:
    assert not wrong_make(words), f"{where}: make {shlex.join(words)}"


@pytest.mark.parametrize(("where", "words"), written("labkit"), ids=str)
def test_documented_command_exists(where: str, words: list[str]) -> None:
    assert not wrong_labkit(words), f"{where}: labkit {shlex.join(words)}"


def test_readme_shows_the_two_commands() -> None:
    shown = [words for where, words in written("make") if where == "README.md"]
    assert ["demo"] in shown
    assert ["test"] in shown


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_between_files_lead_somewhere(path: Path) -> None:
    text = _FENCE.sub("", path.read_text("utf-8"))
    targets = re.findall(r"\]\((?!https?:|mailto:|#)<?([^)#\s>]+)", text)
    assert not [target for target in targets if not (path.parent / target).exists()]


README_PYTHON = blocks((ROOT / "README.md").read_text("utf-8"), "python")


@pytest.mark.skipif(not README_PYTHON, reason="there is no Python in README.md")
def test_readme_python_runs(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", "\n".join(README_PYTHON)],
        cwd=tmp_path,
        env=plain_environment(PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr


# The rules themselves.


def test_commands_are_read_from_shell_blocks() -> None:
    text = "```bash\nmake demo && labkit run a.lab \\\n  --input x.npy  # why\n```\n```\nmake no\n```\n"
    text += "```console\n$ labkit demo | head\nmake no\n```\n"
    assert commands(text) == [
        ["make", "demo"],
        ["labkit", "run", "a.lab", "--input", "x.npy"],
        ["labkit", "demo"],
        ["head"],
    ]


def test_wrong_make_words_are_found() -> None:
    assert wrong_make(["demo", "TORCH_INDEX=x", "PYTHON=y"]) == []
    assert wrong_make(["dmeo", "INDEX=x"]) == ["dmeo", "INDEX=x"]


def test_wrong_command_words_are_found() -> None:
    assert wrong_labkit(["demo", "--out", "x"]) == []
    assert wrong_labkit(["demo", "--outt", "x"]) == ["--outt"]
    assert wrong_labkit(["dmeo"]) == ["dmeo"]
