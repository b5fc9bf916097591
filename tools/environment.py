"""Make the project's virtual environment, mend a half-made one, and leave a good one alone.

An environment is good when its stamp says so and what the stamp says is still true. The stamp is written last, so an
environment whose making was interrupted has none. It names what the environment was made from: pyproject.toml, the
Python and the place of this checkout; and which extras (``[project.optional-dependencies]``) it holds. The question
"is it good?" is answered by the environment's own Python, which proves in the same 0.2 s that it still runs, and that
the commands of ``[project.scripts]`` are there and start.

Only the standard library is used: this runs before anything is installed.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["is_ready", "key", "main", "requirements"]

_PROJECT = Path(__file__).resolve().parents[1]
_STAMP = "labkit-environment.json"


def main(arguments: Sequence[str] | None = None) -> int:
    """Make or mend the environment that ``arguments`` (default: the command line) describe; 0 when it is good."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--venv", type=Path, default=Path(".venv"), help="where the environment is")
    parser.add_argument("--extras", default="", help="optional dependencies it must hold, such as dev,lab")
    parser.add_argument(
        "--torch-index", default="", help="take torch and torchvision from this index, not the usual one"
    )
    parser.add_argument("--ready", action="store_true", help="only say, by the exit code, whether this Python is in it")
    parser.add_argument("--python", default="", help="with --ready: it must be of this version, such as 3.12")
    parser.add_argument("--project", type=Path, default=_PROJECT, help=argparse.SUPPRESS)  # a stand-in, for the tests
    options = parser.parse_args(arguments)
    extras = frozenset(filter(None, options.extras.split(",")))
    project, venv = options.project.resolve(), options.venv.absolute()
    if options.ready:
        return 0 if platform.python_version().startswith(options.python) and is_ready(project, venv, extras) else 1
    try:
        return _bring_up(project, venv, extras, options.torch_index)
    except subprocess.CalledProcessError as error:
        print(
            f"The environment {venv} is not complete: '{shlex.join(map(str, error.cmd))}' failed, and its own words "
            f"are above. Mend the cause (no network, no space left?) and give the same command again: it goes on "
            f"from what is there.",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print("\nStopped. The same command goes on from what is there.", file=sys.stderr)
        return 130


def key(project: Path) -> str:
    """What an environment is made from: pyproject.toml, this Python's version and the place of the checkout, hashed."""
    parts = [(project / "pyproject.toml").read_bytes(), platform.python_version().encode(), os.fsencode(project)]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def requirements(project: Path, extras: frozenset[str]) -> list[str]:
    """The requirements that pyproject.toml gives labkit itself and ``extras``, as written there."""
    table = _table(project)
    optional = table.get("optional-dependencies", {})
    return [*table.get("dependencies", []), *(line for name in sorted(extras) for line in optional[name])]


def is_ready(project: Path, venv: Path, extras: frozenset[str]) -> bool:
    """True when the Python that runs this belongs to ``venv``, and ``venv`` holds all that ``project`` needs."""
    stamp = _read_stamp(venv)
    if Path(sys.prefix).resolve() != venv.resolve() or stamp.get("key") != key(project):
        return False
    if not extras <= set(stamp.get("extras", [])):
        return False
    wanted = [re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in requirements(project, extras) if ";" not in line]
    package = str(_table(project)["name"])
    try:
        for name in [package, *wanted]:
            importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    if importlib.util.find_spec(package.replace("-", "_")) is None:
        return False
    return all(_starts(venv, *script) for script in _table(project).get("scripts", {}).items())


def _bring_up(project: Path, venv: Path, extras: frozenset[str], torch_index: str) -> int:
    python = venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    version = "{}.{}.".format(*sys.version_info)
    question: list[str | Path] = [python, __file__, "--ready", "--project", project, "--venv", venv]
    question += ["--extras", ",".join(sorted(extras))]
    if _runs([*question, "--python", version]):
        return 0
    began = time.monotonic()
    foreign = venv.is_dir() and any(venv.iterdir()) and not (venv / "pyvenv.cfg").exists() and venv.name != ".venv"
    if foreign or (venv.exists() and not venv.is_dir()):
        print(f"{venv} is not a virtual environment and is left alone. Name another place for it.", file=sys.stderr)
        return 1
    held = extras | set(_read_stamp(venv).get("extras", []))  # an environment only grows
    (venv / _STAMP).unlink(missing_ok=True)
    same = f"import sys, pip; sys.exit(not '{{}}.{{}}.'.format(*sys.version_info) == '{version}')"
    if not _runs([python, "-c", same]):
        print(f"Making the environment {venv} with Python {platform.python_version()}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", venv], check=True)
    pip: list[str | Path] = [python, "-m", "pip", "--disable-pip-version-check", "--no-input", "install"]
    if torch_index:
        torch = [line for line in requirements(project, held) if line.startswith("torch")]
        subprocess.run([*pip, "--index-url", torch_index, *torch], check=True)
    wanted = f"{project}[{','.join(sorted(held))}]" if held else str(project)
    print(f"Installing labkit and what it needs into {venv}", flush=True)
    subprocess.run([*pip, "--editable", wanted], check=True)
    made_of = subprocess.run([python, "-c", _KEY, __file__, project], check=True, capture_output=True, text=True)
    _write_stamp(venv, {"key": made_of.stdout.strip(), "extras": sorted(held)})
    if not _runs(question):
        print(f"{venv} was made, yet it does not work: remove the folder and give the command again.", file=sys.stderr)
        (venv / _STAMP).unlink()
        return 1
    print(f"The environment {venv} is ready after {time.monotonic() - began:.0f} s", flush=True)
    return 0


# The key is taken by the environment's own Python, whose patch version may be another than that of the one outside.
_KEY = "import runpy, pathlib, sys; print(runpy.run_path(sys.argv[1])['key'](pathlib.Path(sys.argv[2])))"


def _runs(command: Sequence[str | Path]) -> bool:
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def _starts(venv: Path, name: str, entry: str) -> bool:
    """Whether the command ``name`` is there and says its version.

    Where it cannot because the code behind it (``entry``, module:function) cannot be imported, no installation would
    help: the command counts as good, and says itself what is wrong when it is used.
    """
    script = venv / (f"Scripts/{name}.exe" if os.name == "nt" else f"bin/{name}")
    try:
        done = subprocess.run([script, "--version"], capture_output=True, check=False)
    except OSError:
        return False
    if done.returncode == 0 and done.stdout.strip():
        return True
    return not _runs([sys.executable, "-c", f"import {entry.partition(':')[0]}"])


def _table(project: Path) -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads((project / "pyproject.toml").read_text("utf-8"))["project"]
    return table


def _read_stamp(venv: Path) -> dict[str, Any]:
    try:
        stamp = json.loads((venv / _STAMP).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def _write_stamp(venv: Path, stamp: dict[str, Any]) -> None:
    part = venv / f"{_STAMP}.part"
    part.write_text(json.dumps(stamp, indent=1) + "\n", "utf-8")
    part.replace(venv / _STAMP)


if __name__ == "__main__":
    sys.exit(main())
