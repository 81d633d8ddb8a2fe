"""SGD with momentum and decoupled weight decay as an optimizer."""

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


class SGDW(FusedOptimizer, torch.optim.SGD):
    r"""`torch.optim.SGD` with decoupled weight decay, in one fused pass; an instance of it, too.

    w <- (1 - lr wd) w; b <- momentum b + (1 - dampening) g, in the first step b = g;
    w <- w - lr b, with nesterov w <- w - lr (g + momentum b), without momentum w <- w - lr g.

    Weight decay does not enter the momentum; `l2` is the decay of `torch.optim.SGD`. State entries
    are torch's `momentum_buffer`, a `step`, and by options `master_param` or `compensation`, and
    `ema`; a `state_dict` of either loads in the other. The buffer is float32 (float64 of float64
    parameters), also where the parameter is not. See Loshchilov and Hutter, ICLR 2019.

    Args:
        params: Parameters, named parameters, or groups, as of torch.
        lr: Learning rate; a tensor of one element is read on its device.
        momentum: At least 0.
        dampening: Of the gradient on its way into the buffer.
        weight_decay: wd.
        nesterov: Nesterov's momentum; it needs a positive momentum and no dampening.
        maximize: Ascend instead.
        foreach: As of torch, without effect: every step is fused.
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
        >>> optimizer = regops.optim.SGDW(model.parameters(), lr=0.1, momentum=0.9)
        >>> model(torch.ones(3, 2)).sum().backward()
        >>> optimizer.step()
    """

    _op = "sgdw_step_"

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float | Tensor = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
        **options: Unpack[OptimizerOptions],
    ) -> None:
        super().__init__(
            params,
            lr,
            momentum,
            dampening,
            weight_decay,
            nesterov,
            maximize=maximize,
            foreach=foreach,
            differentiable=differentiable,
            fused=fused,
        )
        self._set_options(options)

    def _moments(self, group: dict[str, Any]) -> Sequence[str]:
        return ("momentum_buffer",) if group["momentum"] != 0 else ()

    def _moment_lists(self, lists: Sequence[list[Tensor]]) -> Sequence[list[Tensor]]:
        return lists or [[]]

    def _rule(self, group: dict[str, Any]) -> Sequence[float | bool]:
        return float(group["momentum"]), float(group["dampening"]), bool(group["nesterov"])


# ---- what convert_ swaps -------------------------------------------------------------------------


def _why_left(optimizer: torch.optim.SGD) -> str | None:
    for group in optimizer.param_groups:
        decay = float(group["weight_decay"])
        if decay != 0.0:
            return (
                f"weight_decay={decay:g} enters the gradient in torch.optim.SGD, and not in "
                f"regops.optim.SGDW, where that is l2={decay:g}"
            )
    return None


OPTIMIZER_SWAPS.append(Swap(torch.optim.SGD, SGDW, why_left=_why_left))
