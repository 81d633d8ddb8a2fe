"""Conversions between types (cvt) and between address spaces (cvta, isspacep)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..clusters import RANK_STEP
from ..decode import Decoder, opcode
from ..floats import canonical_nan, flush_subnormals, narrow, saturate, to_bfloat16_bits
from ..ptx_types import TYPES, PtxType, ptx_type
from ..regions import WINDOW_SIZE, WINDOWS

if TYPE_CHECKING:
    from ..lanes import Lanes
    from ..machine import Execute, Group

Array = np.ndarray
_SPACES = ("global", "shared", "shared::cta", "shared::cluster", "local", "param", "const")
_TO_INTEGER = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


def to_integer(values: Array, target: PtxType) -> Array:
    """Whole floats to integers, clamped; NaN gives 0, or the top bit of a 64-bit target."""
    limits = np.iinfo(target.dtype)
    # The largest integers are no floats: compare with the power of two above them.
    above = (
        values >= float(limits.max)
        if target.size < 4
        else values >= 2.0 ** (limits.bits - (limits.min < 0))
    )
    below = values < float(limits.min)
    nan = values != values
    inside = np.where(above | below | nan, values.dtype.type(0), values)
    result = inside.astype(target.dtype)
    result = np.where(above, target.dtype.type(limits.max), result)
    result = np.where(below, target.dtype.type(limits.min), result)
    wide = target.size == 8 or values.dtype == np.float64
    top = np.array([1 << (limits.bits - 1)], np.uint64).astype(f"u{target.size}").view(target.dtype)
    return np.where(nan, top[0] if wide else target.dtype.type(0), result)


def _integer_to_integer(values: Array, target: PtxType, clamp: bool) -> Array:
    if not clamp:
        return values.astype(target.dtype)
    limits = np.iinfo(target.dtype)
    source = np.iinfo(values.dtype)
    low, high = max(limits.min, source.min), min(limits.max, source.max)
    return np.clip(values, values.dtype.type(low), values.dtype.type(high)).astype(target.dtype)


def _round_float(values: Array, target: PtxType, rounding: str) -> Array:
    """To another float type (or an integer to a float)."""
    if target.kind == "bfloat":
        return to_bfloat16_bits(values, rounding)
    if rounding == "rn":
        return canonical_nan(values.astype(target.dtype))
    return canonical_nan(narrow(values.astype(np.float64), target.dtype, rounding))


@opcode("cvt")
def decode_convert(decoder: Decoder) -> Execute:
    if len(decoder.operands) == 3:
        return _decode_pair(decoder)
    source, target = decoder.type(), decoder.type()
    whole = decoder.take(*_TO_INTEGER)
    rounding = decoder.take("rn", "rz", "rm", "rp")
    flush, clamp = decoder.take("ftz") is not None, decoder.take("sat") is not None
    if target.is_float and not source.is_float and source.size == 8 and rounding != "rn":
        raise decoder.error("this rounding of a 64-bit integer is not supported in")
    if target.kind == "bfloat" and (rounding not in ("rn", "rz") or not source.is_float or clamp):
        raise decoder.error("this conversion to bf16 is not supported in")
    if target.kind == "bfloat" and rounding == "rz" and source.name != "f32":
        raise decoder.error("this conversion to bf16 is not supported in")
    if not target.is_float and source.is_float and whole is None:
        raise decoder.error("no rounding to an integer in")
    out = ptx_type("b16") if target.kind == "bfloat" else target
    write, read = decoder.write(0, out), decoder.read(1, source)

    def execute(group: Group, lanes: Lanes) -> None:
        values = read(group, lanes)
        if flush and values.dtype == np.float32:
            values = flush_subnormals(values)
        if source.is_float and whole:
            values = _TO_INTEGER[whole](values)
        if target.is_float:
            values = _round_float(values, target, rounding or "rn")
            if flush and values.dtype == np.float32:
                values = flush_subnormals(values)
            if clamp:
                values = saturate(values)
        elif source.is_float:
            values = to_integer(values, target)
        else:
            values = _integer_to_integer(values, target, clamp)
        write(group, lanes, values)

    return execute


def _decode_pair(decoder: Decoder) -> Execute:
    """cvt.rn.bf16x2.f32 d, a, b: a becomes the upper half, b the lower."""
    source, target = decoder.type(), decoder.type()
    if source.name != "f32" or not target.packed:
        raise decoder.error("unknown conversion of a pair in")
    rounding = decoder.need("rn", "rz")
    relu = decoder.take("relu") is not None
    if rounding == "rz" and target.kind != "bfloat":
        raise decoder.error("this rounding of a pair is not supported in")
    half = ptx_type(target.name[:-2])
    upper, lower = decoder.read(1, source), decoder.read(2, source)
    write = decoder.write(0, ptx_type("b32"))

    def execute(group: Group, lanes: Lanes) -> None:
        halves = np.empty((lanes.count, 2), np.uint16)
        for column, read in ((0, lower), (1, upper)):
            values = read(group, lanes)
            if relu:
                values = np.where(values <= 0, np.float32(0), values)
            halves[:, column] = _round_float(values, half, rounding).view(np.uint16)
        write(group, lanes, halves.view(np.uint32)[:, 0])

    return execute


@opcode("cvta")
def decode_convert_address(decoder: Decoder) -> Execute:
    kind = decoder.type()
    to_space = decoder.take("to") is not None
    space = decoder.need(*_SPACES)
    window = WINDOWS.get(space.partition("::")[0], 0)
    write, read = decoder.write(0, kind), decoder.read(1, kind)

    def execute(group: Group, lanes: Lanes) -> None:
        address = read(group, lanes)
        write(
            group, lanes, address - np.uint64(window) if to_space else address + np.uint64(window)
        )

    return execute


@opcode("isspacep")
def decode_is_space(decoder: Decoder) -> Execute:
    space = decoder.need(*_SPACES)
    write, read = decoder.write(0, TYPES["pred"]), decoder.read(1, TYPES["u64"])
    start = np.uint64(WINDOWS.get(space.partition("::")[0], 0))
    # The window holds the shared memory of the whole cluster, the block's own at its start.
    size = np.uint64(RANK_STEP if space in ("shared", "shared::cta") else WINDOW_SIZE)
    if space == "const":
        raise decoder.error("not supported:")

    def execute(group: Group, lanes: Lanes) -> None:
        address = read(group, lanes)
        if space == "global":
            write(group, lanes, address < np.uint64(WINDOWS["shared"]))
        else:
            write(group, lanes, address - start < size)

    return execute
