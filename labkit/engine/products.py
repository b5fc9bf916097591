"""The call that multiplies by the weights of a convolution or linear layer, and how these are kept: int8, int16 or int4.

Weights of four bits are kept two to a byte where that is wanted. A linear layer of one image reads them as they are,
which is faster than reading twice as many bytes, once these exceed the first-level cache. Anything else unpacks them on
the way, some panels at a time, which is slower than weights that were unpacked before: that saves memory only.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from labkit.arithmetic.requantize import RoundingRule
from labkit.engine.plan import TABLES, Buffer, Plan, Purpose, Step
from labkit.graph import int_ops
from labkit.graph.ir import IntNode
from labkit.kernels.fast.conv import conv2d_kernel, linear_one_kernel
from labkit.kernels.fast.nibble_tile import linear_nibbles_kernel, wraps_nowhere
from labkit.kernels.fast.nibbles import conv2d_nibbles_kernel, fits_nibbles, pack_nibbles, panels_at_once
from labkit.kernels.fast.packing import pack_panels
from labkit.kernels.fast.tile import Dot

__all__ = ["add_product"]

_LARGEST_INPUT = 255  # in magnitude, as it is stored

# From so many bytes of int8 weights on a linear layer of one image is faster with half as many; measured
_BEYOND_FIRST_CACHE = 1 << 15


def add_product(
    plan: Plan,
    node: IntNode,
    buffers: tuple[int, int],
    dot: Dot,
    weights: NDArray[np.integer],
    rule: RoundingRule | None,
    rest: tuple[Any, ...],
) -> None:
    """Add the tile's call over all of ``node`` to ``plan``.

    Parameters
    ----------
    plan, node : whose call it is
    buffers : numbers of the input's buffer and of that for results
    dot : how to multiply
    weights : integers [O, runs, run length], zero points subtracted, -255 .. 255
    rule : by which the tile finishes its sums, or None where it leaves int32
    rest : the kernel's arguments after the weights
    """
    panels = pack_panels(weights, dot.group)
    count = panels.shape[0]
    is_linear = isinstance(node.op, int_ops.Linear) and rule is not None
    if not _stays_packed(plan, weights, panels, is_linear):
        for_one = linear_one_kernel(plan.registers, dot, rule) if is_linear and rule else None
        kernel = conv2d_kernel(plan.registers, dot, count, rule)
        plan.steps.append(Step(node.name, kernel, (*buffers, TABLES), (panels, *rest), for_one))
        return
    together = panels_at_once(plan.registers, count, panels[0].nbytes)
    scratch = plan.add_buffer(Buffer((together, *panels.shape[1:]), np.int8, is_per_image=False))
    for_one = linear_nibbles_kernel(plan.registers, dot, rule) if is_linear and rule else None
    kernel = conv2d_nibbles_kernel(plan.registers, dot, count, rule)
    constants = (pack_nibbles(panels), *rest)
    plan.steps.append(Step(node.name, kernel, (*buffers, TABLES, scratch), constants, for_one))


def _stays_packed(plan: Plan, weights: NDArray[np.integer], panels: NDArray[np.integer], is_linear: bool) -> bool:
    if not fits_nibbles(weights) or (is_linear and not wraps_nowhere(weights, _LARGEST_INPUT)):
        return False
    return plan.purpose is Purpose.MEMORY or (is_linear and panels.nbytes >= _BEYOND_FIRST_CACHE)
