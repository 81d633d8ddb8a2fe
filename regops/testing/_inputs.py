"""Inputs of tests and benchmarks: values that do not depend on how they lie in memory."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Layout = Literal[
    "contiguous",
    "channels_last",
    "transposed",
    "swapped_outer",
    "reversed",
    "misaligned",
    "strided",
    "expanded",
]


def make_input(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    layout: Layout = "contiguous",
    seed: int = 0,
) -> Tensor:
    """A tensor of standard normal values, equal by logical index for every layout.

    Args:
        shape: Its shape.
        dtype: Its type; the values are drawn in float32 and rounded to it.
        device: Where it ends; the values are drawn on the CPU, so they do not depend on it.
        layout: As in `lay_out`; or "expanded" (stride 0 in the first dimension).
        seed: Of the values.

    Returns:
        A leaf tensor that does not require grad.
    """
    generator = torch.Generator().manual_seed(seed)
    if layout == "expanded":
        row = torch.randn(shape[1:], generator=generator).to(dtype).to(device)
        return row.expand(shape)
    return lay_out(torch.randn(shape, generator=generator).to(dtype).to(device), layout)


def lay_out(values: Tensor, layout: Layout) -> Tensor:
    """The same values in another memory layout.

    Args:
        values: A contiguous tensor; itself the result where that is asked for.
        layout: "contiguous"; "channels_last" (4-d); "transposed" (memory order of the last two
            dimensions swapped); "swapped_outer" (of the first two); "reversed" (of all);
            "misaligned" (storage begins one element past an allocation); "strided" (every second
            element of a larger tensor).
    """
    shape = values.shape
    if layout == "channels_last":
        return values.contiguous(memory_format=torch.channels_last)
    if layout == "transposed":
        return values.transpose(-1, -2).contiguous().transpose(-1, -2)
    if layout == "swapped_outer":
        return values.transpose(0, 1).contiguous().transpose(0, 1)
    if layout == "reversed":
        backwards = tuple(reversed(range(values.dim())))
        return values.permute(backwards).contiguous().permute(backwards)
    if layout == "misaligned":
        storage = torch.empty(values.numel() + 1, dtype=values.dtype, device=values.device)
        return storage[1:].view(shape).copy_(values)
    if layout == "strided":
        twice = (*shape[:-1], 2 * shape[-1])
        storage = torch.empty(twice, dtype=values.dtype, device=values.device)
        return storage[..., ::2].copy_(values)
    return values
