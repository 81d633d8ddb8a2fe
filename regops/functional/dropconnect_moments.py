"""Mean and variance of a DropConnect layer's outputs (Wan et al., ICML 2013)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

import regops.reference
from regops import _C
from regops._errors import wrong_types
from regops._transforms import transform_active


def dropconnect_moments(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    p: float = 0.5,
    *,
    drop_bias: bool = False,
) -> tuple[Tensor, Tensor]:
    r"""Mean and variance, over masks, of each output of `dropconnect_linear`.

    mean = x W^T + b, variance = p / (1 - p) x^2 (W^2)^T, and p / (1 - p) b^2 more where the bias is
    dropped too; both in one pass over the weight, the same for `mask="batch"` and `mask="sample"`.
    The paper's inference (Wan et al. 2013) draws outputs from the normal distribution of these.

    Args:
        input: (..., in_features); float64, float32, bfloat16 or float16.
        weight: (out_features, in_features), of the input's dtype.
        bias: (out_features), of the input's dtype.
        p: Probability of dropping, in [0, 1). As in `dropout` it has 16 bits; the variance is that
            of the p in force.
        drop_bias: Whether the bias is masked as the weights are.

    Returns:
        mean, (..., out_features), of the input's dtype, and variance, of the same shape, in float32
        (float64 for float64 input). Both are differentiable.

    Raises:
        ValueError: p is outside [0, 1).
        TypeError: An argument is of the wrong type.
        RuntimeError: As `dropconnect_linear`.

    Example:
        >>> import torch, regops.functional as RF
        >>> mean, variance = RF.dropconnect_moments(torch.ones(1, 3), torch.tensor([[1.0, 2, 3]]))
        >>> mean.item(), variance.item()
        (6.0, 14.0)
    """
    if has_torch_function_variadic(input, weight, bias):
        overridden: tuple[Tensor, Tensor] = handle_torch_function(
            dropconnect_moments,
            (input, weight, bias),
            input,
            weight,
            bias,
            p,
            drop_bias=drop_bias,
        )
        return overridden
    if transform_active() and not torch.compiler.is_compiling():
        return regops.reference.dropconnect_moments(input, weight, bias, p, drop_bias=drop_bias)
    if torch.compiler.is_compiling():
        moments: tuple[Tensor, Tensor] = torch.ops.regops.dropconnect_moments(
            input, weight, bias, p, drop_bias
        )
        return moments
    try:
        return _C.dropconnect_moments(input, weight, bias, p, drop_bias)
    except (TypeError, RuntimeError) as error:
        raise wrong_types(
            error,
            dropconnect_moments,
            input=input,
            weight=weight,
            bias=bias,
            p=p,
            drop_bias=drop_bias,
        ) from None
