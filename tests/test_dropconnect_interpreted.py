"""Every CUDA kernel of DropConnect, and every way to launch it, executed without a GPU."""

from __future__ import annotations

import math

import pytest
import torch

from regops.reference.dropout import threshold
from tests.cuda_library import library
from tests.dropconnect_linear_call import (
    PRODUCTS,
    assert_sum,
    check,
    make,
    moments_interpreted,
    product_interpreted,
)
from tests.optimizer_step_problems import DTYPES, shifted
from tests.ptx import Device, require_nvcc

# (samples, in_features, out_features). Rows that are whole chunks: less and more than a block's,
# one tile of samples and several, outputs within a tile and over splits. Others: rows that begin in
# mid-group, and end there.
WHOLE = [(8, 64, 9), (5, 264, 37), (34, 264, 70), (1, 8, 1)]
ODD = [(3, 7, 5), (9, 31, 67), (11, 261, 6), (1, 1, 1)]
MODES = pytest.mark.parametrize("per_sample", [False, True], ids=["batch", "sample"])


@pytest.mark.parametrize("shape", [*WHOLE, *ODD], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@MODES
@pytest.mark.parametrize("product", PRODUCTS)
def test_products(
    product: str, per_sample: bool, dtype: torch.dtype, shape: tuple[int, int, int]
) -> None:
    problem = make(*shape, dtype)
    problem.per_sample = per_sample
    check(problem, product)


@pytest.mark.parametrize("shape", [*WHOLE, *ODD], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_moments(dtype: torch.dtype, shape: tuple[int, int, int]) -> None:
    problem = make(*shape, dtype)
    mean, variance = moments_interpreted(problem)
    terms = problem.weight.double()[None] * problem.input.double()[:, None, :]
    assert_sum(mean, terms, 2, 1.0, problem.added_to)
    assert_sum(variance, terms.square(), 2, problem.scale - 1, torch.ones(variance.shape))


@pytest.mark.parametrize("out_features", [36, 20, 10])
def test_outputs_of_more_and_of_fewer_warps(out_features: int) -> None:
    """One, two and four warps to an output; eight are what the other tests have."""
    problem = make(400, 8, out_features, torch.float32)
    problem.per_sample = True
    check(problem, "output")


@pytest.mark.parametrize("rule", [(0x4CCCCCCD, 32), threshold(3e-6)], ids=["p=0.3", "p=3e-6"])
@pytest.mark.parametrize("shape", [(3, 24, 5), (3, 13, 5)], ids=str)
@MODES
@pytest.mark.parametrize("product", PRODUCTS)
def test_fine_rule(
    product: str, per_sample: bool, shape: tuple[int, int, int], rule: tuple[int, int]
) -> None:
    problem = make(*shape, torch.float32)
    problem.per_sample, problem.rule = per_sample, rule
    check(problem, product)


@pytest.mark.parametrize("shape", [(3, 24, 5), (3, 13, 5)], ids=str)
@MODES
@pytest.mark.parametrize("product", PRODUCTS)
def test_key_on_the_device(product: str, per_sample: bool, shape: tuple[int, int, int]) -> None:
    problem = make(*shape, torch.bfloat16)
    problem.per_sample, problem.key_on_device = per_sample, True
    check(problem, product)


@pytest.mark.parametrize("operand", ["input", "weight", "grad_output", "result"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("product", PRODUCTS)
def test_one_operand_is_misaligned(product: str, dtype: torch.dtype, operand: str) -> None:
    problem = make(2, 16, 5, dtype)
    to = None
    if operand != "result":
        setattr(problem, operand, shifted(getattr(problem, operand), 1))
    elif product != "output":
        like = problem.input if product == "grad_input" else problem.weight
        to = shifted(torch.full_like(like, math.nan), 1)
    check(problem, product, product_interpreted(problem, product, to=to))


@pytest.mark.parametrize("shape", [(0, 8, 4), (3, 0, 4), (3, 8, 0)], ids=str)
@MODES
@pytest.mark.parametrize("product", PRODUCTS)
def test_nothing_to_add(product: str, per_sample: bool, shape: tuple[int, int, int]) -> None:
    problem = make(*shape, torch.float32)
    problem.per_sample = per_sample
    check(problem, product)
    if product == "output":
        mean, variance = moments_interpreted(problem)
        assert torch.equal(mean, problem.added_to)
        assert (variance == 1).all()


@pytest.mark.parametrize("value", [math.inf, math.nan])
@pytest.mark.parametrize("in_features", [32, 21])
@MODES
@pytest.mark.parametrize("product", PRODUCTS)
def test_dropped_weights_are_gone(
    product: str, per_sample: bool, in_features: int, value: float
) -> None:
    problem = make(1, in_features, 6, torch.float32)
    problem.per_sample = per_sample
    mask = problem.mask()[0]
    if product == "grad_weight":
        problem.input[:] = value
        grad = product_interpreted(problem, product)
        assert (grad[~mask] == 0).all()
        assert not grad[mask].isfinite().any()
    else:
        finite = product_interpreted(problem, product)
        problem.weight[~mask] = value
        assert torch.equal(product_interpreted(problem, product), finite)


@pytest.mark.parametrize("order", ["reverse", 3])
@MODES
@pytest.mark.parametrize("product", PRODUCTS)
def test_blocks_in_any_order(product: str, per_sample: bool, order: str | int) -> None:
    """Bit for bit the same: sums of blocks are added in a fixed order."""
    require_nvcc()
    problem = make(40, 264, 70, torch.bfloat16)
    problem.per_sample = per_sample
    other = product_interpreted(problem, product, Device(library("compute_90"), order=order))
    assert torch.equal(product_interpreted(problem, product), other)
