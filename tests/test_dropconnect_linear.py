"""DropConnect to the bit, on integers, and its masks by their indices."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import regops.functional as RF
from regops.testing import Layout, lay_out
from tests.dropconnect_problems import (
    DTYPES,
    KEY,
    MODES,
    assert_same,
    bias_mask,
    call_of,
    integer_layer,
    integers,
    oracle_of,
    weight_mask,
)

LAYOUTS: tuple[Layout, ...] = ("transposed", "strided", "misaligned")
by_mode = pytest.mark.parametrize("mask", MODES)


# ---- to the bit ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("cpu_capability")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("drop_bias", [False, True])
@pytest.mark.parametrize("p", [0.5, 0.75, 1 - 2**-8])
@by_mode
def test_integers_come_out_exact(p: float, mask: str, drop_bias: bool, dtype: torch.dtype) -> None:
    """Scales that are powers of 2, so that neither sums nor products are rounded."""
    # bfloat16 holds integers up to 256: sums are halved where the scale doubles.
    layer = integer_layer((3, 3), 37 if p == 0.5 else 19, 29, dtype)
    options = {"p": p, "mask": mask, "drop_bias": drop_bias}
    assert_same(call_of(*layer, **options), oracle_of(*layer, **options))


@by_mode
def test_integers_come_out_exact_on_any_number_of_threads(mask: str, threads: int) -> None:
    layer = integer_layer((37,), 40, 130)
    options = {"mask": mask, "drop_bias": True}
    assert_same(call_of(*layer, **options), oracle_of(*layer, **options))


@pytest.mark.parametrize(
    ("which", "layout"),
    [
        *((which, layout) for which in ("input", "weight", "upstream") for layout in LAYOUTS),
        ("bias", "strided"),
        ("bias", "misaligned"),
    ],
)
@by_mode
def test_layouts_change_nothing(which: str, layout: Layout, mask: str) -> None:
    input, tensors, upstream = integer_layer((2, 3), 21, 18)
    expected = call_of(input, tensors, upstream, mask=mask, drop_bias=True)
    everything = {"input": input, "upstream": upstream, **tensors}
    moved = lay_out(everything[which].detach(), layout)
    everything[which] = moved.requires_grad_(which != "upstream")
    input, upstream = everything.pop("input"), everything.pop("upstream")
    assert_same(call_of(input, everything, upstream, mask=mask, drop_bias=True), expected)


@by_mode
def test_an_expanded_gradient_is_that_of_its_copy(mask: str) -> None:
    input, tensors, upstream = integer_layer((5,), 21, 18)
    expected = call_of(input, tensors, torch.ones_like(upstream), mask=mask, drop_bias=True)
    output = RF.dropconnect_linear(input, **tensors, mask=mask, drop_bias=True, key=KEY)
    output.sum().backward()
    for tensor, gradient in zip((input, *tensors.values()), expected.gradients, strict=True):
        assert torch.equal(tensor.grad, gradient)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["contiguous", *LAYOUTS])
def test_weights_of_several_panels(layout: Layout, dtype: torch.dtype) -> None:
    """Of 4 MB each forward and in the input's gradient, of 8 MB in the weight's."""
    outs, ins = 2100, 1100 if dtype.itemsize > 2 else 2100
    keep = RF.dropout(torch.ones((outs, ins), dtype=torch.bfloat16), 0.5, key=KEY) != 0
    input, upstream = integers((3, ins), dtype, 0, 1), integers((3, outs), dtype, 3, 1)
    # Few enough weights that sums stay exact.
    weight = integers((outs, ins), dtype, 1, 1) * (torch.arange(ins) % 11 == 0)
    weight = lay_out(weight, layout)
    actual = call_of(input.requires_grad_(), {"weight": weight.requires_grad_()}, upstream)
    masked = 2 * keep.double() * weight.detach().double()
    of_weight = 2 * keep * (upstream.double().t() @ input.detach().double())
    assert torch.equal(actual.outputs[0].double(), input.double() @ masked.t())
    assert torch.equal(actual.gradients[1].double(), of_weight)
    of_input = (upstream.double() @ masked).to(dtype)
    assert torch.equal(actual.gradients[0], of_input)


# ---- masks ---------------------------------------------------------------------------------------


def _codes(mask: Tensor, dim: int) -> Tensor:
    """Each vector of a mask as the number whose binary digits it is."""
    place = torch.arange(mask.shape[dim], dtype=torch.float64)
    digits = (2.0**place).reshape([-1 if d == dim else 1 for d in range(mask.dim())])
    return (mask.double() * digits).sum(dim)


@pytest.mark.usefixtures("cpu_capability")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("p", [0.25, 0.5, 2**-16, 1e-6])
def test_each_product_has_the_mask_of_its_indices(p: float, dtype: torch.dtype) -> None:
    """(i out + n) in + k in sample mode, where powers of 2 tell which terms a sum has."""
    rows, outs, ins = 13, 15, 17
    keep = weight_mask((rows, outs, ins), p)
    scale = 1 / (1 - p)
    ones, powers = torch.ones, [2.0 ** torch.arange(n, dtype=dtype) for n in (rows, outs, ins)]
    options: dict[str, Any] = {"p": p, "mask": "sample", "key": KEY}

    output = RF.dropconnect_linear(
        ones(rows, ins, dtype=dtype), powers[2].expand(outs, ins), **options
    )
    assert torch.equal((output / scale).round().double(), _codes(keep, 2))

    input = ones(rows, ins, dtype=dtype, requires_grad=True)
    output = RF.dropconnect_linear(input, ones(outs, ins, dtype=dtype), **options)
    (gradient,) = torch.autograd.grad(output, input, powers[1].expand(rows, outs))
    assert torch.equal((gradient / scale).round().double(), _codes(keep, 1))

    weight = ones(outs, ins, dtype=dtype, requires_grad=True)
    output = RF.dropconnect_linear(powers[0][:, None].expand(rows, ins), weight, **options)
    (gradient,) = torch.autograd.grad(output, weight, ones(rows, outs, dtype=dtype))
    assert torch.equal((gradient / scale).round().double(), _codes(keep, 0))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("p", [0.25, 0.5, 0.9, 1e-4])
def test_the_gradient_of_a_batch_shows_its_mask(p: float, dtype: torch.dtype) -> None:
    weight = torch.ones(31, 45, dtype=dtype, requires_grad=True)
    output = RF.dropconnect_linear(torch.ones(2, 45, dtype=dtype), weight, p=p, key=KEY)
    output.sum().backward()
    assert torch.equal(weight.grad != 0, weight_mask((31, 45), p))
    assert torch.equal(weight.grad != 0, RF.dropout(torch.ones(31, 45), p, key=KEY) != 0)


@pytest.mark.parametrize("dtype", DTYPES)
@by_mode
def test_the_mask_of_biases_begins_at_2_to_the_63(mask: str, dtype: torch.dtype) -> None:
    rows, outs, ins = 11, 37, 3
    shape = (rows, outs) if mask == "sample" else (outs,)
    keep = bias_mask(shape, 0.5).expand(rows, outs)
    bias = torch.ones(outs, dtype=dtype, requires_grad=True)
    output = RF.dropconnect_linear(
        torch.zeros(rows, ins, dtype=dtype),
        torch.zeros(outs, ins, dtype=dtype),
        bias,
        mask=mask,
        drop_bias=True,
        key=KEY,
    )
    assert torch.equal(output, 2 * keep.to(dtype))
    output.sum().backward()
    assert torch.equal(bias.grad, 2 * keep.to(dtype).sum(0))


@pytest.mark.parametrize("rows", [1, 2, 7, 16, 33])
def test_fewer_examples_have_the_masks_of_the_first(rows: int) -> None:
    input, tensors, _ = integer_layer((50,), 21, 18)
    options = {"mask": "sample", "drop_bias": True, "key": KEY}
    every = RF.dropconnect_linear(input, **tensors, **options)
    assert torch.equal(RF.dropconnect_linear(input[:rows], **tensors, **options), every[:rows])


def test_examples_are_counted_over_all_leading_dimensions() -> None:
    input, tensors, _ = integer_layer((2, 3, 5), 21, 18)
    options = {"mask": "sample", "drop_bias": True, "key": KEY}
    flat = RF.dropconnect_linear(input.reshape(30, 21), **tensors, **options)
    assert torch.equal(RF.dropconnect_linear(input, **tensors, **options).flatten(0, 2), flat)


def test_all_examples_of_a_batch_have_one_mask_and_samples_their_own() -> None:
    input = torch.ones(100, 64)
    weight = torch.ones(8, 64)
    batch = RF.dropconnect_linear(input, weight, key=KEY)
    assert torch.equal(batch, batch[:1].expand(100, 8))
    sample = RF.dropconnect_linear(input, weight, mask="sample", key=KEY)
    assert torch.equal(sample[0], batch[0])
    assert len({tuple(row.tolist()) for row in sample}) == 100


@pytest.mark.slow
def test_indices_beyond_2_to_the_32() -> None:
    """Masks of 2^32 weights and more: seconds of random numbers, few bytes."""
    # One example more than 2^32 weights hold.
    rows, outs, ins = (1 << 10) + 1, 1 << 11, 1 << 11
    weight = integers((outs, ins), torch.float32, 1).requires_grad_()
    input = torch.zeros(rows, ins)
    input[-1] = integers((ins,), torch.float32, 0)
    output = RF.dropconnect_linear(input, weight, mask="sample", key=KEY)
    few = 64
    first = (rows - 1) * outs * ins
    keep = weight_mask((few, ins), 0.5, first=first)
    expected = (2 * keep * weight[:few].detach() * input[-1]).sum(1)
    assert torch.equal(output[-1, :few], expected)
    upstream = torch.zeros(rows, outs)
    upstream[-1, :few] = 1
    (gradient,) = torch.autograd.grad(output, weight, upstream)
    assert torch.equal(gradient[:few], 2 * keep * input[-1])


@pytest.mark.slow
def test_weights_beyond_2_to_the_32() -> None:
    outs, ins = (1 << 20) + 5, 1 << 12
    weight = torch.ones(1, ins).expand(outs, ins)
    output = RF.dropconnect_linear(torch.ones(1, ins), weight, key=KEY)
    for row in (0, (1 << 19) - 1, 1 << 19, outs - 4):
        keep = weight_mask((4, ins), 0.5, first=row * ins)
        assert torch.equal(output[0, row : row + 4], 2.0 * keep.sum(1))
