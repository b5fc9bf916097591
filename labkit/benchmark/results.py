"""What a benchmark found, as frozen data and as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from labkit.benchmark.answers import PeerAnswer
from labkit.benchmark.timing import Paired

__all__ = ["SCHEMA", "BenchResult", "Case", "LayerRate", "OwnPair", "Pair", "Purposes"]

SCHEMA = "labkit-bench-1"


@dataclass(frozen=True)
class Pair:
    """labkit and one peer: what the peer is, the times, and its answers where they are integers on our grid."""

    peer: str
    what: str
    time: Paired
    answer: PeerAnswer | None


@dataclass(frozen=True)
class Case:
    """One net with some bits at some batch size.

    macs : multiply-accumulates of one image
    file_bytes, resident_bytes : weights and biases in a file, and packed for the kernels
    arena_bytes : memory for the activations of a run, reused from batch to batch
    checked : integers of ours that were compared with the reference tier before anything was timed
    refused : the first wrong one, in words; then nothing was timed
    """

    net: str
    weights: str
    bits: str
    batch: int
    macs: int
    file_bytes: int
    resident_bytes: int
    arena_bytes: int
    checked: int
    refused: str | None
    pairs: tuple[Pair, ...]


@dataclass(frozen=True)
class LayerRate:
    """How fast one layer runs inside its net: ``macs`` and ``bytes`` (of 8-bit weights, input, output) for each call."""

    net: str
    layer: str
    kind: str
    macs: int
    bytes: int
    seconds: float

    @property
    def gmacs(self) -> float:
        """Billions of multiply-accumulates a second."""
        return self.macs / self.seconds / 1e9


@dataclass(frozen=True)
class Purposes:
    """One net prepared for speed and for few bytes.

    speed, memory : bytes of packed weights, and of the memory in which a batch runs
    time : "ours" for speed and "theirs" for few bytes, so that its ratio is what few bytes cost
    """

    net: str
    bits: str
    batch: int
    speed: tuple[int, int]
    memory: tuple[int, int]
    time: Paired


@dataclass(frozen=True)
class OwnPair:
    """labkit against itself: the times of ``what`` ("ours") and ``rival``; None where an answer was wrong."""

    what: str
    rival: str
    time: Paired | None


@dataclass(frozen=True)
class BenchResult:
    """Everything that `labkit bench` measured, and on what.

    data : the name of the data set whose images went through the nets
    load : processes that wanted a core in the minute before the start and before the end, where the system says
    missing : why peers took no part
    purposes, own : labkit against itself
    limits : measured GMAC/s of single instructions, and GB/s under "memory read GB/s"; empty where not asked for
    """

    command: str
    machine: Mapping[str, str]
    versions: Mapping[str, str]
    threads: int
    data: str
    load: tuple[float | None, float | None]
    cases: tuple[Case, ...]
    missing: tuple[str, ...]
    limits: Mapping[str, float]
    layers: tuple[LayerRate, ...]
    purposes: tuple[Purposes, ...] = ()
    own: tuple[OwnPair, ...] = ()

    @property
    def is_right(self) -> bool:
        """Whether none of labkit's answers was wrong."""
        return not self.refused and all(pair.time is not None for pair in self.own)

    @property
    def refused(self) -> tuple[Case, ...]:
        """The cases in which our own answer was wrong."""
        return tuple(case for case in self.cases if case.refused is not None)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; a layer gets its GMAC/s too."""
        values = {"schema": SCHEMA, **asdict(self)}
        values["layers"] = [{**asdict(layer), "gmacs": layer.gmacs} for layer in self.layers]
        return values
