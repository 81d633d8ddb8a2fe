"""SGDW in plain PyTorch: the oracle of `regops.functional.sgdw_step_`, and its documentation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from regops.reference.optimizer_step import Options, step_


@torch.no_grad()
def sgdw_step_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momentum_buffers: Sequence[Tensor],
    state_steps: Sequence[Tensor],
    *,
    lr: float | Tensor = 1e-3,
    momentum: float = 0.0,
    dampening: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    **options: Any,
) -> None:
    """As `regops.functional.sgdw_step_`, whose other arguments are those of `Options`.

    w <- (1 - lr wd) w; b <- momentum b + (1 - dampening) g, in the first step b = g;
    w <- w - lr b, nesterov: w <- w - lr (g + momentum b)
    """

    def update(
        w: Tensor, g: Tensor, states: list[Tensor], step: float, lr: float
    ) -> tuple[Tensor, list[Tensor]]:
        direction = g
        if states:
            inflow = 1.0 if step == 1.0 else 1.0 - dampening
            states = [momentum * states[0] + inflow * g]
            direction = g + momentum * states[0] if nesterov else states[0]
        return w * (1.0 - lr * weight_decay) - lr * direction, states

    states = [momentum_buffers] if momentum_buffers else []
    step_(Options(lr, **options), update, params, grads, states, state_steps)
