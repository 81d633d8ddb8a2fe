"""Norm of all gradients, for clipping (Pascanu, Mikolov, Bengio, ICML 2013)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from regops import _C
from regops._errors import wrong_types


def grad_norm(grads: Sequence[Tensor]) -> Tensor:
    """The 2-norm of all gradients together: one read of each.

    Sums are in float64, in an order that does not depend on the thread count: no overflow where
    torch's norm of float16 gradients is infinite.

    Args:
        grads: Tensors of any shapes and strides; float64, float32, bfloat16 or float16; on one
            device.

    Returns:
        float64 tensor of shape (); 0 on the CPU for no gradients.

    Raises:
        TypeError: `grads` is no sequence of tensors.
        RuntimeError: Another dtype; several devices; sparse gradients.

    Example:
        >>> import torch, regops.functional as RF
        >>> RF.grad_norm([torch.ones(9), torch.ones(4, 4)])
        tensor(5., dtype=torch.float64)
    """
    if torch.compiler.is_compiling():
        norm: Tensor = torch.ops.regops.grad_norm(list(grads))
        return norm
    try:
        return _C.grad_norm(list(grads))
    except TypeError as error:
        raise wrong_types(error, grad_norm, grads=grads) from None
