"""What every update rule has around it, in plain PyTorch: `csrc/math/optimizer_step.h`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from regops.reference.normal import normals
from regops.reference.philox import fold_in
from regops.reference.stochastic_rounding import stochastic_round

Master = Literal["none", "fp32", "kahan", "stochastic"]

# What random numbers are drawn for: sub-streams of a parameter's key. The moments share one.
ROUND_PARAM, ROUND_MOMENTS, GRADIENT_NOISE = range(3)

# (weight, gradient, states, step, lr) to (weight, states), all in the type computed in.
Update = Callable[[Tensor, Tensor, list[Tensor], float, float], tuple[Tensor, list[Tensor]]]


@dataclass
class Options:
    """The arguments that `adamw_step_` and `sgdw_step_` share; see there."""

    lr: float | Tensor
    maximize: bool = False
    grad_scale: Tensor | None = None
    found_inf: Tensor | None = None
    grad_norm: Tensor | None = None
    max_grad_norm: float | None = None
    clip_value: float | None = None
    l1: float = 0.0
    l2: float = 0.0
    gradient_noise: tuple[float, float] | None = None
    max_norm: float | None = None
    masters: Sequence[Tensor] = ()
    master: Master = "none"
    emas: Sequence[Tensor] = ()
    ema_decay: float | None = None
    zero_grad: bool = False
    key: Tensor | None = None
    streams: Sequence[int] | None = None
    first_indices: Sequence[int] | None = None


def grad_norm(grads: Sequence[Tensor]) -> Tensor:
    """The 2-norm of all gradients together, in float64."""
    squares = [grad.double().square().sum() for grad in grads]
    device = grads[0].device if grads else None
    return (
        torch.stack(squares or [torch.zeros((), dtype=torch.float64, device=device)]).sum().sqrt()
    )


def step_(
    options: Options,
    update: Update,
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    states: Sequence[Sequence[Tensor]],
    state_steps: Sequence[Tensor],
) -> None:
    """One step of every parameter.

    Args:
        options: Of the call.
        update: The rule.
        params: Written.
        grads: Written where they are cleared, or unscaled by `grad_scale`.
        states: One list a parameter and kind of state; written. Those of another type than is
            computed in are bfloat16, rounded stochastically.
        state_steps: 0-d, counted up.
    """
    if options.found_inf is not None and options.found_inf.item() != 0:
        if options.zero_grad:
            for grad in grads:
                grad.zero_()
        return
    scale = 1.0 if options.grad_scale is None else options.grad_scale.item()
    coefficient = _clip_coefficient(options, grads, scale)
    for k, (param, grad) in enumerate(zip(params, grads, strict=True)):
        real = torch.promote_types(param.dtype, torch.float32)
        state_steps[k].add_(1)
        step = state_steps[k].item()
        lr = float(options.lr)
        first = options.first_indices[k] if options.first_indices else 0
        keys = _keys(options, step, options.streams[k] if options.streams else k)

        w = _weight(options, param, k, real)
        unscaled = grad.to(real) * (1.0 / scale)
        sign = -1.0 if options.maximize else 1.0
        g = grad.to(real) * (sign * (1.0 / scale) * coefficient)
        if options.clip_value is not None:
            g = g.clamp(-options.clip_value, options.clip_value)
        if options.gradient_noise is not None:
            eta, gamma = options.gradient_noise
            noise = normals(keys[GRADIENT_NOISE], g.numel(), first).reshape(g.shape)
            g = g + math.sqrt(eta / step**gamma) * noise.float().to(real)
        if options.l2:
            g = g + options.l2 * w

        w, new = update(w, g, [state[k].to(real) for state in states], step, lr)

        if options.l1:
            threshold = torch.tensor(lr * options.l1, dtype=real, device=w.device)
            w = torch.where(w.abs() <= threshold, 0.0, w - w.sign() * threshold)
        if options.max_norm is not None and w.dim() >= 2:
            norms = w.double().flatten(1).norm(dim=1)
            factor = torch.where(norms > options.max_norm, options.max_norm / norms, 1.0)
            w = w * factor.to(real).reshape(-1, *[1] * (w.dim() - 1))

        for i, (state, value) in enumerate(zip(states, new, strict=True)):
            _store_state(state[k], value, keys[ROUND_MOMENTS] if i < 2 else None, first)
        _store_weight(options, param, w, k, keys[ROUND_PARAM], first)
        if options.emas:
            assert options.ema_decay is not None
            decay = options.ema_decay
            options.emas[k].copy_(decay * options.emas[k] + (1.0 - decay) * w)
        if options.zero_grad:
            grad.zero_()
        elif options.grad_scale is not None:
            grad.copy_(unscaled)


def _clip_coefficient(options: Options, grads: Sequence[Tensor], scale: float) -> float:
    """As `torch.nn.utils.clip_grad_norm_`: min(1, max_norm / (norm + 1e-6))."""
    if options.max_grad_norm is None:
        return 1.0
    norm = grad_norm(grads) / scale if options.grad_norm is None else options.grad_norm
    wide = norm > torch.finfo(torch.float32).max or (grads and grads[0].dtype == torch.float64)
    real = torch.float64 if wide else torch.float32
    limit = torch.tensor(options.max_grad_norm, dtype=real)
    coefficient = limit / (norm.detach().cpu().to(real) + 1e-6)
    return 1.0 if coefficient >= 1.0 else coefficient.item()


def _keys(options: Options, step: float, stream: int) -> list[Tensor]:
    if options.key is None:
        return [torch.empty(0)] * 3
    of_tensor = fold_in(fold_in(options.key, int(step)), stream)
    return [fold_in(of_tensor, use) for use in range(3)]


def _weight(options: Options, param: Tensor, k: int, real: torch.dtype) -> Tensor:
    """The weight in full precision."""
    if options.master == "fp32" and options.masters:
        # A parameter that was changed since, for example loaded, is no image of its master.
        master = options.masters[k]
        return torch.where(master.to(param.dtype) == param, master, param.to(real))
    if options.master == "kahan" and options.masters:
        return param.to(real) + options.masters[k].to(real)
    return param.to(real)


def _store_weight(
    options: Options, param: Tensor, w: Tensor, k: int, key: Tensor, first: int
) -> None:
    if options.master == "stochastic" and param.dtype != w.dtype:
        param.copy_(stochastic_round(w, param.dtype, key, first))
        return
    param.copy_(w)
    if options.masters and options.master == "fp32":
        options.masters[k].copy_(w)
    if options.masters and options.master == "kahan":
        error = w - param.to(w.dtype)
        options.masters[k].copy_(
            torch.where(error.isfinite(), error, 0.0)
        )  # not of what overflowed


def _store_state(state: Tensor, value: Tensor, key: Tensor | None, first: int) -> None:
    """Moments of bfloat16 are rounded stochastically; a running maximum to nearest.

    Stochastically it would take the largest of many roundings, and drift up.
    """
    if state.dtype == value.dtype or key is None:
        state.copy_(value)
    else:
        state.copy_(stochastic_round(value, state.dtype, key, first))
