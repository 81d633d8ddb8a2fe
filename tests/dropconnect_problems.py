"""Layers that tests of DropConnect share; sums of small integers are exact in every type."""

from __future__ import annotations

from itertools import product
from typing import Any

import torch
from torch import Tensor

import regops.functional as RF
import regops.random
import regops.reference
from regops.reference.dropconnect_linear import BIAS_INDEX
from regops.reference.dropout import keep_mask
from regops.testing import Results, results

KEY = regops.random.key(0x0123456789ABCDEF, 0xFEDCBA9876543210)  # both sign bits in use
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
MODES = ["batch", "sample"]
GAUSSIAN: dict[str, Any] = {"training": False, "inference": "gaussian", "samples": 2}
OPTIONS = [*({"mask": mask, "drop_bias": drop} for mask, drop in product(MODES, (False, True)))]


def integers(shape: tuple[int, ...], dtype: torch.dtype, seed: int, most: int = 2) -> Tensor:
    """Integers of magnitude up to `most`."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-most, most + 1, shape, generator=generator).to(dtype)


def integer_layer(
    rows: tuple[int, ...], ins: int, outs: int, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, dict[str, Any], Tensor]:
    """(input, weight and bias by name, upstream gradient) of a layer, all but the last learned.

    With 40 terms or fewer to a sum, and a scale of 2, bfloat16's 8 bits hold every result.
    """
    input = integers((*rows, ins), dtype, 0, 1).requires_grad_()
    weight = integers((outs, ins), dtype, 1).requires_grad_()
    bias = integers((outs,), dtype, 2).requires_grad_()
    return input, {"weight": weight, "bias": bias}, integers((*rows, outs), dtype, 3, 1)


def call_of(input: Tensor, tensors: dict[str, Any], upstream: Tensor, **options: Any) -> Results:
    """The layer's output and gradients."""
    return results(
        RF.dropconnect_linear, input, {"key": KEY, **tensors, **options}, upstream=(upstream,)
    )


def oracle_of(input: Tensor, tensors: dict[str, Any], upstream: Tensor, **options: Any) -> Results:
    """The same by the reference in float64, then converted, which is exact."""
    wide = {name: tensor.detach().double().requires_grad_() for name, tensor in tensors.items()}
    found = results(
        regops.reference.dropconnect_linear,
        input.detach().double().requires_grad_(),
        {"key": KEY, **wide, **options},
        upstream=(upstream,),
    )
    outputs, gradients, _ = ([tensor.to(input.dtype) for tensor in group] for group in found)
    return Results(tuple(outputs), tuple(gradients), (upstream,))


def assert_same(actual: Results, expected: Results) -> None:
    """Raises AssertionError unless outputs and gradients agree to the bit."""
    for got, wanted in (
        *zip(actual.outputs, expected.outputs, strict=True),
        *zip(actual.gradients, expected.gradients, strict=True),
    ):
        torch.testing.assert_close(got, wanted, rtol=0, atol=0)


def weight_mask(shape: tuple[int, ...], p: float, first: int = 0, key: Tensor = KEY) -> Tensor:
    """Mask of weights, (out, in) or (rows, out, in), from an index on."""
    return keep_mask(key, torch.Size(shape), p, first)


def bias_mask(shape: tuple[int, ...], p: float) -> Tensor:
    """Mask of biases, (out) or (rows, out)."""
    return keep_mask(KEY, torch.Size(shape), p, BIAS_INDEX)


def random_layer(
    rows: tuple[int, ...] = (3,), ins: int = 4, outs: int = 2, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    """Input, weight and bias, all learned."""
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for shape in ((*rows, ins), (outs, ins), (outs,))
    )
    return x, weight, bias


def keyed_call(x: Tensor, weight: Tensor, bias: Tensor, **options: Any) -> Tensor:
    """The layer under the key of these tests."""
    return RF.dropconnect_linear(x, weight, bias, key=KEY, **options)
