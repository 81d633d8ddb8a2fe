"""Cross-entropy of a linear layer in plain PyTorch: logits in full, then `cross_entropy`."""

from __future__ import annotations

import torch
from torch import Tensor

from regops.reference.cross_entropy import cross_entropy


def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    options: object | None = None,
    smoothing: str = "uniform",
    z_loss: float = 0.0,
    entropy_weight: float = 0.0,
    target_b: Tensor | None = None,
    lam: float | Tensor | None = None,
    num_items: int | Tensor | None = None,
    return_lse: bool = False,
    check: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """As `regops.functional.linear_cross_entropy`: cross_entropy(input @ linear_weight.T, target).

    linear_weight (C, d1, ..., in_features) makes logits (N, C, d1, ...).
    """
    features = linear_weight.shape[:-1]
    bias = None if linear_bias is None else linear_bias.flatten()
    logits = torch.nn.functional.linear(input, linear_weight.flatten(0, -2), bias)
    return cross_entropy(
        logits.unflatten(-1, features),
        target,
        weight,
        -100 if ignore_index is None else ignore_index,
        reduction,
        label_smoothing,
        smoothing=smoothing,
        z_loss=z_loss,
        entropy_weight=entropy_weight,
        target_b=target_b,
        lam=lam,
        num_items=num_items,
        return_lse=return_lse,
    )
