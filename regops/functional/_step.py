"""What the optimizer steps share on their way to the extension."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, Literal, TypedDict

import torch
from torch import Tensor

import regops
from regops import _C
from regops._errors import wrong_types
from regops.functional.grad_norm import grad_norm
from regops.random import key_like

Master = Literal["none", "fp32", "kahan", "stochastic"]


class StepOptions(TypedDict, total=False):
    """Keyword arguments of every optimizer step, with their defaults.

    Attributes:
        maximize: Ascend instead. False.
        grad_scale: What gradients were multiplied by; 0-d. They are unscaled in memory too, as by
            torch's fused optimizers, unless `zero_grad` clears them. None.
        found_inf: Not 0: gradients were not finite, nothing is written (but `zero_grad`); 0-d.
            None.
        max_grad_norm: The gradients are multiplied by min(1, max_grad_norm / (norm + 1e-6)), as by
            `torch.nn.utils.clip_grad_norm_`, but not in memory. None.
        grad_norm: Norm of the unscaled gradients, 0-d; by default `max_grad_norm` computes it from
            `grads`.
        clip_value: Their elements are then clipped to [-clip_value, clip_value]. None.
        gradient_noise: (eta, gamma): N(0, eta / (1 + t)^gamma) is added to the gradient in step t =
            0, 1, ... (Neelakantan et al. 2015). None.
        l2: l2 times the weight is added to the gradient: decay as of Adam and SGD, for comparison.
            0.0.
        l1: After the update weights move lr l1 towards 0, and stop there: the proximal step of an
            l1 penalty, exact zeros included; with weight decay the elastic net. 0.0.
        max_norm: Rows (slices along dimension 0, in parameters of two and more) that are longer in
            the 2-norm are scaled back to it. None.
        master: How bfloat16 and float16 parameters keep what their type cannot hold. "none": not
            at all. "fp32": in `masters`, float32 copies; a parameter that is not the rounded image
            of its master was changed meanwhile, and overrides it. "kahan": in `masters`, of the
            parameter's type, its rounding errors. "stochastic": by rounding up or down at random.
            "none".
        masters: See `master`; empty for "none" and "stochastic". ().
        ema_decay: emas <- ema_decay emas + (1 - ema_decay) weights, the new ones. None.
        emas: Moving averages, float32 (float64 of float64 parameters). ().
        zero_grad: Clear the gradients. False.
        key: Of `gradient_noise`, "stochastic" and bfloat16 states: int64 of shape (2,), from
            `regops.random`; the step count is folded into it. By default a new one is drawn where
            one is needed.
        streams: A number for each parameter, of which its random numbers depend. Its position.
        first_indices: Of each parameter's first element, if it is part of a larger one. 0.
    """

    maximize: bool
    grad_scale: Tensor | None
    found_inf: Tensor | None
    grad_norm: Tensor | None
    max_grad_norm: float | None
    clip_value: float | None
    l1: float
    l2: float
    gradient_noise: tuple[float, float] | None
    max_norm: float | None
    masters: Sequence[Tensor]
    master: Master
    emas: Sequence[Tensor]
    ema_decay: float | None
    zero_grad: bool
    key: Tensor | None
    streams: Sequence[int] | None
    first_indices: Sequence[int] | None


def call_step(
    name: str,
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    states: Sequence[Sequence[Tensor]],
    state_steps: Sequence[Tensor],
    lr: float | Tensor,
    rule: Sequence[float],
    weight_decay: float,
    options: StepOptions,
) -> None:
    """Calls the op regops::<name>.

    Args:
        name: "adamw_step_" or "sgdw_step_".
        params: As of the op.
        grads: As of the op.
        states: The rule's lists.
        state_steps: As of the op.
        lr: As of the op, or a number.
        rule: The rule's own numbers, in the op's order.
        weight_decay: As of the op.
        options: See there.

    Raises:
        TypeError: An unknown option; an argument of a wrong type.
    """
    if unknown := options.keys() - StepOptions.__annotations__.keys():
        raise TypeError(f"regops.{name}: unexpected keyword argument {sorted(unknown)[0]!r}")
    try:
        _call(name, params, grads, states, state_steps, lr, rule, weight_decay, options)
    except (TypeError, AttributeError, KeyError) as error:
        function = getattr(regops.functional, name)
        given = (params, grads, *states, state_steps, lr, *rule, weight_decay)
        arguments = dict(zip(inspect.signature(function).parameters, given, strict=False))
        raise wrong_types(error, function, **arguments, **options) from None


def _call(
    name: str,
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    states: Sequence[Sequence[Tensor]],
    state_steps: Sequence[Tensor],
    lr: float | Tensor,
    rule: Sequence[float],
    weight_decay: float,
    options: StepOptions,
) -> None:
    o: dict[str, Any] = dict(options)
    norm, scale = o.get("grad_norm"), o.get("grad_scale")
    if o.get("max_grad_norm") is not None and norm is None:
        norm = grad_norm(grads)
        norm = norm if scale is None else norm / scale
    key, noise = o.get("key"), o.get("gradient_noise")
    if key is None and params and (noise or _rounds_at_random(params, states, o)):
        key = key_like(params[0])
    compiling = torch.compiler.is_compiling()
    if compiling and not isinstance(lr, Tensor):
        lr = torch.tensor(lr, dtype=torch.float64)
    variance, decay = noise or (0.0, 0.0)
    call = getattr(torch.ops.regops if compiling else _C, name)
    call(
        list(params),
        list(grads),
        *(list(each) for each in states),
        list(state_steps),
        list(o.get("masters", ())),
        list(o.get("emas", ())),
        lr,
        norm,
        scale,
        o.get("found_inf"),
        key,
        *rule,
        weight_decay,
        o.get("maximize", False),
        o.get("max_grad_norm"),
        o.get("clip_value"),
        o.get("l1", 0.0),
        o.get("l2", 0.0),
        variance,
        decay,
        o.get("max_norm"),
        o.get("ema_decay"),
        o.get("zero_grad", False),
        o.get("master", "none"),
        list(o.get("streams") or ()),
        list(o.get("first_indices") or ()),
    )


def _rounds_at_random(
    params: Sequence[Tensor], states: Sequence[Sequence[Tensor]], options: dict[str, Any]
) -> bool:
    half = params[0].dtype.itemsize == 2
    moments = any(each and each[0].dtype == torch.bfloat16 for each in states)
    return moments or (half and options.get("master") == "stochastic")
