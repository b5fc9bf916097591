"""labkit against itself: prepared for few bytes, on weights of four bits, and as on a processor without VNNI."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from labkit.arithmetic.affine import PerAxis, QParams, QTensor, QuantSpec
from labkit.arithmetic.fixedpoint import FixedPointMultiplier
from labkit.arithmetic.requantize import Requantizer, RoundingRule
from labkit.benchmark.layers import arena_bytes
from labkit.benchmark.results import OwnPair, Purposes
from labkit.benchmark.timing import CPU, Paired, clock_for, time_pair
from labkit.engine.arena import arena_for
from labkit.engine.node_by_node import run_nodes
from labkit.engine.prepare import Dot, Prepared, Registers, Route, prepare
from labkit.engine.run import run
from labkit.graph import int_ops
from labkit.graph.ir import IntGraph, IntNode, Tensor
from labkit.kernels.fast.tile import fastest_dots, widest_registers
from labkit.kernels.kernel_set import REFERENCE
from labkit.kernels.program import walk
from labkit.net import IntegerNet

__all__ = ["compare_purposes", "linear_pairs", "pairs_without_vnni"]

Images = NDArray[np.float32]
Run = Callable[[Images], NDArray[np.generic]]

_LINEAR = (1024, 512)  # inputs and outputs
_LAYERS = (1, 8)  # in turns: of the weights of eight each has left the second-level cache when it is read again
_INSTRUCTIONS = {Registers.BITS_256: "AVX2", Registers.BITS_512: "AVX-512"}


def compare_purposes(
    name: str, bits: str, net: IntegerNet, batch: Images, threads: int, rounds: int, seconds: float
) -> Purposes:
    """Bytes of ``net`` prepared for speed and for few bytes, and the time of the second over that of the first.

    ``name`` and ``bits`` say which net it is; ``batch`` float32 [N, ...]; ``threads``, ``rounds`` and ``seconds`` as in
    `bench.Settings`.
    """
    sizes = []
    for purpose in ("speed", "memory"):
        prepared = net.prepared(purpose)
        sizes.append((prepared.resident_bytes, arena_bytes(prepared, len(batch))))
    time = _time(
        lambda x: net.run(x, threads=threads),
        lambda x: net.run(x, threads=threads, purpose="memory"),
        batch,
        threads,
        rounds,
        seconds,
    )
    return Purposes(name, bits, len(batch), sizes[0], sizes[1], time)


def pairs_without_vnni(
    what: str,
    low: IntGraph,
    eight: IntGraph,
    batch: Images,
    wanted: Sequence[NDArray[np.generic]],
    threads: int,
    rounds: int,
    seconds: float,
) -> Iterator[OwnPair]:
    """``low`` against ``eight`` bits by the instructions of a processor that has no VNNI, whatever this one has.

    Parameters
    ----------
    what : the name, bits and batch of ``low``
    low, eight : the same net with inputs of four bits at the most, and of eight
    batch : float32 [N, ...]
    wanted : the outputs of both for ``batch``, from the reference tier
    threads, rounds, seconds : as in `bench.Settings`

    Returns
    -------
    for each width of vectors a pair with Winograd wherever that is fastest and one without; none where there is no AVX2
    """
    for registers in Registers:
        if registers.value > widest_registers().value or not fastest_dots(registers)[0].is_native:
            continue
        ours = _runner(prepare(low, registers=registers, dots=(Dot.NIBBLES_AVX2, Dot.PAIRS)), threads)
        for route, label in ((Route.FASTEST, "w8a8"), (Route.DIRECT, "w8a8 direct")):
            theirs = _runner(prepare(eight, registers=registers, dots=(Dot.PAIRS,), route=route), threads)
            right = all(np.array_equal(f(batch), exact) for f, exact in zip((ours, theirs), wanted, strict=True))
            time = _time(ours, theirs, batch, threads, rounds, seconds) if right else None
            yield OwnPair(f"{what}, {_INSTRUCTIONS[registers]} without VNNI", f"labkit {label}, likewise", time)


def linear_pairs(rounds: int, seconds: float) -> Iterator[OwnPair]:
    """A fully connected layer of one image, with weights of four bits against weights of eight.

    Other layers of the same size run in turns with it, or none. Only kernels are timed, by CPU time, in at most
    ``rounds`` rounds or about ``seconds``.
    """
    for layers in _LAYERS:
        calls, right = [], True
        for bits in (4, 8):
            graph = _linear_layers(layers, QuantSpec(bits, granularity=PerAxis(0)))
            prepared = prepare(graph)
            x = np.random.default_rng(1).uniform(-1, 1, (1, _LINEAR[0])).astype(np.float32)
            inputs = {graph.inputs[0]: x}
            found, exact = run(prepared, inputs), run_nodes(graph, inputs, REFERENCE)
            right = right and all(np.array_equal(found[name], exact[name]) for name in graph.outputs)
            calls.append(_walker(prepared))
        time = time_pair(calls[0], calls[1], CPU, rounds, seconds) if right else None
        turns = "" if layers == 1 else f", {layers} layers in turns"
        yield OwnPair(f"linear {_LINEAR[0]} x {_LINEAR[1]}, batch 1, int4{turns}", "int8", time)


def _time(ours: Run, theirs: Run, batch: Images, threads: int, rounds: int, seconds: float) -> Paired:
    calls: list[Callable[[], object]] = [lambda: ours(batch), lambda: theirs(batch)]
    return time_pair(calls[0], calls[1], clock_for(calls, threads), rounds, seconds)


def _runner(prepared: Prepared, threads: int) -> Run:
    def runs(x: Images) -> NDArray[np.generic]:
        found: NDArray[np.generic] = run(prepared, {prepared.graph.inputs[0]: x}, threads)[prepared.graph.outputs[0]]
        return found

    return runs


def _walker(prepared: Prepared) -> Callable[[], object]:
    program = arena_for(prepared, 1).program
    return lambda: walk(program, 1)


def _linear_layers(count: int, weights: QuantSpec) -> IntGraph:
    """So many layers that read the same input, with random ``weights``."""
    rng, (inputs, outputs) = np.random.default_rng(0), _LINEAR
    grid, params = QuantSpec(8, signed=False), QParams(np.asarray(2 / 255, np.float32), np.zeros((), np.int32))
    nodes = [IntNode("x", int_ops.Quantize((inputs,)), (), Tensor((inputs,), grid, params))]
    multiplier = FixedPointMultiplier.from_real(np.full(outputs, 2.0 ** -(weights.bits + 4)))
    requantizer = Requantizer(RoundingRule.SINGLE, multiplier, 0, (grid.qmin, grid.qmax))
    for index in range(count):
        values = rng.integers(weights.qmin, weights.qmax + 1, (outputs, inputs)).astype(np.int8)
        scales = QParams(np.full(outputs, 0.01, np.float32), np.zeros(outputs, np.int32))
        bias = rng.integers(-1000, 1001, outputs).astype(np.int32)
        op = int_ops.Linear(QTensor(values, scales, weights), bias, requantizer)
        nodes.append(IntNode(f"fc{index}", op, ("x",), Tensor((outputs,), grid, params)))
    return IntGraph(tuple(nodes), tuple(node.name for node in nodes[1:]))
