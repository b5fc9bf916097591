"""`run_bench`: build the nets and their peers, check every answer, then time them in pairs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labkit.benchmark import peers as all_peers
from labkit.benchmark.answers import PeerAnswer, Results, expected, judge_peer, wrong_answer
from labkit.benchmark.layers import arena_bytes, layer_rates
from labkit.benchmark.machine import load_average, machine, versions
from labkit.benchmark.nets import BATCHES, Subject, subject
from labkit.benchmark.own import compare_purposes, linear_pairs, pairs_without_vnni
from labkit.benchmark.peers import LIBRARIES, Peer, PeerMissing
from labkit.benchmark.results import BenchResult, Case, LayerRate, OwnPair, Pair, Purposes
from labkit.benchmark.timing import clock_for, time_pair
from labkit.data.dataset import DataSet
from labkit.engine import run as engine
from labkit.engine.prepare import Route, prepare
from labkit.errors import InputError
from labkit.graph.costs import costs
from labkit.net import IntegerNet

__all__ = ["Settings", "bits_of", "run_bench"]


_NIBBLE = 4  # bits of activations for which there is a way of its own to multiply

Tell = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Settings:
    """What is timed, against whom, and how thoroughly.

    nets : names of `nets.NETS`
    bits : as in "w8a8", "w4a4"
    batches : images in a batch; None for those of `nets.BATCHES`
    threads : of every contestant
    against : names of `peers.LIBRARIES`
    rounds, seconds : how many rounds for each pair, and about how long at most
    roofline : measure single layers and the limits of the processor too

    Raises
    ------
    InputError
        One of them makes no sense.
    """

    nets: tuple[str, ...]
    bits: tuple[str, ...] = ("w8a8",)
    batches: tuple[int, ...] | None = None
    threads: int = 1
    against: tuple[str, ...] = LIBRARIES
    rounds: int = 31
    seconds: float = 8.0
    roofline: bool = False

    def __post_init__(self) -> None:
        for net in self.nets:
            if net not in BATCHES:
                raise InputError(f"There is no net {net!r} to time; choose among {', '.join(BATCHES)}.")
        for library in self.against:
            if library not in LIBRARIES:
                raise InputError(f"labkit can be timed against {' and '.join(LIBRARIES)}, got {library!r}.")
        for text in self.bits:
            bits_of(text)
        if not self.nets or not self.bits or min(self.threads, self.rounds, *(self.batches or (1,))) < 1:
            raise InputError("Name a net and bits at least; threads, rounds and batches are 1 or more.")


def bits_of(text: str) -> tuple[int, int]:
    """Bits of weights and of activations from ``text`` such as "w8a8".

    Raises
    ------
    InputError
        It is not of that form.
    """
    found = re.fullmatch(r"w([1-8])a([2-8])", text.lower())
    if found is None:
        raise InputError(f"Bits are written as w8a8 or w4a4 (weights 1..8, activations 2..8), got {text!r}.")
    return int(found[1]), int(found[2])


def run_bench(settings: Settings, data: DataSet, command: str, tell: Tell) -> BenchResult:
    """Measure what ``settings`` ask for.

    Parameters
    ----------
    settings : a Settings
    data : whose images go through the nets
    command : the command line, kept in the result
    tell : called with (step, done, total)

    Raises
    ------
    ModelError, QuantizationError
        A net cannot be made.
    """
    before = load_average()
    cases: list[Case] = []
    layers: list[LayerRate] = []
    missing: list[str] = []
    purposes: list[Purposes] = []
    own: list[OwnPair] = []
    from labkit.frontends.torch_threads import torch_threads  # not before it is needed: torch takes a second to import

    with torch_threads(settings.threads):
        for name in settings.nets:
            bench = _NetBench(subject(name, data), settings, tell)
            cases += bench.cases()
            missing += [reason for reason in bench.missing if reason not in missing]
            layers += bench.layers
            purposes += bench.purposes
            own += bench.own
    tell("Compare int4 with int8", 0, 1)
    own += linear_pairs(settings.rounds, settings.seconds)
    tell("Compare int4 with int8", 1, 1)
    limits: dict[str, float] = {}
    if settings.roofline:
        from labkit.benchmark.limits import limits as measure

        tell("Measure the processor's limits", 0, 1)
        limits = measure()
        tell("Measure the processor's limits", 1, 1)
    return BenchResult(
        command,
        machine(),
        versions(),
        settings.threads,
        data.name,
        (before, load_average()),
        tuple(cases),
        tuple(missing),
        limits,
        tuple(layers),
        tuple(purposes),
        tuple(own),
    )


class _NetBench:
    """One net at all its bits and batch sizes."""

    def __init__(self, what: Subject, settings: Settings, tell: Tell) -> None:
        self.subject, self.settings, self.tell = what, settings, tell
        self.missing: list[str] = []
        self.layers: list[LayerRate] = []
        self.purposes: list[Purposes] = []
        self.own: list[OwnPair] = []
        self.done = 0

    def cases(self) -> Iterator[Case]:
        step = self.subject.name
        batches = self.settings.batches or BATCHES[step]
        self.tell(step, 0, 1)
        eight = self._net("w8a8")
        peers = self._peers(eight)
        lower = [bits for bits in self.settings.bits if bits != "w8a8"]
        rivals = {bits: self._rivals(bits, eight, peers) for bits in self.settings.bits}
        total = len(batches) * sum(len(found) + 1 for found in rivals.values())
        for bits in self.settings.bits:
            net = self._net(bits) if bits in lower else eight
            exact = expected(net.graph, self.subject.images)
            answers = {peer.name: self._judge(peer, net, exact) for peer in rivals[bits]}
            for batch in batches:
                case = self._case(net, bits, batch, exact, rivals[bits], answers, total)
                yield case
                if batch == batches[0] and case.refused is None:
                    self._compare_with_itself(net, eight, bits, batch)
            if self.settings.roofline and bits == "w8a8":
                self.layers += layer_rates(step, net.graph, self.subject.batch(1))
        self.tell(step, total, total)

    def _case(
        self,
        net: IntegerNet,
        bits: str,
        size: int,
        exact: Results,
        rivals: Sequence[Peer],
        answers: dict[str, PeerAnswer | None],
        total: int,
    ) -> Case:
        batch = self.subject.batch(size)

        def wrong() -> str | None:
            found = wrong_answer(net, exact, self.subject.images, batch, self.settings.threads)
            small = net.run(batch, threads=self.settings.threads, purpose="memory")
            if found is None and not np.array_equal(small, net.run(batch, threads=self.settings.threads)):
                found = "prepared for few bytes it differs"
            for peer in rivals:
                if found is None and peer.exact is not None:
                    wanted = peer.exact[np.arange(size) % len(peer.exact)]
                    found = (
                        None if np.array_equal(peer.run(batch), wanted) else f"{peer.name} differs from the reference"
                    )
            return found

        refused = wrong()
        self._advance(total)
        pairs = []
        for peer in rivals if refused is None else ():
            pairs.append(Pair(peer.name, peer.what, self._time(net, peer, batch), answers[peer.name]))
            self._advance(total)
        if refused is None:  # a neighbour's arena or a cache that went bad on the way would show now
            refused = wrong()
        found, prepared = costs(net.graph), prepare(net.graph)
        return Case(
            self.subject.name,
            self.subject.weights,
            bits,
            size,
            found.total_macs,
            found.size_bytes,
            prepared.resident_bytes,
            arena_bytes(prepared, size),
            sum(array.size for array in exact.values()),
            refused,
            tuple(pairs) if refused is None else (),
        )

    def _compare_with_itself(self, net: IntegerNet, eight: IntegerNet, bits: str, size: int) -> None:
        """What few bytes cost, and what few bits gain where there is no VNNI."""
        name, batch, rest = self.subject.name, self.subject.batch(size), self.settings
        limits = (rest.threads, rest.rounds, rest.seconds)
        self.purposes.append(compare_purposes(name, bits, net, batch, *limits))
        if bits_of(bits)[1] <= _NIBBLE:
            wanted = [np.asarray(one.run(batch, kernels="reference")) for one in (net, eight)]
            what = f"{name} {bits}, batch {size}"
            self.own += pairs_without_vnni(what, net.graph, eight.graph, batch, wanted, *limits)

    def _time(self, net: IntegerNet, peer: Peer, batch: NDArray[np.float32]) -> Any:
        calls: list[Callable[[], object]] = [
            lambda: net.run(batch, threads=self.settings.threads),
            lambda: peer.run(batch),
        ]
        clock = clock_for(calls, self.settings.threads)
        return time_pair(calls[0], calls[1], clock, self.settings.rounds, self.settings.seconds)

    def _advance(self, total: int) -> None:
        self.done += 1
        self.tell(self.subject.name, min(self.done, total), total)

    def _net(self, bits: str) -> IntegerNet:
        from labkit.quantization.pipeline import quantize

        weights, activations = bits_of(bits)
        return quantize(self.subject.module, self.subject.calibration, weights, activations)

    def _peers(self, net: IntegerNet) -> list[Peer]:
        peers = []
        for library in self.settings.against:
            try:
                peers += all_peers.peers_from(library, self.subject, net.graph, self.settings.threads)
            except PeerMissing as reason:
                self.missing.append(str(reason))
        return peers

    def _rivals(self, bits: str, eight: IntegerNet, peers: Sequence[Peer]) -> list[Peer]:
        """Against fewer bits: our own w8a8, and the peers' int8, which is the least that they have."""
        if bits == "w8a8":
            return list(peers)
        graph = eight.graph
        exact = np.asarray(expected(graph, self.subject.images)[graph.outputs[0]], np.float32)
        threads = self.settings.threads

        def run_eight(x: NDArray[np.float32]) -> NDArray[np.float32]:
            return np.asarray(eight.run(x, threads=threads))

        ours = [Peer("labkit w8a8", "the same net in 8 bits", run_eight, exact=exact)]
        direct = prepare(graph, route=Route.DIRECT)
        if [step.kernel for step in direct.steps] != [step.kernel for step in prepare(graph).steps]:

            def run_direct(x: NDArray[np.float32]) -> NDArray[np.float32]:
                return np.asarray(engine.run(direct, {graph.inputs[0]: x}, threads)[graph.outputs[0]])

            ours.append(Peer("labkit w8a8 direct", "in 8 bits without Winograd", run_direct, exact=exact))
        return [*ours, *(replace(peer, trace=None) for peer in peers if peer.is_integer and peer.is_best)]

    def _judge(self, peer: Peer, net: IntegerNet, exact: Results) -> PeerAnswer | None:
        if peer.trace is None:
            return None
        return judge_peer(net.graph, exact, self.subject.images, peer.trace(self.subject.images))
