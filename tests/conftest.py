"""What every test runs under: one thread a worker, no display, the same hypothesis examples every time."""

from __future__ import annotations

import os

# Before numba, torch or matplotlib are imported, here or in a child process.
os.environ.setdefault("MPLBACKEND", "Agg")
if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the cores; a pool of threads in each only makes them wait
    for library in ("OMP", "MKL", "OPENBLAS", "NUMBA"):
        os.environ.setdefault(f"{library}_NUM_THREADS", "1")

import hypothesis

hypothesis.settings.register_profile("labkit", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("labkit")
