"""What one core can multiply at most, measured: the ceilings of the roofline.

Twelve independent sums, as many as the main tile keeps, are added to in a loop that touches no memory, once for each
instruction that integer kernels use on x86. On other processors there are no such loops here, and the figure has no
ceilings.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from llvmlite import binding, ir
from numba.extending import intrinsic
from numpy.typing import NDArray

from labkit.benchmark.machine import features

__all__ = ["MEMORY", "limits"]

MEMORY = "memory read GB/s"
_SUMS = 12
_TURNS = 400_000
_TRIES = 9


@dataclass(frozen=True)
class _Step:
    """One multiply-add of a vector: assembly with $0 the sum (also the third operand) and $1 a factor."""

    name: str
    needs: frozenset[str]
    assembly: str
    operands: str
    bits: int
    macs: int


_STEPS = (
    _Step(
        "vpmaddwd (int16)",
        frozenset({"avx2"}),
        "vpmaddwd $1, $1, %ymm15\n\tvpaddd %ymm15, $0, $0",
        "=x,x,0,~{ymm15}",
        256,
        16,
    ),
    _Step(
        "vpmaddubsw (u8s8)",
        frozenset({"avx2"}),
        "vpmaddubsw $1, $1, %ymm15\n\tvpmaddwd $1, %ymm15, %ymm15\n\tvpaddd %ymm15, $0, $0",
        "=x,x,0,~{ymm15}",
        256,
        32,
    ),
    _Step("vpdpwssd (int16)", frozenset({"avx512vnni", "avx512vl"}), "vpdpwssd $1, $1, $0", "=v,v,0", 256, 16),
    _Step("vpdpbusd (u8s8)", frozenset({"avx512vnni", "avx512vl"}), "vpdpbusd $1, $1, $0", "=v,v,0", 256, 32),
    _Step("vpdpbusd, 512 bits", frozenset({"avx512vnni"}), "vpdpbusd $1, $1, $0", "=v,v,0", 512, 64),
)


def limits() -> dict[str, float]:
    """Billions of multiply-accumulates a second by instruction, as far as this processor has it, and `MEMORY` in GB/s.

    The best of nine tries, one thread.
    """
    binding.initialize_native_asmparser()  # Numba does without it
    found = {}
    if binding.get_process_triple().startswith("x86_64"):
        for step in _STEPS:
            if step.needs <= features():
                seconds = _best(_loop(step), _TURNS)
                found[step.name] = step.macs * _SUMS * _TURNS / seconds / 1e9
    block = np.ones(1 << 23)  # 64 MiB, more than most caches hold
    found[MEMORY] = block.nbytes / _best(numba.njit(_sum_of, fastmath=True), block) / 1e9
    return found


def _best(function: Callable[[Any], object], argument: object) -> float:
    function(argument)
    best = float("inf")
    for _ in range(_TRIES):
        begun = time.perf_counter()
        function(argument)
        best = min(best, time.perf_counter() - begun)
    return best


def _sum_of(block: NDArray[np.float64]) -> float:
    total = 0.0
    for value in block:
        total += value
    return total


def _loop(step: _Step) -> Callable[[Any], object]:
    vector = ir.VectorType(ir.IntType(32), step.bits // 32)
    word = ir.IntType(64)

    def typed(context, turns):  # type: ignore[no-untyped-def]
        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            before, loop, after = builder.block, builder.append_basic_block(), builder.append_basic_block()
            builder.branch(loop)
            builder.position_at_end(loop)
            turn = builder.phi(word)
            sums = [builder.phi(vector) for _ in range(_SUMS)]
            code = ir.InlineAsm(ir.FunctionType(vector, [vector, vector]), step.assembly, step.operands)
            factor = ir.Constant(vector, [0x01010101] * vector.count)
            results = [builder.call(code, [factor, total]) for total in sums]
            next_turn = builder.add(turn, word(1))
            for phi, start, result in zip(
                [turn, *sums], [word(0), *[ir.Constant(vector, None)] * _SUMS], [next_turn, *results], strict=True
            ):
                phi.add_incoming(start, before)
                phi.add_incoming(result, loop)
            builder.cbranch(builder.icmp_signed("<", next_turn, arguments[0]), loop, after)
            builder.position_at_end(after)
            total = results[0]
            for result in results[1:]:
                total = builder.add(total, result)
            return builder.extract_element(total, ir.IntType(32)(0))

        return numba.types.int32(numba.types.int64), generate

    body = intrinsic(typed)

    def run(turns):  # type: ignore[no-untyped-def]
        return body(turns)

    compiled: Callable[[Any], object] = numba.njit(run)
    return compiled
