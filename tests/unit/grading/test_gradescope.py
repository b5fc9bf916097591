"""The zip for Gradescope, unpacked and run in the layout that Gradescope uses."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from labkit.errors import InputError
from labkit.grading.autograder import Autograder, write_autograder
from labkit.grading.gradescope import grade_one, main, not_graded

Run = Callable[..., dict[str, Any]]

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="run_autograder is a script for bash")


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """Named and filled like labkit's wheel, as far as the packer looks."""
    path = tmp_path / "labkit-0.0.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("labkit/grading/gradescope.py", "")
    return path


@pytest.fixture
def pack(course: Path, wheel: Path, tmp_path: Path) -> Callable[..., Autograder]:
    def go(**more: Any) -> Autograder:
        return write_autograder(course, "m90", tmp_path / "autograder.zip", **({"wheel": wheel} | more))

    return go


@pytest.fixture
def run(pack: Callable[..., Autograder], tmp_path: Path) -> Run:
    """Run the zip on a submission, given by name and text; what results.json says."""

    def go(
        change: Callable[[Path], None] = lambda source: None, python: str = sys.executable, **files: str
    ) -> dict[str, Any]:
        pack()
        root = tmp_path / "autograder"
        shutil.rmtree(root, ignore_errors=True)
        for name in ("source", "submission", "results"):
            (root / name).mkdir(parents=True)
        with zipfile.ZipFile(tmp_path / "autograder.zip") as archive:
            archive.extractall(root / "source")
        shutil.copyfile(root / "source" / "run_autograder", root / "run_autograder")
        for name, text in files.items():
            (root / "submission" / name.replace("__", ".")).write_text(text)
        change(root / "source")
        environment = os.environ | {"AUTOGRADER_ROOT": str(root), "LABKIT_PYTHON": python}
        done = subprocess.run(
            ["bash", root / "run_autograder"],
            cwd=root,
            env=environment,
            capture_output=True,
            text=True,
            timeout=170,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        results: dict[str, Any] = json.loads((root / "results" / "results.json").read_text())
        assert re.search(r"(?m)^[0-9a-f]{32}$", (tmp_path / "autograder.seed.txt").read_text())
        assert (tmp_path / "autograder.seed.txt").read_text().strip() not in json.dumps(results) + done.stdout
        return results

    return go


def notebook(text: str) -> str:
    return json.dumps({"cells": [{"cell_type": "code", "source": text}]})


def has_score(results: dict[str, Any]) -> bool:
    return "score" in results or any("score" in test for test in results["tests"])


@pytest.mark.usefixtures("sandbox")
def test_a_right_answer_gets_all(run: Run, right: str) -> None:
    results = run(m90_tiny__ipynb=notebook(right))
    assert results["score"] == 10
    scored = [(test["number"], test.get("score"), test["max_score"]) for test in results["tests"]]
    assert scored == [("m90.q1", 6, 6), ("m90.q2", 4, 4), ("m90.e1", None, 2)]
    assert {test.get("visibility", "visible") for test in results["tests"]} == {"visible"}


@pytest.mark.usefixtures("sandbox")
def test_a_mistake_gets_its_message(run: Run, right: str) -> None:
    results = run(m90_tiny__ipynb=notebook(right.replace("rint", "trunc")))
    assert results["score"] == 4
    assert "Hint: You cut the fraction off." in results["tests"][0]["output"]


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"notes__txt": "hello"},
        {"m90_tiny__ipynb": "no json"},
        {"m90_tiny__ipynb": notebook("def f(:")},
        {"m90_tiny__py": ""},
    ],
    ids=["nothing", "no notebook", "damaged", "no syntax", "empty"],
)
@pytest.mark.usefixtures("sandbox")
def test_what_cannot_be_read_gets_none_and_a_reason(run: Run, files: dict[str, str]) -> None:
    results = run(**files)
    assert results["score"] == 0
    assert results["output"]


@pytest.mark.usefixtures("sandbox")
def test_a_submission_sees_nothing_of_the_container(run: Run, right: str, tmp_path: Path) -> None:
    root = tmp_path / "autograder"
    spy = (
        "    seen = []\n"
        f"    for place in ({str(root)!r} + '/source/seed.txt', {str(root)!r} + '/source/exercises/m90_tiny.py', "
        f"{str(root)!r} + '/results/results.json'):\n"
        "        try:\n            seen.append(open(place).read())\n        except OSError:\n            pass\n"
        "    raise ValueError(f'saw {len(seen)}')\n"
    )
    results = run(m90_tiny__ipynb=notebook(right.replace("    return v @ product(v)\n", spy)))
    assert "saw 0" in results["tests"][1]["output"]


def _break_judge(source: Path) -> None:
    """Let the judge of the second task fail on one value."""
    path = source / "exercises" / "m90_tiny.py"
    broken = (
        "class Broken(Close):\n    def compare(self, got, want, inputs):\n        if got == 77777.0:\n"
        "            raise OSError('disk')\n        return super().compare(got, want, inputs)\n\n\nENERGY = Task("
    )
    text = path.read_text().replace("ENERGY = Task(", broken, 1)
    path.write_text(text.replace("judge=Close(1e-9)", "judge=Broken(1e-9)", 1))


@pytest.mark.usefixtures("sandbox")
def test_a_fault_of_the_judge_gives_no_score_at_all(run: Run, right: str) -> None:
    text = right.replace("return v @ product(v)", "return 77777.0")
    assert run(m90_tiny__ipynb=notebook(text))["score"] == 6
    results = run(_break_judge, m90_tiny__ipynb=notebook(text))
    assert not has_score(results)
    assert "by no fault of yours" in results["output"]
    assert results["tests"][0]["output"] == "All cases pass."
    assert "Not graded yet" in results["tests"][1]["output"]


@pytest.mark.parametrize(
    ("change", "python"),
    [
        (lambda source: None, "/nowhere/python"),
        (lambda source: None, "false"),
        (lambda source: (source / "seed.txt").unlink(), sys.executable),
        (lambda source: shutil.rmtree(source / "exercises"), sys.executable),
        (lambda source: (source / "exercises" / "m90_tiny.py").write_text("def broken(:"), sys.executable),
    ],
    ids=["no interpreter", "it dies", "no seed", "no exercises", "broken exercises"],
)
def test_whatever_breaks_there_is_a_valid_file_without_a_score(
    run: Run, right: str, change: Callable[[Path], None], python: str
) -> None:
    results = run(change, python, m90_tiny__ipynb=notebook(right))
    assert not has_score(results)
    assert results["output"].startswith("Not graded yet, by no fault of yours.")


def test_without_a_sandbox_there_is_no_score(course: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("labkit.grading.isolation._level", lambda name: (None, "not here"))
    results = grade_one(tmp_path, course, "m90", "a secret of the tests")
    assert results == not_graded("the grader cannot work in this container.")


def test_the_command_writes_what_it_is_asked_for(course: Path, tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    common = ["--submission", str(tmp_path), "--course", str(course), "--module", "m90", "--results", str(out)]
    main([*common, "--seed-file", str(tmp_path / "missing")])
    assert json.loads(out.read_text()) == not_graded("the grader has no seed.")


def test_the_zip_holds_what_is_needed_and_no_answer(
    pack: Callable[..., Autograder], course: Path, tmp_path: Path
) -> None:
    (course / "exercises" / "m91_other.py").write_text("another = 1\n")
    try:
        written = pack(torch_index="https://wheels.example.org/cpu")
    finally:
        (course / "exercises" / "m91_other.py").unlink()
    assert written.names == (
        "README.md",
        "exercises/m90_tiny.py",
        "labkit-0.0.0-py3-none-any.whl",
        "requirements-torch.txt",
        "requirements.txt",
        "run_autograder",
        "seed.txt",
        "setup.sh",
    )
    with zipfile.ZipFile(tmp_path / "autograder.zip") as archive:
        texts = {name: archive.read(name).decode() for name in archive.namelist() if not name.endswith(".whl")}
        modes = {info.filename: info.external_attr >> 16 for info in archive.infolist()}
    assert modes["run_autograder"] & stat.S_IXUSR
    assert modes["setup.sh"] & stat.S_IXUSR
    assert not re.search(r"https?:|@[A-Z_]+@", texts["setup.sh"] + texts["run_autograder"] + texts["README.md"])
    first, torch, vision = texts["requirements-torch.txt"].split("\n")[:3]
    assert first == "--index-url https://wheels.example.org/cpu"
    assert re.fullmatch(r"torch==[\d.]+", torch) and re.fullmatch(r"torchvision==[\d.]+", vision)
    assert texts["requirements.txt"].startswith("./labkit-0.0.0-py3-none-any.whl\nnumpy==")
    assert texts["seed.txt"] == written.seed_file.read_text()
    assert "m90_tiny.ipynb" in texts["README.md"] and "12 points; 2 of them are for open answers" in texts["README.md"]


def test_the_same_module_and_seed_give_the_same_bytes(pack: Callable[..., Autograder], tmp_path: Path) -> None:
    pack()
    first = (tmp_path / "autograder.zip").read_bytes()
    pack()
    assert (tmp_path / "autograder.zip").read_bytes() == first
    with zipfile.ZipFile(tmp_path / "autograder.zip") as archive:
        assert "--index-url" not in archive.read("requirements-torch.txt").decode()


@pytest.mark.parametrize("name", ["setup.sh", "run_autograder"])
def test_scripts_are_bash(pack: Callable[..., Autograder], tmp_path: Path, name: str) -> None:
    pack()
    with zipfile.ZipFile(tmp_path / "autograder.zip") as archive:
        done = subprocess.run(["bash", "-n"], input=archive.read(name), capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def test_what_is_no_wheel_is_refused(pack: Callable[..., Autograder], tmp_path: Path) -> None:
    (tmp_path / "labkit-1.whl").write_text("no zip")
    with pytest.raises(InputError, match="labkit-1.whl is no wheel"):
        pack(wheel=tmp_path / "labkit-1.whl")
    with zipfile.ZipFile(tmp_path / "other-1.whl", "w") as archive:
        archive.writestr("labkit/grading/gradescope.py", "")
    with pytest.raises(InputError, match="other-1.whl is no wheel of a labkit that grades"):
        pack(wheel=tmp_path / "other-1.whl")
    assert not (tmp_path / "autograder.zip").exists()


def test_what_is_no_address_is_refused(pack: Callable[..., Autograder]) -> None:
    with pytest.raises(InputError, match="'cpu' is no address of a package index"):
        pack(torch_index="cpu")


def test_no_module_no_zip(course: Path, wheel: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="There is no module 'm77'"):
        write_autograder(course, "m77", tmp_path / "autograder.zip", wheel=wheel)
    assert not list(tmp_path.glob("autograder*"))


def test_a_wheel_is_built_from_the_clone(pack: Callable[..., Autograder], tmp_path: Path) -> None:
    pytest.importorskip("build")
    pytest.importorskip("hatchling")
    (name,) = [name for name in pack(wheel=None).names if name.endswith(".whl")]
    with zipfile.ZipFile(tmp_path / "autograder.zip") as archive, archive.open(name) as inner:
        names = zipfile.ZipFile(inner).namelist()
    assert "labkit/grading/templates/run_autograder.sh" in names
    assert not [name for name in names if "solutions" in name or "exercises" in name]


def test_the_command_line_packs(course: Path, wheel: Path, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from labkit.cli.app import app

    out, seed = tmp_path / "out.zip", tmp_path / "private.txt"
    seed.write_text("0123456789abcdef\n")
    options = ["--course", str(course), "--seed-file", str(seed), "--wheel", str(wheel)]
    done = CliRunner().invoke(app, ["gradescope", "m90", "-o", str(out), *options])
    assert done.exit_code == 0, done.output
    assert f"The private seed of its cases is in {seed}." in done.output.replace("\n", " ")
    assert "0123456789abcdef" not in done.output
    with zipfile.ZipFile(out) as archive:
        assert archive.read("seed.txt") == b"0123456789abcdef\n"
