"""A small vocabulary of vector instructions, written as portable LLVM code.

Numba can put hand-written LLVM code into a compiled function (`numba.extending.intrinsic`). Each function here takes
the code builder first and appends a few instructions. Nothing names a processor: LLVM turns `pair_dot` into vpmaddwd on
x86 (into vpdpwssd, with the addition, where there is VNNI) and into widening multiplies on Arm.

Nothing else is said of a vector where it may have any number of lanes; V8I32 is one register of AVX2, V16I32 one of
AVX-512. Addresses are plain int64.

The two exceptions to "nothing names a processor" are `quad_dot` and `quad_dot_16`, which have portable code too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llvmlite import ir
from numba import types

__all__ = [
    "F32",
    "I8",
    "I16",
    "I32",
    "I64",
    "LANES",
    "V8I32",
    "V16I8",
    "V16I16",
    "V16I32",
    "add_bytes",
    "clamp",
    "clamp_float",
    "counted_loop",
    "halves",
    "in_order",
    "interleave",
    "interleaved_lanes",
    "join",
    "load",
    "load_centred",
    "maximum",
    "pair_dot",
    "prefetch",
    "quad_dot",
    "quad_dot_16",
    "round_half_even",
    "scale_shift",
    "splat",
    "store",
    "stored_type",
]

I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
F32 = ir.FloatType()
LANES = 8
V8I32 = ir.VectorType(I32, LANES)
V16I8, V16I16, V16I32 = ir.VectorType(I8, 16), ir.VectorType(I16, 16), ir.VectorType(I32, 16)

Values = list[ir.Value]


def add_bytes(builder: ir.IRBuilder, address: ir.Value, count: int | ir.Value) -> ir.Value:
    """``address + count``."""
    return builder.add(address, I64(count) if isinstance(count, int) else count)


def load(builder: ir.IRBuilder, address: ir.Value, kind: ir.Type) -> ir.Value:
    """The value of type ``kind`` at any ``address``, aligned or not."""
    return builder.load(builder.inttoptr(address, kind.as_pointer()), align=1)


def store(builder: ir.IRBuilder, value: ir.Value, address: ir.Value) -> None:
    """Write ``value`` to any ``address``."""
    builder.store(value, builder.inttoptr(address, value.type.as_pointer()), align=1)


def splat(builder: ir.IRBuilder, scalar: ir.Value, kind: ir.VectorType) -> ir.Value:
    """A vector of type ``kind`` with ``scalar`` in every lane."""
    undefined = ir.Constant(kind, ir.Undefined)
    first = builder.insert_element(undefined, scalar, I32(0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(I32, kind.count), [0] * kind.count))


def pair_dot(builder: ir.IRBuilder, x: ir.Value, w: ir.Value) -> ir.Value:
    """Lane i is ``x[2i] * w[2i] + x[2i + 1] * w[2i + 1]``: products of int16, summed in pairs to half as many int32.

    |x|, |w| <= 255 keeps each sum below 2**17; of full int16 numbers it is right modulo 2**32.
    """
    wide = ir.VectorType(I32, x.type.count)
    products = builder.mul(builder.sext(x, wide), builder.sext(w, wide))
    return builder.add(_every_second(builder, products, 0), _every_second(builder, products, 1))


def quad_dot(builder: ir.IRBuilder, total: ir.Value, x: ir.Value, w: ir.Value, is_native: bool) -> ir.Value:
    """Lane i of ``total`` (int32) plus the sum of ``x[4i + k] * w[4i + k]``, k = 0..3: uint8 ``x`` times int8 ``w``.

    Where the processor ``is_native`` (VNNI) it is one instruction, vpdpbusd; else bytes are widened to int16 first.
    Sums wrap modulo 2**32.
    """
    lanes = total.type.count
    if is_native:
        words = [builder.bitcast(vector, total.type) for vector in (x, w)]
        return builder.call(
            _declared(builder, f"llvm.x86.avx512.vpdpbusd.{32 * lanes}", [total.type] * 4), [total, *words]
        )
    wide = ir.VectorType(I16, 4 * lanes)
    pairs = pair_dot(builder, builder.zext(x, wide), builder.sext(w, wide))
    return builder.add(total, builder.add(_every_second(builder, pairs, 0), _every_second(builder, pairs, 1)))


def quad_dot_16(builder: ir.IRBuilder, total: ir.Value, x: ir.Value, w: ir.Value, is_native: bool) -> ir.Value:
    """Lane i of ``total`` (int16) plus ``x[2i] * w[2i] + x[2i + 1] * w[2i + 1]``: uint8 ``x`` times int8 ``w``.

    The products of a pair must fit int16 together, for vpmaddubsw (where the processor ``is_native``: AVX2) would cut
    them off there; bytes of four bits always do (2 * 15 * 8 = 240).
    """
    lanes = total.type.count
    if is_native:
        name = {16: "llvm.x86.avx2.pmadd.ub.sw", 32: "llvm.x86.avx512.pmaddubs.w.512"}[lanes]
        function = _declared(builder, name, [total.type, x.type, w.type])
        return builder.add(total, builder.call(function, [x, w]))
    wide = ir.VectorType(I16, 2 * lanes)
    products = builder.mul(builder.zext(x, wide), builder.sext(w, wide))
    return builder.add(total, builder.add(_every_second(builder, products, 0), _every_second(builder, products, 1)))


def _declared(builder: ir.IRBuilder, name: str, kinds: Sequence[ir.Type]) -> ir.Function:
    """LLVM's function ``name``; ``kinds`` are that of its result, then those of its parameters."""
    found: ir.Function | None = builder.module.globals.get(name)
    return found or ir.Function(builder.module, ir.FunctionType(kinds[0], kinds[1:]), name)


def load_centred(
    builder: ir.IRBuilder, address: ir.Value, stored: ir.IntType, zero: ir.Value | None, count: int = 16
) -> ir.Value:
    """``count`` neighbouring numbers as int16, less ``zero`` (lanes of int16): stored so, or as uint8 and zero-extended."""
    loaded = load(builder, address, ir.VectorType(stored, count))
    wide = loaded if stored is I16 else builder.zext(loaded, ir.VectorType(I16, count))
    return wide if zero is None else builder.sub(wide, zero)


def stored_type(dtype: types.Type) -> ir.IntType:
    """The LLVM type of the numbers of a Numba array of ``dtype``."""
    return {8: I8, 16: I16, 32: I32}[dtype.bitwidth]


def _every_second(builder: ir.IRBuilder, vector: ir.Value, first: int) -> ir.Value:
    lanes = list(range(first, vector.type.count, 2))
    undefined = ir.Constant(vector.type, ir.Undefined)
    return builder.shuffle_vector(vector, undefined, ir.Constant(ir.VectorType(I32, len(lanes)), lanes))


def join(builder: ir.IRBuilder, low: ir.Value, high: ir.Value) -> ir.Value:
    """One vector with the lanes of ``low``, then those of ``high``."""
    lanes = list(range(2 * low.type.count))
    return builder.shuffle_vector(low, high, ir.Constant(ir.VectorType(I32, len(lanes)), lanes))


def halves(builder: ir.IRBuilder, vector: ir.Value) -> tuple[ir.Value, ir.Value]:
    """The lower and the upper lanes of ``vector``; the opposite of `join`."""
    half = vector.type.count // 2
    undefined = ir.Constant(vector.type, ir.Undefined)
    low, high = (
        builder.shuffle_vector(
            vector, undefined, ir.Constant(ir.VectorType(I32, half), list(range(first, first + half)))
        )
        for first in (0, half)
    )
    return low, high


def interleaved_lanes(count: int) -> tuple[list[int], list[int]]:
    """Lanes of the two results of `interleave` for vectors of ``count`` int16: of each eight the first four, the last four."""
    eights = range(0, count, 8)
    first, last = ([start + lane for start in eights for lane in range(at, at + 4)] for at in (0, 4))
    return first, last


def interleave(builder: ir.IRBuilder, x: ir.Value, y: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Lanes of ``x`` and ``y`` (int16) in turn, ready for `pair_dot`: two vectors in the order of `interleaved_lanes`.

    Each 128 bits of a register are dealt with by themselves, as the unpacking instructions of AVX2 and AVX-512 do;
    `in_order` puts the results of `pair_dot` right.
    """
    count = x.type.count
    low, high = (
        builder.shuffle_vector(
            x,
            y,
            ir.Constant(ir.VectorType(I32, count), [lane + count * which for lane in lanes for which in (0, 1)]),
        )
        for lanes in interleaved_lanes(count)
    )
    return low, high


def in_order(builder: ir.IRBuilder, low: ir.Value, high: ir.Value) -> Values:
    """Two vectors whose lanes are in the order of `interleaved_lanes`, brought into the lanes' own order."""
    lanes = low.type.count
    where = {lane: place for place, lane in enumerate([at for part in interleaved_lanes(2 * lanes) for at in part])}
    return [
        builder.shuffle_vector(
            low, high, ir.Constant(ir.VectorType(I32, lanes), [where[lane] for lane in range(first, first + lanes)])
        )
        for first in (0, lanes)
    ]


def round_half_even(builder: ir.IRBuilder, x: ir.Value) -> ir.Value:
    """Each float32 lane to the nearest whole number, ties to even."""
    name, module = f"llvm.rint.v{x.type.count}f32", builder.module
    function = module.globals.get(name) or ir.Function(module, ir.FunctionType(x.type, [x.type]), name)
    return builder.call(function, [x])


def clamp_float(builder: ir.IRBuilder, x: ir.Value, low: ir.Value, high: ir.Value) -> ir.Value:
    """Each float32 lane, none of them NaN, brought into ``low..high``."""
    raised = builder.select(builder.fcmp_ordered(">", x, low), x, low)
    return builder.select(builder.fcmp_ordered("<", raised, high), raised, high)


def maximum(builder: ir.IRBuilder, x: ir.Value, y: ir.Value) -> ir.Value:
    """The larger of each two lanes."""
    return builder.select(builder.icmp_signed(">", x, y), x, y)


def clamp(builder: ir.IRBuilder, x: ir.Value, low: ir.Value, high: ir.Value) -> ir.Value:
    """Each lane brought into ``low..high``."""
    raised = maximum(builder, x, low)
    return builder.select(builder.icmp_signed("<", raised, high), raised, high)


def scale_shift(
    builder: ir.IRBuilder, x: ir.Value, mantissa: Values, shift: Values, half: Values, lift: ir.Value
) -> ir.Value:
    """``((x * mantissa + 2**(shift - 1)) >> shift) + offset`` in 64 bits: eq. 13, lanes of int32 to as many of int32.

    ``mantissa``, ``shift`` and ``half`` are given as two vectors of int64, for the even and for the odd lanes of ``x``,
    because a 64-bit product of two 32-bit numbers (vpmuldq) takes them from every second lane.

    AVX2 shifts 64-bit lanes to the right only without their sign. So ``half`` holds 2**(shift - 1) + 2**62, which
    makes the sum positive (|x * mantissa| < 2**62), and ``lift`` = 2**(62 - shift) - offset modulo 2**32 is taken away
    after. The result must fit int32; `packing.epilogue_fits` proves it for each layer.
    """
    lanes = x.type.count
    wide = ir.VectorType(I64, lanes // 2)
    thirty_two = ir.Constant(wide, [32] * wide.count)

    def low_half(vector: ir.Value) -> ir.Value:  # sign-extended; costs nothing, vpmuldq looks at no other bits
        return builder.ashr(builder.shl(vector, thirty_two), thirty_two)

    pairs = builder.bitcast(x, wide)
    halves = (low_half(pairs), builder.ashr(pairs, thirty_two))
    products = [builder.mul(halves[i], low_half(mantissa[i])) for i in range(2)]
    rounded = [builder.lshr(builder.add(products[i], half[i]), shift[i]) for i in range(2)]
    low = builder.bitcast(rounded[0], x.type)
    high = builder.bitcast(builder.shl(rounded[1], thirty_two), x.type)
    interleaved = [lane + (lanes if lane % 2 else 0) for lane in range(lanes)]
    merged = builder.shuffle_vector(low, high, ir.Constant(ir.VectorType(I32, lanes), interleaved))
    return builder.sub(merged, lift)


def prefetch(builder: ir.IRBuilder, address: ir.Value) -> None:
    """Ask for the cache line at ``address`` to be brought into the second-level cache; any address will do."""
    pointer = builder.inttoptr(address, I8.as_pointer())
    kinds = [ir.VoidType(), pointer.type, I32, I32, I32]
    builder.call(_declared(builder, "llvm.prefetch.p0i8", kinds), [pointer, I32(0), I32(2), I32(1)])


def counted_loop(
    builder: ir.IRBuilder, count: ir.Value, carried: Sequence[ir.Value], body: Callable[[Values], Values]
) -> Values:
    """Run ``body`` ``count`` >= 1 times; it takes and returns the ``carried`` values, which stay in registers."""
    before = builder.block
    loop, after = builder.append_basic_block("loop"), builder.append_basic_block("after")
    builder.branch(loop)
    builder.position_at_end(loop)
    left = builder.phi(I64)
    values = [builder.phi(value.type) for value in carried]
    results = body(list(values))
    left_now = builder.sub(left, I64(1))
    end = builder.block
    for phi, first, again in zip([left, *values], [count, *carried], [left_now, *results], strict=True):
        phi.add_incoming(first, before)
        phi.add_incoming(again, end)
    builder.cbranch(builder.icmp_signed(">", left_now, I64(0)), loop, after)
    builder.position_at_end(after)
    return results
