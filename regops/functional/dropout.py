"""Dropout (Srivastava et al., JMLR 2014)."""

from __future__ import annotations

from collections.abc import Callable
from types import NoneType
from typing import Any

import torch
from torch import Generator, Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from regops import _C
from regops._distributed import is_distributed
from regops._errors import wrong_types
from regops._transforms import stack, transform_active
from regops.random import key_for


def dropout(
    input: Tensor,
    p: float | Tensor = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
    key: Tensor | None = None,
    generator: Generator | None = None,
) -> Tensor:
    r"""Zeroes each element with probability p and scales the others by 1 / (1 - p).

    y = x / (1 - p) where kept, 0 where dropped; the gradient likewise, with the same mask. One pass
    over the input; between forward and backward 16 bytes of key are kept and no mask.

    `torch.nn.functional.dropout` with these differences:

    - The mask is a function of the key and of each element's logical (row-major) index alone: not
      of device, thread count, dtype, memory layout or compilation (`docs/randomness.md`).
    - p has 16 bits (32 where p < 2^-16 or p > 1 - 2^-16), and the scale belongs to the p so
      rounded. The scale is a float32 (float64 for float64 input) and not rounded to the input's
      type: one rounding, of each product, is all that keeps E[y] from x.
    - A dropped inf or nan becomes 0, where torch keeps nan.

    Args:
        input: Of any shape and strides; float64, float32, bfloat16 or float16. Of a DTensor, on any
            placement, each rank drops its slice by the mask of the whole (`docs/distributed.md`).
        p: Probability of dropping, in [0, 1]. As a tensor of one element it can follow a schedule
            without recompilation of a compiled function: of a floating-point dtype, on the input's
            device (where the host does not wait for it; outside of [0, 1] all is nan) or the CPU.
            It has no gradient.
        training: False returns `input` itself, as does the number p = 0; neither draws random
            numbers.
        inplace: Write the result into `input`.
        key: int64 of shape (2,), on the input's device or the CPU, from `regops.random`. By default
            a new one is drawn from torch's random state. For a DTensor it must be equal on all
            ranks; one drawn is that of the mesh's first rank, in a broadcast that `key` spares.
        generator: Draw that key from this generator instead of the default one. Not inside a
            function compiled with `fullgraph=True`: torch cannot trace a generator.

    Returns:
        Tensor of the input's shape, dtype and, where it has no gaps or overlap, strides.

    Raises:
        ValueError: p is outside [0, 1]; key is not of shape (2,); key and generator are both given.
        TypeError: key is not int64; an argument is of the wrong type.
        RuntimeError: p is nan; input is not of a floating-point type above and training is True;
            key is on another device; `inplace` on a leaf that requires grad, or on an expanded
            tensor; a tensor p requires grad.
        NotImplementedError: of a DTensor, p is a tensor, or the shards are not ranges of one length
            at one distance, as torch's `_StridedShard` may be.

    Example:
        >>> import torch, regops.functional as RF
        >>> x = torch.ones(4, 8, requires_grad=True)
        >>> y = RF.dropout(x, p=0.25)
        >>> y.sum().backward()
        >>> torch.equal(y, x.grad)  # both are the mask, scaled
        True
    """
    if has_torch_function_unary(input):
        overridden: Tensor = handle_torch_function(
            dropout, (input,), input, p, training, inplace, key=key, generator=generator
        )
        return overridden
    if torch.compiler.is_compiling() or transform_active():
        return _composed(input, p, training, inplace, key, generator)
    try:
        if isinstance(p, Tensor):
            _check_types(input, training, inplace, key, generator)
            return _composed(input, p, training, inplace, key, generator)
        # Tensors proper, nearly all, are told apart in 20 ns.
        if type(input) is not Tensor and is_distributed(input):
            return _composed(input, p, training, inplace, key, generator)
        return _C.dropout(input, p, training, inplace, key, generator)
    except TypeError as error:
        raise wrong_types(
            error,
            dropout,
            input=input,
            p=p,
            training=training,
            inplace=inplace,
            key=key,
            generator=generator,
        ) from None


def _composed(
    input: Tensor,
    p: float | Tensor,
    training: bool,
    inplace: bool,
    key: Tensor | None,
    generator: Generator | None,
) -> Tensor:
    """The same from dispatcher ops, which compilers and functorch can see into."""
    known = not isinstance(p, Tensor)  # else the host does not look at it
    if known and (p < 0.0 or p > 1.0):
        raise ValueError(f"regops.dropout: expected p in [0, 1], got {p}")
    if key is not None and generator is not None:
        raise ValueError(
            "regops.dropout: expected key or generator, got both: a key needs no generator"
        )
    if not training or (known and p == 0.0):
        return input
    if is_distributed(input):
        import regops.functional._sharded  # noqa: F401  (tells DTensor how to run regops::dropout)
    key = key_for(input, key, generator, used=isinstance(p, Tensor) or p != 1.0)
    output: Tensor = (_Dropout.apply if transform_active() else _op(p))(input, p, key)
    return input.copy_(output) if inplace else output


def _check_types(input: Any, training: Any, inplace: Any, key: Any, generator: Any) -> None:
    """What the binding says of arguments, where it is not called."""
    flags = isinstance(training, bool) and isinstance(inplace, bool)
    keys = isinstance(key, (Tensor, NoneType)) and isinstance(generator, (Generator, NoneType))
    if not (isinstance(input, Tensor) and flags and keys):
        raise TypeError("incompatible function arguments")


def _op(p: float | Tensor) -> Callable[..., Tensor]:
    overloads = torch.ops.regops.dropout
    op: Callable[..., Tensor] = overloads.tensor_p if isinstance(p, Tensor) else overloads.default
    return op


_InDims = tuple[int | None, int | None, int | None]


class _Dropout(torch.autograd.Function):
    """regops::dropout with the rules that `torch.func` needs."""

    @staticmethod
    def forward(input: Tensor, p: float | Tensor, key: Tensor) -> Tensor:
        return _op(p)(input, p, key)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, p, key = inputs
        ctx.p, tensors = (None, (key, p)) if isinstance(p, Tensor) else (p, (key,))
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return _again(ctx, gradients[0]), None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        return _again(ctx, tangents[0])

    @staticmethod
    def vmap(info: Any, in_dims: _InDims, *arguments: Any) -> tuple[Tensor, int]:
        return _map(_Dropout.apply, info.batch_size, in_dims, *arguments)


def _again(ctx: Any, tensor: Tensor) -> Tensor:
    """The same p and key on a gradient or a tangent."""
    key, *tensor_p = ctx.saved_tensors
    output: Tensor = _Dropout.apply(tensor, tensor_p[0] if tensor_p else ctx.p, key)
    return output


@torch.library.register_vmap("regops::dropout")  # type: ignore[untyped-decorator]
def _dropout_vmap(info: Any, in_dims: _InDims, *arguments: Any) -> tuple[Tensor, int]:
    return _map(torch.ops.regops.dropout.default, info.batch_size, in_dims, *arguments)


@torch.library.register_vmap("regops::dropout.tensor_p")  # type: ignore[untyped-decorator]
def _dropout_tensor_p_vmap(info: Any, in_dims: _InDims, *arguments: Any) -> tuple[Tensor, int]:
    return _map(torch.ops.regops.dropout.tensor_p, info.batch_size, in_dims, *arguments)


def _map(
    function: Callable[..., Tensor],
    size: int,
    in_dims: _InDims,
    input: Tensor,
    p: float | Tensor,
    key: Tensor,
) -> tuple[Tensor, int]:
    """One call an example: each example's mask is that of its own logical indices."""
    inputs, keys = _unstack(input, in_dims[0], size), _unstack(key, in_dims[2], size)
    rates = _unstack(p, in_dims[1], size) if isinstance(p, Tensor) else (p,) * size
    results = [function(*arguments) for arguments in zip(inputs, rates, keys, strict=True)]
    example = input if in_dims[0] is None else input.movedim(in_dims[0], 0)[:0].sum(0)
    return stack(results, example), 0


def _unstack(tensor: Tensor, dim: int | None, size: int) -> tuple[Tensor, ...]:
    return (tensor,) * size if dim is None else tensor.unbind(dim)
