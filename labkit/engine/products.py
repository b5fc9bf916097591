"""The call that multiplies by the weights of a convolution or linear layer, and how these are kept: int8, int16 or int4.

Weights of four bits are kept two to a byte where that is wanted. A linear layer reads them as they are, which for a
single image is faster than reading twice as many bytes once these exceed the first-level cache. A convolution unpacks
them on the way, some panels at a time, which is slower than weights that were unpacked before: that saves memory only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labkit.arithmetic.requantize import RoundingRule
from labkit.engine.plan import TABLES, Buffer, Plan, Purpose, Step
from labkit.engine.weights import facts_of
from labkit.graph import int_ops
from labkit.graph.ir import IntNode
from labkit.kernels.fast.conv import conv2d_kernel, conv2d_kernel_for_one, linear_one_kernel
from labkit.kernels.fast.nibble_tile import linear_nibbles_kernel, wraps_nowhere
from labkit.kernels.fast.nibbles import conv2d_nibbles_kernel, fits_nibbles, pack_nibbles, panels_at_once
from labkit.kernels.fast.tile import Dot, Registers

__all__ = ["add_product"]

_LARGEST_INPUT = 255  # in magnitude, as it is stored

# From so many bytes of int8 weights on, a linear layer is faster with half as many where it multiplies so fast that
# reading weights takes longer; both measured
_BEYOND_FIRST_CACHE = 1 << 15
_READING_LIMITS = (
    (Registers.BITS_256, Dot.QUADS_VNNI),
    (Registers.BITS_512, Dot.QUADS_VNNI),
    (Registers.BITS_512, Dot.NIBBLES_AVX2),
)


def add_product(
    plan: Plan,
    node: IntNode,
    buffers: tuple[int, ...],
    dot: Dot,
    panels: NDArray[np.integer],
    rule: RoundingRule | None,
    rest: tuple[Any, ...],
    positions: int,
) -> None:
    """Add the tile's call over all of ``node`` to ``plan``.

    Parameters
    ----------
    plan, node : whose call it is
    buffers : numbers of the input's buffer and of that for results
    dot : how to multiply
    panels : integers of the shape [O / 16, runs, groups, 16, group], from `packing.pack_panels`
    rule : by which the tile finishes its sums, or None where it leaves int32
    rest : the kernel's arguments after the weights
    positions : of one image's windows
    """
    one_rule = rule if isinstance(node.op, int_ops.Linear) else None  # there is a kernel for a single image
    registers, buffers = plan.registers, (*buffers, TABLES)
    if not _stays_packed(plan, node, panels, dot, one_rule is not None):
        kernel = conv2d_kernel(registers, dot, panels.shape[0], rule)
        if one_rule:
            for_one: Callable[..., int] | None = linear_one_kernel(registers, dot, one_rule)
        else:
            for_one = conv2d_kernel_for_one(registers, dot, panels.shape[0], rule, positions)
        plan.steps.append(Step(node.name, kernel, buffers, (panels, *rest), for_one))
        return
    constants = (pack_nibbles(panels.astype(np.int8, copy=False)), *rest)
    if one_rule:
        kernel, for_one = (linear_nibbles_kernel(registers, dot, is_for_one, one_rule) for is_for_one in (False, True))
        plan.steps.append(Step(node.name, kernel, buffers, constants, for_one))
        return
    together = panels_at_once(registers, panels.shape[0], panels[0].nbytes)
    scratch = plan.add_buffer(Buffer((together, *panels.shape[1:]), np.int8, is_per_image=False))
    kernel = conv2d_nibbles_kernel(registers, dot, panels.shape[0], rule)
    plan.steps.append(Step(node.name, kernel, (*buffers, scratch), constants))


def _stays_packed(plan: Plan, node: IntNode, panels: NDArray[np.integer], dot: Dot, is_linear: bool) -> bool:
    assert isinstance(node.op, int_ops.Conv2d | int_ops.Linear)
    facts = facts_of(node.op.weight)
    is_small = fits_nibbles(np.array([facts.low, facts.high]))
    if not is_small or (is_linear and not wraps_nowhere(facts.magnitudes, _LARGEST_INPUT)):
        return False
    return plan.purpose is Purpose.MEMORY or (
        is_linear and panels.nbytes >= _BEYOND_FIRST_CACHE and (plan.registers, dot) in _READING_LIMITS
    )
