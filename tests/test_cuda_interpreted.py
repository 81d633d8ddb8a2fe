"""Every CUDA kernel, executed without a GPU: nvcc's own code in an interpreter, on every case.

Beside values this checks bounds, alignment, races and uninitialised reads; see tests/ptx.
"""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
import torch
from torch import Tensor

import regops.random
import regops.reference
from regops.reference.dropout import keep_mask, threshold
from regops.reference.philox import random_bits
from regops.testing import Case, make_input, specs
from tests.cuda_library import LAUNCHED, call, interpreted, library
from tests.ptx import require_nvcc

KEY = (0x0123456789ABCDEF, 0xFEDCBA9876543210)
DTYPE_CODES = {torch.float64: 0, torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}
STORAGE = {8: torch.int64, 4: torch.int32, 2: torch.int16}
MAX_OUTER = 4


class _CudaKey(ctypes.Structure):
    _fields_ = (
        ("seed", ctypes.c_uint64),
        ("offset", ctypes.c_uint64),
        ("device", ctypes.c_void_p),
    )


class _Rule(ctypes.Structure):
    _fields_ = (
        ("threshold", ctypes.c_uint32),
        ("fine", ctypes.c_bool),
        ("scale", ctypes.c_float),
        ("scale_f64", ctypes.c_double),
    )


class _Layout(ctypes.Structure):
    _fields_ = (
        ("rows", ctypes.c_int64),
        ("row_memory", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("column_memory", ctypes.c_int64),
        ("column_logical", ctypes.c_int64),
        ("outer", ctypes.c_int64),
        ("outer_dims", ctypes.c_int),
        ("outer_size", ctypes.c_int64 * MAX_OUTER),
        ("outer_memory", ctypes.c_int64 * MAX_OUTER),
        ("outer_logical", ctypes.c_int64 * MAX_OUTER),
    )


def _rule(p: float) -> _Rule:
    drop_below, bits = threshold(p)
    scale = 2.0**bits / (2**bits - drop_below)
    return _Rule(drop_below, bits == 32, scale, scale)


def _memory(tensor: Tensor) -> np.ndarray:
    """The tensor's elements in memory order, as the integers that hold them, sharing its memory."""
    dense = tensor.as_strided((tensor.numel(),), (1,))
    return dense.view(STORAGE[tensor.element_size()]).numpy()


def run_interpreted(
    input: Tensor,
    p: float,
    first: int = 0,
    key_on_device: bool = False,
    inplace: bool = False,
    key: tuple[int, int] = KEY,
) -> Tensor:
    """Dropout of dense memory whose first element has the logical index `first`."""
    device = interpreted()
    output = input if inplace else torch.full_like(input, float("nan"))
    pointer = device.register(_memory(input), writable=inplace)
    target = pointer if inplace else device.register(_memory(output))
    cuda_key = _CudaKey(*key, None)
    if key_on_device:
        stored = np.array(key, np.uint64)
        cuda_key = _CudaKey(1, 1, device.register(stored, writable=False))
    call(
        device,
        "regops_dropout_cuda",
        DTYPE_CODES[input.dtype],
        pointer,
        target,
        ctypes.c_int64(input.numel()),
        ctypes.c_uint64(first),
        ctypes.byref(cuda_key),
        ctypes.byref(_rule(p)),
        None,
    )
    return output


def _expected(input: Tensor, p: float) -> Tensor:
    return regops.reference.dropout(input, p, key=regops.random.key(*KEY))


def _small(cases: tuple[Case, ...], layouts: tuple[str, ...]) -> list[object]:
    return [
        pytest.param(case, id=case.name)
        for case in cases
        if case.layout in layouts and torch.Size(case.shape).numel() > 0 and case.kwargs["p"] < 1
    ]


@pytest.mark.parametrize("case", _small(specs()["dropout"].cases, ("contiguous", "misaligned")))
@pytest.mark.parametrize("dtype", DTYPE_CODES, ids=str)
def test_dropout(case: Case, dtype: torch.dtype) -> None:
    input = make_input(case.shape, dtype, layout=case.layout)
    assert torch.equal(run_interpreted(input, case.kwargs["p"]), _expected(input, case.kwargs["p"]))


@pytest.mark.parametrize("dtype", DTYPE_CODES, ids=str)
@pytest.mark.parametrize("size", [1, 7, 8, 9, 1023, 1024, 1025, 8192, 8193])
def test_dropout_in_place_at_odd_sizes(dtype: torch.dtype, size: int) -> None:
    input = make_input((size,), dtype)
    expected = _expected(input, 0.3)
    assert torch.equal(run_interpreted(input, 0.3, inplace=True), expected)


@pytest.mark.parametrize("dtype", DTYPE_CODES, ids=str)
@pytest.mark.parametrize("first", [8, 12, 13, (1 << 32) - 3, (1 << 35) - 8, (1 << 40) + 5])
def test_dropout_from_an_index_on(dtype: torch.dtype, first: int) -> None:
    """Indices over 2^31 and 2^32, and blocks over 2^32, at every alignment to a block."""
    input = torch.ones(777, dtype=dtype)
    keep = random_bits(regops.random.key(*KEY), 777, 16, first) >= threshold(0.5)[0]
    assert torch.equal(run_interpreted(input, 0.5, first), 2 * keep.to(dtype))


@pytest.mark.parametrize("p", [0.3, 3e-6])
def test_dropout_reads_its_key_on_the_device(p: float) -> None:
    input = make_input((1000,), torch.float32)
    assert torch.equal(run_interpreted(input, p, key_on_device=True), _expected(input, p))


# Shapes, and the order in which their dimensions stand in memory.
PERMUTATIONS = {
    "channels-last": ((2, 24, 6, 8), (0, 2, 3, 1)),
    "channels-last-odd": ((2, 19, 7, 7), (0, 2, 3, 1)),
    "channels-last-rgb": ((1, 3, 11, 13), (0, 2, 3, 1)),
    "transposed": ((40, 24), (1, 0)),
    "transposed-odd": ((31, 29), (1, 0)),
    "swapped-outer": ((5, 6, 33), (1, 0, 2)),
    "reversed": ((3, 4, 5, 6), (3, 2, 1, 0)),
}


def _layout(shape: tuple[int, ...], order: tuple[int, ...]) -> _Layout:
    """The layout of a tensor of `shape` whose dimensions stand in memory in `order`."""
    size = len(shape)
    logical = [int(np.prod(shape[d + 1 :])) for d in range(size)]
    memory = [0] * size
    step = 1
    for d in reversed(order):
        memory[d], step = step, step * shape[d]
    row = size - 1
    inner = [d for d in reversed(order) if d != row]
    column, outer = inner[0], inner[1:]
    layout = _Layout(
        shape[row], memory[row], shape[column], memory[column], logical[column], 1, len(outer)
    )
    for i, d in enumerate(outer):
        layout.outer_size[i], layout.outer_memory[i] = shape[d], memory[d]
        layout.outer_logical[i] = logical[d]
        layout.outer *= shape[d]
    return layout


@pytest.mark.parametrize("name", PERMUTATIONS)
@pytest.mark.parametrize("dtype", DTYPE_CODES, ids=str)
@pytest.mark.parametrize("p", [0.3, 3e-6])
def test_permuted_dropout(name: str, dtype: torch.dtype, p: float) -> None:
    shape, order = PERMUTATIONS[name]
    inverse = [order.index(d) for d in range(len(order))]
    input = make_input(shape, dtype).permute(order).contiguous().permute(inverse)
    output = torch.full_like(input, float("nan"))
    device = interpreted()
    layout = _layout(shape, order)
    call(
        device,
        "regops_dropout_permuted_cuda",
        DTYPE_CODES[dtype],
        device.register(_memory(input), writable=False),
        device.register(_memory(output)),
        ctypes.byref(layout),
        ctypes.byref(_CudaKey(*KEY, None)),
        ctypes.byref(_rule(p)),
        None,
    )
    assert torch.equal(output, _expected(input, p))
    mask = keep_mask(regops.random.key(*KEY), input.shape, p)
    assert torch.equal(output != 0, mask & (input != 0))


def test_unknown_dtype_is_an_error_not_a_launch() -> None:
    device = interpreted()
    arguments = [None, None, ctypes.c_int64(1), ctypes.c_uint64(0), None, None, None]
    assert device.call("regops_dropout_cuda", 9, *arguments) != 0
    assert not device.launched


@pytest.mark.last
def test_every_kernel_has_been_executed(request: pytest.FixtureRequest) -> None:
    require_nvcc()
    collected = {item.path.name for item in request.session.items}
    if not {"test_cuda_interpreted.py", "test_philox.py", "test_random.py"} <= collected:
        pytest.skip("only a part of the tests was asked for")
    assert library().kernels - LAUNCHED == set()
