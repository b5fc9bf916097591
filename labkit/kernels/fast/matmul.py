"""Products of two tensors, one for each index of the first axis. See `reference_transformer.batch_matmul`, and eq. 45.

Both factors are brought into scratch as int16 with their zero points subtracted: the rows of the first with neighbouring
products side by side, the second as panels of 16 columns, as if it held weights. Then the tile of `tile_of` multiplies pairs.
Where the elements of a factor lie in its buffer is a matter of `Steps`, so that no transposition is carried out before.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labkit.arithmetic.requantize import RoundingRule
from labkit.kernels.fast.conv import BLOCK
from labkit.kernels.fast.factors import Sizes, Steps, fill_panels, fill_rows
from labkit.kernels.fast.finish import CHANNELS, finish_for
from labkit.kernels.fast.requantize import RULES
from labkit.kernels.fast.shares import share
from labkit.kernels.fast.tile import Dot, Registers, tile_of
from labkit.kernels.jit import jit

__all__ = ["matmul_kernel", "matmul_sums_kernel"]

Array = NDArray[Any]


def _product_of(registers: Registers, is_wide: bool, rule: RoundingRule | None) -> Any:
    """The compiled product of rows and panels, finished by ``rule``; its result has 16 lanes a panel in each of its rows."""
    positions, at_once = registers.wide if is_wide else (registers.positions, 1)
    tile = tile_of(registers, Dot.PAIRS, positions, at_once, finish_for(rule))
    block = BLOCK // positions * positions

    def product(
        y: Array,
        into: int,
        row_bytes: int,
        tables: Array,
        rows: Array,
        panels: Array,
        epilogue: Array,
        clamp: tuple[int, int],
        runs: Array,
        count: int,
    ) -> None:
        sources, targets, run = tables.ctypes.data, tables.ctypes.data + tables.strides[0], runs.ctypes.data
        steps, width = panels.shape[1], CHANNELS * y.itemsize
        for first in range(0, count, block):
            there = min(block, count - first)
            padded = (there + positions - 1) // positions * positions
            for at in range(padded):  # a row computed twice is written twice with the same numbers
                i = first + min(at, there - 1)
                tables[0, at] = rows.ctypes.data + i * rows.strides[0]
                tables[1, at] = into + i * row_bytes
            written = 0
            groups = (panels.shape[0] + at_once - 1) // at_once
            for group in range(groups):
                p = min(group * at_once, panels.shape[0] - at_once)
                for at in range(padded):
                    tables[1, at] += p * width - written
                written = p * width
                panel = panels.ctypes.data + p * panels.strides[0]
                constants = epilogue.ctypes.data + p * epilogue.strides[0]
                for at in range(0, padded, positions):
                    go = targets + 8 * at
                    tile(y, panels, sources + 8 * at, go, run, 1, steps, panel, panel, constants, clamp[0], clamp[1])

    shape = "wide" if is_wide else "narrow"
    product.__qualname__ = f"product_{registers.value}_{shape}_{rule.value if rule else 'sums'}"
    return jit(product)


@cache
def matmul_kernel(registers: Registers, panels: int, rule: RoundingRule) -> Callable[..., int]:
    """The kernel for so many ``panels`` of columns, finished by ``rule`` in registers of ``registers``."""
    is_wide = panels >= registers.wide[1] > 1
    product = _product_of(registers, is_wide, rule)

    def matmul(
        part: int,
        parts: int,
        images: int,
        a: Array,
        b: Array,
        y: Array,
        tables: Array,
        rows: Array,
        panels: Array,
        epilogue: Array,
        clamp: tuple[int, int],
        runs: Array,
        sizes: Sizes,
        at_a: Steps,
        at_b: Steps,
        at_y: Steps,
        zeros: tuple[int, int],
    ) -> int:
        """The products of the matrices in ``a`` with those in ``b``, requantized, to ``y``.

        part, parts : the share of this call, of all products of all images
        a, b, y : int16 or uint8 [N, ...] in the order of ``at_a``, ``at_b`` and ``at_y``; columns of ``y`` lie side by side and
            have room for whole panels
        tables, rows, panels : scratch, see `factors`
        epilogue : from `packing.pack_epilogue`
        clamp : of the output, as it is stored
        runs : int64 [1], a 0: a row is read from its start on
        zeros : the numbers that stand for real 0 in ``a`` and ``b``
        """
        first, end = share(images * sizes.products, part, parts)
        for unit in range(first, end):
            n, m = unit // sizes.products, unit % sizes.products
            fill_rows(rows, a, n, m, at_a, sizes, zeros[0])
            fill_panels(panels, b, n, m, at_b, sizes, zeros[1])
            into = y.ctypes.data + n * y.strides[0] + (at_y.start + m * at_y.matrix) * y.itemsize
            product(y, into, at_y.row * y.itemsize, tables, rows, panels, epilogue, clamp, runs, sizes.rows)
        return 0

    matmul.__name__ = matmul.__qualname__ = f"matmul_{registers.value}_{'wide' if is_wide else 'narrow'}_{rule.value}"
    return jit(matmul)


@cache
def matmul_sums_kernel(registers: Registers, panels: int, rule: RoundingRule) -> Callable[..., int]:
    """As `matmul_kernel` for every rule, multiplier and order of the result: sums are finished one by one."""
    is_wide = panels >= registers.wide[1] > 1
    product, scale = _product_of(registers, is_wide, None), RULES[rule]

    def matmul_sums(
        part: int,
        parts: int,
        images: int,
        a: Array,
        b: Array,
        y: Array,
        tables: Array,
        rows: Array,
        panels: Array,
        sums: Array,
        mantissa: Array,
        exponent: Array,
        real: Array,
        inside: int,
        zero_point: int,
        stored_zero: int,
        clamp: tuple[int, int],
        runs: Array,
        sizes: Sizes,
        at_a: Steps,
        at_b: Steps,
        at_y: Steps,
        zeros: tuple[int, int],
    ) -> int:
        """As `matmul_kernel`; ``sums`` int32 [rows, columns rounded up to 16] is scratch, and what follows as in `REQUANTIZE`.

        Returns how many sums the rule does not take.
        """
        overflows = 0
        first, end = share(images * sizes.products, part, parts)
        for unit in range(first, end):
            n, m = unit // sizes.products, unit % sizes.products
            fill_rows(rows, a, n, m, at_a, sizes, zeros[0])
            fill_panels(panels, b, n, m, at_b, sizes, zeros[1])
            product(sums, sums.ctypes.data, sums.strides[0], tables, rows, panels, sums, (0, 0), runs, sizes.rows)
            target, into = y[n].reshape(-1), at_y.start + m * at_y.matrix
            for i in range(sizes.rows):
                for j in range(sizes.columns):
                    total: Any = np.int64(sums[i, j])
                    rounded, fits = scale(total, mantissa[0], exponent[0], real[0], inside)
                    overflows += 0 if fits else 1
                    q = min(max(rounded + zero_point - inside, clamp[0]), clamp[1])
                    target[into + i * at_y.row + j * at_y.column] = q - zero_point + stored_zero
        return overflows

    matmul_sums.__name__ = matmul_sums.__qualname__ = (
        f"matmul_sums_{registers.value}_{'wide' if is_wide else 'narrow'}_{rule.value}"
    )
    return jit(matmul_sums)
