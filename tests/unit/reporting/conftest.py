from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from labkit.reporting.html import render_html
from labkit.reporting.results import DemoResult

_SPEC = importlib.util.spec_from_file_location("reporting_example", Path(__file__).with_name("example.py"))
assert _SPEC is not None and _SPEC.loader is not None
_EXAMPLE = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_EXAMPLE)


@pytest.fixture(scope="session")
def result() -> DemoResult:
    """A whole made-up result in which the W4A4 certificate fails."""
    made: DemoResult = _EXAMPLE.example_result(failing=True)
    return made


@pytest.fixture(scope="session")
def text(result: DemoResult) -> str:
    """The page of ``result``."""
    return render_html(result)


@pytest.fixture(scope="session")
def passing() -> DemoResult:
    """The same with every certificate passing."""
    made: DemoResult = _EXAMPLE.example_result(failing=False)
    return made
