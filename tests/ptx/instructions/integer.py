"""Integer arithmetic: add, sub, mul, mad, div, rem, min, max, abs, neg and carries."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from ..decode import Decoder, opcode
from ..ptx_types import PtxType, ptx_type
from . import floating

if TYPE_CHECKING:
    from ..lanes import Lanes
    from ..machine import Execute, Group

Array = np.ndarray


def elementwise(decoder: Decoder, kind: PtxType, function: Callable[..., Array]) -> Execute:
    """Destination = function(sources), all of one type."""
    write = decoder.write(0, kind)
    reads = [decoder.read(i, kind) for i in range(1, len(decoder.operands))]

    if len(reads) == 2:
        first, second = reads

        def execute_two(group: Group, lanes: Lanes) -> None:
            write(group, lanes, function(first(group, lanes), second(group, lanes)))

        return execute_two

    def execute(group: Group, lanes: Lanes) -> None:
        write(group, lanes, function(*[read(group, lanes) for read in reads]))

    return execute


def multiply_high(a: Array, b: Array) -> Array:
    """Upper half of the product of two integers."""
    dtype = a.dtype
    bits = 8 * dtype.itemsize
    if bits < 64:
        wide = np.dtype(f"{dtype.kind}{2 * dtype.itemsize}").type
        return ((a.astype(wide) * b.astype(wide)) >> wide(bits)).astype(dtype)
    half, low = np.uint64(32), np.uint64(0xFFFFFFFF)
    x, y = a.astype(np.uint64), b.astype(np.uint64)
    first = ((x & low) * (y & low) >> half) + (x & low) * (y >> half)
    second = (first & low) + (x >> half) * (y & low)
    high = (x >> half) * (y >> half) + (first >> half) + (second >> half)
    if dtype.kind == "i":
        high = high - np.where(a < 0, y, np.uint64(0)) - np.where(b < 0, x, np.uint64(0))
    return high.astype(dtype)


def divide(a: Array, b: Array) -> Array:
    """Quotient towards zero; division by zero gives all ones, as the hardware does."""
    safe = np.where(b == 0, b.dtype.type(1), b)
    quotient = a // safe
    if a.dtype.kind == "i":
        # numpy rounds down; the smallest number by -1 wraps to itself, as in C's two's complement.
        quotient = quotient + ((quotient * safe != a) & ((a < 0) != (safe < 0))).astype(a.dtype)
    return np.where(b == 0, ~a.dtype.type(0), quotient).astype(a.dtype)


def remainder(a: Array, b: Array) -> Array:
    """Remainder with the sign of the dividend."""
    return np.where(b == 0, a, a - divide(a, b) * b).astype(a.dtype)


def _saturating(function: Callable[[Array, Array], Array]) -> Callable[[Array, Array], Array]:
    limits = np.iinfo(np.int32)

    def saturated(a: Array, b: Array) -> Array:
        exact = function(a.astype(np.int64), b.astype(np.int64))
        return np.clip(exact, limits.min, limits.max).astype(np.int32)

    return saturated


_TWO = {"add": np.add, "sub": np.subtract, "min": np.minimum, "max": np.maximum}


@opcode("add", "sub", "min", "max")
def decode_two(decoder: Decoder) -> Execute:
    name = decoder.instruction.opcode
    kind = decoder.type()
    if kind.is_float:
        return floating.decode_two(decoder, kind)
    if decoder.take("cc"):
        return _decode_carry(decoder, kind, carry_in=False)
    function = _TWO[name]
    if decoder.take("sat"):
        if kind.name != "s32" or name in ("min", "max"):
            raise decoder.error("unknown saturation in")
        function = _saturating(function)
    return elementwise(decoder, kind, function)


@opcode("addc", "subc")
def decode_with_carry(decoder: Decoder) -> Execute:
    kind = decoder.type()
    decoder.take("cc")
    return _decode_carry(decoder, kind, carry_in=True)


def _decode_carry(decoder: Decoder, kind: PtxType, carry_in: bool) -> Execute:
    """add.cc, addc, sub.cc, subc: the carry (or borrow) flag is one bit per thread."""
    unsigned = ptx_type(f"u{8 * kind.size}")
    write, a, b = decoder.write(0, unsigned), decoder.read(1, unsigned), decoder.read(2, unsigned)
    subtract = decoder.instruction.opcode.startswith("sub")

    def execute(group: Group, lanes: Lanes) -> None:
        x, y = np.broadcast_arrays(a(group, lanes), b(group, lanes))
        flags = group.carry
        carry = flags[lanes.index].astype(x.dtype) if carry_in else x.dtype.type(0)
        total = x - y if subtract else x + y
        overflow = x < y if subtract else total < x
        result = total - carry if subtract else total + carry
        overflow = overflow | ((total < carry) if subtract else (result < total))
        flags[lanes.index] = overflow
        write(group, lanes, result)

    return execute


@opcode("mul", "mad")
def decode_multiply(decoder: Decoder) -> Execute:
    kind = decoder.type()
    if kind.is_float:
        return floating.decode_multiply(decoder, kind)
    part = decoder.need("lo", "hi", "wide")
    result = ptx_type(f"{kind.name[0]}{16 * kind.size}") if part == "wide" else kind
    a, b = decoder.read(1, kind), decoder.read(2, kind)
    c = decoder.read(3, result) if decoder.instruction.opcode == "mad" else None
    write = decoder.write(0, result)
    wide = result.dtype

    def execute(group: Group, lanes: Lanes) -> None:
        x, y = a(group, lanes), b(group, lanes)
        if part == "wide":
            product = x.astype(wide) * y.astype(wide)
        else:
            product = x * y if part == "lo" else multiply_high(x, y)
        write(group, lanes, product if c is None else product + c(group, lanes))

    return execute


@opcode("mul24", "mad24")
def decode_multiply_24(decoder: Decoder) -> Execute:
    kind = decoder.type()
    part = decoder.need("lo", "hi")
    shift = np.int64(40)
    wide = np.int64 if kind.kind == "signed" else np.uint64

    def product(a: Array, b: Array, c: Array | None = None) -> Array:
        x, y = ((v.astype(np.int64) << shift).astype(wide) >> wide(40) for v in (a, b))
        exact = x * y
        result = (exact if part == "lo" else exact >> wide(16)).astype(kind.dtype)
        return result if c is None else result + c

    return elementwise(decoder, kind, product)


@opcode("dp2a")
def decode_dot_product(decoder: Decoder) -> Execute:
    """Both halves of a, times the lower or the upper two bytes of b, plus c."""
    byte_kind, half_kind = decoder.type(), decoder.type()
    shift = np.uint32(0 if decoder.need("lo", "hi") == "lo" else 16)
    if {byte_kind.name, half_kind.name} - {"u32", "s32"}:
        raise decoder.error("unknown type in")
    signed = "signed" in (byte_kind.kind, half_kind.kind)
    result = ptx_type("s32" if signed else "u32")
    word = ptx_type("u32")
    a, b, c = (decoder.read(i, word) for i in (1, 2, 3))
    write = decoder.write(0, word)

    def parts(words: Array, kind: PtxType, size: int) -> Array:
        narrow = np.dtype(f"{'i' if kind.kind == 'signed' else 'u'}{size}")
        return np.ascontiguousarray(words).view(narrow).reshape(words.size, -1)[:, :2]

    def execute(group: Group, lanes: Lanes) -> None:
        halves = parts(a(group, lanes), half_kind, 2).astype(result.dtype)
        pair = parts(b(group, lanes) >> shift, byte_kind, 1).astype(result.dtype)
        total = (halves * pair).sum(axis=1, dtype=result.dtype).view(np.uint32)
        write(group, lanes, total + c(group, lanes))

    return execute


@opcode("div", "rem")
def decode_divide(decoder: Decoder) -> Execute:
    kind = decoder.type()
    if kind.is_float:
        return floating.decode_divide(decoder, kind)
    divides = decoder.instruction.opcode == "div"
    return elementwise(decoder, kind, divide if divides else remainder)


@opcode("abs", "neg")
def decode_sign(decoder: Decoder) -> Execute:
    kind = decoder.type()
    if kind.is_float:
        return floating.decode_sign(decoder, kind)
    return elementwise(
        decoder, kind, np.abs if decoder.instruction.opcode == "abs" else np.negative
    )


@opcode("sad")
def decode_absolute_difference(decoder: Decoder) -> Execute:
    kind = decoder.type()
    return elementwise(decoder, kind, lambda a, b, c: np.maximum(a, b) - np.minimum(a, b) + c)
