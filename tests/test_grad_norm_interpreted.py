"""The CUDA kernels of the gradients' norm, executed without a GPU."""

from __future__ import annotations

import ctypes
import math

import pytest
import torch
from torch import Tensor

from regops.reference.optimizer_step import grad_norm
from tests.cuda_library import call, interpreted, library
from tests.optimizer_step_call import DTYPE_CODES, Memory
from tests.optimizer_step_problems import DTYPES, shifted
from tests.ptx import Device, require_nvcc

# Ends of vectors, of the vectors that are in flight together, and of a chunk; nothing; 0-d.
SHAPES = [(1,), (0,), (3, 5), (8191,), (), (4096, 4), (16387,)]


class _Gradient(ctypes.Structure):
    """regops::CudaGradient."""

    _fields_ = (
        ("dtype", ctypes.c_int),
        ("values", ctypes.c_void_p),
        ("numel", ctypes.c_int64),
    )


def norm_interpreted(grads: list[Tensor], device: Device | None = None) -> Tensor:
    """The norm by the kernels."""
    device = interpreted() if device is None else device
    memory = Memory(device)
    gradients = (_Gradient * len(grads))(
        *(_Gradient(DTYPE_CODES[x.dtype], memory.address(x), x.numel()) for x in grads)
    )
    count = ctypes.c_int64(len(grads))
    size = ctypes.CDLL(str(device.library.shared_object)).regops_grad_norm_partials
    size.restype = ctypes.c_int64
    partial = torch.full((size(gradients, count),), math.nan, dtype=torch.float64)
    norm = torch.full((), math.nan, dtype=torch.float64)
    to = (ctypes.c_void_p(memory.address(x)) for x in (partial, norm))
    call(device, "regops_grad_norm_cuda", gradients, count, *to, None)
    return norm


def gradients(dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in SHAPES]


def check(grads: list[Tensor]) -> None:
    # Sums of 2^15 positive float64 terms, in whatever order.
    expected = grad_norm(grads)
    torch.testing.assert_close(norm_interpreted(grads), expected, rtol=1e-13, atol=0.0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_norm(dtype: torch.dtype) -> None:
    check(gradients(dtype))


def test_norm_of_several_types() -> None:
    check([grad for dtype in DTYPES for grad in gradients(dtype)])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_norm_does_not_depend_on_alignment(dtype: torch.dtype) -> None:
    grads = gradients(dtype)
    aligned = norm_interpreted(grads)
    assert torch.equal(norm_interpreted([shifted(grad, 1) for grad in grads]), aligned)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_norm_that_the_type_cannot_hold(dtype: torch.dtype) -> None:
    check(
        [torch.full((300,), torch.finfo(dtype).max / 2**600 ** (dtype.itemsize == 8), dtype=dtype)]
    )


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_norm_that_is_not_finite(value: float) -> None:
    grads = gradients(torch.bfloat16)
    grads[-1][16385] = value
    norm = norm_interpreted(grads)
    assert norm.isnan() if math.isnan(value) else norm == math.inf


def test_norm_of_more_tensors_than_a_launch_takes() -> None:
    check([torch.full((k % 7,), 0.5) for k in range(250)])


def test_norm_of_nothing() -> None:
    assert norm_interpreted([]) == 0
    assert norm_interpreted([torch.zeros(0)]) == 0


@pytest.mark.parametrize("order", ["reverse", 3])
def test_norm_does_not_depend_on_the_order_of_blocks(order: str | int) -> None:
    require_nvcc()
    grads = gradients(torch.float32)
    device = Device(library("compute_90"), order=order)
    assert torch.equal(norm_interpreted(grads, device), norm_interpreted(grads))
