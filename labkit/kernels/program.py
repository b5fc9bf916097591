"""`Program`: the kernel calls of a network as a table of addresses, which one compiled call walks from end to end.

Calling a compiled function from Python costs about a microsecond: each array is taken apart into the machine words that
the compiled code wants (address, shape, strides). Here that is done once. The words of a call lie in a *block*; a tiny
*thunk* for as many words loads them and calls the kernel by its address. A kernel's first three arguments, ``part``,
``parts`` and ``images``, are given by whoever walks the table; the rest is in the block.

Numba passes an array as meminfo, parent, number of items, item size, data, shape and strides, and a tuple or a named
tuple as its members. meminfo and parent, which count references, may be null: then nothing is counted, and the program
keeps the arrays alive instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import accumulate, chain
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core.compiler_lock import global_compiler_lock
from numba.core.datamodel.packer import ArgPacker
from numba.core.registry import cpu_target
from numba.extending import intrinsic
from numpy.typing import NDArray

from labkit.errors import InputError
from labkit.kernels.jit import entry_point, jit

__all__ = [
    "LEADING",
    "PARTS_IN_ROW",
    "PARTS_MOST",
    "ROW_BYTES",
    "Call",
    "Program",
    "call_row",
    "make_program",
    "walk",
    "without_outcome",
]

LEADING = 3  # a kernel's arguments before those of its block: part, parts, images
PARTS_MOST = (1 << 30) - 1  # two of them fit a word

_ROW = 4  # words of a row of the table: address of thunk, of kernel, of block; parts
ROW_BYTES = 8 * _ROW
PARTS_IN_ROW = 24  # byte offset of parts
_I32, _I64 = ir.IntType(32), ir.IntType(64)
_POINTER = ir.IntType(8).as_pointer()
_RAISED = -(2**63)  # what a thunk returns for a kernel that raised an exception
_ARRAY_FIELDS = ("meminfo", "parent", "nitems", "itemsize", "data", "shape", "strides")
_DATA = _ARRAY_FIELDS.index("data")


@dataclass(frozen=True, eq=False)
class Call:
    """One kernel call of a program: ``kernel(part, parts, images, *arguments)`` for each ``part`` in ``range(parts)``.

    name : on whose behalf, for messages
    kernel : made by `jit`; returns the number of elements that break a bound, as int64
    arguments : for each thread a tuple of arrays, integers of 64 bits and (named) tuples of these, all of the same types
    parts : 1 .. `PARTS_MOST`; more than one may be computed at the same time, by different threads
    """

    name: str
    kernel: Callable[..., int]
    arguments: tuple[tuple[Any, ...], ...]
    parts: int = 1


@dataclass(frozen=True, eq=False)
class Program:
    """Kernel calls in running order, for up to ``threads`` threads. It serves one run at a time.

    names : of the calls
    table : int64 [threads, calls, 4], a row for each call; threads differ in the address of the block
    blocks : int64 [threads, words], the arguments of all calls
    places : for each call the first word of each argument in a row of ``blocks``
    owners : what the addresses point into
    walker : compiled; takes ``address``, ``length`` and the number of images
    """

    names: tuple[str, ...]
    table: NDArray[np.int64]
    blocks: NDArray[np.int64]
    places: tuple[tuple[int, ...], ...]
    owners: tuple[Any, ...]
    walker: Callable[[int, int, int], int]

    @property
    def threads(self) -> int:
        """How many threads may run parts of a call at the same time."""
        return len(self.table)

    @cached_property
    def address(self) -> int:
        """Of the table."""
        return int(self.table.ctypes.data)

    @cached_property
    def length(self) -> int:
        """The number of calls."""
        return len(self.names)

    @cached_property
    def is_divided(self) -> bool:
        """Whether any call has more than one part."""
        return bool(np.any(self.table[0, :, 3] > 1))

    def data_word(self, call: int, argument: int) -> int:
        """Where the data address of an array lies in a row of ``blocks``: of ``argument`` (after ``images``) of ``call``.

        Between two runs ``blocks[:, word]`` may be set to the address of another array of the same type and strides.
        Whoever does so keeps that array alive. Kernels do not see its number of images in its shape.
        """
        return self.places[call][argument] + _DATA


def make_program(calls: Sequence[Call]) -> Program:
    """The table for ``calls``. Kernels that are not compiled yet for these types are compiled.

    Raises
    ------
    InputError
        Arguments are of types that are not passed as whole words, or differ from thread to thread; a kernel returns
        something else than int64; parts are out of range; or Numba is told not to compile.
    """
    walker = entry_point(_walk, (0, 0, 0))
    threads = len(calls[0].arguments) if calls else 1
    prepared = [_prepare(call, threads) for call in calls]
    thunks = _thunks({LEADING + len(p.words[0]) for p in prepared})
    starts = np.cumsum([0, *(len(p.words[0]) for p in prepared)])
    blocks = np.array([[word for p in prepared for word in p.words[t]] for t in range(threads)], np.int64)
    table = np.empty((threads, len(calls), _ROW), np.int64)
    for i, (call, p) in enumerate(zip(calls, prepared, strict=True)):
        table[:, i, 0] = thunks[LEADING + len(p.words[0])]
        table[:, i, 1] = p.kernel
        table[:, i, 2] = blocks.ctypes.data + np.arange(threads) * blocks.strides[0] + 8 * starts[i]
        table[:, i, 3] = call.parts
    places = tuple(tuple(int(start) + at for at in p.places) for start, p in zip(starts[:-1], prepared, strict=True))
    return Program(tuple(call.name for call in calls), table, blocks, places, (tuple(calls), tuple(prepared)), walker)


def walk(program: Program, images: int) -> int:
    """Run all calls of ``program`` for ``images`` images in this thread, with the arguments of its first thread.

    Returns the index of the call that broke a bound, after which no other was run, or -1.

    Raises
    ------
    RuntimeError
        A kernel raised an exception.
    """
    return without_outcome(program, program.walker(program.address, program.length, images))


def without_outcome(program: Program, outcome: int) -> int:
    """``outcome`` of a compiled walk of ``program``: -1, or the index of a call that broke a bound.

    Raises
    ------
    RuntimeError
        It is -2 - index: that call raised an exception, which compiled code has not the means to describe.
    """
    if outcome < -1:
        raise RuntimeError(f"{program.names[-2 - outcome]}: its compiled kernel raised an exception.")
    return outcome


@intrinsic
def call_row(typing_context, row, part, parts, images):  # type: ignore[no-untyped-def]
    """Run ``part`` of ``parts`` of the call whose row is at the address ``row``, for ``images`` images.

    ``typing_context`` is Numba's.

    Returns what the kernel does, or a negative number if it raised an exception.
    """

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        words = builder.inttoptr(arguments[0], _I64.as_pointer())
        thunk, kernel, block = (builder.load(builder.gep(words, [_I64(i)])) for i in range(3))
        return builder.call(builder.inttoptr(thunk, _THUNK.as_pointer()), [kernel, block, *arguments[1:]])

    return types.int64(*[types.int64] * 4), generate


@jit
def _walk(table: int, length: int, images: int) -> int:
    """-1, or the index i of the first call that broke a bound, or -2 - i for one that raised an exception."""
    for call in range(length):
        outcome = call_row(table + ROW_BYTES * call, 0, 1, images)
        if outcome != 0:
            return call if outcome > 0 else -2 - call
    return -1


# From arguments to words


@dataclass(frozen=True, eq=False)
class _Prepared:
    """A call with the address of its compiled kernel, for each thread its ``words``, and ``places`` as in `Program`."""

    kernel: int
    words: tuple[list[int], ...]
    places: tuple[int, ...]
    code: Any  # keeps the compiled kernel alive


def _prepare(call: Call, threads: int) -> _Prepared:
    signatures = {tuple(map(numba.typeof, arguments)) for arguments in call.arguments}
    if len(call.arguments) != threads or len(signatures) != 1:
        raise InputError(
            f"{call.name}: got arguments for {len(call.arguments)} threads with {len(signatures)} combinations of "
            f"types. Every call of a program takes one tuple for each of the same threads, all of the same types."
        )
    if not 1 <= call.parts <= PARTS_MOST:
        raise InputError(f"{call.name}: got {call.parts} parts, which must be 1 .. {PARTS_MOST}.")
    words = tuple([list(_words(call.name, argument)) for argument in arguments] for arguments in call.arguments)
    lengths = [len(of_argument) for of_argument in words[0]]
    signature = (types.int64,) * LEADING + signatures.pop()
    call.kernel.compile(signature)  # type: ignore[attr-defined]
    code = call.kernel.overloads[signature]  # type: ignore[attr-defined]
    if types.unliteral(code.signature.return_type) != types.int64:
        raise InputError(f"{call.name}: its kernel returns {code.signature.return_type}, which must be int64.")
    passed = _words_passed(signature)
    if passed != LEADING + sum(lengths):
        raise InputError(
            f"{call.name}: Numba {numba.__version__} passes its arguments as {passed} words, and labkit prepared "
            f"{LEADING + sum(lengths)}. Use a version of Numba that labkit was tested with."
        )
    return _Prepared(
        code.library.get_pointer_to_function(code.fndesc.llvm_func_name),
        tuple(list(chain.from_iterable(of_thread)) for of_thread in words),
        tuple(accumulate([0, *lengths[:-1]])),
        code,
    )


def _words(name: str, argument: Any) -> Iterator[int]:
    """The machine words of ``argument`` in the order in which Numba passes them."""
    if isinstance(argument, np.ndarray):
        yield from (0, 0, argument.size, argument.itemsize, argument.ctypes.data, *argument.shape, *argument.strides)
    elif isinstance(argument, tuple):
        for member in argument:
            yield from _words(name, member)
    elif isinstance(argument, int | np.int64) and not isinstance(argument, bool) and -(2**63) <= argument < 2**63:
        yield int(argument)
    else:
        raise InputError(
            f"{name}: a kernel of a program takes arrays, integers of 64 bits and tuples of these, got "
            f"{type(argument).__name__} {argument!r}. Pass a float32 by its bits."
        )


@cache
def _words_passed(signature: tuple[Any, ...]) -> int:
    """How many words Numba makes of arguments of these types; -1 if it does something that `_words` does not know."""
    models = cpu_target.target_context.data_model_manager
    passed = ArgPacker(models, signature).argument_types
    arrays = [models[kind]._fields for kind in signature if isinstance(kind, types.Array)]
    are_words = all(isinstance(kind, ir.PointerType) or kind == _I64 for kind in passed)
    return len(passed) if are_words and all(fields == _ARRAY_FIELDS for fields in arrays) else -1


# Thunks

_THUNK = ir.FunctionType(_I64, [_I64] * 5)  # kernel, block, part, parts, images
_known_thunks: dict[int, int] = {}  # address by number of words
_libraries: list[Any] = []  # their code


def _thunks(sizes: Iterable[int]) -> dict[int, int]:
    """Addresses of the thunks for kernels of each number of words in ``sizes``.

    They are made of LLVM code without Numba's compiler and without optimization, in a few milliseconds each, and
    therefore not kept on disk.
    """
    with global_compiler_lock:
        if missing := sorted(set(sizes) - set(_known_thunks)):
            library = cpu_target.target_context.codegen().create_library(f"labkit_thunks_{len(_libraries)}")
            module = library.create_ir_module(library.name)
            for size in missing:
                _write_thunk(module, size)
            library.add_ir_module(module)
            library.finalize()
            _libraries.append(library)
            _known_thunks.update({size: library.get_pointer_to_function(_thunk_name(size)) for size in missing})
        return dict(_known_thunks)


def _thunk_name(size: int) -> str:
    return f"labkit_thunk_{size}"


def _write_thunk(module: ir.Module, size: int) -> None:
    """Append a function that calls a kernel of ``size`` words.

    A compiled kernel is ``int32 status f(int64 *result, void **exception, words...)``.
    """
    thunk = ir.Function(module, _THUNK, _thunk_name(size))
    for attribute in ("noinline", "optnone"):  # there is nothing to optimize, and looking for it takes milliseconds
        thunk.attributes.add(attribute)
    builder = ir.IRBuilder(thunk.append_basic_block())
    kernel, block, *leading = thunk.args
    first = builder.inttoptr(block, _I64.as_pointer())
    words = [builder.load(builder.gep(first, [_I64(i)])) for i in range(size - LEADING)]
    result, exception = builder.alloca(_I64), builder.alloca(_POINTER)
    kind = ir.FunctionType(_I32, [result.type, exception.type, *[_I64] * size])
    status = builder.call(builder.inttoptr(kernel, kind.as_pointer()), [result, exception, *leading, *words])
    builder.ret(builder.select(builder.icmp_signed("==", status, _I32(0)), builder.load(result), _I64(_RAISED)))
