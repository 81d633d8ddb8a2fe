"""Exact references for single instructions, in Python's integers and fractions; arguments."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np

from .floats import bfloat16_to_float32

Array = np.ndarray
COUNT = 4096
WORD = 0xFFFFFFFF


def elements(function: Callable) -> Callable[..., list]:
    """A reference for arrays from one for Python numbers."""
    return lambda *arrays: [
        function(*row) for row in zip(*(a.tolist() for a in arrays), strict=True)
    ]


def floats(seed: int) -> Array:
    """Floats of every exponent, subnormals, infinities, NaN, zeros, ties, limits of integers."""
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 2**32, COUNT, dtype=np.uint32).view(np.float32)
    values[::3] = (rng.standard_normal(values[::3].size) * 10).astype(np.float32)
    values[1::6] = rng.integers(-200, 200, values[1::6].size) / np.float32(2)
    special = [
        0.0,
        -0.0,
        math.inf,
        -math.inf,
        math.nan,
        1.0,
        -1.0,
        1e-45,
        2.0**31,
        -(2.0**31),
        2.0**63,
    ]
    values[:121] = grid(special, np.float32, seed)
    return values


def grid(special: list, dtype: type, seed: int) -> Array:
    """Special values so ordered that arguments of even and odd seeds meet in every pair."""
    return (
        np.repeat(np.array(special, dtype), len(special))
        .reshape(len(special), -1)
        .ravel("CF"[seed % 2])
    )


def close_floats(seed: int) -> Array:
    """Floats near one another and with few bits, so that sums and products lie on ties."""
    rng = np.random.default_rng(seed)
    mantissa = rng.integers(2**23, 2**24, COUNT) & -(1 << rng.integers(0, 20, COUNT))
    return np.ldexp(mantissa.astype(np.float64), rng.integers(-38, -8, COUNT)).astype(np.float32)


def doubles(seed: int) -> Array:
    """float64 values near one another, and every fifth of any exponent."""
    rng = np.random.default_rng(seed)
    mantissa = rng.integers(-(2**53), 2**53, COUNT).astype(np.float64)
    values = np.ldexp(mantissa, rng.integers(-60, 0, COUNT))
    values[::5] = rng.integers(0, 2**64, values[::5].size, dtype=np.uint64).view(np.float64)
    return values


def finite_doubles(seed: int) -> Array:
    """float64 values in the range of float32."""
    return doubles(seed)[1::5].copy()


def integers(dtype: type, divisor: bool = False) -> Callable[[int], Array]:
    """Integers of all sizes and the limits; as a divisor neither 0 nor -1."""

    def make(seed: int) -> Array:
        rng, info = np.random.default_rng(seed), np.iinfo(dtype)
        values = rng.integers(info.min, info.max, COUNT, dtype=dtype, endpoint=True)
        values[::3] = rng.integers(0, 100, values[::3].size).astype(dtype)
        edges = [info.min, info.max, 0, 1, info.max - 1, info.min + 1, 7, 10]
        values[:64] = grid(edges, dtype, seed)
        if divisor:
            values[(values == 0) | (values == np.array(-1).astype(dtype))] = 3
        return values

    return make


def below(limit: int) -> Callable[[int], Array]:
    """Small unsigned integers, for shifts and lengths."""
    return lambda seed: np.random.default_rng(seed).integers(0, limit, COUNT, dtype=np.uint32)


def all_halves(seed: int) -> Array:
    """All 2^16 patterns of 16 bits, in an order of the seed's."""
    return np.random.default_rng(seed).permutation(2**16).astype(np.uint16)


def some_halves(seed: int) -> Array:
    return all_halves(seed)[:COUNT]


def widen(bits: Array, kind: str) -> Array:
    """The values of 16-bit patterns as float32, exactly."""
    return bits.view(np.float16).astype(np.float32) if kind == "half" else bfloat16_to_float32(bits)


_MAGNITUDES = {}
for _kind, _infinity in (("half", 0x7C00), ("bfloat", 0x7F80)):
    _table = widen(np.arange(_infinity, dtype=np.uint16), _kind).astype(np.float64).tolist()
    # Infinity stands where the next number would be: what is nearer to it overflows.
    _MAGNITUDES[_kind] = [*_table, 2 * _table[-1] - _table[-2]]


def nearest_16(value: Fraction, kind: str) -> int:
    """Pattern of the positive 16-bit float nearest to a fraction, ties to even."""
    table = _MAGNITUDES[kind]
    high = bisect.bisect_left(table, value)
    if high == len(table) or high == 0:
        return min(high, len(table) - 1)
    up, down = Fraction(table[high]) - value, value - Fraction(table[high - 1])
    return high if up < down or (up == down and high % 2 == 0) else high - 1


def _round_16(plain: float, exact: Fraction | None, kind: str) -> int:
    """Pattern of a value given as a float, for its sign and if it is not finite, and exactly."""
    if math.isnan(plain):
        return 0x7FFF
    sign = 0x8000 if math.copysign(1, plain) < 0 else 0
    if exact is None:
        return sign | (len(_MAGNITUDES[kind]) - 1)
    return sign | nearest_16(abs(exact), kind)


def on_16(kind: str, function: Callable) -> Callable[..., list]:
    """An operation of 16-bit floats with one rounding; float64 keeps sign and infinity."""

    def one(*values: float) -> int:
        with np.errstate(all="ignore"):
            plain = float(function(*map(np.float64, values)))
        exact = function(*map(Fraction, values)) if math.isfinite(plain) else None
        return _round_16(plain, exact, kind)

    return lambda *bits: elements(one)(*(widen(b, kind) for b in bits))


def to_16(kind: str) -> Callable[[Array], Array]:
    """Conversion of float32 to a 16-bit float."""

    def one(x: float) -> int:
        return _round_16(x, Fraction(x) if math.isfinite(x) else None, kind)

    return lambda a: np.array(elements(one)(a), np.uint32)


def clamped(dtype: type, rounding: Callable = math.trunc) -> Callable[..., list]:
    """Floats to integers beyond what C++ defines: clamped; NaN gives 0 or the top bit."""
    info = np.iinfo(dtype)

    def one(x: float) -> int:
        if math.isnan(x):
            return 0 if info.bits == 32 else info.min
        limit = info.max if x > 0 else info.min
        return limit if math.isinf(x) else max(info.min, min(info.max, rounding(x)))

    return elements(one)


def directed(exact: Callable, up: int) -> Callable[..., list]:
    """Exact fractions rounded to float32 up (1), down (-1) or towards zero (0)."""

    def one(*values: float) -> np.float32:
        value = exact(*(Fraction(x) for x in values))
        if value == 0:
            return np.float32(0)
        side = up or (-1 if value > 0 else 1)
        guess = np.nextafter(np.float32(float(value)), np.float32(side * math.inf))
        # From a float on the right side of the value, back to the last one that still is.
        while (
            Fraction(float(previous := np.nextafter(guess, np.float32(-side * math.inf)))) - value
        ) * side >= 0:
            guess = previous
        return guess

    return elements(one)


def extremum(pick: Callable) -> Callable[..., list]:
    """Smaller or larger float; NaN loses, and -0 is below +0."""

    def one(a: float, b: float) -> float:
        if math.isnan(a) or math.isnan(b):
            return b if math.isnan(a) else a
        return pick(a, b, key=lambda x: (x, math.copysign(1, x)))

    return elements(one)


def quotient(a: int, b: int) -> int:
    """Division towards zero."""
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def remainder(a: int, b: int) -> int:
    return a - quotient(a, b) * b


def signed(word: int) -> int:
    return word - (1 << 32) if word >> 31 else word


def permuted(a: int, b: int, selector: int) -> int:
    """prmt.b32."""
    source = (b << 32 | a).to_bytes(8, "little")
    picked = [selector >> 4 * k & 0xF for k in range(4)]
    return int.from_bytes(
        [(source[p & 7] >> 7) * 0xFF if p & 8 else source[p & 7] for p in picked], "little"
    )


def extracted(a: int, start: int, length: int) -> int:
    """bfe.u32."""
    return a >> start & ((1 << length) - 1)


def extracted_signed(a: int, start: int, length: int) -> int:
    """bfe.s32: repeats the field's top bit, or the word's where the field ends behind it."""
    if length == 0:
        return 0
    top = a >> min(start + length - 1, 31) & 1
    field = (signed(a) >> start) & ((1 << length) - 1)
    return (field | -top << length) & WORD


def inserted(a: int, b: int, length: int) -> int:
    """bfi.b32 at bit 8."""
    mask = ((1 << length) - 1) << 8 & WORD
    return b & ~mask | a << 8 & mask


def top_bit(a: int) -> int:
    """bfind.s32."""
    return ((a if a < 1 << 31 else ~a & WORD).bit_length() - 1) & WORD
