"""What must stand in no file: places of one machine, hosts of package registries, and ways to run what a file says."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from house.repository import project_files
from house.source import LIBRARY, ROOT, Module, imports, modules

# Spelled in two halves, or this file would break its own rule.
_FOLDERS = ["wo" + "rk", "ro" + "ot", "ho" + "me", "Us" + "ers"]
_HOSTS = ["pypi" + r"\.org", "files" + r"\.pythonhosted\.org", "registry" + r"\.npmjs\.org", "deb" + r"\.debian\.org"]
_EVERYWHERE = re.compile(
    "|".join([*(rf"(?<![\w.~}}])/{name}/" for name in _FOLDERS), *(rf"\b{host}\b" for host in _HOSTS)])
)
_OUTSIDE_TESTS = re.compile(r"(?<![\w.~}])/t" + "mp/")


def strange_words(path: Path, content: str) -> list[str]:
    """The forbidden words in ``content``, the text of the project's file ``path``."""
    found = _EVERYWHERE.findall(content)
    if path.parts[0] != "tests":
        found += _OUTSIDE_TESTS.findall(content)
    if str(ROOT) in content:  # a recorded command, or a path that a program wrote into its output
        found.append(str(ROOT))
    return sorted(set(found))


def test_files_name_no_private_places_or_registries() -> None:
    read = {path.relative_to(ROOT): path.read_bytes().decode("utf-8", "replace") for path in project_files()}
    if not read:
        pytest.skip("not a git checkout, so the project's files cannot be told from others")
    assert not {str(path): words for path, text in read.items() if (words := strange_words(path, text))}


# Modules that load code from data, or calls that run text as code. Each exception carries its reason.
_UNSAFE_MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "shelve", "marshal"}
_UNSAFE_CALLS = {"eval", "exec"}
EXCEPTIONS = {
    "kernels/jit.py": "Numba's compiled code has no other form on disk; it stays in the user's own cache",
    "grading/answering.py": "It is the inside of the sandbox: to run what a submission says is what it is for",
    "grading/givens.py": "It is the inside of the sandbox, where what a task is given lies in no file",
}


def unsafe(module: Module) -> list[str]:
    """Where ``module`` imports a pickle, evaluates text, or asks NumPy or torch to unpickle."""
    found = [str(i) for i in imports(module) if i.target.split(".")[0] in _UNSAFE_MODULES]
    for node in ast.walk(module.tree):
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Name) and node.func.id in _UNSAFE_CALLS:
            found.append(f"line {node.lineno}: {node.func.id}()")
        named = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if named.get("allow_pickle", "False") != "False":
            found.append(f"line {node.lineno}: allow_pickle")
        if ast.unparse(node.func) == "torch.load" and named.get("weights_only") != "True":
            found.append(f"line {node.lineno}: torch.load without weights_only=True")
    return found


@pytest.mark.parametrize("module", modules(), ids=lambda module: module.name)
def test_nothing_runs_what_a_file_says(module: Module) -> None:
    name = str(module.path.relative_to(LIBRARY))
    if name in EXCEPTIONS:
        assert unsafe(module), f"{name} is clean: take it out of EXCEPTIONS"
    else:
        assert not unsafe(module)


def test_exceptions_are_real_files() -> None:
    assert not [name for name in EXCEPTIONS if not (LIBRARY / name).exists()]


# The rules themselves.


@pytest.mark.parametrize(
    ("path", "text", "count"),
    [
        ("docs/a.md", "run /wo" + "rk/x", 1),
        ("docs/a.md", "see https://example.com/wo" + "rk/x, a/ro" + "ot/b, $HOME/wo" + "rk/", 0),
        ("Makefile", "pip install -i https://py" + "pi.org/simple", 1),
        ("docs/a.md", "--out /t" + "mp/x", 1),
        ("tests/unit/test_a.py", "--out /t" + "mp/x", 0),
        ("labkit/models/recipe.json", f'"command": "{ROOT}/a"', 1),
    ],
)
def test_strange_words_are_found(path: str, text: str, count: int) -> None:
    words = strange_words(Path(path), text)
    assert bool(words) is bool(count), words


@pytest.mark.parametrize(
    ("text", "caught"),
    [
        ("import pickle", True),
        ("def f():\n    from pickle import load", True),
        ("eval('1')", True),
        ("module.eval()", False),
        ("np.load(p, allow_pickle=True)", True),
        ("np.load(p, allow_pickle=False)", False),
        ("torch.load(p)", True),
        ("torch.load(p, weights_only=True)", False),
    ],
)
def test_unsafe_code_is_found(tmp_path: Path, text: str, caught: bool) -> None:
    (tmp_path / "a.py").write_text(text)
    (module,) = modules(tmp_path)
    assert bool(unsafe(module)) is caught
