"""Cross-entropy of a linear layer, by chunks of rows."""

from __future__ import annotations

from typing import Any, Literal, overload

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

import regops.reference
from regops import _C
from regops._errors import wrong_types
from regops._transforms import transform_active
from regops.functional.cross_entropy import NO_SYNC_IN_COMPILED_CODE, as_tensor


@overload
def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = ...,
    weight: Tensor | None = ...,
    reduction: str = ...,
    ignore_index: int | None = ...,
    label_smoothing: float = ...,
    options: Any = ...,
    smoothing: Literal["uniform", "others"] = ...,
    z_loss: float = ...,
    entropy_weight: float = ...,
    target_b: Tensor | None = ...,
    lam: float | Tensor | None = ...,
    num_items: int | Tensor | None = ...,
    return_lse: Literal[False] = ...,
    check: Literal["sync"] | None = ...,
) -> Tensor: ...


@overload
def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = ...,
    weight: Tensor | None = ...,
    reduction: str = ...,
    ignore_index: int | None = ...,
    label_smoothing: float = ...,
    options: Any = ...,
    smoothing: Literal["uniform", "others"] = ...,
    z_loss: float = ...,
    entropy_weight: float = ...,
    target_b: Tensor | None = ...,
    lam: float | Tensor | None = ...,
    num_items: int | Tensor | None = ...,
    return_lse: Literal[True],
    check: Literal["sync"] | None = ...,
) -> tuple[Tensor, Tensor]: ...


def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    options: Any = None,
    smoothing: Literal["uniform", "others"] = "uniform",
    z_loss: float = 0.0,
    entropy_weight: float = 0.0,
    target_b: Tensor | None = None,
    lam: float | Tensor | None = None,
    num_items: int | Tensor | None = None,
    return_lse: bool = False,
    check: Literal["sync"] | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    r"""cross_entropy(linear(input, linear_weight, linear_bias), target) without the logits.

    Rows are taken in chunks: logits of a chunk into one reused buffer, cross-entropy and its
    gradient over them in place, then that gradient's products with weight and input. Beside the
    gradients only a chunk of logits is ever in memory.

    `torch.nn.functional.linear_cross_entropy` (torch 2.13), chunked with any option and under
    `torch.compile(fullgraph=True)`, differentiable twice. Under autocast the products are of the
    lower precision, as those of `torch.nn.functional.linear`.

    Args:
        input: (in_features) or (N, in_features); float64, float32, bfloat16 or float16.
        linear_weight: (C, in_features), or (C, d1, ..., in_features) for logits (N, C, d1, ...).
        target: As `regops.functional.cross_entropy` takes it beside logits (C), (N, C) or
            (N, C, d1, ...).
        linear_bias: linear_weight's shape without in_features.
        weight: As in `cross_entropy`.
        reduction: As in `cross_entropy`. With "none", and in float16, backward makes the logits
            again: four products in place of three.
        ignore_index: As in `cross_entropy`; None is -100. Not beside probabilities as target.
        label_smoothing: As in `cross_entropy`.
        options: A `torch.nn.LinearCrossEntropyOptions`, or any object with its attribute
            `batch_chunk_size`: rows a chunk. By default a chunk of logits takes about 64 MiB (256
            on CUDA), and 128 rows at least. Its other attributes have no meaning here.
        smoothing: As in `cross_entropy`.
        z_loss: As in `cross_entropy`.
        entropy_weight: As in `cross_entropy`.
        target_b: As in `cross_entropy`.
        lam: As in `cross_entropy`.
        num_items: As in `cross_entropy`.
        return_lse: As in `cross_entropy`.
        check: As in `cross_entropy`.

    Returns:
        As `cross_entropy`.

    Raises:
        IndexError: As `cross_entropy`.
        ValueError: As `cross_entropy`.
        RuntimeError: As `cross_entropy`; input and linear_weight cannot be multiplied, or differ in
            dtype or device.

    Example:
        >>> import torch, regops.functional as RF
        >>> hidden = torch.randn(8, 16, requires_grad=True)
        >>> head = torch.nn.Linear(16, 1000)
        >>> target = torch.randint(1000, (8,))
        >>> loss = RF.linear_cross_entropy(hidden, head.weight, target, linear_bias=head.bias)
        >>> loss.backward()
        >>> head.weight.grad.shape
        torch.Size([1000, 16])
    """
    tensors = (input, linear_weight, target, linear_bias, weight, target_b, lam, num_items)
    if has_torch_function_variadic(*tensors):
        overridden: Tensor = handle_torch_function(
            linear_cross_entropy,  # type: ignore[arg-type]
            tensors,
            input,
            linear_weight,
            target,
            linear_bias=linear_bias,
            weight=weight,
            reduction=reduction,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            options=options,
            smoothing=smoothing,
            z_loss=z_loss,
            entropy_weight=entropy_weight,
            target_b=target_b,
            lam=lam,
            num_items=num_items,
            return_lse=return_lse,
            check=check,
        )
        return overridden
    arguments = (
        input,
        target,
        weight,
        target_b,
        as_tensor("linear_cross_entropy", "lam", lam, input),
        as_tensor("linear_cross_entropy", "num_items", num_items, input),
        _ignored(ignore_index, input, linear_weight, target),
        reduction,
        label_smoothing,
        smoothing,
        z_loss,
        entropy_weight,
        return_lse,
        False,
        linear_weight,
        linear_bias,
        0 if options is None else options.batch_chunk_size or 0,
    )
    if torch.compiler.is_compiling():
        if check is not None:
            raise ValueError(f"regops.linear_cross_entropy: {NO_SYNC_IN_COMPILED_CODE}")
        loss, lse = torch.ops.regops.linear_cross_entropy(*arguments)
    else:
        try:
            if transform_active():
                _C.check_linear_cross_entropy(*arguments)
                loss, lse = _composite(*arguments)
            else:
                loss, lse = _C.linear_cross_entropy(*arguments, check)
        except (TypeError, RuntimeError) as error:
            raise wrong_types(
                error,
                linear_cross_entropy,
                input=input,
                linear_weight=linear_weight,
                target=target,
                linear_bias=linear_bias,
                weight=weight,
                reduction=reduction,
                ignore_index=ignore_index,
                label_smoothing=label_smoothing,
                options=options,
                smoothing=smoothing,
                z_loss=z_loss,
                entropy_weight=entropy_weight,
                target_b=target_b,
                lam=lam,
                num_items=num_items,
                return_lse=return_lse,
                check=check,
            ) from None
    return (loss, lse) if return_lse else loss


def _ignored(ignore_index: int | None, input: Tensor, linear_weight: Tensor, target: Tensor) -> int:
    """The index that the op takes: as in torch, None is -100, and none goes with probabilities."""
    if ignore_index is None:
        return -100
    if isinstance(target, Tensor) and target.shape == (
        *input.shape[:-1],
        *linear_weight.shape[:-1],
    ):
        raise RuntimeError(
            "regops.linear_cross_entropy: ignore_index cannot be specified when target contains "
            "probabilities"
        )
    return ignore_index


def _composite(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    target_b: Tensor | None,
    lam: Tensor | None,
    num_items: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    smoothing: str,
    z_loss: float,
    entropy_weight: float,
    return_lse: bool,
    inplace_backward: bool,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    chunk_rows: int,
) -> tuple[Tensor, Tensor]:
    """The dispatcher's op that is differentiable any number of times: the oracle."""
    result = regops.reference.linear_cross_entropy(
        input,
        linear_weight,
        target,
        linear_bias=linear_bias,
        weight=weight,
        reduction=reduction,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        smoothing=smoothing,
        z_loss=z_loss,
        entropy_weight=entropy_weight,
        target_b=target_b,
        lam=lam,
        num_items=num_items,
        return_lse=return_lse,
    )
    return result if isinstance(result, tuple) else (result, result.new_empty(0))


_library = torch.library.Library("regops", "IMPL")
_library.impl("linear_cross_entropy_composite", _composite, "CompositeImplicitAutograd")
