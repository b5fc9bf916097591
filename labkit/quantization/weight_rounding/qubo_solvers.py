"""Four ways to solve a QUBO: all of its answers, the cross-entropy method, simulated annealing, and coordinate descent.

All but the first start from the probabilities of stochastic rounding, as Nagel et al. 2020 do (section 5.1 and
appendix A): near them the answers are better than random ones. None returns worse than rounding to nearest.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from labkit.errors import InputError
from labkit.kernels.jit import jit
from labkit.quantization.weight_rounding.qubo import Qubo

__all__ = ["LARGEST_EXACT", "anneal", "cross_entropy", "descend_bits", "solve_exactly"]

Rows = NDArray[np.float64]
Bits = NDArray[np.bool_]

LARGEST_EXACT = 20


def solve_exactly(qubo: Qubo) -> Bits:
    """The best answer to ``qubo`` of all: bool [n], the first found where several are best.

    The 2**n answers are visited in the order of a Gray code: one bit changes at a time, which costs n operations and
    not n * n.

    Raises
    ------
    InputError
        There are more than `LARGEST_EXACT` bits.
    """
    if qubo.size > LARGEST_EXACT:
        raise InputError(
            f"Trying all answers takes 2**n steps: at most {LARGEST_EXACT} bits, got {qubo.size}. "
            f"Use cross_entropy, anneal or descend_bits."
        )
    code = _best_gray_code(qubo.matrix, qubo.linear)
    return np.array([(code >> k) & 1 == 1 for k in range(qubo.size)], np.bool_)


def cross_entropy(
    qubo: Qubo,
    probabilities: Rows,
    generator: np.random.Generator,
    samples: int = 256,
    elite: float = 0.1,
    smoothing: float = 0.7,
    iterations: int = 60,
) -> Bits:
    """The cross-entropy method (Rubinstein 1999): draw answers, keep the best, move the probabilities towards those.

    Parameters
    ----------
    qubo : the problem
    probabilities : float64 [n], of each bit at the start
    generator : of random numbers
    samples : answers drawn in each iteration
    elite : the share of them that is kept
    smoothing : how far probabilities move towards the share of ones among the kept answers
    iterations : at most; it stops when every probability is within 0.01 of 0 or 1

    Returns
    -------
    bool [n], the best answer that was seen
    """
    chance = np.array(probabilities, np.float64)
    best = chance >= 0.5
    least, kept = float(qubo.energy(best)), max(1, round(elite * samples))
    for _ in range(iterations):
        drawn = generator.random((samples, qubo.size)) < chance
        energies = qubo.energy(drawn)
        order = np.argsort(energies, kind="stable")[:kept]
        if energies[order[0]] < least:
            least, best = float(energies[order[0]]), drawn[order[0]]
        chance = smoothing * drawn[order].mean(0) + (1 - smoothing) * chance
        if np.minimum(chance, 1 - chance).max(initial=0) < 0.01:
            break
    return np.array(best, np.bool_)


def anneal(
    qubo: Qubo, probabilities: Rows, generator: np.random.Generator, sweeps: int = 200, coldest: float = 1e-3
) -> Bits:
    """Simulated annealing from the likeliest answer: single flips, taken if they help or with the chance exp(-rise / T).

    Parameters
    ----------
    qubo : the problem
    probabilities : float64 [n], of each bit
    generator : of random numbers
    sweeps : over all bits
    coldest : the last temperature as a share of the first, which is the mean rise of the energy by one flip

    Returns
    -------
    bool [n], the best answer that was seen
    """
    start = (np.asarray(probabilities) >= 0.5).astype(np.float64)
    rises = np.abs(_flip_changes(qubo, start))
    first = float(rises.mean()) if len(rises) else 0.0
    temperatures = np.maximum(first * coldest ** np.linspace(0, 1, sweeps), 1e-300)
    return _anneal(qubo.matrix, qubo.linear, start, temperatures, int(generator.integers(2**31))).astype(np.bool_)


def descend_bits(
    qubo: Qubo, probabilities: Rows, generator: np.random.Generator | None = None, sweeps: int = 100
) -> Bits:
    """Flip one bit after the other where that helps, from the likeliest answer, until no flip does.

    Parameters
    ----------
    qubo : the problem
    probabilities : float64 [n], of each bit
    generator : not used, there so that all solvers are called alike
    sweeps : over all bits, at most

    Returns
    -------
    bool [n]
    """
    bits = (np.asarray(probabilities) >= 0.5).astype(np.float64)
    _descend_bits(qubo.matrix, qubo.linear, bits, sweeps)
    return bits.astype(np.bool_)


def _flip_changes(qubo: Qubo, bits: Rows) -> Rows:
    """How the energy changes when each of ``bits`` float64 [n] is flipped alone."""
    direction = 1 - 2 * bits
    return direction * (2 * qubo.matrix @ bits + qubo.linear) + qubo.matrix.diagonal()


@jit
def _best_gray_code(matrix: Rows, linear: Rows) -> int:
    size = len(linear)
    bits, pull = np.zeros(size), np.zeros(size)  # pull = matrix @ bits
    energy, least, code, best = 0.0, 0.0, 0, 0
    for count in range(1, 1 << size):
        k = 0
        while (count >> k) & 1 == 0:
            k += 1
        direction = 1.0 - 2.0 * bits[k]
        energy += direction * (2.0 * pull[k] + linear[k]) + matrix[k, k]
        bits[k] += direction
        for j in range(size):
            pull[j] += direction * matrix[k, j]
        code ^= 1 << k
        if energy < least:
            least, best = energy, code
    return best


@jit
def _anneal(matrix: Rows, linear: Rows, bits: Rows, temperatures: Rows, seed: int) -> Rows:
    np.random.seed(seed)  # Numba's own generator, of this thread
    size = len(linear)
    pull = np.zeros(size)
    for k in range(size):
        if bits[k] > 0.0:
            for j in range(size):
                pull[j] += matrix[k, j]
    rise, least, best = 0.0, 0.0, bits.copy()
    for temperature in temperatures:
        for _ in range(size):
            k = np.random.randint(0, size)
            direction = 1.0 - 2.0 * bits[k]
            change = direction * (2.0 * pull[k] + linear[k]) + matrix[k, k]
            if change <= 0.0 or np.random.random() < np.exp(-change / temperature):
                bits[k] += direction
                rise += change
                for j in range(size):
                    pull[j] += direction * matrix[k, j]
                if rise < least:
                    least = rise
                    best[:] = bits
    return best


@jit
def _descend_bits(matrix: Rows, linear: Rows, bits: Rows, sweeps: int) -> None:
    size = len(linear)
    pull = np.zeros(size)
    for k in range(size):
        if bits[k] > 0.0:
            for j in range(size):
                pull[j] += matrix[k, j]
    for _ in range(sweeps):
        moves = 0
        for k in range(size):
            direction = 1.0 - 2.0 * bits[k]
            change = direction * (2.0 * pull[k] + linear[k]) + matrix[k, k]
            if change < -1e-12 * abs(matrix[k, k]):
                bits[k] += direction
                moves += 1
                for j in range(size):
                    pull[j] += direction * matrix[k, j]
        if moves == 0:
            break
