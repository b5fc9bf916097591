"""What calibration takes: arrays and dicts, images and sentences of several lengths."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from unit.quantization.nets import small, small_encoder, token_rows

from labkit.errors import InputError
from labkit.frontends.torch_fx import from_torch
from labkit.graph import float_ops
from labkit.graph.float_ops import InputKind
from labkit.graph.ir import FloatGraph, FloatNode
from labkit.graph.passes import simplify
from labkit.models.sentence_encoder import encoder_graph
from labkit.quantization import inputs
from labkit.quantization.batches import image_batches
from labkit.quantization.inputs import GraphOfInputs, named_batches

IMAGES = simplify(from_torch(small(), (3, 8, 8)))
SENTENCES = simplify(encoder_graph(small_encoder(), 16))


@pytest.mark.parametrize("wrap", ["bare", "dict", "list of dicts", "generator of dicts", "list"])
def test_one_input_has_its_name(wrap: str) -> None:
    x = np.random.default_rng(0).normal(size=(300, 3, 8, 8))
    name = IMAGES.inputs[0]
    forms: dict[str, Any] = {
        "bare": x,
        "dict": {name: x},
        "list of dicts": [{name: x[:200]}, {name: torch.from_numpy(x[200:])}],
        "generator of dicts": ({name: part} for part in np.split(x, 3)),
        "list": [x[:9], (x[9:], np.zeros(3))],
    }
    got = list(named_batches(IMAGES, forms[wrap]))
    assert {tuple(given) for given in got} == {(name,)}
    assert max(len(given[name]) for given in got) <= 128
    np.testing.assert_array_equal(np.concatenate([given[name] for given in got]), x.astype(np.float32))
    if wrap == "bare":
        assert [len(given[name]) for given in got] == [len(part) for part in image_batches(x)]


def test_batches_of_sentences_hold_a_few_thousand_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "_TOKENS", 30)
    batches = token_rows(4, 16, 31, count=10)
    got = list(named_batches(SENTENCES, batches))
    assert [given["ids"].shape for given in got] == [(7, 4), (3, 4), *[(1, 16)] * 10, *[(1, 31)] * 10]
    assert {(given["ids"].dtype.str, given["mask"].dtype.str) for given in got} == {("<i8", "|u1")}
    np.testing.assert_array_equal(np.concatenate([given["ids"] for given in got[:2]]), batches[0]["ids"])


def test_one_dict_and_tensors_and_booleans_do() -> None:
    (batch,) = token_rows(5)
    given = {"mask": torch.ones(6, 5, dtype=torch.bool), "ids": torch.from_numpy(batch["ids"].astype(np.int32))}
    (got,) = named_batches(SENTENCES, given)
    assert list(got) == ["ids", "mask"]
    np.testing.assert_array_equal(got["ids"], batch["ids"])
    assert (got["mask"] == 1).all()


def _changed(**arrays: Any) -> dict[str, Any]:
    return {**token_rows(5)[0], **arrays}


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        (np.zeros((2, 16)), "takes the inputs ids, mask: .* got ndarray"),
        (5, "takes the inputs ids, mask: .* got int"),
        ([np.zeros((2, 16), int)], "by the names ids, mask, got ndarray"),
        ({"ids": np.zeros((2, 5), int)}, "by the names ids, mask, got the names ids"),
        (_changed(more=np.zeros(3)), "got the names ids, mask, more"),
        (_changed(mask=np.ones((5, 5), bool)), "one batch size, got ids: 6, mask: 5"),
        (_changed(ids=np.zeros((6, 5))), r"'ids' holds index numbers of the shape \('N', 16\), got float64 \(6, 5\)"),
        (_changed(ids=np.zeros((6, 5, 1), int)), r"got int64 \(6, 5, 1\)"),
        (_changed(mask=np.ones((6, 5))), r"'mask' holds mask numbers .* got float64"),
        (_changed(mask=np.tril(np.ones((6, 5), int), 2)), "The mask 'mask' leaves tokens out"),
        (_changed(mask=np.full((6, 5), 2)), "The mask 'mask' leaves tokens out"),
    ],
)
def test_what_does_not_fit_is_refused(batches: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        list(named_batches(SENTENCES, batches))


def test_an_input_of_indices_alone_takes_an_array_in_a_dict() -> None:
    nodes = (
        FloatNode("ids", float_ops.Input((4,), InputKind.INDEX)),
        FloatNode("rows", float_ops.Embedding(np.ones((9, 2), np.float32)), ("ids",)),
    )
    (got,) = named_batches(FloatGraph(nodes, ("rows",)), {"ids": np.zeros((2, 3), int)})
    assert got["ids"].shape == (2, 3)


def test_each_length_has_its_network_once() -> None:
    graph_of = GraphOfInputs(SENTENCES)
    whole, short = token_rows(16, 5)
    assert graph_of(whole) is SENTENCES
    found = graph_of(short)
    assert found is graph_of(short)
    assert found["ids"].op.shape == (5,)  # type: ignore[union-attr]
    with pytest.raises(InputError, match="takes no sequence of 17"):
        graph_of(token_rows(17)[0])
    with pytest.raises(InputError, match=r"'mask' has shape \(4,\), the network takes \(5,\)"):
        graph_of(_changed(mask=np.ones((6, 4), np.uint8)))
    with pytest.raises(InputError, match=r"images have shape \(3, 9, 9\), the network takes \(3, 8, 8\)"):
        GraphOfInputs(IMAGES)({IMAGES.inputs[0]: np.zeros((2, 3, 9, 9), np.float32)})
