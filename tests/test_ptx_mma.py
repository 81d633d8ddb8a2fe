"""Tensor-core products in the PTX interpreter, against numpy."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.ptx import Device, compile_cuda, require_nvcc

SOURCE = Path(__file__).parent / "ptx" / "samples" / "mma.cu"
KERNELS = {"product_of_bfloats": torch.bfloat16, "product_of_halves": torch.float16}
BLOCKS, WARPS = 3, 6


@pytest.fixture(scope="module")
def library():
    require_nvcc()
    return compile_cuda([SOURCE])


def run(library, kernel, a, b, c, order="forward"):
    """Products of float64 matrices whose values the kernel's type holds."""
    halves = [torch.from_numpy(x).to(KERNELS[kernel]).view(torch.int16).numpy() for x in (a, b)]
    device, d = Device(library, order), np.full(c.shape, np.nan, np.float32)
    pointers = [device.register(x, writable=x is d) for x in (d, *halves, c.astype(np.float32))]
    assert device.call(f"run_{kernel}", *pointers, BLOCKS) == 0
    return d


def integers(seed, *shape):
    """Small integers: no sum of theirs is rounded, in whatever order."""
    return np.random.default_rng(seed).integers(-60, 60, (WARPS, *shape)).astype(np.float64)


@pytest.mark.parametrize("kernel", KERNELS)
def test_every_position(library, kernel):
    a, b, c = integers(0, 16, 16), integers(1, 16, 8), integers(2, 16, 8)
    np.testing.assert_array_equal(run(library, kernel, a, b, c), a @ b + c)


@pytest.mark.parametrize("kernel", KERNELS)
def test_one_element_at_a_time(library, kernel):
    """Each product of an element of A and one of B reaches its own element of D alone."""
    nothing = np.zeros((WARPS, 16, 8))
    for row in range(0, 16, 3):
        for k in range(16):
            a, b = np.zeros((WARPS, 16, 16)), np.zeros((WARPS, 16, 8))
            a[:, row, k] = 1 + np.arange(WARPS)
            b[:, k] = 1 + np.arange(8)
            expected = nothing.copy()
            expected[:, row] = np.outer(1 + np.arange(WARPS), 1 + np.arange(8))
            np.testing.assert_array_equal(run(library, kernel, a, b, nothing), expected)


@pytest.mark.parametrize("kernel", KERNELS)
def test_rounding(library, kernel):
    rng, dtype = np.random.default_rng(3), KERNELS[kernel]
    a, b = (
        torch.from_numpy(rng.standard_normal((WARPS, 16, n))).to(dtype).double().numpy()
        for n in (16, 8)
    )
    c = rng.standard_normal((WARPS, 16, 8)).astype(np.float32)
    d = run(library, kernel, a, b, c)
    # float32 sums of 17 terms in any order.
    tolerance = 17 * 2.0**-24 * (np.abs(a) @ np.abs(b) + np.abs(c))
    assert (np.abs(d - (a @ b + c)) <= tolerance).all()


@pytest.mark.parametrize("kernel", KERNELS)
def test_special_values(library, kernel):
    a, b, c = integers(4, 16, 16), np.ones((WARPS, 16, 8)), integers(5, 16, 8)
    a[:, 3, 5], a[:, 4, 6], b[:, 6, 0] = np.inf, -np.inf, 0
    d = run(library, kernel, a, b, c)
    assert (d[:, 3] == np.inf).all()
    assert (d[:, 4, 1:] == -np.inf).all()
    assert np.isnan(d[:, 4, 0]).all()
    assert np.isfinite(d[:, 5:]).all()


def test_order_of_blocks(library):
    a, b, c = integers(6, 16, 16), integers(7, 16, 8), integers(8, 16, 8)
    d = run(library, "product_of_halves", a, b, c, "reverse")
    np.testing.assert_array_equal(d, a @ b + c)
