"""A module calibrated at several lengths must compute at each what its translation, cut to it, computes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import labkit
from labkit.errors import InputError, ModelError, UnsupportedOperation

LONGEST, SHORTER = 12, 7


class Attending(nn.Module):
    """One layer of attention; ``kind`` says where the length comes in."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kind = kind
        self.words, self.norm = nn.Embedding(20, 16), nn.LayerNorm(16)
        self.places = nn.Parameter(torch.randn(1, LONGEST, 16))
        self.bias = nn.Parameter(torch.randn(1, 2, LONGEST, LONGEST))
        self.query, self.key, self.value = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)
        self.eval()

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        length = ids.shape[1]
        if self.kind == "from the end":
            x = self.words(ids) + self.places[:, -length:]
        elif self.kind == "even":
            x = self.words(ids) + torch.linspace(0, 1, length)[None, :, None] * self.places[:, :1]
        else:
            x = self.words(ids) + self.places[:, :length]
        q, k, v = (f(x).view(len(ids), length, 2, 8).transpose(1, 2) for f in (self.query, self.key, self.value))
        scores = q @ k.transpose(-1, -2) / math.sqrt(8)
        if self.kind == "log":
            scores = scores * math.log(length)
        elif self.kind == "bias":
            scores = scores + self.bias[:, :, :length, :length]
        elif self.kind.startswith("causal"):
            low = float(self.kind.split()[1])
            scores = scores + torch.triu(torch.full((length, length), low), 1)
        return self.norm(x + (scores.softmax(-1) @ v).transpose(1, 2).reshape(x.shape))


def sentences(length: int) -> dict[str, Any]:
    return {"ids": np.random.default_rng(length).integers(0, 20, (8, length))}


@pytest.mark.parametrize("kind", ["from the end", "even", "log", "bias"])
def test_another_function_at_another_length_is_refused(kind: str) -> None:
    module = Attending(kind)
    with pytest.raises(ModelError, match="For 7 tokens Attending computes something else than the network made for 12"):
        labkit.quantize(module, [sentences(SHORTER), sentences(LONGEST)])
    net = labkit.quantize(module, [sentences(SHORTER)])
    assert labkit.verify(net, module, sentences(SHORTER)).passed


@pytest.mark.parametrize("wrap", ["list", "generator", "loader"])
def test_one_input_of_several_lengths(wrap: str) -> None:
    module, given = Attending("plain").train(), [sentences(SHORTER), sentences(LONGEST)]
    streams: dict[str, Any] = {
        "list": given,
        "generator": (one for one in given),
        "loader": torch.utils.data.DataLoader(given, batch_size=None),  # type: ignore[arg-type]
    }
    net = labkit.quantize(module, streams[wrap])
    assert module.training
    module.eval()
    for one in given:
        short = net.at_length(one["ids"].shape[1])
        with torch.no_grad():
            wanted = module(torch.from_numpy(one["ids"])).numpy()
        assert np.abs(short.run(one) - wanted).max() < 0.05 * np.abs(wanted).max()
        assert labkit.verify(short, module, one).passed


@pytest.mark.parametrize("low", ["-1e9", "-1e4", "-inf"])
def test_a_causal_mask_that_is_added_is_refused(low: str) -> None:
    with pytest.raises(UnsupportedOperation, match="Causal masks and masks of other shapes are not supported"):
        labkit.quantize(Attending(f"causal {low}"), [sentences(LONGEST)])


@pytest.mark.parametrize("value", [None, [[1, 2], [3]]], ids=str)
def test_what_is_no_array_is_refused(value: Any) -> None:
    with pytest.raises(
        InputError, match=r"an example is an array \[N, \.\.\.\]|Put sequences of one length into a batch"
    ):
        labkit.quantize(Attending("plain"), {"ids": value})
