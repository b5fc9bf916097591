"""Words of memory that several threads share, and gates at which a thread sleeps, for use inside compiled functions.

A word is an int64 at an address that is a multiple of 8. All operations are sequentially consistent: every thread sees
them in one and the same order, and sees whatever was written to ordinary memory before an operation whose effect it sees.

A gate is one of Python's own thread locks, which works on every system and asks for no interpreter lock. It is made
closed by `new_gate`.
"""

from __future__ import annotations

import ctypes
import platform
import sys
import time
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

__all__ = [
    "add_word",
    "drop_gate",
    "load_word",
    "nanoseconds",
    "new_gate",
    "open_gate",
    "open_gate_from_python",
    "or_word",
    "pause",
    "replace_word",
    "sleep_at_gate",
    "store_word",
    "wait_at_gate",
    "yield_processor",
]

_I32, _I64 = ir.IntType(32), ir.IntType(64)
_POINTER = ir.IntType(8).as_pointer()
_ORDER = "seq_cst"
_WORD_BYTES = 8

# A hint to the processor that this is a waiting loop, by the names that platform.machine() gives: function and argument
_PAUSES = {
    "x86_64": ("llvm.x86.sse2.pause", []),
    "amd64": ("llvm.x86.sse2.pause", []),
    "aarch64": ("llvm.aarch64.hint", [_I32(1)]),
    "arm64": ("llvm.aarch64.hint", [_I32(1)]),
}
_PAUSE = _PAUSES.get(platform.machine().lower())


def _word(builder: ir.IRBuilder, address: ir.Value) -> ir.Value:
    return builder.inttoptr(address, _I64.as_pointer())


def _call(builder: ir.IRBuilder, name: str, result: ir.Type, arguments: list[ir.Value]) -> ir.Value:
    """Call the function ``name`` of LLVM, of Python or of the C library."""
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


@intrinsic
def load_word(typing_context, address):  # type: ignore[no-untyped-def]
    """The word at ``address``. ``typing_context`` is Numba's."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.load_atomic(_word(builder, arguments[0]), _ORDER, _WORD_BYTES)

    return types.int64(types.int64), generate


@intrinsic
def store_word(typing_context, address, value):  # type: ignore[no-untyped-def]
    """Set the word at ``address`` to ``value``. ``typing_context`` is Numba's."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        builder.store_atomic(arguments[1], _word(builder, arguments[0]), _ORDER, _WORD_BYTES)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@intrinsic
def add_word(typing_context, address, value):  # type: ignore[no-untyped-def]
    """Add ``value`` to the word at ``address``, modulo 2**64; what it was before. ``typing_context`` is Numba's."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.atomic_rmw("add", _word(builder, arguments[0]), arguments[1], _ORDER)

    return types.int64(types.int64, types.int64), generate


@intrinsic
def or_word(typing_context, address, bits):  # type: ignore[no-untyped-def]
    """Set ``bits`` in the word at ``address``; what it was before. ``typing_context`` is Numba's."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.atomic_rmw("or", _word(builder, arguments[0]), arguments[1], _ORDER)

    return types.int64(types.int64, types.int64), generate


@intrinsic
def replace_word(typing_context, address, old, new):  # type: ignore[no-untyped-def]
    """Set the word at ``address`` to ``new`` if it is ``old``; whether it was. ``typing_context`` is Numba's."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        address, old, new = arguments
        return builder.extract_value(builder.cmpxchg(_word(builder, address), old, new, _ORDER, _ORDER), 1)

    return types.boolean(types.int64, types.int64, types.int64), generate


@intrinsic
def pause(typing_context):  # type: ignore[no-untyped-def]
    """Tell the processor that this is a waiting loop, where it knows such a hint."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        if _PAUSE is not None:
            _call(builder, _PAUSE[0], ir.VoidType(), _PAUSE[1])
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def yield_processor(typing_context):  # type: ignore[no-untyped-def]
    """Let another thread that is ready use this processor, where the C library has sched_yield."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        if sys.platform != "win32":
            _call(builder, "sched_yield", _I32, [])
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def nanoseconds(typing_context):  # type: ignore[no-untyped-def]
    """The time on a clock that never goes back, in nanoseconds from any start; on Windows in steps of some 15 ms."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        if sys.platform == "win32":
            return builder.mul(_call(builder, "GetTickCount64", _I64, []), _I64(1_000_000))
        time_and_rest = cgutils.alloca_once(builder, _I64, 2)  # both members are 64 bits wide where Python is
        _call(builder, "clock_gettime", _I32, [_I32(time.CLOCK_MONOTONIC), time_and_rest])
        seconds, rest = (builder.load(builder.gep(time_and_rest, [_I64(i)])) for i in range(2))
        return builder.add(builder.mul(seconds, _I64(1_000_000_000)), rest)

    return types.int64(), generate


@intrinsic
def wait_at_gate(typing_context, gate):  # type: ignore[no-untyped-def]
    """Sleep until ``gate`` is opened, and close it again. ``typing_context`` is Numba's.

    Only with the interpreter lock released.
    """

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        lock = builder.inttoptr(arguments[0], _POINTER)
        _call(builder, "PyThread_acquire_lock", _I32, [lock, _I32(1)])
        return context.get_dummy_value()

    return types.void(types.int64), generate


@intrinsic
def sleep_at_gate(typing_context, gate, microseconds):  # type: ignore[no-untyped-def]
    """Sleep for ``microseconds`` at ``gate``, which nobody opens. ``typing_context`` is Numba's.

    Only with the interpreter lock released.
    """

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        lock = builder.inttoptr(arguments[0], _POINTER)
        _call(builder, "PyThread_acquire_lock_timed", _I32, [lock, arguments[1], _I32(0)])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@intrinsic
def open_gate(typing_context, gate):  # type: ignore[no-untyped-def]
    """Let the one thread that waits at ``gate``, or comes to it next, pass. It must be closed. ``typing_context`` is Numba's."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        _call(builder, "PyThread_release_lock", ir.VoidType(), [builder.inttoptr(arguments[0], _POINTER)])
        return context.get_dummy_value()

    return types.void(types.int64), generate


def _python(name: str, result: Any, *arguments: Any) -> Any:
    """The function ``name`` of the interpreter."""
    return ctypes.PYFUNCTYPE(result, *arguments)((name, ctypes.pythonapi))


def new_gate() -> int:
    """The address of a new gate, which is closed."""
    gate = _python("PyThread_allocate_lock", ctypes.c_void_p)()
    if not gate:
        raise MemoryError("no thread lock can be had")
    _python("PyThread_acquire_lock", ctypes.c_int, ctypes.c_void_p, ctypes.c_int)(gate, 0)
    return int(gate)


def open_gate_from_python(gate: int) -> None:
    """`open_gate` for code that is not compiled. A gate at which nobody will wait any more may be open already."""
    _python("PyThread_release_lock", None, ctypes.c_void_p)(gate)


def drop_gate(gate: int) -> None:
    """Give back the memory of ``gate``, at which nobody waits and to which nobody will come."""
    _python("PyThread_free_lock", None, ctypes.c_void_p)(gate)
