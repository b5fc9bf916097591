"""What a worker's processes may use up, and which libraries are worth loading once for many."""

from __future__ import annotations

__all__ = ["LARGE", "START_SECONDS", "worker_limits"]

LARGE = frozenset({"scipy", "torch", "numba", "matplotlib"})
"""Libraries beside NumPy that are loaded before any time is counted, where a submission imports them."""
START_SECONDS = 120.0
"""Of the wall clock until a worker is ready: a cold import of torch on a loaded machine."""

_MEMORY = 4 << 30  # bytes of address space
_FILE_BYTES = 16 << 20
_DESCRIPTORS = 256
_PROCESSES = 64


def worker_limits(own_user: bool) -> dict[str, list[int]]:
    """Limits, soft and hard, by their names without RLIMIT_; on processes only for an ``own_user``, who has no others."""
    limits = {"AS": _MEMORY, "FSIZE": _FILE_BYTES, "NOFILE": _DESCRIPTORS, "CORE": 0}
    if own_user:
        limits["NPROC"] = _PROCESSES
    return {name: [value, value] for name, value in limits.items()}
