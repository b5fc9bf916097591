"""The benchmark of sentence encoders on a small one: what is compared, what is timed, and what a wrong integer does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from labkit.benchmark import sentences
from labkit.benchmark.sentences import Peer, encoder_in_integers, peers_of, stsb_texts, time_case
from labkit.kernels.fast.tile import Dot, fastest_dots, widest_registers
from labkit.models.sentence_encoder import EncoderSizes, SentenceEncoder
from labkit.net import IntegerNet

SMALL = EncoderSizes(vocabulary=30_001, positions=40, width=24, heads=3, layers=1, inner=32)


@pytest.fixture(scope="module")
def encoder() -> SentenceEncoder:
    torch.manual_seed(1)
    return SentenceEncoder(SMALL).eval()


@pytest.fixture(scope="module")
def net(encoder: SentenceEncoder) -> IntegerNet:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sentences, "LONGEST", 32)
        return encoder_in_integers(encoder, [])


def test_peers_are_timed_and_give_the_same_vectors_but_for_rounding(encoder: SentenceEncoder, net: IntegerNet) -> None:
    pytest.importorskip("onnxruntime")
    with peers_of(encoder) as peers:
        found = time_case(net, peers, 3, 9, rounds=2, seconds=0.1)
    assert found.refused is None
    assert list(found.pairs) == ["onnxruntime fp32", "onnxruntime dynamic int8", "torch fp32"]
    assert all(pair.rounds == 2 and pair.ours_ms > 0 and pair.ratio > 0 for pair in found.pairs.values())
    assert found.cosines["onnxruntime fp32"] == pytest.approx(found.cosines["torch fp32"], abs=1e-3)
    assert min(found.cosines.values()) > 0.9


@pytest.mark.skipif(
    Dot.QUADS_VNNI not in fastest_dots(widest_registers()), reason="the claim is for processors with VNNI"
)
def test_a_layer_of_minilm_is_faster_than_in_onnxruntime() -> None:
    """docs/transformers.md has 3.5 times for the whole network; 1.3 leaves room for a busy machine."""
    pytest.importorskip("onnxruntime")
    torch.manual_seed(2)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        layer = SentenceEncoder(EncoderSizes(vocabulary=30_001, positions=130, layers=1)).eval()
        with peers_of(layer) as peers:
            found = time_case(encoder_in_integers(layer, []), peers[:1], 32, 24, rounds=7, seconds=2.0)
    finally:
        torch.set_num_threads(threads)
    assert found.refused is None
    assert found.pairs["onnxruntime fp32"].ratio >= 1.3


def test_a_wrong_integer_is_not_timed(net: IntegerNet, monkeypatch: pytest.MonkeyPatch) -> None:
    right = sentences.trace

    def wrong(*given: Any) -> Any:
        found = dict(right(*given))
        name = next(reversed(found))
        found[name] = found[name] + 1
        return found

    monkeypatch.setattr(sentences, "trace", wrong)
    never = Peer("never asked", lambda given: pytest.fail("a peer was asked"))
    found = time_case(net, [never], 2, 5)
    assert found.refused is not None
    assert "differs from the reference tier" in found.refused
    assert not found.pairs


def test_sentences_that_meet_in_a_batch_are_noticed(net: IntegerNet, monkeypatch: pytest.MonkeyPatch) -> None:
    right = IntegerNet.run

    def wrong(self: IntegerNet, x: Any) -> Any:
        found = right(self, x)
        if len(found) > 1:
            found[1, 0, 0] += 1
        return found

    monkeypatch.setattr(IntegerNet, "run", wrong)
    assert time_case(net, [], 3, 5).refused == "sentence 1 alone gives other numbers than in the batch"


def test_sentences_are_drawn_with_filling() -> None:
    given = sentences.sentences(20, 12)
    assert given["ids"].shape == given["mask"].shape == (20, 12)
    assert np.all(given["mask"][0])
    assert np.all(given["mask"][:, 0])
    assert not np.all(given["mask"][1:])


def test_without_the_data_there_are_no_texts(tmp_path: Any) -> None:
    assert stsb_texts(tmp_path) == []
