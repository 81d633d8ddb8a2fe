"""Products of a DropConnect layer by the CUDA kernels: interpreted, and as they must be."""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

import regops.random
from regops.reference.dropout import threshold
from regops.reference.philox import random_bits
from tests.cuda_library import call, interpreted
from tests.optimizer_step_call import DTYPE_CODES, Memory
from tests.ptx import Device

KEY = (0x0123456789ABCDEF, 0x7EDCBA9876543210)
PRODUCTS = ("output", "grad_input", "grad_weight")


class CudaKey(ctypes.Structure):
    """regops::CudaKey."""

    _fields_ = (
        ("seed", ctypes.c_uint64),
        ("offset", ctypes.c_uint64),
        ("device", ctypes.c_void_p),
    )


class _Call(ctypes.Structure):
    """regops::DropConnectCall, with its regops::DropoutRule from `threshold` on."""

    _fields_ = (
        ("dtype", ctypes.c_int),
        ("samples", ctypes.c_int64),
        ("in_features", ctypes.c_int64),
        ("out_features", ctypes.c_int64),
        ("input", ctypes.c_void_p),
        ("weight", ctypes.c_void_p),
        ("grad_output", ctypes.c_void_p),
        ("threshold", ctypes.c_uint32),
        ("fine", ctypes.c_bool),
        ("scale", ctypes.c_float),
        ("scale_f64", ctypes.c_double),
    )


@dataclass
class Problem:
    """One layer.

    Attributes:
        per_sample: whether each sample has a mask of its own.
        rule: threshold and bits of a decision.
        key_on_device: whether the kernels read the key from device memory.
        added_to: what `output` (or `mean`) holds before.
    """

    input: Tensor
    weight: Tensor
    grad_output: Tensor
    added_to: Tensor
    per_sample: bool = False
    rule: tuple[int, int] = field(default_factory=lambda: threshold(0.3))
    key_on_device: bool = False

    @property
    def scale(self) -> float:
        """1 / (1 - p)."""
        drop_below, bits = self.rule
        kept: float = (2.0**bits - drop_below) / 2.0**bits
        return 1.0 / kept

    @property
    def sum_dtype(self) -> torch.dtype:
        """What sums are in."""
        return torch.promote_types(self.input.dtype, torch.float32)

    def mask(self) -> Tensor:
        """Of shape (1 or samples, out, in)."""
        shape = (len(self.input) if self.per_sample else 1, *self.weight.shape)
        drop_below, bits = self.rule
        drawn = random_bits(regops.random.key(*KEY), math.prod(shape), bits)
        return (drawn >= drop_below).reshape(shape)


def make(samples: int, in_features: int, out_features: int, dtype: torch.dtype) -> Problem:
    """Normal numbers."""
    generator = torch.Generator().manual_seed(samples + in_features + out_features)
    shapes = [
        (samples, in_features),
        (out_features, in_features),
        (samples, out_features),
        (samples, out_features),
    ]
    input, weight, grad_output, added_to = (
        torch.randn(shape, generator=generator).to(dtype) for shape in shapes
    )
    return Problem(input, weight, grad_output, added_to)


def _call(problem: Problem, memory: Memory) -> _Call:
    drop_below, bits = problem.rule
    return _Call(
        DTYPE_CODES[problem.input.dtype],
        len(problem.input),
        *problem.weight.shape[::-1],
        memory.address(problem.input),
        memory.address(problem.weight),
        memory.address(problem.grad_output),
        drop_below,
        bits == 32,
        problem.scale,
        problem.scale,
    )


def product_interpreted(
    problem: Problem, product: str, device: Device | None = None, to: Tensor | None = None
) -> Tensor:
    """A product by the kernels; a gradient is written to `to`, or to memory full of nan."""
    device = interpreted() if device is None else device
    memory = Memory(device)
    if product == "output":
        result = problem.added_to.clone()
    elif to is not None:
        result = to
    else:
        like = problem.input if product == "grad_input" else problem.weight
        result = torch.full(like.shape, math.nan, dtype=like.dtype)
    key = CudaKey(*KEY, None)
    if problem.key_on_device:
        key = CudaKey(1, 1, memory.address(regops.random.key(*KEY)))
    of_layer = ctypes.byref(_call(problem, memory)), ctypes.c_int(problem.per_sample)
    # By the device, which the launcher asks what it is.
    code = PRODUCTS.index(product)
    size = device.call("regops_dropconnect_workspace_bytes", *of_layer, code)
    size //= problem.sum_dtype.itemsize
    workspace = torch.full((size,), math.nan, dtype=problem.sum_dtype)
    addresses = (ctypes.c_void_p(memory.address(tensor)) for tensor in (result, workspace))
    launcher = f"regops_dropconnect_{product}_cuda"
    call(device, launcher, *of_layer, ctypes.byref(key), *addresses, None)
    return result


def moments_interpreted(problem: Problem) -> tuple[Tensor, Tensor]:
    """Mean, added to `added_to`, and variance, added to 1."""
    device = interpreted()
    memory = Memory(device)
    mean = problem.added_to.clone()
    variance = torch.ones(mean.shape, dtype=problem.sum_dtype)
    addresses = (ctypes.c_void_p(memory.address(tensor)) for tensor in (mean, variance))
    of_layer = ctypes.byref(_call(problem, memory))
    call(device, "regops_dropconnect_moments_cuda", of_layer, *addresses, None)
    return mean, variance


def assert_sum(actual: Tensor, products: Tensor, dim: int, scale: float, start: Tensor) -> None:
    """Checks `start + scale * products.sum(dim)`, of float64 products.

    A sum of n terms, in whatever order, is wrong by at most n units of rounding of the sum of their
    magnitudes; a term has two roundings of its own, the scale and its product two more, and the
    result one in its own type.
    """
    unit = torch.finfo(torch.promote_types(actual.dtype, torch.float32)).eps / 2
    expected = start.double() + scale * products.sum(dim)
    magnitude = scale * products.abs().sum(dim) + start.double().abs()
    bound = (products.shape[dim] + 6) * unit * magnitude
    # Below its normal numbers float16 has a spacing of 2^-24.
    bound += torch.finfo(actual.dtype).eps / 2 * (expected.abs() + bound) + 2**-25
    error = (actual.double() - expected).abs()
    assert (error <= bound).all(), f"error {(error / bound).max()} times its bound"


def check(problem: Problem, product: str, actual: Tensor | None = None) -> None:
    """Compares a product with float64."""
    actual = product_interpreted(problem, product) if actual is None else actual
    x = problem.input.double()[:, None, :]
    dy = problem.grad_output.double()[:, :, None]
    weight, mask = problem.weight.double()[None], problem.mask()
    zero = torch.zeros((), dtype=torch.float64)
    scale, start = problem.scale, torch.zeros(actual.shape)
    if product == "output":
        assert_sum(actual, torch.where(mask, weight, zero) * x, 2, scale, problem.added_to)
    elif product == "grad_input":
        assert_sum(actual, torch.where(mask, weight, zero) * dy, 1, scale, start)
    else:
        assert_sum(actual, torch.where(mask, dy * x, zero), 0, scale, start)
