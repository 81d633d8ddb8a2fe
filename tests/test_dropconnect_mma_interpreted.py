"""The tensor-core kernels of DropConnect, executed without a GPU."""

from __future__ import annotations

import math

import pytest
import torch

from regops.reference.dropout import threshold
from tests.cuda_library import interpreted, library
from tests.dropconnect_linear_call import Problem, check, make, product_interpreted
from tests.ptx import A100, Device, require_nvcc

DTYPES = [torch.bfloat16, torch.float16]
# (samples, in_features, out_features). A block has 128 rows, a warp 16; a chunk of k has 128
# columns and a step 32; tiles of 8, 16, 32 and 64 samples; k is split over up to 8 blocks.
SHAPES = [
    (1, 8, 1),
    (3, 24, 17),
    (8, 128, 128),
    (9, 136, 16),
    (16, 1000, 130),
    (17, 264, 200),
    (32, 2064, 33),
    (33, 392, 40),
    (64, 1032, 136),
]


def integers(samples: int, in_features: int, out_features: int, dtype: torch.dtype) -> Problem:
    """Small integers and p = 1/2: whatever the order of a sum, it is exact."""
    problem = make(samples, in_features, out_features, torch.float64)
    tensors = (problem.input, problem.weight, problem.grad_output, problem.added_to)
    return Problem(*((3 * x).round().to(dtype) for x in tensors), rule=threshold(0.5))


def exact_output(problem: Problem) -> torch.Tensor:
    """y + 2 x (M o W)^T, rounded once, for integers."""
    weight = problem.weight.double().where(problem.mask()[0], 0.0)
    total = problem.added_to.double() + 2 * problem.input.double() @ weight.T
    return total.to(problem.input.dtype)


def names(device: Device) -> str:
    return " ".join(sorted(device.launched))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_output(dtype: torch.dtype, shape: tuple[int, int, int]) -> None:
    device, problem = interpreted(), integers(*shape, dtype)
    output = product_interpreted(problem, "output", device)
    assert torch.equal(output, exact_output(problem))
    assert "mma" in names(device)
    assert len(device.launched) == 1


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("p", [0.1, 0.75])
def test_rounding(p: float, dtype: torch.dtype) -> None:
    problem = make(5, 1000, 40, dtype)
    problem.rule = threshold(p)
    check(problem, "output")


@pytest.mark.parametrize("p", [3e-5, 1 - 3e-5, 0.49999, 2**-16])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_extreme_thresholds(dtype: torch.dtype, p: float) -> None:
    """Those of a few weights in 65536."""
    problem = make(2, 1024, 128, dtype)
    problem.rule = threshold(p)
    assert problem.mask().any()
    assert not problem.mask().all()
    check(problem, "output")


@pytest.mark.parametrize(
    "shape", [(7, 1000, 17), (16, 40, 17), (32, 40, 17), (64, 136, 3)], ids=str
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_fine_rule(dtype: torch.dtype, shape: tuple[int, int, int]) -> None:
    problem = integers(*shape, dtype)
    problem.rule = (1 << 31, 32)  # p = 1/2 by 32 bits
    device = interpreted()
    assert torch.equal(product_interpreted(problem, "output", device), exact_output(problem))
    assert "mma" in names(device)


def test_fine_rule_at_its_threshold() -> None:
    """The weight with the least of its 32 bits goes, or stays, by the threshold."""
    problem = integers(1, 512, 256, torch.bfloat16)
    problem.weight.fill_(1), problem.input.fill_(1), problem.added_to.zero_()
    from regops.random import key
    from regops.reference.philox import random_bits
    from tests.dropconnect_linear_call import KEY

    bits = random_bits(key(*KEY), problem.weight.numel(), 32)
    for above in (0, 1):
        problem.rule = (int(bits.min()) + above, 32)
        assert int((~problem.mask()).sum()) == above
        check(problem, "output")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_key_on_the_device(dtype: torch.dtype) -> None:
    problem = integers(3, 264, 20, dtype)
    problem.key_on_device = True
    assert torch.equal(product_interpreted(problem, "output"), exact_output(problem))


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_dropped_weights_vanish(value: float) -> None:
    problem = integers(9, 264, 20, torch.bfloat16)
    expected = exact_output(problem)
    problem.weight[~problem.mask()[0]] = value
    assert torch.equal(product_interpreted(problem, "output"), expected)


def test_kept_weights_and_samples_keep_to_themselves() -> None:
    """The first weight stands in for those past the end of a row; here it is not a number."""
    problem = integers(9, 40, 20, torch.bfloat16)
    expected = exact_output(problem)
    out, k = (int(i) for i in problem.mask()[0].nonzero()[0])
    problem.weight[0, 0], problem.weight[out, k] = math.nan, math.nan
    problem.input[4] = math.inf
    output = product_interpreted(problem, "output")
    assert output[:, out].isnan().all()
    others = torch.ones(output.shape, dtype=torch.bool)
    others[:, [0, out]], others[4] = False, False
    assert torch.equal(output[others], expected[others])


@pytest.mark.parametrize("shape", [(5, 1032, 136), (64, 264, 20), (2, 128, 17)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_without_clusters(dtype: torch.dtype, shape: tuple[int, int, int]) -> None:
    device, problem = interpreted(A100), integers(*shape, dtype)
    assert torch.equal(product_interpreted(problem, "output", device), exact_output(problem))
    assert ("add_partials" in names(device)) == (shape[1] > 128)


def test_same_bits_on_all_devices_and_in_any_order() -> None:
    require_nvcc()
    problem = make(11, 1032, 200, torch.bfloat16)
    first = product_interpreted(problem, "output")
    for device in (Device(library(), "reverse"), Device(library(), 3), interpreted(A100)):
        assert torch.equal(product_interpreted(problem, "output", device), first)


def test_many_rows() -> None:
    """More blocks of rows than run at once: k is not split."""
    problem = integers(2, 264, 132 * 128 + 5, torch.float16)
    assert torch.equal(product_interpreted(problem, "output"), exact_output(problem))


def shifted(tensor: torch.Tensor) -> torch.Tensor:
    """The same values an element past a multiple of 16 bytes."""
    room = tensor.new_empty(tensor.numel() + 9)
    start = (-room.data_ptr() // tensor.element_size()) % 8 + 1
    return room[start : start + tensor.numel()].view(tensor.shape).copy_(tensor)


@pytest.mark.parametrize("which", ["odd", "input", "weight", "float32", "per_sample", "many"])
def test_what_other_kernels_serve(which: str) -> None:
    dtype = torch.float32 if which == "float32" else torch.bfloat16
    shape = (65 if which == "many" else 3, 20 if which == "odd" else 24, 5)
    problem = integers(*shape, dtype)
    problem.per_sample = which == "per_sample"
    if which in ("input", "weight"):
        setattr(problem, which, shifted(getattr(problem, which)))
    device = interpreted()
    check(problem, "output", product_interpreted(problem, "output", device))
    assert "mma" not in names(device)
