"""Words that several threads change at the same time, and the gates at which threads sleep."""

from __future__ import annotations

import threading
import time

import numba
import numpy as np
import pytest

from labkit.kernels import atomics

THREADS, ROUNDS = 4, 50_000


@numba.njit(nogil=True)
def add_often(address, rounds):
    for _ in range(rounds):
        atomics.add_word(address, 3)


@numba.njit(nogil=True)
def replace_often(address, rounds):
    for _ in range(rounds):
        while True:
            old = atomics.load_word(address)
            if atomics.replace_word(address, old, old + 3):
                break
            atomics.pause()


@numba.njit(nogil=True)
def lock_often(address, rounds):
    """A lock in the first word protects an ordinary number in the second."""
    counter = numba.carray(atomics_pointer(address + 8), 1, np.int64)
    for _ in range(rounds):
        while not atomics.replace_word(address, 0, 1):
            atomics.yield_processor()
        counter[0] += 3
        atomics.store_word(address, 0)


@numba.extending.intrinsic
def atomics_pointer(typing_context, address):
    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return numba.types.voidptr(numba.types.int64), generate


@pytest.mark.parametrize(("worker", "at"), [(add_often, 0), (replace_often, 0), (lock_often, 1)])
def test_nothing_is_lost_between_threads(worker, at):
    words = np.zeros(2, np.int64)
    worker(words.ctypes.data, 0)
    threads = [threading.Thread(target=worker, args=(words.ctypes.data, ROUNDS)) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert words[at] == 3 * THREADS * ROUNDS


@numba.njit(nogil=True)
def one_of_each(address):
    seen = (
        atomics.load_word(address),
        atomics.add_word(address, -9),
        atomics.replace_word(address, 5, 1),
        atomics.replace_word(address, -2, 12),
        atomics.or_word(address, 3),
        atomics.load_word(address),
    )
    atomics.store_word(address, -1)
    return seen


def test_each_operation_gives_what_was_before():
    words = np.array([7, 99], np.int64)
    assert one_of_each(words.ctypes.data) == (7, 7, False, True, 12, 15)
    assert words.tolist() == [-1, 99]


@numba.njit(nogil=True)
def pass_gate(gate, address):
    atomics.wait_at_gate(gate)
    atomics.store_word(address, 1)


@numba.njit(nogil=True)
def open_it(gate):
    atomics.open_gate(gate)


@pytest.mark.parametrize("opener", [open_it, atomics.open_gate_from_python])
def test_a_gate_lets_one_thread_pass(opener):
    gate, words = atomics.new_gate(), np.zeros(1, np.int64)
    thread = threading.Thread(target=pass_gate, args=(gate, words.ctypes.data), daemon=True)
    thread.start()
    thread.join(0.05)
    assert thread.is_alive() and words[0] == 0
    opener(gate)
    thread.join(20)
    assert not thread.is_alive() and words[0] == 1
    opener(gate)  # it has closed again behind the thread; the next one finds it open
    pass_gate(gate, words.ctypes.data)
    atomics.drop_gate(gate)


@numba.njit(nogil=True)
def nap(gate, microseconds):
    start = atomics.nanoseconds()
    atomics.sleep_at_gate(gate, microseconds)
    return atomics.nanoseconds() - start


def test_a_nap_lasts_as_long_as_it_should():
    gate = atomics.new_gate()
    nap(gate, 1)
    start = time.perf_counter_ns()
    inside = nap(gate, 40_000)
    outside = time.perf_counter_ns() - start
    atomics.drop_gate(gate)
    assert inside >= 39_000_000 - 16_000_000 * (numba.config.IS_WIN32)
    assert outside >= 39_000_000
