"""The tensor-core kernels of DropConnect, executed without a GPU."""

from __future__ import annotations

import math

import pytest
import torch

from regops.random import key
from regops.reference.dropout import threshold
from regops.reference.philox import random_bits
from tests.cuda_library import interpreted, library
from tests.dropconnect_linear_call import KEY, Problem, check, make, product_interpreted
from tests.ptx import A100, Device, require_nvcc

DTYPES = [torch.bfloat16, torch.float16]
PRODUCTS = pytest.mark.parametrize("product", ["output", "grad_input"])
# (samples, in_features, out_features). A block makes 128 columns of the result, tiles are of 8, 16,
# 32 and 64 samples. Sums go in steps of 32 and chunks of 128 (the output's) or 64, split over up to
# 8 blocks.
SHAPES = {
    "output": [
        (1, 8, 1),
        (3, 24, 17),
        (8, 128, 128),
        (9, 136, 16),
        (16, 1000, 130),
        (17, 264, 200),
        (32, 2064, 33),
        (33, 392, 40),
        (64, 1032, 136),
    ],
    "grad_input": [
        (1, 8, 8),
        (3, 24, 16),
        (8, 128, 64),
        (9, 136, 200),
        (16, 1000, 136),
        (17, 64, 264),
        (32, 40, 1032),
        (33, 200, 72),
        (64, 264, 136),
    ],
}


def integers(samples: int, in_features: int, out_features: int, dtype: torch.dtype) -> Problem:
    """Small integers and p = 1/2: whatever the order of a sum, it is exact."""
    problem = make(samples, in_features, out_features, torch.float64)
    tensors = (problem.input, problem.weight, problem.grad_output, problem.added_to)
    return Problem(*((3 * x).round().to(dtype) for x in tensors), rule=threshold(0.5))


def exact(problem: Problem, product: str) -> torch.Tensor:
    """The product of integers with p = 1/2, rounded once."""
    weight = problem.weight.double().where(problem.mask()[0], 0.0)
    if product == "output":
        total = problem.added_to.double() + 2 * problem.input.double() @ weight.T
    else:
        total = 2 * problem.grad_output.double() @ weight
    return total.to(problem.input.dtype)


def check_exact(problem: Problem, product: str, device: Device | None = None) -> Device:
    """Runs a product of integers by tensor cores, and compares it."""
    device = interpreted() if device is None else device
    assert torch.equal(product_interpreted(problem, product, device), exact(problem, product))
    assert f"mma_{product}" in names(device)
    return device


def names(device: Device) -> str:
    return " ".join(sorted(device.launched))


@pytest.mark.parametrize(
    ("product", "shape"), [(name, shape) for name in SHAPES for shape in SHAPES[name]], ids=str
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_products(dtype: torch.dtype, product: str, shape: tuple[int, int, int]) -> None:
    device = check_exact(integers(*shape, dtype), product)
    assert len(device.launched) == (2 if product == "grad_input" and shape[0] == 33 else 1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("p", [0.1, 0.75])
@PRODUCTS
def test_rounding(product: str, p: float, dtype: torch.dtype) -> None:
    problem = make(5, 1000, 40, dtype)
    problem.rule = threshold(p)
    check(problem, product)


@pytest.mark.parametrize("p", [3e-5, 1 - 3e-5, 0.49999, 2**-16])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@PRODUCTS
def test_extreme_thresholds(product: str, dtype: torch.dtype, p: float) -> None:
    """Those of a few weights in 65536."""
    problem = make(2, 1024, 128, dtype)
    problem.weight /= 256  # float16 overflows at a scale of 2^15
    problem.rule = threshold(p)
    assert problem.mask().any()
    assert not problem.mask().all()
    check(problem, product)


@pytest.mark.parametrize(
    "shape", [(7, 1000, 24), (16, 40, 24), (32, 40, 24), (64, 136, 8)], ids=str
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@PRODUCTS
def test_fine_rule(product: str, dtype: torch.dtype, shape: tuple[int, int, int]) -> None:
    problem = integers(*shape, dtype)
    problem.rule = (1 << 31, 32)  # p = 1/2 by 32 bits
    check_exact(problem, product)


@PRODUCTS
def test_fine_rule_at_its_threshold(product: str) -> None:
    """The weight with the least of its 32 bits goes, or stays, by the threshold."""
    problem = Problem(*(torch.ones(1, 512, dtype=torch.float16) for _ in range(4)))
    problem.weight = torch.ones(512, 512, dtype=torch.float16)
    bits = random_bits(key(*KEY), problem.weight.numel(), 32)
    for above in (0, 1):
        problem.rule = (int(bits.min()) + above, 32)
        assert int((~problem.mask()).sum()) == above
        sums = product_interpreted(problem, product)
        assert int((sums != sums.amax()).sum()) == above


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@PRODUCTS
def test_key_on_the_device(product: str, dtype: torch.dtype) -> None:
    problem = integers(3, 264, 24, dtype)
    problem.key_on_device = True
    check_exact(problem, product)


@pytest.mark.parametrize("value", [math.inf, math.nan])
@PRODUCTS
def test_dropped_weights_vanish(product: str, value: float) -> None:
    problem = integers(9, 264, 24, torch.bfloat16)
    problem.weight[~problem.mask()[0]] = value
    check_exact(problem, product)


@PRODUCTS
def test_kept_weights_and_samples_keep_to_themselves(product: str) -> None:
    """The first weight stands in for those past the end of a row; here it is not a number."""
    problem = integers(9, 40, 24, torch.bfloat16)
    expected = exact(problem, product)
    kept = problem.mask()[0].nonzero()[0]
    problem.weight[0, 0], problem.weight[tuple(kept)] = math.nan, math.nan
    problem.input[4], problem.grad_output[4] = math.inf, math.inf
    result = product_interpreted(problem, product)
    column = int(kept[0 if product == "output" else 1])
    assert result[:, column].isnan().all()
    others = torch.ones(result.shape, dtype=torch.bool)
    others[:, [0, column]], others[4] = False, False
    assert torch.equal(result[others], expected[others])


@pytest.mark.parametrize("shape", [(5, 1032, 136), (64, 264, 200), (2, 128, 64)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@PRODUCTS
def test_without_clusters(product: str, dtype: torch.dtype, shape: tuple[int, int, int]) -> None:
    device = check_exact(integers(*shape, dtype), product, interpreted(A100))
    assert ("add_partials" in names(device)) == (shape[1] > 128)


@PRODUCTS
def test_same_bits_on_all_devices_and_in_any_order(product: str) -> None:
    require_nvcc()
    problem = make(11, 1032, 200, torch.bfloat16)
    first = product_interpreted(problem, product)
    for device in (Device(library(), "reverse"), Device(library(), 3), interpreted(A100)):
        assert torch.equal(product_interpreted(problem, product, device), first)


def test_many_columns() -> None:
    """More blocks than run at once: sums are not split."""
    many = 2 * 132 * 128 + 8
    check_exact(integers(2, 264, many, torch.float16), "output")
    check_exact(integers(2, many, 72, torch.float16), "grad_input")


def shifted(tensor: torch.Tensor) -> torch.Tensor:
    """The same values an element past a multiple of 16 bytes."""
    room = tensor.new_empty(tensor.numel() + 9)
    start = (-room.data_ptr() // tensor.element_size()) % 8 + 1
    return room[start : start + tensor.numel()].view(tensor.shape).copy_(tensor)


@pytest.mark.parametrize(
    "which", ["odd", "input", "grad_output", "weight", "float32", "per_sample", "many"]
)
@PRODUCTS
def test_what_other_kernels_serve(product: str, which: str) -> None:
    dtype = torch.float32 if which == "float32" else torch.bfloat16
    shape = (65 if which == "many" else 3, 20 if which == "odd" else 24, 8)
    problem = integers(*shape, dtype)
    problem.per_sample = which == "per_sample"
    read = ("weight", "input" if product == "output" else "grad_output")
    if isinstance(getattr(problem, which, None), torch.Tensor):
        setattr(problem, which, shifted(getattr(problem, which)))
    device = interpreted()
    check(problem, product, product_interpreted(problem, product, device))
    others = which not in ("input", "grad_output") or which in read
    assert ("mma" not in names(device)) == others
