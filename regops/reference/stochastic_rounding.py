"""Rounding up or down at random, right on average: `csrc/math/stochastic_rounding.h` in PyTorch.

M. Hoehfeld, S. Fahlman, "Learning with Limited Precision Using the Cascade-Correlation Algorithm",
IEEE Transactions on Neural Networks 3 (1992).
"""

from __future__ import annotations

import torch
from torch import Tensor

from regops.reference.philox import random_bits


def stochastic_round(value: Tensor, dtype: torch.dtype, key: Tensor, first: int = 0) -> Tensor:
    """Rounds away from zero with the probability that is the share of the gap below the value.

    Args:
        value: float32, of any shape.
        dtype: bfloat16 or float16.
        key: int64 of shape (2,). Element i, in logical order, takes half-word i mod 8 of block
            i div 8.
        first: Index of the first element.

    Returns:
        Tensor of the value's shape and of `dtype`; inf and nan stay what they are.
    """
    random16 = random_bits(key, value.numel(), 16, first).reshape(value.shape)
    bits = value.contiguous().view(torch.int32).long() & 0xFFFFFFFF
    sign, magnitude = bits & 0x80000000, bits & 0x7FFFFFFF
    if dtype == torch.bfloat16:
        rounded = magnitude + random16 >> 16 << 16
    else:
        # A gap is 2^13 float32s; below 2^-14 it is 2^-24. From 65520 on values are infinite.
        rounded = magnitude + (random16 >> 3) >> 13 << 13
        units = (value.abs() * 2.0**24 + random16.float() * 2.0**-16).floor()
        subnormal = (units * 2.0**-24).view(torch.int32).long()
        rounded = torch.where(magnitude < 0x38800000, subnormal, rounded)
        largest = torch.where(magnitude >= 0x477FF000, 0x7F800000, 0x477FE000)
        rounded = torch.where(rounded > 0x477FE000, largest, rounded)
    both = sign | rounded
    signed = torch.where(both >= 2**31, both - 2**32, both).int()
    return torch.where(value.isfinite(), signed.view(torch.float32), value).to(dtype)
