"""SGD with momentum and decoupled weight decay (Loshchilov and Hutter, ICLR 2019)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from typing_extensions import Unpack

from regops.functional._step import StepOptions, call_step


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
    **options: Unpack[StepOptions],
) -> None:
    r"""One SGDW step of all parameters: one read and one write of each tensor, no temporaries.

    w <- (1 - lr wd) w; b <- momentum b + (1 - dampening) g, in the first step b = g;
    w <- w - lr b, with nesterov w <- w - lr (g + momentum b), without momentum w <- w - lr g.

    The functional form of `regops.optim.SGDW`. The learning rate stays outside of the buffer, as in
    `torch.optim.SGD`; the paper has it inside, which differs only while the rate changes.

    Args:
        params: Written; all of one device and dtype: float64, float32, bfloat16 or float16.
        grads: Of the parameters' shapes; all of one dtype: theirs, or float32 where that has 16
            bits.
        momentum_buffers: b, of the parameters' shapes; all of one dtype: float32 (float64 for
            float64 parameters), or bfloat16, which is rounded stochastically. Empty exactly where
            `momentum` is 0.
        state_steps: float32 of shape () on the parameters' device: how many steps were done;
            counted up.
        lr: Learning rate; a tensor of one element is read on its device, without waiting for it.
        momentum: At least 0.
        dampening: Of the gradient on its way into the buffer.
        nesterov: Nesterov's momentum; it needs a positive momentum and no dampening.
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
        >>> w, b, t = torch.ones(3), torch.zeros(3), torch.zeros(())
        >>> RF.sgdw_step_([w], [torch.ones(3)], [b], [t], lr=0.5, momentum=0.9)
        >>> w
        tensor([0.5000, 0.5000, 0.5000])
    """
    call_step(
        "sgdw_step_",
        params,
        grads,
        (momentum_buffers,),
        state_steps,
        lr,
        (momentum, dampening, nesterov),
        weight_decay,
        options,
    )
