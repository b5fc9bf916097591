"""The notebooks: made from their scripts byte for byte, and sound from top to bottom on the data of the package."""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path
from types import ModuleType

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[3]
SCRIPTS = sorted((ROOT / "notebooks").glob("*.py"))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_notebooks", ROOT / "tools" / "build_notebooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_notebook_has_a_script() -> None:
    assert NOTEBOOKS
    assert [path.stem for path in NOTEBOOKS] == [path.stem for path in SCRIPTS]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_rebuild_gives_the_same_bytes(script: Path, tool: ModuleType) -> None:
    committed = script.with_suffix(".ipynb").read_bytes()
    assert tool.notebook_text(script.read_text("utf-8")).encode() == committed, "run python tools/build_notebooks.py"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_valid_and_clean(path: Path) -> None:
    notebook = nbformat.read(path, as_version=nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.metadata.kernelspec.name == "python3"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not [cell for cell in code if cell.outputs or cell.execution_count is not None]
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)


def test_an_edit_leaves_the_ids_of_other_cells(tool: ModuleType) -> None:
    def ids(text: str) -> list[str]:
        return [cell.id for cell in nbformat.reads(tool.notebook_text(text), as_version=4).cells]

    before = ids("# %% [markdown]\n# Title\n\n# %%\na = 1\n\n# %%\na = 1\n")
    after = ids("# %% [markdown]\n# Title\n\n# %%\nb = 2\n\n# %%\na = 1\n\n# %%\na = 1\n")
    assert len(set(before)) == 3, "two cells of one text need two ids"
    assert after[:1] + after[2:] == before


def test_check_tells_what_is_not_up_to_date(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.py").write_text("# %%\na = 1\n")
    assert tool.main(["--folder", str(tmp_path), "--check"]) == 1
    assert "a.ipynb" in capsys.readouterr().out
    assert not (tmp_path / "a.ipynb").exists()
    assert tool.main(["--folder", str(tmp_path)]) == 0
    assert tool.main(["--folder", str(tmp_path), "--check"]) == 0
    (tmp_path / "a.py").write_text("# %%\na = 2\n")
    assert tool.main(["--folder", str(tmp_path), "--check"]) == 1


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_on_the_embedded_data(path: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}
    environment["LABKIT_DATA"] = str(tmp_path / "data")
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": tmp_path}})
    client.execute(env=environment)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    said = "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")
    warned = "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stderr")
    assert warned == ""
    assert len([output for output in outputs if "image/png" in output.get("data", {})]) == 7
    assert re.search(r": 0 of \d+,\d{3},\d{3} elements differ", said)
    assert "First difference: tensor fc1" in said
    assert "the same logits, to the last bit" in said
