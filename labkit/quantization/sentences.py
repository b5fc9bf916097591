"""Sentence encoders in integers: `quantize_encoder` makes one, `embed` gives the vectors of sentences.

From token numbers to the last hidden states all is integer. The tokenizer before it and the pooling after it (the mean over a
sentence's tokens, divided by its length) compute outside, in real numbers, as a front end does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from labkit.errors import InputError, QuantizationError
from labkit.frontends.torch_fx import parameters_digest
from labkit.frontends.torch_threads import torch_threads
from labkit.graph.lengths import length_of
from labkit.models.sentence_encoder import LONGEST, SentenceEncoder, Tokens, encoder_graph, pooled, tokenize
from labkit.net import IntegerNet
from labkit.quantization.inputs import Given
from labkit.quantization.pipeline import quantize
from labkit.quantization.weight_rounding.best import BEST, BEST_METHOD
from labkit.quantization.weight_rounding.options import RoundingOptions

__all__ = ["BEST_OF_SENTENCES", "embed", "embed_tokens", "filled_up", "quantize_encoder", "token_batches"]

BEST_OF_SENTENCES = replace(BEST, asymmetric=False)
"""`BEST`, but no layer makes up for the errors of those before it: a few thousand tokens do not carry so much (measured)."""

# Lengths are rounded up to a multiple of this: a net is prepared for each, and a masked token changes no integer.
_STEP = 8


def quantize_encoder(
    encoder: SentenceEncoder,
    sentences: Sequence[str] | Sequence[Tokens],
    weights: int = 8,
    ranges: str = "percentile",
    rounding: str = "nearest",
    length: int = LONGEST,
    **how: Any,
) -> IntegerNet:
    """The integer form of ``encoder``. Residuals, scores and what GELUs take have 16 bits, all else 8 or fewer.

    Parameters
    ----------
    encoder : the trained float encoder; it is not changed
    sentences : a few hundred sentences like those that it will read, or what `tokenize` made of them; all are looked at
    weights : bits, 1..8; embeddings have 8
    ranges : of activations of 8 bits, as in `labkit.quantize`; those of 16 bits are not clipped
    rounding : of weights, as in `labkit.quantize`, or "best", which is `BEST_METHOD` with `BEST_OF_SENTENCES`
    length : the longest sentence, with its two marks; `IntegerNet.at_length` gives the net for shorter ones
    how : more of `labkit.quantize`: activations, plan, rounding_options, seed, progress, ...

    Returns
    -------
    IntegerNet
        Takes "ids" and "mask", [N, length], and returns the hidden states, float32 [N, length, width].

    Raises
    ------
    QuantizationError
        As `labkit.quantize`; or there are no sentences.
    InputError
        ``length`` is longer than the encoder's positions.
    ModelError
        The tokenizer is not installed.
    """
    tokens = [one for one in sentences if isinstance(one, Tokens)]
    words = [one for one in sentences if isinstance(one, str)]
    batches = token_batches([*tokens, *(tokenize(words, 1) if words else ())])
    if not batches:
        raise QuantizationError("There are no sentences to calibrate on: hand in a few hundred like those to be read.")
    options: RoundingOptions | None = how.pop("rounding_options", None)
    if rounding != "nearest":  # sentences come sorted by length: the first of them would be the shortest
        options = options or BEST_OF_SENTENCES
        options = replace(options, images=sum(len(batch["ids"]) for batch in batches))
    rounding = BEST_METHOD if rounding == "best" else rounding
    graph = encoder_graph(encoder, length)
    net = quantize(graph, batches, weights, ranges=ranges, rounding=rounding, rounding_options=options, **how)
    return net.with_notes(source=type(encoder).__name__, parameters_sha256=parameters_digest(encoder))


def embed(
    network: IntegerNet | SentenceEncoder, sentences: Sequence[str], batch: int = 32, **how: Any
) -> NDArray[np.float64]:
    """One unit vector for each of ``sentences``: float64 [N, width]. Their product is the cosine of two sentences.

    Parameters
    ----------
    network : of `quantize_encoder`, or the float encoder
    sentences : of any length; what is longer than 128 tokens is cut
    batch : how many are computed at a time
    how : kernels and threads, as in `IntegerNet.run`; none for the float encoder

    Raises
    ------
    InputError
        There is no sentence, or one is longer than the net was made for.
    ModelError
        The tokenizer is not installed.
    """
    return embed_tokens(network, tokenize(sentences, batch), **how)


def embed_tokens(network: IntegerNet | SentenceEncoder, tokens: Iterable[Tokens], **how: Any) -> NDArray[np.float64]:
    """As `embed` for ``tokens``, whose rows say which sentences they are: float64 [N, width].

    ``network`` and ``how`` as there.

    Raises
    ------
    InputError
        A sentence is longer than the net was made for.
    """
    rows, parts = [], []
    for part in tokens:
        rows.append(part.rows)
        hidden = _integers(network, part, how) if isinstance(network, IntegerNet) else _floats(network, part)
        parts.append(pooled(hidden, part.mask))
    return np.asarray(np.concatenate(parts)[np.argsort(np.concatenate(rows), kind="stable")])


def token_batches(tokens: Iterable[Tokens]) -> list[Given]:
    """``tokens`` as calibration takes them: "ids" int64 and "mask" uint8, [N, T], sentences of one length T together."""
    by_length: dict[int, list[NDArray[np.int64]]] = {}
    for part in tokens:
        for ids, mask in zip(part.ids, part.mask, strict=True):
            by_length.setdefault(int(mask.sum()), []).append(ids[mask])
    return [
        {"ids": np.stack(rows), "mask": np.ones((len(rows), length), np.uint8)}
        for length, rows in sorted(by_length.items())
    ]


def filled_up(net: IntegerNet, part: Tokens) -> Given:
    """What ``net`` is given for ``part``: "ids" int64 and "mask" bool, [N, T], T rounded up to one of few lengths.

    Raises
    ------
    InputError
        A sentence is longer than the net was made for.
    """
    length, longest = part.ids.shape[1], length_of(net.graph)
    if length > longest:
        raise InputError(f"A sentence has {length} tokens, the net was made for {longest}: make it for longer ones.")
    more = ((0, 0), (0, min(longest, -(-length // _STEP) * _STEP) - length))
    return {"ids": np.pad(part.ids, more), "mask": np.pad(part.mask, more)}


def _integers(net: IntegerNet, part: Tokens, how: dict[str, Any]) -> NDArray[np.float32]:
    given = filled_up(net, part)
    hidden: NDArray[np.float32] = net.at_length(given["ids"].shape[1]).run(given, **how)
    return hidden[:, : part.ids.shape[1]]


def _floats(encoder: SentenceEncoder, part: Tokens) -> NDArray[np.float32]:
    with torch_threads(1), torch.inference_mode():
        hidden: NDArray[np.float32] = encoder(torch.from_numpy(part.ids), torch.from_numpy(part.mask)).numpy()
    return hidden
