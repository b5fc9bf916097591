"""Measure the steps of docs/kernels.md: one convolution from seven loops to exact Winograd, in GMAC/s.

    python tools/measure_kernels.py [--channels 64] [--size 28] [--rounds 15]

Every step computes the same layer, requantization included, and is measured only after its integers were compared with
the first step's. One thread, CPU time, the steps taken in turn in every round; the median is printed.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import llvmlite.binding
import numba
import numpy as np
from numpy.typing import NDArray

from labkit.arithmetic.affine import PerAxis, QParams, QTensor, QuantSpec
from labkit.arithmetic.fixedpoint import FixedPointMultiplier
from labkit.arithmetic.requantize import Requantizer, RoundingRule
from labkit.engine.arena import Arena
from labkit.engine.prepare import Route, prepare
from labkit.graph import int_ops
from labkit.graph.ir import IntGraph, IntNode, Tensor
from labkit.kernels.fast.conv import BLOCK, fill_tables
from labkit.kernels.fast.finish import CHANNELS, FINISHES
from labkit.kernels.fast.tile import Dot, Registers, fastest_dots, tile_of, widest_registers

Array = NDArray[Any]
Step = Callable[[], None]


@numba.njit(error_model="numpy")  # type: ignore[untyped-decorator]
def _seven_loops(x: Array, y: Array, w: Array, bias: Array, mantissa: Array, exponent: Array) -> None:
    """Image, row, column, output channel, kernel row, kernel column, input channel; then eq. 13 and the clamp."""
    for n in range(y.shape[0]):
        for i in range(y.shape[1]):
            for j in range(y.shape[2]):
                for o in range(w.shape[0]):
                    total = np.int64(bias[o])
                    for u in range(3):
                        for v in range(3):
                            for c in range(w.shape[1]):
                                total += np.int64(x[n, i + u, j + v, c]) * w[o, c, u, v]
                    shift = 31 - exponent[o]
                    y[n, i, j, o] = min(max((total * mantissa[o] + (1 << (shift - 1))) >> shift, -128), 127)


def _one_by_sixteen(registers: Registers) -> Callable[..., None]:
    """`conv.conv2d_kernel` with a tile of one position: each weight that is loaded is used once."""
    one_by_sixteen = tile_of(registers, Dot.PAIRS, 1, 1, FINISHES[RoundingRule.SINGLE])

    @numba.njit  # type: ignore[untyped-decorator]
    def conv2d(
        x: Array, y: Array, tables: Array, panels: Array, epilogue: Array, runs: Array, clamp: Any, windows: Any
    ) -> None:
        positions = windows.height * windows.width
        for first in range(0, positions, BLOCK):
            count = min(BLOCK, positions - first)
            fill_tables(tables, x, y, windows, first, count, count)
            for p in range(panels.shape[0]):
                panel = panels.ctypes.data + p * panels.strides[0]
                for at in range(count):
                    one_by_sixteen(
                        y,
                        panels,
                        tables.ctypes.data + 8 * at,
                        tables.ctypes.data + tables.strides[0] + 8 * at,
                        runs.ctypes.data,
                        runs.shape[0],
                        panels.shape[2],
                        panel,
                        panel,
                        epilogue.ctypes.data + p * epilogue.strides[0],
                        clamp[0],
                        clamp[1],
                    )
                    tables[1, at] += 2 * CHANNELS

    return conv2d  # type: ignore[no-any-return]


def _layer(channels: int, size: int) -> IntGraph:
    """``channels`` to as many, 3x3, padding 1, on u8 inputs of the whole range; seeded."""
    rng = np.random.default_rng(0)
    grid = QuantSpec(8, signed=False, symmetric=False)
    weights = QuantSpec(8, narrow=True, granularity=PerAxis(0))
    values = rng.integers(-127, 128, (channels, channels, 3, 3)).astype(np.int8)
    scales = QParams(np.ones(channels, np.float32), np.zeros(channels, np.int32))
    multiplier = FixedPointMultiplier.from_real(rng.uniform(0.5, 1.5, channels) * 0.01 / np.sqrt(channels))
    requantizer = Requantizer(RoundingRule.SINGLE, multiplier, 128, (0, 255))
    bias = rng.integers(-20000, 20000, channels).astype(np.int32)
    padding = ((1, 1), (1, 1))
    op = int_ops.Conv2d(QTensor(values, scales, weights), bias, requantizer, (1, 1), padding, (1, 1), 1)
    tensor = Tensor((channels, size, size), grid, QParams(np.ones((), np.float32), np.full((), 128, np.int32)))
    return IntGraph(
        (IntNode("x", int_ops.Quantize(tensor.shape), (), tensor), IntNode("y", op, ("x",), tensor)), ("y",)
    )


def _steps(channels: int, size: int, registers: Registers) -> list[tuple[str, Step, Callable[[], Array]]]:
    """Name, what runs it, and what gives its result [size, size, channels]."""
    graph = _layer(channels, size)
    op = graph["y"].op
    assert isinstance(op, int_ops.Conv2d) and isinstance(op.requantizer.multiplier, FixedPointMultiplier)
    image = np.random.default_rng(1).integers(-128, 128, (size, size, channels))
    weights, multiplier = op.weight.values.astype(np.int16), op.requantizer.multiplier

    def arena(route: Route, dot: Dot) -> tuple[Arena, Callable[[], Array]]:
        prepared = prepare(graph, route=route, registers=registers, dots=(dot, Dot.PAIRS))
        made = Arena(prepared, 1, keeps_all=True, threads=1)
        come, go = prepared.exits["x"].place, prepared.exits["y"].place
        made.buffers[come.buffer][0, 1:-1, 1:-1, :channels] = image + come.zero
        result = made.buffers[go.buffer]
        return made, lambda: result[0, :size, :size, :channels].astype(np.int16) - go.zero

    result: list[tuple[str, Step, Callable[[], Array]]] = []
    direct, of_direct = arena(Route.DIRECT, Dot.PAIRS)
    _, _, _, (x, y, tables, *constants) = direct.calls[0]
    one_by_sixteen = _one_by_sixteen(registers)
    plain, single = np.zeros_like(y), np.zeros_like(y)
    result.append(
        (
            "seven loops, compiled",
            lambda: _seven_loops(x, plain, weights, op.bias, multiplier.mantissa, multiplier.exponent),
            lambda: plain[0, :size, :size, :channels],
        )
    )
    result.append(
        (
            "tile of 1 x 16",
            lambda: one_by_sixteen(x, single, tables, *constants),
            lambda: single[0, :size, :size, :channels],
        )
    )

    def engine(made: Arena) -> Step:
        _, kernel, whole, arguments = made.calls[0]
        return lambda: void(kernel(*whole, 1, *arguments))

    def void(_: int) -> None:
        return None

    result.append(("tile of 6 x 16 (of 10 x 32)", engine(direct), of_direct))
    on_bytes = Dot.QUADS_VNNI if Dot.QUADS_VNNI in fastest_dots(registers) else Dot.QUADS
    for name, route, dot in (
        ("Winograd F(2x2, 3x3)", Route.F2, Dot.PAIRS),
        ("Winograd F(4x4, 3x3)", Route.F4, Dot.PAIRS),
        (f"the tile on bytes, {'vpdpbusd' if on_bytes.is_native else 'portable'}", Route.DIRECT, on_bytes),
    ):
        made, of_made = arena(route, dot)
        result.append((name, engine(made), of_made))
    return result


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--size", type=int, default=28)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    steps = {registers: _steps(options.channels, options.size, registers) for registers in Registers}
    first = None
    for registers, name, run, result in [(width, *step) for width in steps for step in steps[width]]:
        run()
        first = result().copy() if first is None else first
        if not np.array_equal(result(), first):
            raise SystemExit(
                f"{name}, {registers.value} bits: its integers differ from the first's; nothing is measured."
            )
    seconds: dict[tuple[Registers, int], list[float]] = {}
    for _ in range(options.rounds):
        for registers in Registers:
            for index, (_, run, _) in enumerate(steps[registers]):
                start = time.thread_time()
                run()
                seconds.setdefault((registers, index), []).append(time.thread_time() - start)
    products = options.channels**2 * 9 * options.size**2
    layer = f"{options.channels} to {options.channels} channels, {options.size} x {options.size}, 3x3"
    processor = f"{llvmlite.binding.get_host_cpu_name()} ({platform.machine()})"
    print(f"{layer}, GMAC/s, one thread, {processor}, numba {numba.__version__}; ", end="")
    print(f"the engine would take {widest_registers().value}-bit vectors\n")
    print("| step |", " | ".join(f"{registers.value}-bit vectors" for registers in Registers), "|")
    print("|---" * (1 + len(Registers)) + "|")
    for index, (name, _, _) in enumerate(steps[Registers.BITS_256]):
        rates = [products / statistics.median(seconds[registers, index]) / 1e9 for registers in Registers]
        print(f"| {name} |", " | ".join(f"{rate:.3g}" for rate in rates), "|")


if __name__ == "__main__":
    main()
