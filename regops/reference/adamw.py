"""AdamW in plain PyTorch: the oracle of `regops.functional.adamw_step_`, and its documentation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from regops.reference.optimizer_step import Options, step_


@torch.no_grad()
def adamw_step_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    max_exp_avg_sqs: Sequence[Tensor],
    state_steps: Sequence[Tensor],
    *,
    lr: float | Tensor = 1e-3,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
    **options: Any,
) -> None:
    """As `regops.functional.adamw_step_`, whose other arguments are those of `Options`.

    w <- (1 - lr wd) w; m <- m + (1 - beta1) (g - m); v <- beta2 v + (1 - beta2) g^2;
    w <- w - lr / (1 - beta1^t) m / (sqrt(v) / sqrt(1 - beta2^t) + eps)
    """

    def update(
        w: Tensor, g: Tensor, states: list[Tensor], step: float, lr: float
    ) -> tuple[Tensor, list[Tensor]]:
        m, v, *largest = states
        # From the nearer end: with beta1 = 0 a large m would leave rounding errors in a small g.
        m = g - beta1 * (g - m) if beta1 < 0.5 else m + (1.0 - beta1) * (g - m)
        v = beta2 * v + (1.0 - beta2) * g * g
        if largest:
            largest = [torch.maximum(largest[0], v)]
        root_factor = 1.0 / math.sqrt(1.0 - beta2**step)
        # By way of float64, since torch's float32 root is often off by an ulp.
        root = (largest[0] if largest else v).double().sqrt().to(v.dtype)
        denominator = root * root_factor + eps
        rate = lr / (1.0 - beta1**step)
        return w * (1.0 - lr * weight_decay) - rate * (m / denominator), [m, v, *largest]

    states = [exp_avgs, exp_avg_sqs, *([max_exp_avg_sqs] if max_exp_avg_sqs else [])]
    step_(Options(lr, **options), update, params, grads, states, state_steps)
