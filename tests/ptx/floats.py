"""Floating-point steps that numpy lacks: fma, directed rounding, bfloat16, PTX's min and max.

The tool is rounding to odd (Boldo and Melquiond, "Emulation of FMA and correctly rounded sums",
2008): a sum that is inexact gets an odd last bit, so that a later rounding to a format at least two
bits shorter sees on which side of every tie the exact value lies.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np

Array = np.ndarray

CANONICAL_NAN = {
    np.dtype(np.float16): np.uint16(0x7FFF),
    np.dtype(np.float32): np.uint32(0x7FFFFFFF),
}
_INTEGER = {2: np.int16, 4: np.int32, 8: np.int64}


def canonical_nan(values: Array) -> Array:
    """Gives every NaN the one pattern that the hardware returns (float64 keeps its own)."""
    pattern = CANONICAL_NAN.get(values.dtype)
    if pattern is not None:
        nan = values != values
        if nan.any():
            values = np.where(nan, pattern.view(values.dtype), values)
    return values


def flush_subnormals(values: Array) -> Array:
    """`.ftz`: subnormal numbers become zeros of the same sign."""
    return np.where(
        np.abs(values) < np.finfo(values.dtype).tiny, np.copysign(values * 0, values), values
    )


def saturate(values: Array) -> Array:
    """`.sat` on floats: clamps to [0, 1]; NaN and -0 become +0."""
    one = values.dtype.type(1)
    return np.where(values > 0, np.minimum(values, one), values.dtype.type(0))


def _two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    total = a + b
    b_part = total - a
    return total, (a - (total - b_part)) + (b - b_part)


def _two_product(a: Array, b: Array) -> tuple[Array, Array]:
    """Product and its rounding error by Veltkamp's splitting; exponents must be moderate."""

    def split(x: Array) -> tuple[Array, Array]:
        scaled = x * 134217729.0  # 2^27 + 1
        high = scaled - (scaled - x)
        return high, x - high

    product = a * b
    (ah, al), (bh, bl) = split(a), split(b)
    return product, ((ah * bh - product) + ah * bl + al * bh) + al * bl


def _make_odd(rounded: Array, error: Array) -> Array:
    """Moves an inexact value whose last bit is even one step towards the exact value."""
    bits = rounded.view(_INTEGER[rounded.itemsize])
    nudge = (error != 0) & ((bits & 1) == 0) & np.isfinite(rounded)
    return np.where(
        nudge, np.nextafter(rounded, np.copysign(np.inf, error).astype(rounded.dtype)), rounded
    )


def add_to_odd(a: Array, b: Array) -> Array:
    """float64 sum, rounded to odd."""
    return _make_odd(*_two_sum(a, b))


def add_directed(a: Array, b: Array, dtype: np.dtype, rounding: str) -> Array:
    """Sum of float64 values, rounded once to a shorter format in the named PTX mode."""
    total = add_to_odd(a, b)
    result = narrow(total, dtype, rounding)
    if rounding == "rm":
        # Downwards, and only so, a sum that cancels is -0.
        cancelled = (total == 0) & (np.signbit(a) | np.signbit(b))
        result = np.where(cancelled, dtype.type(-0.0), result)
    return result


def _narrow_to_odd(exact: Array) -> Array:
    """float64 to float32, rounded to odd."""
    narrow = exact.astype(np.float32)
    # Beyond the largest float32 the neighbour towards the exact value is that largest one, which is
    # odd.
    overflow = np.isinf(narrow) & np.isfinite(exact)
    largest = np.finfo(np.float32).max
    narrow = np.where(overflow, np.copysign(largest, narrow), narrow)
    return _make_odd(narrow, exact - narrow.astype(np.float64))


def narrow(exact: Array, dtype: np.dtype, rounding: str) -> Array:
    """Rounds float64 values to a shorter format (or to itself) in the named PTX mode."""
    nearest = exact.astype(dtype)
    if rounding == "rn" or dtype == exact.dtype:
        return nearest
    error = nearest.astype(np.float64) - exact
    towards_zero = np.abs(nearest.astype(np.float64)) > np.abs(exact)
    wrong = {"rz": towards_zero, "rm": error > 0, "rp": error < 0}[rounding] & np.isfinite(exact)
    goal = {"rz": np.zeros_like(nearest), "rm": -np.inf, "rp": np.inf}[rounding]
    return np.where(wrong, np.nextafter(nearest, np.asarray(goal, dtype)), nearest).astype(dtype)


def fma_float32(a: Array, b: Array, c: Array, rounding: str = "rn") -> Array:
    """Fused a * b + c in float32 or float16, exact.

    The product of two float32 is exact in float64. The float64 sum may be inexact; rounding it
    again can only go wrong where it lies on a tie, or below the normal range, or in a directed
    mode: only then is it made odd.
    """
    dtype = np.result_type(a)
    product = a.astype(np.float64) * b.astype(np.float64)
    addend = c.astype(np.float64)
    total = np.asarray(product + addend)
    if dtype == np.float32 and rounding == "rn":
        tie = (total.view(np.int64) & 0x1FFFFFFF) == 0x10000000
        small = np.abs(total) < 1.2e-38
        if not (tie | (small & (total != 0))).any():
            return total.astype(dtype)
    return add_directed(product, addend, dtype, rounding)


def fma_float64(a: Array, b: Array, c: Array) -> Array:
    """Fused a * b + c in float64, exact: Boldo and Melquiond's, or fractions out of its range."""
    a, b, c = (np.array(x, np.float64) for x in np.broadcast_arrays(a, b, c))
    upper, lower = _two_product(a, b)
    total_high, total_low = _two_sum(c, lower)
    high, low = _two_sum(upper, total_high)
    result = high + add_to_odd(total_low, low)
    plain = a * b + c
    magnitudes = [np.abs(x) for x in (a, b, c)]
    safe = [((m == 0) | (m > 1e-140)) & (m < 1e140) for m in magnitudes]
    safe_lanes = safe[0] & safe[1] & safe[2] & (plain != 0)
    finite = np.isfinite(a) & np.isfinite(b) & np.isfinite(c)
    result = np.where(safe_lanes, result, plain)
    for i in np.flatnonzero(finite & ~safe_lanes):
        exact = Fraction(float(a[i])) * Fraction(float(b[i])) + Fraction(float(c[i]))
        if exact != 0:
            try:
                result[i] = float(exact)
            except OverflowError:
                result[i] = np.copysign(np.inf, float(exact > 0) - 0.5)
    return result


def bfloat16_to_float32(bits: Array) -> Array:
    """Exact."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def to_bfloat16_bits(values: Array, rounding: str = "rn") -> Array:
    """Rounds float32 or float64 values to bfloat16; every NaN becomes 0x7fff."""
    if values.dtype == np.float64:
        values = _narrow_to_odd(values)
    bits = np.ascontiguousarray(values).view(np.uint32)
    if rounding == "rn":
        rounded = (
            bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
        ) >> np.uint32(16)
    else:
        rounded = bits >> np.uint32(16)
    rounded = rounded.astype(np.uint16)
    nan = values != values
    return np.where(nan, np.uint16(0x7FFF), rounded) if nan.any() else rounded


def extremum(a: Array, b: Array, largest: bool, propagate_nan: bool) -> Array:
    """PTX min and max: -0 < +0; one NaN gives the other operand unless `.NaN` asks for NaN."""
    a, b = np.broadcast_arrays(a, b)
    a_nan, b_nan = a != a, b != b
    a_key, b_key = _total_order(a), _total_order(b)
    take_a = a_key >= b_key if largest else a_key <= b_key
    result = np.where(take_a, a, b)
    if a_nan.any() or b_nan.any():
        result = np.where(a_nan, b, np.where(b_nan, a, result))
        if propagate_nan:
            result = np.where(a_nan | b_nan, a.dtype.type(np.nan), result)
    return canonical_nan(result)


def _total_order(values: Array) -> Array:
    """Integers in the order of the floats, with -0 below +0."""
    integer = _INTEGER[values.itemsize]
    bits = np.ascontiguousarray(values).view(integer)
    return bits ^ ((bits >> integer(8 * values.itemsize - 1)) & integer(np.iinfo(integer).max))
