"""DropConnect in plain PyTorch: the oracle of `regops.functional.dropconnect_linear`.

L. Wan, M. Zeiler, S. Zhang, Y. LeCun, R. Fergus, "Regularization of Neural Networks using
DropConnect", ICML 2013.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Generator, Tensor
from torch.nn import functional

from regops.random import new_key
from regops.reference.dropout import keep_mask, threshold
from regops.reference.normal import normals

# Logical index of the first bias, far beyond every weight's.
BIAS_INDEX = 1 << 63


def dropconnect_linear(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    p: float = 0.5,
    training: bool = True,
    *,
    mask: Literal["batch", "sample"] = "batch",
    drop_bias: bool = False,
    inference: Literal["mean", "gaussian"] = "mean",
    samples: int = 1,
    key: Tensor | None = None,
    generator: Generator | None = None,
) -> Tensor:
    """As `regops.functional.dropconnect_linear`: y = s x (M o W)^T + b with s = 1 / (1 - p)."""
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"regops.dropconnect_linear: expected p in [0, 1], got {p}")
    if not training and inference == "mean":
        return functional.linear(input, weight, bias)
    if training and p == 0.0:
        return functional.linear(input, weight, bias)
    if training and p == 1.0:  # drops all, and draws nothing
        key = torch.zeros(2, dtype=torch.int64)
    elif key is None:
        key = new_key(input.device, generator)
    key = key.to(input.device)
    if not training:
        mean, variance = dropconnect_moments(input, weight, bias, p, drop_bias=drop_bias)
        shape = (samples, *mean.shape)
        normal = normals(key, samples * mean.numel()).reshape(shape)
        # In float64, since the kernels' float32 is held against it; a root of 0 has no gradient.
        positive = variance > 0
        deviation = torch.where(positive, variance, 1.0).double().sqrt() * positive
        return (mean.double() + deviation * normal).to(input.dtype)

    rows = math.prod(input.shape[:-1])
    examples = (rows,) if mask == "sample" else ()
    keep = keep_mask(key, torch.Size((*examples, *weight.shape)), p)
    keep_bias = None
    if bias is not None and drop_bias:
        keep_bias = keep_mask(key, torch.Size((*examples, *bias.shape)), p, BIAS_INDEX)
    return masked_linear(input, weight, bias, p, keep, keep_bias)


def masked_linear(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    p: float,
    keep: Tensor,
    keep_bias: Tensor | None,
) -> Tensor:
    """The layer with its masks: of weights, (out, in) or (rows, out, in), and maybe of biases."""
    zero = torch.zeros((), dtype=weight.dtype, device=weight.device)
    masked = torch.where(keep, weight, zero)
    rows = input.reshape(math.prod(input.shape[:-1]), input.shape[-1])
    product = "ik,nk->in" if keep.dim() == 2 else "ik,ink->in"
    # 1 / (1 - p) for the p in force; where all is dropped, any number.
    drop_below, bits = threshold(p) if p < 1.0 else (0, 16)
    scale = 2.0**bits / (2**bits - drop_below)
    output: Tensor = scale * torch.einsum(product, rows, masked)
    if bias is not None:
        output = output + (
            bias if keep_bias is None else scale * torch.where(keep_bias, bias, zero)
        )
    return output.reshape(*input.shape[:-1], len(weight))


def dropconnect_moments(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    p: float = 0.5,
    *,
    drop_bias: bool = False,
) -> tuple[Tensor, Tensor]:
    """As `regops.functional.dropconnect_moments`: x W^T + b and p / (1 - p) x^2 (W^2)^T."""
    if not 0.0 <= p < 1.0:
        raise ValueError(f"regops.dropconnect_moments: expected p in [0, 1), got {p}")
    real = torch.promote_types(input.dtype, torch.float32)
    variance = functional.linear(input.to(real) ** 2, weight.to(real) ** 2)
    if bias is not None and drop_bias:
        variance = variance + bias.to(real) ** 2
    drop_below, bits = threshold(p) if p > 0.0 else (0, 16)
    odds = drop_below / (2**bits - drop_below)  # p / (1 - p) for the p in force
    return functional.linear(input, weight, bias), odds * variance
