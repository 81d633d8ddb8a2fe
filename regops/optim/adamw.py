"""AdamW as an optimizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from regops._swaps import OPTIMIZER_SWAPS, Swap
from regops.optim._optimizer import FusedOptimizer
from regops.optim._options import OptimizerOptions


class AdamW(FusedOptimizer, torch.optim.AdamW):
    r"""`torch.optim.AdamW` in one fused pass; an instance of torch's class, too.

    w <- (1 - lr wd) w; m <- m + (1 - beta1) (g - m); v <- beta2 v + (1 - beta2) g^2;
    w <- w - lr / (1 - beta1^t) m / (sqrt(v) / sqrt(1 - beta2^t) + eps).

    State entries are torch's: `step`, `exp_avg`, `exp_avg_sq`, `max_exp_avg_sq`, and by options
    `master_param` or `compensation`, and `ema`; a `state_dict` of either loads in the other.
    Moments are float32 (float64 of float64 parameters), also where the parameter is not. Gradients,
    parameters and state may differ in strides. See Loshchilov and Hutter, ICLR 2019.

    Args:
        params: Parameters, named parameters, or groups, as of torch.
        lr: Learning rate; a tensor of one element is read on its device.
        betas: Decay of m and v a step, in [0, 1).
        eps: Added to the denominator.
        weight_decay: wd.
        amsgrad: The largest v so far is in the denominator.
        maximize: Ascend instead.
        foreach: As of torch, without effect: every step is fused.
        capturable: For steps in CUDA graphs. On CUDA steps are counted on the device in any case.
        differentiable: Only False.
        fused: Without effect.
        options: See `regops.optim.OptimizerOptions`.

    Raises:
        ValueError: A number out of range; `differentiable`; random numbers with several processes
            and no `key`.
        TypeError: An option of a wrong type or name.

    Example:
        >>> import torch, regops.optim
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = regops.optim.AdamW(model.parameters(), lr=1e-3, max_grad_norm=1.0)
        >>> model(torch.ones(3, 2)).sum().backward()
        >>> optimizer.step()
        >>> optimizer.grad_norm.shape
        torch.Size([])
    """

    _op = "adamw_step_"

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        **options: Unpack[OptimizerOptions],
    ) -> None:
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            maximize=maximize,
            foreach=foreach,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
        )
        self._set_options(options)

    def _moments(self, group: dict[str, Any]) -> Sequence[str]:
        if group["amsgrad"]:
            return "exp_avg", "exp_avg_sq", "max_exp_avg_sq"
        return "exp_avg", "exp_avg_sq"

    def _moment_lists(self, lists: Sequence[list[Tensor]]) -> Sequence[list[Tensor]]:
        return [*lists, []][:3]

    def _rule(self, group: dict[str, Any]) -> Sequence[float | bool]:
        beta1, beta2 = group["betas"]
        return float(beta1), float(beta2), float(group["eps"])


# ---- what convert_ swaps -------------------------------------------------------------------------


def _why_left(optimizer: torch.optim.Adam) -> str | None:
    for group in optimizer.param_groups:
        decay = float(group["weight_decay"])
        if decay != 0.0 and not group["decoupled_weight_decay"]:
            return (
                f"weight_decay={decay:g} enters the gradient in torch.optim.Adam; in "
                f"regops.optim.AdamW that is l2={decay:g}"
            )
    return None


OPTIMIZER_SWAPS.append(Swap(torch.optim.AdamW, AdamW))
OPTIMIZER_SWAPS.append(Swap(torch.optim.Adam, AdamW, why_left=_why_left))
