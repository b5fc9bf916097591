"""A sentence encoder on the bench: pairs of sentences, the float network's vectors, and what an integer network makes of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labkit.data.sentence_pairs import SentencePairs
from labkit.graph import float_ops
from labkit.graph.ir import FloatGraph
from labkit.graph.passes import simplify
from labkit.models.sentence_encoder import SentenceEncoder, Tokens, encoder_graph, tokenize
from labkit.net import IntegerNet
from labkit.parity.compare import verify
from labkit.parity.report import ParityReport
from labkit.quantization.inputs import Given
from labkit.quantization.plan import BitPlan, scale_owner, wide_names
from labkit.quantization.sentences import embed_tokens, filled_up, quantize_encoder
from labkit.studies.correlation import spearman

__all__ = ["WAYS", "Bench", "Pairs", "Reading", "Way", "drawn_sentences", "pairs_of", "random_bench"]

Vectors = NDArray[np.float64]
Way = Callable[[FloatGraph], dict[str, Any]]  # from the simplified graph to what `quantize_encoder` is told


@dataclass(frozen=True, eq=False)
class Pairs:
    """``first`` and ``second`` as token numbers, whose rows say which pair; ``scores`` float64 [n], as people gave them."""

    first: tuple[Tokens, ...]
    second: tuple[Tokens, ...]
    scores: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Reading:
    """What an integer network makes of pairs.

    spearman : of its cosines and people's scores, per cent.
    points : the same, less the float network's.
    cosine, lowest : of a sentence's vector and the float network's: mean and lowest.
    ranks : Spearman's correlation of its cosines and the float network's.
    cosines : float64 [n], of each pair.
    certificates : of the network at each length, against the emulation in PyTorch.
    """

    spearman: float
    points: float
    cosine: float
    lowest: float
    ranks: float
    cosines: NDArray[np.float64]
    certificates: tuple[ParityReport, ...] = ()

    @property
    def nodes(self) -> int:
        """How many nodes were compared."""
        return len({c.name for report in self.certificates for c in report.comparisons if c.kind == "tensor"})

    @property
    def elements(self) -> int:
        """How many numbers were compared."""
        return sum(report.elements for report in self.certificates)

    @property
    def differing(self) -> int:
        """How many of them differ."""
        return sum(report.differing for report in self.certificates)


class Bench:
    """An encoder, the sentences that it is calibrated on, and pairs with the float network's vectors.

    encoder : float.
    calibration : its sentences.
    pairs : what is measured.
    length : the longest sentence.
    """

    def __init__(self, encoder: SentenceEncoder, calibration: tuple[Tokens, ...], pairs: Pairs, length: int) -> None:
        self.encoder, self.calibration, self.pairs, self.length = encoder, calibration, pairs, length
        self.graph = simplify(encoder_graph(encoder, length))
        self._floats = embed_tokens(encoder, pairs.first), embed_tokens(encoder, pairs.second)

    @property
    def cosines(self) -> NDArray[np.float64]:
        """Of each pair, by the float network: float64 [n]."""
        return np.asarray((self._floats[0] * self._floats[1]).sum(1))

    @property
    def reference(self) -> float:
        """Spearman's correlation of the float network's cosines and people's scores, per cent."""
        return 100 * spearman(self.cosines, self.pairs.scores)

    def net(self, way: Way) -> IntegerNet:
        """The integer network that ``way`` says."""
        return quantize_encoder(self.encoder, self.calibration, length=self.length, **way(self.graph))

    def read(self, net: IntegerNet, verified: int = 0, kernels: str = "numba") -> Reading:
        """What ``net`` makes of the pairs.

        Parameters
        ----------
        net : of `net`
        verified : so many sentences of the pairs are compared with PyTorch, node by node
        kernels : as in `IntegerNet.run`
        """
        vectors = [embed_tokens(net, side, kernels=kernels) for side in (self.pairs.first, self.pairs.second)]
        cosines = np.asarray((vectors[0] * vectors[1]).sum(1))
        same = np.concatenate([(ours * theirs).sum(1) for ours, theirs in zip(vectors, self._floats, strict=True)])
        score = 100 * spearman(cosines, self.pairs.scores)
        return Reading(
            score,
            score - self.reference,
            float(same.mean()),
            float(same.min()),
            spearman(cosines, self.cosines),
            cosines,
            self.certify(net, verified, kernels),
        )

    def certify(self, net: IntegerNet, sentences: int, kernels: str = "numba") -> tuple[ParityReport, ...]:
        """Certificates of ``net``, one for each length at which it runs ``sentences`` of the pairs; none for 0 sentences.

        They are taken evenly from the shortest to the longest. ``kernels`` as in `read`.
        """
        if not sentences:
            return ()
        count = sum(len(part.rows) for part in self.pairs.first)
        chosen = set(np.linspace(0, count - 1, min(sentences, count)).astype(int).tolist())
        by_length: dict[int, list[Given]] = {}
        place = 0
        for part in self.pairs.first:
            given = filled_up(net, part)
            few = [i for i in range(len(part.rows)) if place + i in chosen]
            place += len(part.rows)
            if few:
                by_length.setdefault(given["ids"].shape[1], []).append(
                    {name: array[few] for name, array in given.items()}
                )
        return tuple(
            verify(
                net.at_length(length),
                self.encoder,
                {name: np.concatenate([part[name] for part in parts]) for name in ("ids", "mask")},
                kernels,
            )
            for length, parts in by_length.items()
        )


def pairs_of(pairs: SentencePairs, chosen: NDArray[np.integer], batch: int = 32) -> Pairs:
    """Those of ``pairs`` whose numbers are ``chosen``, int64 [n], tokenized, up to ``batch`` sentences at a time."""
    sides = ([side[i] for i in chosen] for side in (pairs.first, pairs.second))
    first, second = (tuple(tokenize(side, batch)) for side in sides)
    return Pairs(first, second, pairs.scores[chosen])


def drawn_sentences(pairs: SentencePairs, count: int, seed: int) -> tuple[tuple[str, ...], NDArray[np.integer]]:
    """``count`` sentences of ``pairs`` drawn with ``seed``, and the numbers of the pairs that have none of them, int64 [n]."""
    every = pairs.first + pairs.second
    chosen = np.random.default_rng(seed).choice(len(every), min(count, len(every)), replace=False)
    sentences = tuple(every[i] for i in chosen)
    seen = set(sentences)
    rest = [i for i, (a, b) in enumerate(zip(pairs.first, pairs.second, strict=True)) if not seen & {a, b}]
    return sentences, np.array(rest, np.int64)


def random_bench(encoder: SentenceEncoder, vocabulary: int, length: int, pairs: int, seed: int = 0) -> Bench:
    """A bench of random tokens, for smoke runs: ``pairs`` pairs, as many sentences to calibrate on, all up to ``length`` long.

    ``vocabulary`` is the number of tokens that ``encoder`` knows; ``seed`` is of what is drawn.
    """
    rng = np.random.default_rng(seed)

    def sentences(first: int) -> Tokens:
        lengths = rng.integers(max(2, length // 2), length + 1, pairs)
        mask = np.arange(lengths.max()) < lengths[:, None]
        return Tokens(np.arange(first, first + pairs), rng.integers(1, vocabulary, mask.shape) * mask, mask)

    drawn = Pairs((sentences(0),), (sentences(0),), rng.uniform(0, 5, pairs))
    return Bench(encoder, (sentences(0),), drawn, length)


def _narrow_residuals(graph: FloatGraph) -> dict[str, Any]:
    """8 bits wherever a GELU or a softmax does not need 16; LayerNorms take no zero point, so all grids are symmetric."""
    kept = {
        scale_owner(graph, node.inputs[0])
        for node in graph
        if isinstance(node.op, float_ops.Gelu | float_ops.MaskedSoftmax)
    }
    return {"plan": _with_bits(graph, [name for name in wide_names(graph) if name not in kept], "symmetric")}


def _gelu_tables(graph: FloatGraph) -> dict[str, Any]:
    taken = [scale_owner(graph, node.inputs[0]) for node in graph if isinstance(node.op, float_ops.Gelu)]
    return {"plan": _with_bits(graph, taken, "affine")}


def _with_bits(graph: FloatGraph, eight: list[str], scheme: str) -> BitPlan:
    plan = BitPlan.uniform(graph, activation_scheme=scheme)
    return BitPlan(plan.weights, {**plan.activations, **dict.fromkeys(eight, 8)}, activation_scheme=scheme)


def _told(graph: FloatGraph, **how: Any) -> dict[str, Any]:
    return how


WAYS: Mapping[str, Way] = {
    "W8A8": _told,
    "W8A8, symmetric": partial(_told, activation_scheme="symmetric"),
    "W8A8, symmetric, residuals of 8 bits": _narrow_residuals,
    "W8A8, GELU by a table": _gelu_tables,
    "W4A8, nearest": partial(_told, weights=4),
    "W4A8, best": partial(_told, weights=4, rounding="best"),
}
