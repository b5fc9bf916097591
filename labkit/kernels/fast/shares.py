"""`share`: how the work of one kernel call is divided among threads."""

from __future__ import annotations

from labkit.kernels.jit import jit

__all__ = ["share"]


@jit
def share(total: int, part: int, parts: int) -> tuple[int, int]:
    """First and end of the units of work 0 .. ``total`` - 1 that fall to ``part`` of ``parts``; all but equally many."""
    return total * part // parts, total * (part + 1) // parts
