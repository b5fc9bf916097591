"""Examples for networks of tokens: what the PyTorch front end takes, and what it refuses (for tools/make_support.py)."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

import labkit
from labkit.errors import ModelError

__all__ = ["SPELLINGS", "became", "mistakes_of_tokens"]

WORDS, WIDTH, HEADS, LONGEST = 20, 12, 3, 10
_KEPT = ("Input", "Quantize", "Dequantize", "Reshape", "Transpose")  # borders, and what only moves integers

Tensor = torch.Tensor
Act = Callable[["Tokens", Any, Any], Any]


class Tokens(nn.Module):
    """Words, a linear layer, and what ``act`` does with its result (N, T, 12) and the mask (N, T)."""

    def __init__(self, act: Act) -> None:
        super().__init__()
        self.words, self.first = nn.Embedding(WORDS, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.qkv, self.norm, self.gelu = nn.Linear(WIDTH, 3 * WIDTH), nn.LayerNorm(WIDTH), nn.GELU()
        self.place, self.row = nn.Embedding(LONGEST, WIDTH), nn.Parameter(torch.randn(1, LONGEST, WIDTH))
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.length_first = nn.MultiheadAttention(WIDTH, HEADS)
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 24, batch_first=True)
        self.whole = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.token = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.register_buffer("waves", torch.randn(LONGEST, WIDTH))
        self.act = act

    def forward(self, ids: Tensor, mask: Tensor) -> Any:
        """What ``act`` returns, for token numbers ``ids`` int64 (N, T) and ``mask`` bool (N, T)."""
        return self.act(self, self.first(self.words(ids)), mask)


class _Shorter(nn.Module):
    """Token numbers alone, which ``act`` turns into something."""

    def __init__(self, act: Callable[[Any, Any], Any]) -> None:
        super().__init__()
        self.words, self.first, self.act = nn.Embedding(WORDS, WIDTH), nn.Linear(WIDTH, WIDTH), act

    def forward(self, ids: Tensor) -> Any:
        return self.act(self, ids)


def _made(module: type[nn.Module], act: Any) -> nn.Module:
    torch.manual_seed(0)
    return module(act).eval()


def _sentences(count: int, length: int, seed: int, whole: bool) -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(seed)
    lengths = np.full((count, 1), length) if whole else rng.integers(1, length + 1, (count, 1))
    return {"ids": rng.integers(0, WORDS, (count, length)), "mask": np.arange(length) < lengths}


def _quantized(module: nn.Module, lengths: tuple[int, ...] = (4, 7, LONGEST), **options: Any) -> Any:
    batches = [_sentences(6, length, length, True) for length in lengths]
    if isinstance(module, _Shorter):
        batches = [{"ids": batch["ids"]} for batch in batches]
    return labkit.quantize(module, batches, **options)


def _heads(y: Tensor) -> Tensor:
    return y.view(y.shape[0], y.shape[1], HEADS, WIDTH // HEADS).transpose(1, 2)


def _joined(y: Tensor) -> Tensor:
    return y.transpose(1, 2).reshape(y.shape[0], -1, WIDTH)


def _products(product: Callable[[Any, Any], Any]) -> Act:
    """Attention of one head without a mask, whose two products are those of ``product``."""
    return lambda s, x, m: product(product(s.q(x), s.k(x).transpose(1, 2)).softmax(-1), s.v(x))


def _masked(hide: Callable[[Any, Any], Any]) -> Act:
    """Attention whose scores (N, H, T, T) ``hide`` masks by a mask (N, 1, 1, T)."""

    def act(s: Tokens, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (_heads(part(x)) for part in (s.q, s.k, s.v))
        scores = q @ k.transpose(-1, -2) / math.sqrt(WIDTH // HEADS)
        return _joined(hide(scores, mask[:, None, None, :]).softmax(-1) @ v)

    return act


def _apart(split: Callable[[Any], Any]) -> Act:
    """Attention whose queries, keys and values (N, H, T, d) ``split`` takes from one linear layer (N, T, 36)."""

    def act(s: Tokens, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = split(s.qkv(x))
        return _joined((q @ k.mT * (WIDTH // HEADS) ** -0.5).softmax(-1) @ v)

    return act


def _in_five(y: Tensor) -> Tensor:
    return y.reshape(y.shape[0], y.shape[1], 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)


def _lowest(scores: Tensor, mask: Tensor) -> Tensor:
    return scores + (1.0 - mask.to(torch.float32)) * torch.finfo(torch.float32).min


def _one_call(s: Tokens, x: Tensor, mask: Tensor) -> Tensor:
    q, k, v = (_heads(part(x)) for part in (s.q, s.k, s.v))
    return _joined(F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :]))


def _classes(s: Tokens, x: Tensor, mask: Tensor) -> Tensor:
    return torch.cat([s.token.expand(x.shape[0], -1, -1), x], dim=1)


_ATTENTION = {
    "`masked_fill(mask == 0, -inf)`": _masked(lambda y, m: y.masked_fill(m == 0, float("-inf"))),
    "`masked_fill(~mask, -1e9)`": _masked(lambda y, m: y.masked_fill(~m, -1e9)),
    "`torch.where(mask, scores, -1e9)`": _masked(lambda y, m: torch.where(m, y, torch.tensor(-1e9))),
    "`scores + ~mask * -1e9`": _masked(lambda y, m: y + ~m * -1e9),
    "`scores + (1.0 - mask) * finfo.min`": _masked(_lowest),
    "no mask": _masked(lambda y, m: y),
}
_FROM_ONE = {
    "`chunk`": _apart(lambda y: [_heads(part) for part in y.chunk(3, dim=-1)]),
    "slices": _apart(lambda y: [_heads(y[..., at : at + WIDTH]) for at in (0, WIDTH, 2 * WIDTH)]),
    "`permute` and `unbind`": _apart(lambda y: _in_five(y).unbind(0)),
    "`permute` and indices": _apart(lambda y: [_in_five(y)[i] for i in range(3)]),
}

SPELLINGS: dict[str, dict[str, Act]] = {
    "words": {
        "`nn.Embedding`": lambda s, x, m: x,
        "`F.embedding`": lambda s, x, m: x,
    },
    "linear layer on tokens": {
        "`nn.Linear`": lambda s, x, m: s.q(x),
        "`F.linear`": lambda s, x, m: F.linear(x, s.q.weight, s.q.bias),
    },
    "places": {
        "`nn.Embedding` of `torch.arange`": lambda s, x, m: x + s.place(torch.arange(x.shape[1])),
        "`nn.Parameter`": lambda s, x, m: x + s.row[:, : x.shape[1]],
        "a buffer": lambda s, x, m: x + s.get_buffer("waves")[: x.shape[1]],
    },
    "norm": {
        "`nn.LayerNorm`": lambda s, x, m: s.norm(x),
        "`F.layer_norm`": lambda s, x, m: F.layer_norm(x, (WIDTH,), s.norm.weight, s.norm.bias),
    },
    "GELU": {"`nn.GELU`": lambda s, x, m: s.gelu(x), "`F.gelu`": lambda s, x, m: F.gelu(x)},
    "attention of one head, products by": {
        "`a @ b`": _products(lambda a, b: a @ b),
        "`torch.matmul`": _products(torch.matmul),
        "`torch.bmm`": _products(torch.bmm),
        "`x.matmul()`": _products(lambda a, b: a.matmul(b)),
        "`x.bmm()`": _products(lambda a, b: a.bmm(b)),
    },
    "attention of several heads, masked by": _ATTENTION,
    "attention in one call": {
        "`F.scaled_dot_product_attention`": _one_call,
        "`nn.MultiheadAttention(batch_first=True)`": lambda s, x, m: s.attention(x, x, x, key_padding_mask=~m)[0],
    },
    "queries, keys and values of one layer, by": _FROM_ONE,
    "one vector for all tokens": {
        "`x.mean(1)`": lambda s, x, m: x.mean(1),
        "`x[:, 0]`": lambda s, x, m: x[:, 0],
    },
    "a token put in front": {"`torch.cat` with `expand`": _classes},
}


def became(part: str, spelling: str) -> tuple[str, str]:
    """What ``spelling`` of ``part`` adds to a network of words and a linear layer, and the lengths that it takes, in words.

    It is quantized, and verified in both tiers with masks that leave tokens out: at the length that it was made for, and where it
    takes others at a shorter one too.

    Raises
    ------
    SystemExit
        A number differs.
    """
    module = _made(_Shorter, _looked_up) if spelling == "`F.embedding`" else _made(Tokens, SPELLINGS[part][spelling])
    try:
        lengths: tuple[int, ...] = (LONGEST, 7)
        net = _quantized(module)
    except ModelError:  # something knows the length
        net, lengths = _quantized(module, (LONGEST,)), (LONGEST,)
    for length, tier in itertools.product(lengths, ("numba", "reference")):
        here, x = net.at_length(length), _sentences(5, length, 1, False)
        report = labkit.verify(here, module, {name: x[name] for name in net.graph.inputs}, kernels=tier)
        if not report.passed:
            raise SystemExit(f"{part}, {spelling}, length {length}: {report}")
    more = _operations(net)
    if part != "words":
        more -= _operations(_quantized(_made(Tokens, lambda s, x, m: x)))
    else:
        more = Counter({"Embedding": more["Embedding"]})
    named = ", ".join(f"`{name}`" + (f" x {count}" if count > 1 else "") for name, count in sorted(more.items()))
    return named, "any" if len(lengths) > 1 else "one"


def _looked_up(s: Any, ids: Tensor) -> Any:
    return s.first(F.embedding(ids, s.words.weight))


def _operations(net: Any) -> Counter[str]:
    return Counter(name for node in net.graph if (name := type(node.op).__name__) not in _KEPT)


def mistakes_of_tokens() -> dict[str, Callable[[], Any]]:
    """By a few words on what is tried: something that must end in an error of labkit."""

    def tried(act: Act, **options: Any) -> Callable[[], Any]:
        return lambda: _quantized(_made(Tokens, act), **options)

    def causal(s: Tokens, x: Tensor, mask: Tensor) -> Tensor:
        scores = s.q(x) @ s.k(x).transpose(1, 2)
        later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        shares: Tensor = scores.masked_fill(later, -1e9).softmax(-1) @ s.v(x)
        return shares

    def causal_call(s: Tokens, x: Tensor, mask: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(s.q(x)[:, None], s.k(x)[:, None], s.v(x)[:, None], is_causal=True)[:, 0]

    plain: Act = lambda s, x, m: s.norm(x)  # noqa: E731
    masked = {**_sentences(6, 7, 0, True), "mask": np.arange(7)[None] < np.full((6, 1), 5)}
    return {
        "a whole transformer in one module": tried(lambda s, x, m: s.whole(x)),
        "a mask that hides later tokens": tried(causal),
        "the same by `is_causal=True`": tried(causal_call),
        "attention with the length before the batch": tried(lambda s, x, m: s.length_first(x, x, x)[0]),
        "a GELU of tokens by its tanh": tried(lambda s, x, m: F.gelu(x, approximate="tanh")),
        "a layer norm over two axes": tried(lambda s, x, m: F.layer_norm(x, (x.shape[1], WIDTH))),
        "calibrating on a mask that leaves tokens out": lambda: labkit.quantize(_made(Tokens, plain), masked),
        "a sentence longer than the net was made for": lambda: _quantized(
            _made(Tokens, SPELLINGS["places"]["`nn.Parameter`"])
        ).at_length(LONGEST + 1),
        "ranges by 'lapq' for a network of two inputs": tried(plain, ranges="lapq"),
    }
