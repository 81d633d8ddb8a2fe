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
from regops import _C
from regops.reference.dropout import keep_mask, threshold
from regops.reference.philox import random_bits
from regops.testing import Case, make_input, specs
from tests.cuda_library import LAUNCHED, call, interpreted, library
from tests.ptx import require_nvcc
from tests.test_statistics import BOUNDARY_KEY, fine_boundary

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


def _past(pointer: ctypes.c_void_p, count: int) -> ctypes.c_void_p:
    assert pointer.value is not None
    return ctypes.c_void_p(pointer.value + count)


def _layout(tensor: Tensor) -> _Layout:
    """As the op finds it."""
    fields = _C.permuted_layout(tensor)
    assert fields is not None
    layout = _Layout()
    for name, value in fields.items():
        field = getattr(layout, name)
        if isinstance(value, list):
            field[: len(value)] = value
        else:
            setattr(layout, name, value)
    return layout


def _run_permuted(input: Tensor, p: float, skip: int = 0) -> Tensor:
    """Dropout in permuted memory; input and output begin `skip` elements past an allocation."""
    device = interpreted()
    size, width = input.numel(), input.element_size()
    sources = np.zeros(size + skip, _memory(input).dtype)
    targets = np.zeros_like(sources)
    sources[skip:] = _memory(input)
    call(
        device,
        "regops_dropout_permuted_cuda",
        DTYPE_CODES[input.dtype],
        _past(device.register(sources, writable=False), skip * width),
        _past(device.register(targets), skip * width),
        ctypes.byref(_layout(input)),
        ctypes.byref(_CudaKey(*KEY, None)),
        ctypes.byref(_rule(p)),
        None,
    )
    memory = torch.from_numpy(targets[skip:].copy()).view(input.dtype)
    return memory.as_strided(input.shape, input.stride())


PERMUTATIONS = {
    "channels-last": ((2, 24, 6, 8), "channels_last"),
    "channels-last-phase": ((2, 24, 7, 7), "channels_last"),
    "channels-last-odd": ((2, 19, 7, 7), "channels_last"),
    "channels-last-rgb": ((1, 3, 11, 13), "channels_last"),
    "transposed": ((40, 24), "transposed"),
    "transposed-odd": ((31, 29), "transposed"),
    "transposed-batch": ((3, 2, 16, 24), "transposed"),
    "swapped-outer": ((5, 6, 33), "swapped_outer"),
    "swapped-outer-even": ((6, 5, 64), "swapped_outer"),
    "reversed": ((3, 4, 5, 6), "reversed"),
    "reversed-phase": ((5, 8, 64), "reversed"),
}


@pytest.mark.parametrize("name", PERMUTATIONS)
@pytest.mark.parametrize("dtype", DTYPE_CODES, ids=str)
@pytest.mark.parametrize("p", [0.3, 3e-6])
def test_permuted_dropout(name: str, dtype: torch.dtype, p: float) -> None:
    shape, layout = PERMUTATIONS[name]
    input = make_input(shape, dtype, layout=layout)
    output = _run_permuted(input, p)
    assert torch.equal(output, _expected(input, p))
    mask = keep_mask(regops.random.key(*KEY), input.shape, p)
    assert torch.equal(output != 0, mask & (input != 0))


@pytest.mark.parametrize("dtype", DTYPE_CODES, ids=str)
def test_permuted_dropout_of_misaligned_memory(dtype: torch.dtype) -> None:
    input = make_input((2, 24, 6, 8), dtype, layout="channels_last")
    assert torch.equal(_run_permuted(input, 0.3, skip=1), _expected(input, 0.3))


@pytest.mark.parametrize("dtype", DTYPE_CODES, ids=str)
@pytest.mark.parametrize(("from_skip", "to_skip"), [(0, 1), (1, 0), (1, 1)])
def test_dropout_of_memory_misaligned_on_one_side(
    dtype: torch.dtype, from_skip: int, to_skip: int
) -> None:
    size = 1000
    sources, targets = (make_input((size + 1,), dtype, seed=seed) for seed in (0, 1))
    device, width = interpreted(), sources.element_size()
    call(
        device,
        "regops_dropout_cuda",
        DTYPE_CODES[dtype],
        _past(device.register(_memory(sources), writable=False), from_skip * width),
        _past(device.register(_memory(targets)), to_skip * width),
        ctypes.c_int64(size),
        ctypes.c_uint64(0),
        ctypes.byref(_CudaKey(*KEY, None)),
        ctypes.byref(_rule(0.3)),
        None,
    )
    expected = _expected(sources[from_skip : from_skip + size], 0.3)
    assert torch.equal(targets[to_skip : to_skip + size], expected)


@pytest.mark.parametrize("dtype", DTYPE_CODES, ids=str)
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan"), -1.0])
def test_dropped_elements_are_selected_to_zero(dtype: torch.dtype, value: float) -> None:
    output = run_interpreted(torch.full((1000,), value, dtype=dtype), 0.5)
    keep = keep_mask(regops.random.key(*KEY), torch.Size((1000,)), 0.5)
    assert torch.equal(output[~keep], torch.zeros(int((~keep).sum()), dtype=dtype))
    assert not output[~keep].signbit().any()
    assert output[keep].isnan().all() or (output[keep] == 2 * value).all()


def test_fine_rule_keeps_at_its_threshold() -> None:
    p, index = fine_boundary()
    output = run_interpreted(torch.ones(index + 1), p, key=BOUNDARY_KEY)
    assert output[index] != 0
    assert run_interpreted(torch.ones(index + 1), p + 2**-32, key=BOUNDARY_KEY)[index] == 0


def test_unknown_dtype_is_an_error_not_a_launch() -> None:
    device = interpreted()
    arguments = [None, None, ctypes.c_int64(1), ctypes.c_uint64(0), None, None, None]
    assert device.call("regops_dropout_cuda", 9, *arguments) != 0
    assert not device.launched


@pytest.mark.last
def test_every_kernel_has_been_executed(request: pytest.FixtureRequest) -> None:
    require_nvcc()
    collected = {item.path.name for item in request.session.items}
    ops = (
        "cuda",
        "cross_entropy",
        "dropconnect",
        "dropconnect_mma",
        "grad_norm",
        "optimizer_step",
        "optimizer_step_strided",
        "vocab_parallel",
    )
    files = {*(f"{name}_interpreted" for name in ops), "philox", "random"}
    if not {f"test_{name}.py" for name in files} <= collected:
        pytest.skip("only a part of the tests was asked for")
    assert library().kernels - LAUNCHED == set()
