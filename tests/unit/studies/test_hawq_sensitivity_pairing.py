"""The page beside PyHessian is made of its committed result. The comparison itself needs PyHessian and is not run here."""

from __future__ import annotations

import copy
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from labkit.frontends.torch_fx import from_torch
from labkit.graph.passes import simplify
from labkit.models import load
from labkit.quantization.differentiable import run_nodes

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "docs" / "studies" / "pyhessian-pairing"
_SPEC = importlib.util.spec_from_file_location("pair_pyhessian", ROOT / "tools" / "pair_pyhessian.py")
assert _SPEC is not None
assert _SPEC.loader is not None
PAIR = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(PAIR)
RESULT = json.loads((FOLDER / "result.json").read_text("utf-8"))


def test_committed_page_is_made_from_the_committed_result() -> None:
    assert PAIR.page(RESULT) == (FOLDER / "README.md").read_text("utf-8")


def test_what_was_measured_holds_together() -> None:
    assert RESULT["command"].startswith("python tools/pair_pyhessian.py ")
    rows, whole = RESULT["layer_by_layer"], RESULT["at_once"]
    assert len(rows) == len(whole["traces"]) == len(whole["needed"])
    for row, exact in zip(rows, whole["traces"], strict=True):
        for who in PAIR.WHO:  # the two are estimates of one number
            assert abs(row[who]["mean"] - exact) < 5 * row[who]["error"]
            assert row[who]["probes"] % PAIR.ROUND == 0


def test_what_the_guide_quotes_was_measured() -> None:
    guide = " ".join((ROOT / "docs" / "sensitivity.md").read_text("utf-8").split())
    whole, many = RESULT["at_once"], RESULT["many_images"]
    assert f"exact for these images | | {whole['labkit_cpu_seconds']:.1f} |" in guide
    for who in PAIR.WHO:
        probes, seconds = (sum(row[who][key] for row in RESULT["layer_by_layer"]) for key in ("probes", "cpu_seconds"))
        assert f"each layer alone | {probes:,} | {seconds:.0f} |" in guide
    assert f"(extrapolated) | {whole['probes_for_all_layers']:,} |" in guide
    assert f"at most {100 * many['largest_error']:.1f} % in any layer, it takes {many['cpu_seconds']:.0f} s" in guide


def test_page_says_what_was_not_reached() -> None:
    slow = copy.deepcopy(RESULT)
    slow["at_once"]["labkit_cpu_seconds"] = 61.0
    assert "Reached" in PAIR.page(RESULT).split("labkit's default")[1].split("\n")[0]
    assert "Not reached" in PAIR.page(slow).split("labkit's default")[1].split("\n")[0]


@pytest.mark.parametrize(
    ("ratio", "words"), [(1.0, "the same cost"), (2.0, "2.0 times the cost"), (0.5, "50 % of the cost")]
)
def test_costs_in_words(ratio: float, words: str) -> None:
    assert PAIR._beside(ratio) == words


def test_folded_network_puts_out_the_same() -> None:
    graph = simplify(from_torch(load("lenet", "mnist5k"), (3, 32, 32)))
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype(np.float32))
    wanted = run_nodes(graph, {graph.inputs[0]: x})[graph.outputs[0]]
    for only in (None, "conv2"):
        module = PAIR.Folded(graph, only)
        assert len(list(module.parameters())) == (5 if only is None else 1)
        assert torch.allclose(module(x), wanted, atol=1e-6)
