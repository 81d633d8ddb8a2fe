"""Dropout in plain PyTorch: the oracle of `regops.functional.dropout`, and its documentation."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from regops.random import new_key
from regops.reference.philox import random_bits


def threshold(p: float) -> tuple[int, int]:
    """The integer below which an element's random bits drop it, and how many bits they are.

    threshold = round(2^16 p) of 16 bits; where 16 bits cannot tell p from 0 or 1, round(2^32 p) of
    32, and then at least 1 and at most 2^32 - 1.

    Args:
        p: Drop probability, 0 < p < 1.

    Returns:
        (threshold, bits). The drop probability in force is threshold / 2^bits.
    """
    if 2**-16 <= p <= 1 - 2**-16:
        return round(p * 2**16), 16
    return min(max(round(p * 2**32), 1), 2**32 - 1), 32


def keep_mask(key: Tensor, shape: torch.Size, p: float, first: int = 0) -> Tensor:
    """Whether each element is kept: a function of the key and of the element's logical index.

    Args:
        key: int64 of shape (2,): seed and offset.
        shape: Of the mask; its row-major order is the logical index, whatever the memory order.
        p: Drop probability, 0 <= p <= 1.
        first: Index of the first element.

    Returns:
        Boolean tensor of `shape` on the key's device.
    """
    if p in (0.0, 1.0):
        return torch.full(shape, p == 0.0, device=key.device)
    drop_below, bits = threshold(p)
    return (random_bits(key, shape.numel(), bits, first) >= drop_below).reshape(shape)


def dropout(
    input: Tensor,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
    key: Tensor | None = None,
    generator: Generator | None = None,
) -> Tensor:
    """As `regops.functional.dropout`: y = x / (1 - p) where kept, 0 where dropped."""
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"regops.dropout: expected p in [0, 1], got {p}")
    if not training or p == 0.0:
        return input
    if p == 1.0:  # drops all, and draws nothing
        key = torch.zeros(2, dtype=torch.int64)
    elif key is None:
        key = new_key(input.device, generator)
    keep = keep_mask(key.to(input.device), input.shape, p)
    drop_below, bits = threshold(p) if p < 1.0 else (0, 16)
    # One rounding: the scale is a float32, so is the product, and that rounds to the input's type.
    compute = torch.promote_types(input.dtype, torch.float32)
    scale = torch.tensor(2.0**bits / (2**bits - drop_below), dtype=compute, device=input.device)
    scaled = (input.to(compute) * scale).to(input.dtype)
    output = torch.where(keep, scaled, torch.zeros((), dtype=input.dtype, device=input.device))
    return input.copy_(output) if inplace else output
