"""Floating-point arithmetic. Operations without a rounding mode round to nearest even.

The `.approx` functions are computed in float64 and rounded once, so they are more accurate than a
GPU's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from ..decode import Decoder, opcode
from ..floats import (
    add_directed,
    add_to_odd,
    canonical_nan,
    extremum,
    flush_subnormals,
    fma_float32,
    fma_float64,
    narrow,
    saturate,
)
from ..ptx_types import PtxType

if TYPE_CHECKING:
    from ..lanes import Lanes
    from ..machine import Execute, Group

Array = np.ndarray


def arithmetic(decoder: Decoder, kind: PtxType, function: Callable[..., Array]) -> Execute:
    """Destination = function(sources), with `.ftz`, `.sat` and NaNs as the hardware gives them."""
    flush = decoder.take("ftz") is not None
    clamp = decoder.take("sat") is not None
    if flush and kind.dtype != np.float32 and kind.dtype != np.float16:
        raise decoder.error("unknown use of .ftz in")
    write = decoder.write(0, kind)
    reads = [decoder.read(i, kind) for i in range(1, len(decoder.operands))]

    def execute(group: Group, lanes: Lanes) -> None:
        values = [read(group, lanes) for read in reads]
        if flush:
            values = [flush_subnormals(value) for value in values]
        result = canonical_nan(function(*values))
        if flush:
            result = flush_subnormals(result)
        write(group, lanes, saturate(result) if clamp else result)

    return execute


def _rounding(decoder: Decoder, kind: PtxType) -> str:
    rounding = decoder.take("rn", "rz", "rm", "rp") or "rn"
    if rounding != "rn" and kind.name != "f32":
        raise decoder.error(f"rounding mode .{rounding} is not supported in")
    return rounding


def decode_two(decoder: Decoder, kind: PtxType) -> Execute:
    """Add, sub, min and max."""
    name = decoder.instruction.opcode
    if name in ("min", "max"):
        propagate = decoder.take("NaN") is not None
        return arithmetic(decoder, kind, lambda a, b: extremum(a, b, name == "max", propagate))
    rounding = _rounding(decoder, kind)
    sign = kind.dtype.type(1 if name == "add" else -1)
    if rounding != "rn":

        def function(a: Array, b: Array) -> Array:
            return add_directed(
                a.astype(np.float64), sign * b.astype(np.float64), kind.dtype, rounding
            )

        return arithmetic(decoder, kind, function)
    if kind.kind == "bfloat":
        # In float64 a sum of two bfloat16 needs one rounding only, the last.
        return arithmetic(
            decoder, kind, lambda a, b: a.astype(np.float64) + sign * b.astype(np.float64)
        )
    return arithmetic(decoder, kind, np.add if name == "add" else np.subtract)


def decode_multiply(decoder: Decoder, kind: PtxType) -> Execute:
    """Mul (and mad, which is fma)."""
    if decoder.instruction.opcode == "mad":
        return decode_fma(decoder, kind)
    rounding = _rounding(decoder, kind)
    if rounding != "rn":
        # A product of two float32 is exact in float64.
        return arithmetic(
            decoder,
            kind,
            lambda a, b: narrow(a.astype(np.float64) * b.astype(np.float64), kind.dtype, rounding),
        )
    if kind.kind == "bfloat":
        return arithmetic(decoder, kind, lambda a, b: a.astype(np.float64) * b.astype(np.float64))
    return arithmetic(decoder, kind, np.multiply)


@opcode("fma")
def decode_fma_opcode(decoder: Decoder) -> Execute:
    return decode_fma(decoder, decoder.type())


def decode_fma(decoder: Decoder, kind: PtxType) -> Execute:
    """Fused multiply-add; float64 exact too, see `fma_float64`."""
    rounding = _rounding(decoder, kind)
    relu = decoder.take("relu") is not None
    if kind.name == "f64":
        function = fma_float64
    elif kind.kind == "bfloat":

        def function(a: Array, b: Array, c: Array) -> Array:
            return add_to_odd(a.astype(np.float64) * b.astype(np.float64), c.astype(np.float64))

    else:

        def function(a: Array, b: Array, c: Array) -> Array:
            return fma_float32(a, b, c, rounding)

    if relu:
        return arithmetic(
            decoder, kind, lambda a, b, c: np.maximum(function(a, b, c), kind.dtype.type(0))
        )
    return arithmetic(decoder, kind, function)


def decode_divide(decoder: Decoder, kind: PtxType) -> Execute:
    """Division; `.approx` and `.full` are computed as `.rn`."""
    rounding = decoder.need("rn", "approx", "full", "rz", "rm", "rp")
    if rounding in ("rz", "rm", "rp"):
        raise decoder.error(f"rounding mode .{rounding} is not supported in")
    return arithmetic(decoder, kind, np.divide)


def decode_sign(decoder: Decoder, kind: PtxType) -> Execute:
    """Abs and neg change the sign bit alone, also of a NaN."""
    if decoder.take("ftz"):
        raise decoder.error("modifier .ftz is not supported in")
    function = np.abs if decoder.instruction.opcode == "abs" else np.negative
    write, read = decoder.write(0, kind), decoder.read(1, kind)

    def execute(group: Group, lanes: Lanes) -> None:
        write(group, lanes, function(read(group, lanes)))

    return execute


def _in_double(function: Callable[[Array], Array]) -> Callable[[Array], Array]:
    return lambda x: function(x.astype(np.float64)).astype(x.dtype)


_FUNCTIONS = {
    "ex2": np.exp2,
    "lg2": np.log2,
    "sin": np.sin,
    "cos": np.cos,
    "tanh": np.tanh,
    "rsqrt": lambda x: 1 / np.sqrt(x),
}


@opcode("ex2", "lg2", "sin", "cos", "tanh", "rsqrt")
def decode_approximate(decoder: Decoder) -> Execute:
    kind = decoder.type()
    decoder.need("approx")
    function = _FUNCTIONS[decoder.instruction.opcode]
    if kind.kind == "bfloat":
        decoder.need("ftz")
        return arithmetic(decoder, kind, lambda x: function(x.astype(np.float64)))
    return arithmetic(decoder, kind, _in_double(function))


@opcode("sqrt", "rcp")
def decode_root(decoder: Decoder) -> Execute:
    kind = decoder.type()
    decoder.need("rn", "approx")
    if decoder.instruction.opcode == "sqrt":
        return arithmetic(decoder, kind, np.sqrt)
    return arithmetic(decoder, kind, lambda x: kind.dtype.type(1) / x)


@opcode("copysign")
def decode_copysign(decoder: Decoder) -> Execute:
    kind = decoder.type()
    return arithmetic(decoder, kind, lambda sign, magnitude: np.copysign(magnitude, sign))


@opcode("testp")
def decode_test(decoder: Decoder) -> Execute:
    kind = decoder.type()
    name = decoder.need("finite", "infinite", "number", "notanumber", "normal", "subnormal")
    tiny = np.finfo(kind.dtype).tiny

    def test(x: Array) -> Array:
        subnormal = (np.abs(x) < tiny) & (x != 0)
        return {
            "finite": np.isfinite(x),
            "infinite": np.isinf(x),
            "number": ~np.isnan(x),
            "notanumber": np.isnan(x),
            "normal": np.isfinite(x) & ~subnormal & (x != 0),
            "subnormal": subnormal,
        }[name]

    return predicate_of(decoder, kind, test)


def predicate_of(decoder: Decoder, kind: PtxType, test: Callable[[Array], Array]) -> Execute:
    """Predicate destination = test(source)."""
    from ..ptx_types import ptx_type

    write, read = decoder.write(0, ptx_type("pred")), decoder.read(1, kind)

    def execute(group: Group, lanes: Lanes) -> None:
        write(group, lanes, test(read(group, lanes)))

    return execute
