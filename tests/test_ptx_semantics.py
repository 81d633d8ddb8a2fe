"""What each PTX instruction computes, bit for bit, against exact Python arithmetic and torch."""

import ctypes
import ctypes.util
import math
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.ptx import Device, compile_cuda, require_nvcc
from tests.ptx.expected import (
    WORD,
    all_halves,
    below,
    clamped,
    close_floats,
    directed,
    doubles,
    elements,
    extracted,
    extracted_signed,
    extremum,
    finite_doubles,
    floats,
    inserted,
    integers,
    on_16,
    permuted,
    quotient,
    remainder,
    signed,
    some_halves,
    to_16,
    top_bit,
)

SOURCE = Path(__file__).parent / "ptx" / "samples" / "semantics.cu"
_libm = ctypes.CDLL(ctypes.util.find_library("m"))
_libm.fmaf.restype, _libm.fmaf.argtypes = ctypes.c_float, [ctypes.c_float] * 3
_libm.fma.restype, _libm.fma.argtypes = ctypes.c_double, [ctypes.c_double] * 3
F, D, U, I, UL, IL, H = (  # noqa: E741
    np.float32,
    np.float64,
    np.uint32,
    np.int32,
    np.uint64,
    np.int64,
    np.uint16,
)
u32, i32, u64, i64 = (integers(dtype) for dtype in (U, I, UL, IL))


@dataclass(frozen=True)
class Operation:
    """A kernel of semantics.cu: how its arguments are made, and what it must give."""

    name: str
    result: type
    arguments: tuple[Callable, ...]
    reference: Callable


def multiply_add(a, b, c):
    return a * b + c


def saturated_sum(a, b):
    return max(-(2**31), min(2**31 - 1, signed(a) + signed(b))) & WORD


def dot_product(shift, bias):
    """dp2a on the bytes of b from a bit on; halves of a are signed with a bias of 2^15."""

    def reference(a, b, c):
        halves = [((a >> k & 0xFFFF) ^ bias) - bias for k in (0, 16)]
        pair = [b >> shift + k & 0xFF for k in (0, 8)]
        return c + sum(x * y for x, y in zip(halves, pair, strict=True)) & WORD

    return reference


def on_pairs(kind, function):
    """An operation on the lower and on the upper halves of words."""
    one = on_16(kind, function)

    def reference(*words):
        low, high = (
            np.array(one(*((w >> U(shift)).astype(H) for w in words)), U) for shift in (0, 16)
        )
        return low | high << U(16)

    return reference


OPERATIONS = [
    Operation("half_to_float", F, (all_halves,), lambda a: a.view(np.float16).astype(F)),
    Operation("bfloat_to_float", F, (all_halves,), lambda a: (a.astype(U) << 16).view(F)),
    Operation("float_to_half", H, (floats,), to_16("half")),
    Operation("float_to_bfloat", H, (floats,), to_16("bfloat")),
    Operation(
        "float_to_bfloat_rz", H, (floats,), lambda a: np.where(np.isnan(a), 0x7FFF, a.view(U) >> 16)
    ),
    Operation(
        "floats_to_half2",
        U,
        (floats, floats),
        lambda a, b: to_16("half")(a) | to_16("half")(b).astype(U) << 16,
    ),
    Operation(
        "floats_to_bfloat2",
        U,
        (floats, floats),
        lambda a, b: to_16("bfloat")(a) | to_16("bfloat")(b).astype(U) << 16,
    ),
    Operation("float_to_int", I, (floats,), clamped(I)),
    Operation("float_to_int_nearest", I, (floats,), clamped(I, round)),
    Operation("float_to_int_down", I, (floats,), clamped(I, math.floor)),
    Operation("float_to_unsigned", U, (floats,), clamped(U)),
    Operation("float_to_long", IL, (floats,), clamped(IL)),
    Operation("int_to_float", F, (i32,), lambda a: a.astype(F)),
    Operation("int_to_float_down", F, (i32,), directed(lambda a: a, -1)),
    Operation("unsigned_to_float", F, (u32,), lambda a: a.astype(F)),
    Operation("unsigned_to_float_zero", F, (u32,), directed(lambda a: a, 0)),
    Operation("long_to_float", F, (i64,), lambda a: a.astype(F)),
    Operation("double_to_float", F, (doubles,), lambda a: a.astype(F)),
    Operation("double_to_float_up", F, (finite_doubles,), directed(lambda a: a, 1)),
    Operation("float_saturate", F, (floats,), lambda a: np.where(a > 0, np.minimum(a, 1), 0)),
    Operation("round_even", F, (floats,), np.rint),
    Operation("round_down", F, (floats,), np.floor),
    Operation(
        "sign_extend", IL, (u32,), lambda a: a.astype(np.int8).astype(IL) + a.astype(np.int16)
    ),
    Operation("add", F, (floats, floats), np.add),
    Operation("add_down", F, (close_floats, close_floats), directed(lambda a, b: a + b, -1)),
    Operation("multiply", F, (floats, floats), np.multiply),
    Operation("multiply_zero", F, (close_floats, close_floats), directed(lambda a, b: a * b, 0)),
    Operation("divide", F, (floats, floats), np.divide),
    Operation("square_root", F, (floats,), np.sqrt),
    Operation("reciprocal", F, (floats,), lambda a: F(1) / a),
    Operation("fma32", F, (floats, floats, floats), elements(_libm.fmaf)),
    Operation("fma32_up", F, (close_floats, close_floats, close_floats), directed(multiply_add, 1)),
    Operation("fma64", D, (doubles, doubles, doubles), elements(_libm.fma)),
    Operation("minimum", F, (floats, floats), extremum(min)),
    Operation("maximum", F, (floats, floats), extremum(max)),
    Operation("copy_sign", F, (floats, floats), np.copysign),
    Operation("less_or_unordered", I, (floats, floats), lambda a, b: ~(a >= b)),
    Operation("is_nan", I, (floats,), np.isnan),
    Operation("add_half", H, (some_halves, some_halves), on_16("half", operator.add)),
    Operation("multiply_half", H, (some_halves, some_halves), on_16("half", operator.mul)),
    Operation("fma_half", H, (some_halves, some_halves, some_halves), on_16("half", multiply_add)),
    Operation("add_bfloat", H, (some_halves, some_halves), on_16("bfloat", operator.add)),
    Operation("multiply_bfloat", H, (some_halves, some_halves), on_16("bfloat", operator.mul)),
    Operation("fma_bfloat", H, (some_halves,) * 3, on_16("bfloat", multiply_add)),
    Operation("multiply_half2", U, (u32, u32), on_pairs("half", operator.mul)),
    Operation("fma_bfloat2", U, (u32, u32, u32), on_pairs("bfloat", multiply_add)),
    Operation("exp2_approximate", F, (floats,), lambda a: np.exp2(a.astype(D)).astype(F)),
    Operation("log2_approximate", F, (floats,), lambda a: np.log2(a.astype(D)).astype(F)),
    Operation("multiply_high", U, (u32, u32), elements(lambda a, b: a * b >> 32)),
    Operation("multiply_high_signed", I, (i32, i32), elements(lambda a, b: a * b >> 32)),
    Operation("multiply_high_64", UL, (u64, u64), elements(lambda a, b: a * b >> 64)),
    Operation("multiply_high_signed_64", IL, (i64, i64), elements(lambda a, b: a * b >> 64)),
    Operation("multiply_wide", UL, (u32, u32), elements(lambda a, b: a * b)),
    Operation("multiply_wide_signed", IL, (i32, i32), elements(lambda a, b: a * b + 1)),
    Operation("divide_signed", I, (i32, integers(I, divisor=True)), elements(quotient)),
    Operation("remainder_signed", I, (i32, integers(I, divisor=True)), elements(remainder)),
    Operation(
        "divide_unsigned_64", UL, (u64, integers(UL, divisor=True)), elements(lambda a, b: a // b)
    ),
    Operation("remainder_signed_64", IL, (i64, integers(IL, divisor=True)), elements(remainder)),
    Operation("divide_by_7", I, (i32,), elements(lambda a: quotient(a, 7))),
    Operation("divide_by_10", U, (u32,), lambda a: a // 10),
    Operation("divide_long_by_1000", IL, (i64,), elements(lambda a: quotient(a, 1000))),
    Operation("remainder_long_by_12345", UL, (u64,), lambda a: a % 12345),
    Operation("shift_left_64", UL, (u64, u32), lambda a, b: a << (b & 63).astype(UL)),
    Operation("shift_right_signed_64", IL, (i64, u32), lambda a, b: a >> (b & 63).astype(IL)),
    Operation(
        "funnel_left",
        U,
        (u32, u32, u32),
        elements(lambda a, b, c: (b << 32 | a) << (c & 31) >> 32 & WORD),
    ),
    Operation(
        "funnel_right_clamped",
        U,
        (u32, u32, u32),
        elements(lambda a, b, c: (b << 32 | a) >> min(c, 32) & WORD),
    ),
    Operation(
        "permute_bytes", U, (u32, u32, u32), elements(lambda a, b, c: permuted(a, b, c & 0x7777))
    ),
    Operation("any_bits", U, (u32, u32, u32), lambda a, b, c: (a & b) ^ (~c | a)),
    Operation("count_bits", I, (u64,), elements(int.bit_count)),
    Operation("leading_zeros", I, (u32,), elements(lambda a: 32 - a.bit_length())),
    Operation("first_set", I, (u32,), elements(lambda a: (a & -a).bit_length())),
    Operation("reverse_bits", U, (u32,), elements(lambda a: int(f"{a:032b}"[::-1], 2))),
    Operation("minimum_signed", IL, (i64, i64), np.minimum),
    Operation("select", U, (u32, u32, u32), lambda a, b, c: np.where(a < b, c, a)),
    Operation("lop3_majority", U, (u32, u32, u32), lambda a, b, c: a & b | a & c | b & c),
    Operation("permute_with_signs", U, (u32, u32, u32), elements(permuted)),
    Operation("extract_unsigned", U, (u32, below(40), below(40)), elements(extracted)),
    Operation("extract_signed", U, (u32, below(40), below(40)), elements(extracted_signed)),
    Operation("insert_at_8", U, (u32, u32, below(40)), elements(inserted)),
    Operation(
        "multiply_24", U, (u32, u32), elements(lambda a, b: (a & 0xFFFFFF) * (b & 0xFFFFFF) & WORD)
    ),
    Operation("add_saturated", U, (u32, u32), elements(saturated_sum)),
    Operation(
        "set_less", U, (u32, u32), lambda a, b: np.where(a.view(I) < b.view(I), U(2**32 - 1), U(0))
    ),
    Operation("select_by_sign", U, (u32, u32, u32), lambda a, b, c: np.where(c.view(I) >= 0, a, b)),
    # PTX leaves division by zero open; GPUs give all ones.
    Operation("divide_by_any", U, (u32, u32), elements(lambda a, b: a // b if b else WORD)),
    Operation("find_top_bit", U, (u32,), elements(top_bit)),
    Operation(
        "carry_chain", U, (u32, u32, u32), elements(lambda a, b, c: c + (a + b >> 32) & WORD)
    ),
    Operation("borrow_chain", U, (u32, u32, u32), elements(lambda a, b, c: c - (a < b) & WORD)),
    Operation(
        "multiply_add_high", U, (u32, u32, u32), elements(lambda a, b, c: (a * b >> 32) + c & WORD)
    ),
    Operation("dot_product_low", U, (u32, u32, u32), elements(dot_product(0, 0))),
    Operation("dot_product_signed", U, (u32, u32, u32), elements(dot_product(16, 2**15))),
    Operation("octal_constant", U, (u32,), lambda a: a + U(8)),
    Operation("is_subnormal", U, (floats,), lambda a: (np.abs(a) < 2.0**-126) & (a != 0)),
]


@pytest.fixture(scope="module")
def library():
    require_nvcc()
    return compile_cuda([SOURCE])


def run(library, operation):
    """Arguments and results of an operation."""
    arguments = [make(seed) for seed, make in enumerate(operation.arguments)]
    device, out = Device(library), np.zeros(arguments[0].size, operation.result)
    pointers = [device.register(out), *(device.register(a, writable=False) for a in arguments)]
    assert device.call(f"run_{operation.name}", *pointers, out.size) == 0
    return arguments, out


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_operation(library, operation):
    arguments, out = run(library, operation)
    with np.errstate(all="ignore"):
        expected = operation.reference(*arguments)
    # Python integers must not pass through float64 on their way to an array.
    exact = isinstance(expected, list)
    expected = np.array(expected, operation.result if exact else None).astype(operation.result)
    if expected.dtype.kind == "f":
        nan = np.isnan(expected)
        np.testing.assert_array_equal(np.isnan(out), nan)
        bits = f"u{out.itemsize}"
        # Equal bits, not values: zeros have signs.
        out, expected = (np.where(nan, 0, x.view(bits)) for x in (out, expected))
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize(
    ("name", "dtype"), [("float_to_half", torch.float16), ("float_to_bfloat", torch.bfloat16)]
)
def test_conversions_agree_with_torch(library, name, dtype):
    operation = next(operation for operation in OPERATIONS if operation.name == name)
    (values,), out = run(library, operation)
    expected = torch.from_numpy(values).to(dtype)
    torch.testing.assert_close(
        torch.from_numpy(out.view(np.int16)).view(dtype), expected, rtol=0, atol=0, equal_nan=True
    )


def test_canonical_nan(library):
    for name in ("add", "multiply", "fma32"):
        operation = next(operation for operation in OPERATIONS if operation.name == name)
        _, out = run(library, operation)
        assert (out.view(U)[np.isnan(out)] == 0x7FFFFFFF).all()


def test_every_kernel_has_an_operation():
    text = SOURCE.read_text()
    kernels = re.findall(r"^(?:OP|WORD)\d\(\s*(\w+),", text, re.M)
    assert sorted(kernels) == sorted(operation.name for operation in OPERATIONS)
