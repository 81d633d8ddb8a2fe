"""AdamW (Loshchilov and Hutter, ICLR 2019)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from typing_extensions import Unpack

from regops.functional._step import StepOptions, call_step


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
    **options: Unpack[StepOptions],
) -> None:
    r"""One AdamW step of all parameters: one read and one write of each tensor, no temporaries.

    w <- (1 - lr wd) w; m <- m + (1 - beta1) (g - m); v <- beta2 v + (1 - beta2) g^2;
    w <- w - lr / (1 - beta1^t) m / (sqrt(v) / sqrt(1 - beta2^t) + eps).

    The functional form of `regops.optim.AdamW`, for those who keep the state themselves. Gradients,
    parameters and state of one parameter may differ in strides.

    Args:
        params: Written; all of one device and dtype: float64, float32, bfloat16 or float16.
        grads: Of the parameters' shapes; all of one dtype: theirs, or float32 where that has 16
            bits.
        exp_avgs: m, of the parameters' shapes; all of one dtype: float32 (float64 for float64
            parameters), or bfloat16, which is rounded stochastically.
        exp_avg_sqs: v, likewise.
        max_exp_avg_sqs: Largest v so far (amsgrad), likewise, or empty. Of bfloat16 it is rounded
            to nearest.
        state_steps: t, float32 of shape () on the parameters' device: how many steps were done;
            counted up.
        lr: Learning rate; a tensor of one element is read on its device, without waiting for it.
        beta1: Decay of m a step, in [0, 1).
        beta2: Decay of v, in [0, 1).
        eps: Added to the denominator, at least 0.
        weight_decay: At least 0.
        options: See `regops.functional.StepOptions`.

    Raises:
        ValueError: A number out of range; lists of different lengths; shapes that differ; an
            unknown `master`; missing or surplus `masters` or `emas`; a parameter, a step count or a
            gradient that is written twice in its list.
        TypeError: An argument or option of a wrong type or name.
        RuntimeError: Dtypes other than above; several devices; sparse tensors; overlapping memory;
            tensors made in inference mode. Nothing has been written then.

    Example:
        >>> import torch, regops.functional as RF
        >>> w, m, v, t = torch.ones(3), torch.zeros(3), torch.zeros(3), torch.zeros(())
        >>> RF.adamw_step_([w], [torch.ones(3)], [m], [v], [], [t], lr=0.5, weight_decay=0.0)
        >>> w
        tensor([0.5000, 0.5000, 0.5000])
    """
    call_step(
        "adamw_step_",
        params,
        grads,
        (exp_avgs, exp_avg_sqs, max_exp_avg_sqs),
        state_steps,
        lr,
        (beta1, beta2, eps),
        weight_decay,
        options,
    )
