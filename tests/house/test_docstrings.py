"""Public docstrings are contracts (house/docstrings.py has the rules), and their examples run."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect

import pytest
from house.docstrings import Item, lacks_shape_or_dtype, public_items, undocumented_errors, unnamed_parameters
from house.source import ROOT, Module, modules

ERRORS = frozenset(
    node.name
    for module in modules()
    if module.name == "labkit.errors"
    for node in module.tree.body
    if isinstance(node, ast.ClassDef)
)
WITH_ITEMS = [module for module in modules() if any(True for _ in public_items(module))]
CONTRACTS = [module for module in WITH_ITEMS if module.layer != "cli"]
WITH_PARAMETERS = [module for module in CONTRACTS if not module.name.startswith("labkit.kernels.fast")]
WITH_EXAMPLES = [module for module in modules() if ">>>" in module.path.read_text("utf-8")]


@pytest.mark.parametrize("module", modules(), ids=lambda module: module.name)
def test_module_has_a_docstring(module: Module) -> None:
    assert ast.get_docstring(module.tree), f"{module.path.relative_to(ROOT)} says nothing of what it is for"


@pytest.mark.parametrize("module", WITH_ITEMS, ids=lambda module: module.name)
def test_public_things_have_docstrings(module: Module) -> None:
    assert not [item.where for item in public_items(module) if not item.doc and not _inherited(module, item)]


def _inherited(module: Module, item: Item) -> bool:
    """True for a method whose docstring stands at the method of a base class that is labkit's own."""
    if not item.is_method:
        return False
    owner = getattr(importlib.import_module(module.name), item.where.split(".")[-2])
    bases = [base for base in inspect.getmro(owner)[1:] if base.__module__.startswith("labkit")]
    return any(getattr(vars(base).get(item.node.name), "__doc__", None) for base in bases)


@pytest.mark.parametrize("module", WITH_PARAMETERS, ids=lambda module: module.name)
def test_docstrings_name_every_parameter(module: Module) -> None:
    missing = {item.where: unnamed_parameters(item) for item in public_items(module) if item.doc}
    assert not {where: names for where, names in missing.items() if names}


@pytest.mark.parametrize("module", CONTRACTS, ids=lambda module: module.name)
def test_docstrings_give_shapes_and_dtypes(module: Module) -> None:
    missing = {item.where: lacks_shape_or_dtype(item) for item in public_items(module) if item.doc}
    assert not {where: what for where, what in missing.items() if what}


@pytest.mark.parametrize("module", CONTRACTS, ids=lambda module: module.name)
def test_docstrings_name_the_errors_raised(module: Module) -> None:
    missing = {item.where: undocumented_errors(item, ERRORS) for item in public_items(module) if item.doc}
    assert not {where: names for where, names in missing.items() if names}


@pytest.mark.parametrize("module", WITH_EXAMPLES, ids=lambda module: module.name)
def test_examples_in_docstrings_run(module: Module) -> None:
    loaded = importlib.import_module(module.name)
    result = doctest.testmod(loaded, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert result.attempted, f"{module.name} has >>> that doctest does not find"
    assert not result.failed, "doctest's words are in the captured output"


# The rules themselves, tried on docstrings that break them.


def _item(source: str) -> Item:
    (node,) = ast.parse(source).body
    assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    return Item("example", node)


def test_unnamed_parameter_is_found() -> None:
    assert unnamed_parameters(_item('def f(x, axis, *, of=1):\n    """Sum ``x`` along ``axis`` often."""')) == ["of"]
    assert unnamed_parameters(_item('def f(x):\n    """Half of it."""')) == []


@pytest.mark.parametrize(
    ("doc", "missing"),
    [
        ("Half of it.", ["shape", "dtype"]),
        ("Half of it, int8.", ["shape"]),
        ("Half of it, [N, C].", ["dtype"]),
        ("Half of it: float32 [N, C, H, W].", []),
        ("Half of it: float32, shape of ``x``.", []),
        ("Half of it: int32 of shape () or (C,).", []),
    ],
)
def test_missing_shape_and_dtype_are_found(doc: str, missing: list[str]) -> None:
    assert lacks_shape_or_dtype(_item(f'def f(x: NDArray[np.int8]) -> int:\n    """{doc}"""')) == missing
    assert lacks_shape_or_dtype(_item(f'def f(x: int) -> int:\n    """{doc}"""')) == []


@pytest.mark.parametrize(
    ("body", "missing"),
    [
        ('"""Do."""\n    raise DataError("x")', ["DataError"]),
        ('"""Do.\n\n    Raises\n    ------\n    DataError\n        Always.\n    """\n    raise DataError("x")', []),
        (
            '"""Do: DataError.\n\n    Raises\n    ------\n    InputError\n    """\n    raise DataError("x")',
            ["DataError"],
        ),
        ('"""Do."""\n    if x:\n        raise errors.DataError from e', ["DataError"]),
        ('"""Do."""\n    raise KeyError', []),
        ('"""Do."""\n    def g():\n        raise DataError', []),
    ],
)
def test_undocumented_error_is_found(body: str, missing: list[str]) -> None:
    assert undocumented_errors(_item(f"def f(x):\n    {body}"), frozenset({"DataError"})) == missing


def test_undocumented_error_of_a_class_is_found() -> None:
    item = _item('class C:\n    """A thing."""\n    def __post_init__(self):\n        raise DataError("x")')
    assert undocumented_errors(item, frozenset({"DataError"})) == ["DataError"]
