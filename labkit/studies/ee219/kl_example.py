"""The worked example of the KL algorithm in the EE219 report (its figure 5), step by step."""

from __future__ import annotations

import numpy as np

from labkit.quantization.clipping.divergence import kl_divergence, merge_and_expand
from labkit.studies.study import Table

__all__ = ["EXAMPLE", "EXPANDED", "LEVELS", "example_table"]

EXAMPLE = (1, 0, 2, 3, 5, 3, 1, 7)
LEVELS = 2
EXPANDED = [2, 0, 2, 2, 4, 4, 4, 4]  # what the report says it becomes


def example_table() -> Table:
    """The report's example, bin by bin: P, merged, expanded, both normalised, and each bin's part of the divergence."""
    p = np.array(EXAMPLE, np.float64)
    q = merge_and_expand(EXAMPLE, LEVELS)
    merged = np.add.reduceat(p, np.arange(LEVELS) * (len(p) // LEVELS))
    shares, expanded = p / p.sum(), q / q.sum()
    parts = np.where(shares > 0, shares * np.log(np.where(shares > 0, shares, 1) / np.where(q > 0, expanded, 1)), 0.0)
    total = kl_divergence(EXAMPLE, q)
    rows: list[tuple[str, ...]] = [
        (
            str(i),
            f"{p[i]:g}",
            f"{merged[i // (len(p) // LEVELS)]:g}",
            str(int(np.count_nonzero(p.reshape(LEVELS, -1)[i // (len(p) // LEVELS)]))),
            f"{q[i]:g}",
            f"{shares[i]:.4f}",
            f"{expanded[i]:.4f}",
            f"{parts[i]:+.4f}",
        )
        for i in range(len(p))
    ]
    rows.append(
        ("sum", f"{p.sum():g}", "", "", f"{q.sum():g}", f"{shares.sum():.4f}", f"{expanded.sum():.4f}", f"{total:.4f}")
    )
    return Table(
        "The report's example (its figure 5): 8 bins, 2 levels",
        (
            *("bin", "P", "its level's sum", "filled bins of the level", "Q, expanded", "P normalised", "Q normalised"),
            "P ln(P/Q), nats",
        ),
        tuple(rows),
    )
