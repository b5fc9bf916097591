"""A sentence encoder in integers, timed against the same encoder in other runtimes.

The encoder is MiniLM where its weights are installed, else one of its size with random weights: what is computed takes as
long. Nothing is timed before labkit's integers were compared with its reference tier.
"""

from __future__ import annotations

import gzip
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from labkit.benchmark.timing import Paired, clock_for, time_pair
from labkit.engine.node_by_node import run_nodes
from labkit.engine.run import trace
from labkit.errors import ModelError
from labkit.graph.lengths import at_length
from labkit.graph.passes import simplify
from labkit.kernels.kernel_set import REFERENCE
from labkit.models.sentence_encoder import SentenceEncoder, encoder_graph, load_minilm, tokenize
from labkit.net import IntegerNet
from labkit.quantization.calibration import calibrate
from labkit.quantization.convert import convert
from labkit.quantization.plan import BitPlan

__all__ = [
    "CASES",
    "LONGEST",
    "Peer",
    "SentenceCase",
    "encoder_in_integers",
    "float_encoder",
    "peers_of",
    "sentences",
    "stsb_texts",
    "time_case",
]

LONGEST = 128  # tokens
CASES = (
    (1, 16),
    (32, 24),
    (1, LONGEST),
    (8, LONGEST),
)  # sentences and their tokens; those of STS-B have 8 to 60, mostly 10 to 30
_SEED = 0
_COMPARED = (
    3  # sentences of a batch whose every tensor is compared; the outputs of all are compared with those one by one
)
_CALIBRATION = 48

Sentences = dict[str, NDArray[Any]]


@dataclass(frozen=True, eq=False)
class Peer:
    """Another computation of the same encoder: ``run`` takes ids int64 and mask bool [N, T], and gives float32 [N, T, D]."""

    name: str
    run: Callable[[Sentences], NDArray[np.float32]]


@dataclass(frozen=True)
class SentenceCase:
    """One batch: ``refused`` in words, or the times against each peer and how far its vectors are from ours.

    pairs : by the peer's name, "ours" is labkit
    cosines : the lowest cosine between a token's vector of labkit and that of the peer
    """

    batch: int
    length: int
    refused: str | None
    pairs: dict[str, Paired]
    cosines: dict[str, float]


def float_encoder() -> tuple[SentenceEncoder, str]:
    """The encoder and, in words, where its weights come from."""
    try:
        return load_minilm(), "all-MiniLM-L6-v2"
    except (ModelError, ImportError):
        torch.manual_seed(_SEED)
        return SentenceEncoder().eval(), "random weights, of MiniLM's size"


def encoder_in_integers(encoder: SentenceEncoder, texts: Sequence[str]) -> IntegerNet:
    """``encoder`` as W8A8 for sentences of up to `LONGEST` tokens, calibrated on ``texts``, or on random tokens without any."""
    graph = simplify(encoder_graph(encoder, LONGEST))
    batches: list[Sentences]
    if texts:
        batches = [{"ids": found.ids, "mask": found.mask} for found in tokenize(texts[:_CALIBRATION], 1)]
    else:
        batches = [sentences(4, 24, seed) for seed in range(2)]
        batches = [{**batch, "mask": np.ones_like(batch["mask"])} for batch in batches]
    return IntegerNet(convert(graph, calibrate(graph, batches), BitPlan.uniform(graph)))


def stsb_texts(folder: Path) -> list[str]:
    """The first sentence of each pair of STS-B's development set in ``folder``; none where it is not there."""
    try:
        lines = gzip.decompress((folder / "stsb" / "sts-dev.csv.gz").read_bytes()).decode().splitlines()
    except OSError:
        return []
    return [line.split("\t")[5] for line in lines]


def sentences(count: int, length: int, seed: int = _SEED) -> Sentences:
    """``count`` sentences of tokens drawn by ``seed``, filled up to ``length``: about a quarter is filling, none in the first."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(1000, 30_000, (count, length))
    mask = np.arange(length) < np.maximum(length - rng.integers(0, length // 2 + 1, (count, 1)), 1)
    mask[0] = True
    return {"ids": ids, "mask": mask}


@contextmanager
def peers_of(encoder: SentenceEncoder) -> Iterator[list[Peer]]:
    """The ``encoder`` in onnxruntime, as float32 and as its own quantizer makes it (dynamic int8), and in torch; one thread each.

    The optimizer for transformers that comes with onnxruntime finds no attention to fuse in the exported file, and what it does
    fuse makes it slower: it is left out. Files are gone afterwards.
    """
    with tempfile.TemporaryDirectory() as folder:
        yield [*_of_onnxruntime(encoder, Path(folder)), Peer("torch fp32", _torch_runner(encoder))]


def _of_onnxruntime(encoder: SentenceEncoder, folder: Path) -> list[Peer]:
    try:
        import onnxruntime
        from onnxruntime.quantization import QuantType, quantize_dynamic
    except ImportError:
        return []
    real, small = folder / "encoder.onnx", folder / "encoder.int8.onnx"
    _export(encoder, real)
    logging.getLogger().setLevel(logging.ERROR)  # it proposes a pre-processing of shapes, which changes nothing here
    quantize_dynamic(real, small, weight_type=QuantType.QInt8)

    def runner(path: Path) -> Callable[[Sentences], NDArray[np.float32]]:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return lambda given: session.run(None, given)[0]

    return [Peer("onnxruntime fp32", runner(real)), Peer("onnxruntime dynamic int8", runner(small))]


def _export(encoder: SentenceEncoder, path: Path) -> None:
    example = sentences(2, 16)
    axes = {name: {0: "N", 1: "T"} for name in ("ids", "mask", "hidden")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            encoder,
            tuple(torch.from_numpy(example[name]) for name in ("ids", "mask")),
            str(path),
            input_names=["ids", "mask"],
            output_names=["hidden"],
            dynamic_axes=axes,
            opset_version=17,
            dynamo=False,
        )


def _torch_runner(encoder: SentenceEncoder) -> Callable[[Sentences], NDArray[np.float32]]:
    def run(given: Sentences) -> NDArray[np.float32]:
        with torch.inference_mode():
            hidden = encoder(torch.from_numpy(given["ids"]), torch.from_numpy(given["mask"]))
        return np.asarray(hidden.numpy())

    return run


def time_case(
    net: IntegerNet, peers: Sequence[Peer], batch: int, length: int, *, rounds: int = 21, seconds: float = 8.0
) -> SentenceCase:
    """Compare, and if all is right time, ``batch`` sentences of ``length`` tokens.

    Parameters
    ----------
    net : from `encoder_in_integers`
    peers : from `peers_of`
    batch, length : of the sentences
    rounds, seconds : for each pair, see `timing.time_pair`
    """
    cut, given = IntegerNet(at_length(net.graph, length)), sentences(batch, length)
    refused = _wrong(cut, given)
    pairs, cosines = {}, {}
    for peer in peers if refused is None else ():
        cosines[peer.name] = _lowest_cosine(cut.run(given), peer.run(given), given["mask"])

        def ours() -> object:
            return cut.run(given)

        def theirs(peer: Peer = peer) -> object:
            return peer.run(given)

        pairs[peer.name] = time_pair(ours, theirs, clock_for([ours, theirs], 1), rounds, seconds)
    return SentenceCase(batch, length, refused or _wrong(cut, given), pairs, cosines)


def _wrong(net: IntegerNet, given: Sentences) -> str | None:
    """What the fast tier gets wrong, in words."""
    some = net.checked({name: array[:_COMPARED] for name, array in given.items()})
    got = trace(net.prepared(), some)
    for name, expected in run_nodes(net.graph, some, REFERENCE).items():
        if not np.array_equal(got[name], expected):
            return f"{name} differs from the reference tier"
    whole = net.run(given)
    for number in range(len(whole)):
        if not np.array_equal(whole[number], net.run({name: array[[number]] for name, array in given.items()})[0]):
            return f"sentence {number} alone gives other numbers than in the batch"
    return None


def _lowest_cosine(a: NDArray[Any], b: NDArray[Any], mask: NDArray[np.bool_]) -> float:
    x, y = a[mask].astype(np.float64), b[mask].astype(np.float64)
    return float(((x * y).sum(axis=1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)).min())
