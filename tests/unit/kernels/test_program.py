"""A program's kernels receive the arguments that Python would have given them, and run in order until one breaks a bound."""

from __future__ import annotations

import gc
import weakref
from typing import NamedTuple

import numba
import numpy as np
import pytest

from labkit.errors import InputError
from labkit.kernels.fast.shares import share
from labkit.kernels.program import PARTS_MOST, Call, make_program, walk


class Window(NamedTuple):
    height: int
    width: int
    padding: tuple[int, int]


compiled = numba.njit(nogil=True, error_model="numpy")


@compiled
def tell(part, parts, images, out, a, b, c, d, e, window, number, empty, pair):
    """Write everything that has arrived to ``out``, for arrays of rank 1 .. 5."""
    at = 0
    for fact in (
        part,
        parts,
        images,
        window.height,
        window.width,
        *window.padding,
        number,
        np.int64(len(empty)),
        pair[0],
    ):
        out[at] = fact
        at += 1
    for fact in (a.size, a.itemsize, np.int64(a.ctypes.data), *a.shape, *a.strides):
        out[at] = fact
        at += 1
    for fact in (b.size, b.itemsize, np.int64(b.ctypes.data), *b.shape, *b.strides):
        out[at] = fact
        at += 1
    for fact in (c.size, c.itemsize, np.int64(c.ctypes.data), *c.shape, *c.strides):
        out[at] = fact
        at += 1
    for fact in (d.size, d.itemsize, np.int64(d.ctypes.data), *d.shape, *d.strides):
        out[at] = fact
        at += 1
    for fact in (e.size, e.itemsize, np.int64(e.ctypes.data), *e.shape, *e.strides):
        out[at] = fact
        at += 1
    for i in range(c.shape[0]):
        for j in range(c.shape[1]):
            for k in range(c.shape[2]):
                out[at] = out[at] * 31 + int(c[i, j, k] * 4)
    out[at + 1] = pair[1].ctypes.data
    return 0


def digest(array):
    """A number that depends on every element of ``array`` and its place."""
    total = 0
    for value in array.ravel().tolist():
        total = total * 31 + int(value * 4)
    return (total + 2**63) % 2**64 - 2**63


def elements(rng, shape, dtype):
    """Quarters where ``dtype`` has them."""
    return (rng.integers(0, 120, shape) / (4 if dtype is np.float32 else 1)).astype(dtype)


def arrays_of(dtype, seed, kind):
    """One array of each rank 1 .. 5 that lies in memory as ``kind`` says."""
    rng = np.random.default_rng(seed)
    for rank in range(1, 6):
        shape = rng.integers(1, 5, rank)
        if kind == "whole":
            yield elements(rng, shape, dtype)
        elif kind == "stepped":
            yield elements(rng, 2 * shape + 1, dtype)[(slice(1, None, 2),) * rank]
        else:
            yield np.flip(elements(rng, shape, dtype).T, 0)


@pytest.mark.parametrize("kind", ["whole", "stepped", "turned"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.int32, np.int64, np.float32])
def test_arguments_arrive_as_they_are(dtype, kind):
    calls, expected, outs = [], [], []
    for seed in range(3):
        out, arrays = np.zeros(57, np.int64), list(arrays_of(dtype, seed, kind))
        numbers = [int(n) for n in np.random.default_rng(seed).integers(-(2**63), 2**63 - 1, 6)]
        window = Window(numbers[0], numbers[1], (numbers[2], numbers[3]))
        arguments = (out, *arrays, window, np.int64(numbers[4]), (), (numbers[5], arrays[2]))
        calls.append(Call(f"call {seed}", tell, (arguments,), parts=3))
        expected.append([0, 1, 40 + seed, *numbers[:5], 0, numbers[5]])
        for array in arrays:
            expected[-1] += [array.size, array.itemsize, array.ctypes.data, *array.shape, *array.strides]
        expected[-1] += [digest(arrays[2]), arrays[2].ctypes.data]
        outs.append(out)
    for seed, call in enumerate(calls):  # each for itself, then all together
        assert walk(make_program([call]), 40 + seed) == -1
        assert outs[seed].tolist() == expected[seed]
        outs[seed][:] = 0
    assert walk(make_program(calls), 77) == -1
    for out, numbers in zip(outs, expected, strict=True):
        assert out.tolist() == [*numbers[:2], 77, *numbers[3:]]


@compiled
def note(part, parts, images, log, result):
    """Append this call's ``result`` to ``log`` and return it."""
    log[0] += 1
    log[log[0]] = result
    return result


@compiled
def fail(part, parts, images, log):
    if images > 0:
        raise ValueError("planted")
    return 0


def noted(results):
    log = np.zeros(50, np.int64)
    return [Call(f"call {i}", note, ((log, result),)) for i, result in enumerate(results)], log


@pytest.mark.parametrize("length", [1, 2, 17])
def test_calls_run_in_order_up_to_the_first_that_breaks_a_bound(length):
    for broken in range(length):
        results = [0] * broken + [3] + [5] * (length - broken - 1)
        calls, log = noted(results)
        assert walk(make_program(calls), 1) == broken
        assert log[: broken + 2].tolist() == [broken + 1, *results[: broken + 1]]
    calls, log = noted([0] * length)
    assert walk(make_program(calls), 1) == -1
    assert log[0] == length


def test_no_calls_are_a_program_too():
    assert walk(make_program([]), 1) == -1


def test_an_exception_in_a_kernel_is_not_lost():
    calls, log = noted([0, 0, 0])
    calls.insert(1, Call("conv2", fail, ((log,),)))
    program = make_program(calls)
    with pytest.raises(RuntimeError, match="conv2: its compiled kernel raised an exception"):
        walk(program, 1)
    assert log[0] == 1
    assert walk(program, 0) == -1
    assert log[0] == 4


def test_a_program_keeps_its_arrays_alive():
    arrays = [np.zeros(50, np.int64) for _ in range(3)]
    alive = [weakref.ref(array) for array in arrays]
    program = make_program([Call("note", note, ((array, 0),)) for array in arrays])
    del arrays
    gc.collect()
    assert walk(program, 1) == -1
    assert [array()[0] for array in alive] == [1, 1, 1]
    del program
    gc.collect()
    assert [array() for array in alive] == [None, None, None]


def test_an_array_can_be_exchanged_between_runs():
    calls, log = noted([0, 0])
    program = make_program(calls)
    other = np.zeros_like(log)
    program.blocks[:, program.data_word(1, 0)] = other.ctypes.data
    assert walk(program, 1) == -1
    assert (log[0], other[0]) == (1, 1)


@compiled
def half(part, parts, images, x):
    return 0.5


GOOD = np.zeros(50, np.int64)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (Call("conv1", note, ((GOOD, True),)), "conv1: .* got bool True"),
        (Call("conv1", note, ((GOOD, np.int32(3)),)), "conv1: .* got int32"),
        (Call("conv1", note, ((GOOD, np.float32(3)),)), "Pass a float32 by its bits"),
        (Call("conv1", note, ((GOOD, 2**63),)), "conv1: .* got int 9223372036854775808"),
        (Call("conv1", half, ((GOOD,),)), "conv1: its kernel returns float64"),
        (Call("conv1", note, ((GOOD, 0),), parts=0), "conv1: got 0 parts, which must be 1 .. 1073741823"),
        (Call("conv1", note, ((GOOD, 0),), parts=PARTS_MOST + 1), "got 1073741824 parts"),
        (Call("conv1", note, ((GOOD, 0), (GOOD.astype(np.int32), 0))), "2 combinations of types"),
        (Call("conv1", note, ()), "arguments for 0 threads"),
    ],
)
def test_what_cannot_be_passed_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        make_program([call])


def test_calls_for_different_numbers_of_threads_are_refused():
    calls = [Call("conv1", note, ((GOOD, 0),) * 2), Call("conv2", note, ((GOOD, 0),) * 3)]
    with pytest.raises(InputError, match="conv2: got arguments for 3 threads"):
        make_program(calls)


@pytest.mark.parametrize("total", [0, 1, 7, 96, 1000])
@pytest.mark.parametrize("parts", [1, 2, 3, 8, 200])
def test_shares_cover_the_whole_once(total, parts):
    shares = [share(total, part, parts) for part in range(parts)]
    assert [number for first, end in shares for number in range(first, end)] == list(range(total))
