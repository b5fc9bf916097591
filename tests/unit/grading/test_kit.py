"""What a worker may see of labkit: whole files for all, and for each task what it is given and no more."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

from labkit.grading.kit import library_for, write_kit

_GIVEN = "labkit.arithmetic.affine.quantize"


def _names(text: str) -> set[str]:
    return {node.name for node in ast.parse(text).body if isinstance(node, ast.FunctionDef | ast.ClassDef)}


def test_no_file_holds_what_tasks_are_given(tmp_path: Path) -> None:
    kit = write_kit(tmp_path, ["labkit.arithmetic.affine", "labkit.course.ingredients.numbers"])
    files = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.py")}
    inside = {"labkit/grading/nursery.py", "labkit/grading/lockdown.py", "labkit/grading/forker.py"}
    assert inside | {"labkit/course/values.py", "labkit/errors.py"} <= files
    assert not [name for name in files if "grade.py" in name or "judging" in name or "redteam" in name]
    assert not [name for name in files if "arithmetic" in name or "numbers" in name or "judges/values" in name]
    assert "numpy" in kit.behind
    assert not [name for name in kit.behind if name.startswith("labkit")]


def test_a_library_is_cut_down_to_what_is_named(tmp_path: Path) -> None:
    kit = write_kit(tmp_path, ())
    text, is_package = library_for([_GIVEN], [], kit.files)["labkit.arithmetic.affine"]
    assert not is_package
    assert {"quantize", "QParams", "QuantSpec"} <= _names(text)
    assert not {"dequantize", "params_from_range", "quantize_tensor"} & _names(text)


def test_makers_are_found_in_encoded_inputs(tmp_path: Path) -> None:
    kit = write_kit(tmp_path, ())
    inputs = [{"a": [{"tuple": [{"made": "numbers.generator", "with": {"seed": 1}}]}]}]
    text, _ = library_for([], inputs, kit.files)["labkit.course.ingredients.numbers"]
    assert _names(text) == {"generator"}
    assert library_for([], [{"a": 1}], kit.files) == {}


def test_what_is_cut_down_still_runs(tmp_path: Path) -> None:
    kit = write_kit(tmp_path / "kit", ())
    for name, (text, is_package) in library_for([_GIVEN], [], kit.files).items():
        parts = name.split(".")
        place = (
            kit.folder.joinpath(*parts, "__init__.py") if is_package else kit.folder.joinpath(*parts).with_suffix(".py")
        )
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    code = f"""
import sys
sys.path.insert(0, {str(kit.folder)!r})
import numpy as np
from labkit.arithmetic.affine import QParams, QuantSpec, quantize
print(quantize([0.4, 0.6, 9.0], QParams(0.5, 0), QuantSpec(4, True)).tolist())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[1, 1, 7]", done.stderr
