"""Label-smoothed cross-entropy (Szegedy et al., CVPR 2016)."""

from __future__ import annotations

from typing import Literal, overload

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

import regops.reference
from regops import _C
from regops._distributed import is_distributed
from regops._errors import wrong_types
from regops._transforms import transform_active

NO_SYNC_IN_COMPILED_CODE = (
    'check="sync" waits for the device, which compiled code cannot; leave it out there'
)


@overload
def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = ...,
    ignore_index: int = ...,
    reduction: str = ...,
    label_smoothing: float = ...,
    *,
    smoothing: Literal["uniform", "others"] = ...,
    z_loss: float = ...,
    entropy_weight: float = ...,
    target_b: Tensor | None = ...,
    lam: float | Tensor | None = ...,
    num_items: int | Tensor | None = ...,
    return_lse: Literal[False] = ...,
    inplace_backward: bool = ...,
    check: Literal["sync"] | None = ...,
) -> Tensor: ...


@overload
def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = ...,
    ignore_index: int = ...,
    reduction: str = ...,
    label_smoothing: float = ...,
    *,
    smoothing: Literal["uniform", "others"] = ...,
    z_loss: float = ...,
    entropy_weight: float = ...,
    target_b: Tensor | None = ...,
    lam: float | Tensor | None = ...,
    num_items: int | Tensor | None = ...,
    return_lse: Literal[True],
    inplace_backward: bool = ...,
    check: Literal["sync"] | None = ...,
) -> tuple[Tensor, Tensor]: ...


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    smoothing: Literal["uniform", "others"] = "uniform",
    z_loss: float = 0.0,
    entropy_weight: float = 0.0,
    target_b: Tensor | None = None,
    lam: float | Tensor | None = None,
    num_items: int | Tensor | None = None,
    return_lse: bool = False,
    inplace_backward: bool = False,
    check: Literal["sync"] | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    r"""Cross-entropy between logits and class indices or probabilities, and its gradient, fused.

    With lp = log_softmax(input), q the target smoothed by e = `label_smoothing`, and class weights
    w, a row's loss is l = -sum_c w_c q_c lp_c, where q = (1 - e) onehot + e / C. The logits are
    read once and their gradient is written once, during forward if they require grad; backward
    multiplies it by the upstream gradient, which is free where that is 1. With reduction "none", in
    float16 and where the target requires grad, backward reads the logits again instead.

    `torch.nn.functional.cross_entropy` with these differences:

    - The loss of bfloat16 and float16 logits is float32, as are all sums.
    - The gradient of an ignored row is 0 even where its logits are nan or inf.
    - The deprecated `size_average` and `reduce` are not taken.
    - Writing to the logits between the loss and its backward raises: they are kept for double
      backward.

    Args:
        input: Logits of shape (C), (N, C) or (N, C, d1, ...) and any strides; float64, float32,
            bfloat16 or float16.
        target: Class indices in [0, C) of shape (), (N) or (N, d1, ...), int64 or uint8; or class
            probabilities of the input's shape, of its dtype or, beside bfloat16 and float16,
            float32, which may require grad.
        weight: Weight of each class, (C), of one of the same dtypes. A constant.
        ignore_index: Rows with this class index add nothing to loss or gradient.
        reduction: "none"; "sum"; or "mean": the sum over the rows' weights (of probabilities: over
            the number of rows). nan where that is 0.
        label_smoothing: Share of the target that is spread evenly, in [0, 1].
        smoothing: Over which classes: "uniform", all C of them; "others", the C - 1 that are not
            the label, as fairseq and much teaching material do.
        z_loss: Adds z_loss * lse^2 to a row's loss, lse = logsumexp(input) (PaLM, section 5).
        entropy_weight: Subtracts entropy_weight * H(softmax(input)) from a row's loss: the
            confidence penalty of Pereyra et al. (2017). Like z-loss it counts by the weight of the
            row's class.
        target_b: Second class index of a row, for mixup and CutMix: the target is
            lam onehot(target) + (1 - lam) onehot(target_b), smoothed. If one of the two is ignored,
            the other counts by its share alone.
        lam: Share of `target`: a number, or a floating-point tensor of shape (), (N) or the
            target's.
        num_items: Divides the sum in place of the rows' weights, for reduction "mean": with the
            number of items of all micro-batches the gradients accumulate to that of their union. An
            int or a tensor of shape (), which may stay on the device.
        return_lse: Return (loss, lse), with lse of the target's shape, differentiable.
        inplace_backward: Let the gradient take the memory of `input`, so that none is allocated.
            From then on (the call itself, or its backward with reduction "none", float16,
            `return_lse` or a target that requires grad) a use of `input` or of a view of it raises
            a RuntimeError. Input must then be no leaf nor a view of one, fill its storage and
            share it with no other library. No double backward. Without effect where no gradient
            is asked for, in compiled code (where the compiler plans the memory) and under
            `torch.func`.
        check: "sync" waits for the device to raise the IndexError that the CPU always raises. By
            default a row on the device whose target is out of range is nan, in loss and gradient.
            Not in compiled code.

    Returns:
        The loss, float64 for float64 input, else float32; of the target's shape for reduction
        "none" (of the target's without the class dimension, for probabilities), else of shape ().

    Raises:
        IndexError: a class index is neither in [0, C) nor `ignore_index`, at the row named.
        ValueError: a batch size, `lam`, `num_items` or the name of a mode does not fit.
        RuntimeError: another shape, or a dtype or device, does not fit; `label_smoothing` is
            outside [0, 1]; `weight`, `lam` or `num_items` requires grad.
        NotImplementedError: the logits' dtype or layout is none of those above or, of a DTensor,
            an option or its placement is not supported.

    Logits may be a DTensor, split over the batch, over the classes (as a column-parallel linear
    layer gives them) or both: see docs/distributed.md. Target and weight are then whole in every
    process, or DTensors; loss and lse are DTensors, the gradient is placed as the logits. Of the
    options, entropy_weight, target_b, lam, inplace_backward and check are not supported, nor are
    probabilities or double backward.

    Under `torch.func` transforms (not compiled ones) and forward-mode AD a composite of PyTorch's
    ops takes over, with nan for a target out of range; it also serves double backward.

    Example:
        >>> import torch, regops.functional as RF
        >>> logits = torch.randn(4, 10, requires_grad=True)
        >>> loss = RF.cross_entropy(logits, torch.tensor([1, 7, -100, 3]), label_smoothing=0.1)
        >>> loss.backward()
        >>> logits.grad[2].count_nonzero()
        tensor(0)
    """
    tensors = (input, target, weight, target_b, lam, num_items)
    if has_torch_function_variadic(*tensors):
        overridden: Tensor = handle_torch_function(
            cross_entropy,  # type: ignore[arg-type]
            tensors,
            input,
            target,
            weight,
            ignore_index,
            reduction,
            label_smoothing,
            smoothing=smoothing,
            z_loss=z_loss,
            entropy_weight=entropy_weight,
            target_b=target_b,
            lam=lam,
            num_items=num_items,
            return_lse=return_lse,
            inplace_backward=inplace_backward,
            check=check,
        )
        return overridden
    check_ignore_index("cross_entropy", ignore_index)
    items = as_tensor("cross_entropy", "num_items", num_items, input)
    # Tensors proper, nearly all, are told apart in 20 ns.
    if type(input) is not Tensor and is_distributed(input):
        from regops.functional.vocab_parallel_cross_entropy import (
            check_distributed_options,
            distributed_cross_entropy,
        )

        check_distributed_options(
            target_b=target_b is not None,
            lam=lam is not None,
            entropy_weight=entropy_weight,
            inplace_backward=inplace_backward,
            check=check is not None,
            probabilities=isinstance(target, Tensor) and target.is_floating_point(),
        )
        loss, lse = distributed_cross_entropy(
            input,
            target,
            weight,
            items,
            ignore_index,
            reduction,
            label_smoothing,
            smoothing=smoothing,
            z_loss=z_loss,
            return_lse=return_lse,
        )
        return (loss, lse) if return_lse else loss
    arguments = (
        input,
        target,
        weight,
        target_b,
        as_tensor("cross_entropy", "lam", lam, input),
        items,
        ignore_index,
        reduction,
        label_smoothing,
        smoothing,
        z_loss,
        entropy_weight,
        return_lse,
        inplace_backward,
    )
    if torch.compiler.is_compiling():
        if check is not None:
            raise ValueError(f"regops.cross_entropy: {NO_SYNC_IN_COMPILED_CODE}")
        loss, lse = torch.ops.regops.cross_entropy(*arguments)
    else:
        try:
            if transform_active():
                _C.check_cross_entropy(*arguments)
                loss, lse = _composite(*arguments)
            else:
                loss, lse = _C.cross_entropy(*arguments, check)
        except (TypeError, RuntimeError) as error:
            raise wrong_types(
                error,
                cross_entropy,
                input=input,
                target=target,
                weight=weight,
                ignore_index=ignore_index,
                reduction=reduction,
                label_smoothing=label_smoothing,
                smoothing=smoothing,
                z_loss=z_loss,
                entropy_weight=entropy_weight,
                target_b=target_b,
                lam=lam,
                num_items=num_items,
                return_lse=return_lse,
                inplace_backward=inplace_backward,
                check=check,
            ) from None
    return (loss, lse) if return_lse else loss


def as_tensor(op: str, name: str, number: float | Tensor | None, input: Tensor) -> Tensor | None:
    """A number as a tensor made on the input's device: a copy to it would wait for the device.

    Raises:
        TypeError: it is none.
        ValueError: it is nan or negative or, of `lam`, larger than 1. Of tensors this is not asked,
            which would wait for the device.
    """
    if number is None or isinstance(number, Tensor) or not isinstance(input, Tensor):
        return number
    real = torch.promote_types(input.dtype, torch.float32)
    if torch.compiler.is_compiling():  # each number would be a constant of torch.full, recompiled
        return torch.ones((), dtype=real, device=input.device) * number
    if not isinstance(number, (int, float)) or isinstance(number, bool):
        kind = type(number).__name__
        raise TypeError(f"regops.{op}: expected {name} to be a number or a tensor, got {kind}")
    if not 0 <= number <= (1 if name == "lam" else float("inf")):
        bounds = "in [0, 1]" if name == "lam" else "of at least 0"
        raise ValueError(f"regops.{op}: expected {name} {bounds}, got {number}")
    return torch.full((), number, dtype=real, device=input.device)


def check_ignore_index(op: str, ignore_index: object) -> None:
    """Refuses torch's deprecated `size_average`, which has this position in its signature."""
    if isinstance(ignore_index, bool):
        raise TypeError(
            f"regops.{op}: expected ignore_index: int, got bool; size_average and reduce are not "
            "taken, use reduction"
        )


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
) -> tuple[Tensor, Tensor]:
    """The dispatcher's op that is differentiable any number of times: the oracle."""
    result = regops.reference.cross_entropy(
        input,
        target,
        weight,
        ignore_index,
        reduction,
        label_smoothing,
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
_library.impl("cross_entropy_composite", _composite, "CompositeImplicitAutograd")
