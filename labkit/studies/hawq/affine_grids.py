"""Which pairs (r, q) an affine grid can have: q = Int(r / S) - Z for one S and one Z, decided in rational numbers.

With x = 1 / S each pair asks for r x - Z in [q - 1/2, q + 1/2]; both ends are allowed, whatever the rule for ties.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from fractions import Fraction

__all__ = ["Grid", "best_line", "largest_set", "largest_set_of_integers", "out_of_order"]

Pairs = Sequence[tuple[Fraction, int]]
Grid = tuple[Fraction, Fraction]  # x = 1 / S, and Z
_HALF = Fraction(1, 2)


def out_of_order(pairs: Pairs) -> list[tuple[int, int]]:
    """Indices (i, j) of ``pairs`` with r_i < r_j but q_i > q_j, which no grid with S > 0 can have."""
    return [
        (i, j)
        for i, j in itertools.permutations(range(len(pairs)), 2)
        if pairs[i][0] < pairs[j][0] and pairs[i][1] > pairs[j][1]
    ]


def largest_set(pairs: Pairs) -> tuple[int, Grid]:
    """The most of ``pairs`` (two or more) that one grid with S > 0 and a real Z can have, and such a grid.

    If some set of two pairs or more can be had, so it can by a line through two corners (r, q - 1/2) or (r, q + 1/2): a line
    that meets all intervals of the set can be moved and turned until it touches two ends.
    """
    grids = (grid for grid in _through_corners(pairs) if grid[0] > 0)
    return max(((_hits(pairs, grid), grid) for grid in grids), key=lambda found: found[0])


def largest_set_of_integers(pairs: Pairs, reach: int = 1000) -> tuple[int, Grid]:
    """As `largest_set` of ``pairs``, for integers Z in -``reach`` .. ``reach``, by the ends of the intervals of x for each Z."""
    best: tuple[int, Grid] = (0, (Fraction(1), Fraction(0)))
    for z in range(-reach, reach + 1):
        ends = sorted({(q + z + side) / r for r, q in pairs if r for side in (-_HALF, _HALF)})
        for x in ends:
            if x > 0 and (hits := _hits(pairs, (x, Fraction(z)))) > best[0]:
                best = hits, (x, Fraction(z))
    return best


def best_line(pairs: Pairs) -> tuple[Fraction, Grid]:
    """The grid with a real Z whose largest |r x - Z - q| over ``pairs`` (three or more) is least, and that error in steps.

    The best line has three errors of equal size and alternating sign (Chebyshev); every three pairs give one candidate.
    """
    found = []
    for a, b, c in itertools.combinations(sorted(set(pairs)), 3):
        if a[0] == c[0]:
            continue
        x = Fraction(c[1] - a[1]) / (c[0] - a[0])
        level = (a[1] - a[0] * x + b[1] - b[0] * x) / 2  # halfway between the line of a and c, and b
        grid = x, -level
        found.append((max(abs(r * x + level - q) for r, q in pairs), grid))
    return min(found, key=lambda one: one[0])


def _through_corners(pairs: Pairs) -> Iterator[Grid]:
    for (r, q), (s, p) in itertools.combinations(pairs, 2):
        if r != s:
            for one, other in itertools.product((-_HALF, _HALF), repeat=2):
                x = (p + other - q - one) / (s - r)
                yield x, r * x - q - one


def _hits(pairs: Pairs, grid: Grid) -> int:
    x, z = grid
    return sum(abs(r * x - z - q) <= _HALF for r, q in pairs)
