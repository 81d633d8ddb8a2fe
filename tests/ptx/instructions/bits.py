"""Bitwise instructions: logic, shifts, bit fields, byte permutation, moves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..decode import Decoder, opcode
from ..parser import split_operands
from ..ptx_types import UNSIGNED, PtxType, ptx_type
from .integer import elementwise

if TYPE_CHECKING:
    from ..lanes import Lanes
    from ..machine import Execute, Group

Array = np.ndarray
_LOGIC = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}


@opcode("and", "or", "xor", "not")
def decode_logic(decoder: Decoder) -> Execute:
    kind = decoder.type()
    name = decoder.instruction.opcode
    return elementwise(decoder, kind, np.invert if name == "not" else _LOGIC[name])


@opcode("cnot")
def decode_cnot(decoder: Decoder) -> Execute:
    kind = decoder.type()
    return elementwise(decoder, kind, lambda x: (x == 0).astype(x.dtype))


@opcode("lop3")
def decode_lop3(decoder: Decoder) -> Execute:
    kind = decoder.type()
    table = int(decoder.operands[4], 0)
    write = decoder.write(0, kind)
    reads = [decoder.read(i, kind) for i in (1, 2, 3)]

    def execute(group: Group, lanes: Lanes) -> None:
        a, b, c = (read(group, lanes) for read in reads)
        result = np.zeros(np.broadcast_shapes(a.shape, b.shape, c.shape), a.dtype)
        for row in range(8):
            if table >> row & 1:
                one = a if row & 4 else ~a
                two = b if row & 2 else ~b
                result |= one & two & (c if row & 1 else ~c)
        write(group, lanes, result)

    return execute


@opcode("shl", "shr")
def decode_shift(decoder: Decoder) -> Execute:
    kind = decoder.type()
    write, value, amount = decoder.write(0, kind), decoder.read(1, kind), _shift_amount(decoder, 2)
    bits = 8 * kind.size
    left = decoder.instruction.opcode == "shl"
    dtype = kind.dtype.type
    # Shifts by the width or more give zeros, or copies of the sign.
    largest = bits - 1 if kind.kind == "signed" and not left else bits

    def execute(group: Group, lanes: Lanes) -> None:
        x, count = value(group, lanes), np.minimum(amount(group, lanes), np.uint32(largest))
        over = count == bits
        safe = np.where(over, 0, count).astype(dtype)
        shifted = x << safe if left else x >> safe
        write(group, lanes, np.where(over, dtype(0), shifted) if over.any() else shifted)

    return execute


def _shift_amount(decoder: Decoder, operand: int) -> object:
    return decoder.read(operand, ptx_type("u32"))


@opcode("shf")
def decode_funnel_shift(decoder: Decoder) -> Execute:
    kind = decoder.type()
    if kind.name != "b32":
        raise decoder.error("unknown type in")
    direction, mode = decoder.need("l", "r"), decoder.need("wrap", "clamp")

    def shift(low: Array, high: Array, count: Array) -> Array:
        count = count & np.uint32(31) if mode == "wrap" else np.minimum(count, np.uint32(32))
        both = (high.astype(np.uint64) << np.uint64(32)) | low
        if direction == "l":
            return ((both << count.astype(np.uint64)) >> np.uint64(32)).astype(np.uint32)
        return (both >> count.astype(np.uint64)).astype(np.uint32)

    return elementwise(decoder, kind, shift)


@opcode("prmt")
def decode_permute(decoder: Decoder) -> Execute:
    kind = decoder.type()

    def permute(a: Array, b: Array, selector: Array) -> Array:
        both = (b.astype(np.uint64) << np.uint64(32)) | a
        result = np.zeros(np.broadcast_shapes(both.shape, selector.shape), np.uint32)
        for k in range(4):
            nibble = (selector >> np.uint32(4 * k)) & np.uint32(0xF)
            byte = (both >> ((nibble & np.uint32(7)) * np.uint32(8)).astype(np.uint64)) & np.uint64(
                0xFF
            )
            sign = np.where(byte & np.uint64(0x80), np.uint32(0xFF), np.uint32(0))
            byte = np.where(nibble & np.uint32(8), sign, byte.astype(np.uint32))
            result |= byte << np.uint32(8 * k)
        return result

    return elementwise(decoder, kind, permute)


@opcode("bfe")
def decode_extract(decoder: Decoder) -> Execute:
    kind = decoder.type()
    write, value = decoder.write(0, kind), decoder.read(1, kind)
    start, length = _shift_amount(decoder, 2), _shift_amount(decoder, 3)
    bits = 8 * kind.size

    def execute(group: Group, lanes: Lanes) -> None:
        x = value(group, lanes)
        first, count = (
            (f(group, lanes) & np.uint32(0xFF)).astype(np.int64) for f in (start, length)
        )
        signed = kind.kind == "signed"
        wide = x.astype(np.int64)
        # The field ends at the top bit; a longer one repeats the sign (or zeros).
        end = np.minimum(first + count, bits)
        width = np.maximum(end - first, 0)
        if not signed and kind.size == 8:
            field = np.where(first < 64, x >> np.minimum(first, 63).astype(np.uint64), np.uint64(0))
            mask = np.where(
                width >= 64, ~np.uint64(0), (np.uint64(1) << (width % 64).astype(np.uint64)) - 1
            )
            write(group, lanes, (field & mask).astype(kind.dtype))
            return
        if not signed:
            field = (wide >> np.minimum(first, 63)) & ((np.int64(1) << width) - 1)
            write(group, lanes, field.astype(kind.dtype))
            return
        sign_at = np.minimum(first + count - 1, bits - 1)
        up = 63 - sign_at
        field = (wide << np.clip(up, 0, 63)) >> np.clip(up + first, 0, 63)
        write(group, lanes, np.where(count == 0, 0, field).astype(kind.dtype))

    return execute


@opcode("bfi")
def decode_insert(decoder: Decoder) -> Execute:
    kind = decoder.type()
    write, field, base = decoder.write(0, kind), decoder.read(1, kind), decoder.read(2, kind)
    start, length = _shift_amount(decoder, 3), _shift_amount(decoder, 4)
    bits, dtype = 8 * kind.size, kind.dtype.type

    def execute(group: Group, lanes: Lanes) -> None:
        first, count = (
            (f(group, lanes) & np.uint32(0xFF)).astype(np.int64) for f in (start, length)
        )
        width = np.clip(np.minimum(count, bits - first), 0, bits)
        ones = np.where(
            width == bits, ~dtype(0), (dtype(1) << (width % bits).astype(dtype)) - dtype(1)
        )
        shift = np.clip(first, 0, bits - 1).astype(dtype)
        mask = np.where(width == 0, dtype(0), ones << shift)
        result = (base(group, lanes) & ~mask) | ((field(group, lanes) << shift) & mask)
        write(group, lanes, result.astype(kind.dtype))

    return execute


@opcode("popc", "clz", "brev", "bfind")
def decode_count(decoder: Decoder) -> Execute:
    kind = decoder.type()
    name = decoder.instruction.opcode
    shift_amount = decoder.take("shiftamt") is not None
    result = kind if name == "brev" else ptx_type("u32")
    write, value = decoder.write(0, result), decoder.read(1, kind)
    unsigned = UNSIGNED[kind.size]

    def execute(group: Group, lanes: Lanes) -> None:
        x = value(group, lanes)
        if name == "bfind" and kind.kind == "signed":
            x = np.where(x < 0, ~x, x)
        x = np.ascontiguousarray(x).view(unsigned)
        planes = np.unpackbits(x.view(np.uint8).reshape(-1, kind.size), axis=1, bitorder="little")
        if name == "popc":
            write(group, lanes, planes.sum(axis=1).astype(np.uint32))
        elif name == "brev":
            reversed_bits = np.ascontiguousarray(planes[:, ::-1])
            write(
                group,
                lanes,
                np.packbits(reversed_bits, axis=1, bitorder="little").view(unsigned)[:, 0],
            )
        else:
            leading = np.where(x == 0, 8 * kind.size, planes[:, ::-1].argmax(axis=1))
            top = 8 * kind.size - 1 - leading
            if name == "clz" or shift_amount:
                top = leading
            not_found = (x == 0) & (name == "bfind")
            write(group, lanes, np.where(not_found, 0xFFFFFFFF, top).astype(np.uint32))

    return execute


@opcode("mov")
def decode_move(decoder: Decoder) -> Execute:
    kind = decoder.type()
    target, source = decoder.operands
    if source.startswith("{"):
        return _pack(decoder, kind, split_operands(source[1:-1]))
    if target.startswith("{"):
        return _unpack(decoder, kind, split_operands(target[1:-1]))
    write, read = decoder.write(0, kind), decoder.read(1, kind)

    def execute(group: Group, lanes: Lanes) -> None:
        write(group, lanes, read(group, lanes))

    return execute


def _pack(decoder: Decoder, kind: PtxType, names: list[str]) -> Execute:
    part = ptx_type(f"b{8 * kind.size // len(names)}")
    whole = ptx_type(f"b{8 * kind.size}")
    write, reads = decoder.write(0, whole), [decoder.read(name, part) for name in names]

    def execute(group: Group, lanes: Lanes) -> None:
        parts = np.empty((lanes.count, len(names)), part.storage)
        for column, read in enumerate(reads):
            parts[:, column] = read(group, lanes)
        write(group, lanes, parts.view(whole.storage)[:, 0])

    return execute


def _unpack(decoder: Decoder, kind: PtxType, names: list[str]) -> Execute:
    part = ptx_type(f"b{8 * kind.size // len(names)}")
    read = decoder.read(1, ptx_type(f"b{8 * kind.size}"))
    writes = [decoder.write(name, part) for name in names]

    def execute(group: Group, lanes: Lanes) -> None:
        parts = np.ascontiguousarray(read(group, lanes)).view(part.storage).reshape(-1, len(names))
        for column, write in enumerate(writes):
            write(group, lanes, np.ascontiguousarray(parts[:, column]))

    return execute
