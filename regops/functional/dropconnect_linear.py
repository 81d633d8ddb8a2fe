"""DropConnect (Wan et al., ICML 2013): a linear layer whose weights are dropped."""

from __future__ import annotations

import math
import operator
from typing import Any, Literal

import torch
from torch import Generator, Tensor
from torch.nn import functional
from torch.overrides import handle_torch_function, has_torch_function_variadic

from regops import _C
from regops._errors import wrong_types
from regops._transforms import stack, transform_active
from regops.functional.dropconnect_moments import dropconnect_moments
from regops.random import key_for
from regops.reference.dropconnect_linear import masked_linear


def dropconnect_linear(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    p: float | Tensor = 0.5,
    training: bool = True,
    *,
    mask: Literal["batch", "sample"] = "batch",
    drop_bias: bool = False,
    inference: Literal["mean", "gaussian"] = "mean",
    samples: int = 1,
    key: Tensor | None = None,
    generator: Generator | None = None,
) -> Tensor:
    r"""A linear layer each of whose weights is zeroed with probability p.

    y = x (M o W)^T / (1 - p) + b, with M one mask for all of the batch, or one for each example:
    y[i] = x[i] (M[i] o W)^T / (1 - p) + b. The masks are made inside the products and again in
    backward: no mask is stored, nor all of a masked weight, nor (examples x out_features x
    in_features) of anything.

    Wan, Zeiler, Zhang, LeCun, Fergus, "Regularization of Neural Networks using DropConnect", ICML
    2013; the scale 1 / (1 - p) is that of (inverted) dropout, so the weight itself is the mean one.
    Dropout drops activations, this drops weights; DropPath drops whole examples or branches.

    Args:
        input: (..., in_features); float64, float32, bfloat16 or float16. Every row of
            in_features is an example: of (batch, time, in_features), every time step.
        weight: (out_features, in_features), of the input's dtype.
        bias: (out_features), of the input's dtype.
        p: Probability of dropping, in [0, 1]. It has 16 bits, as in `dropout`. As a tensor of one
            element on the CPU it can follow a schedule without recompilation of a compiled
            function; it has no gradient, and always draws a key.
        training: False drops nothing and takes `inference`'s way.
        mask: "batch": one mask for all examples of the call. "sample": one for each, as in the
            paper; products then cannot be a BLAS's, and the random numbers, examples x out_features
            x in_features, are most of the time.
        drop_bias: Whether the bias is masked and scaled as the weights are, as in the paper.
        inference: What the layer returns when not training. "mean": the linear layer of the mean
            weights, x W^T + b. "gaussian": the paper's moment matching, numbers from the normal
            distribution of each output's mean and variance over masks (`dropconnect_moments`). The
            caller applies the activation to them and averages over dimension 0.
        samples: How many numbers an output "gaussian" draws.
        key: int64 of shape (2,), on the input's device or the CPU, from `regops.random`. By default
            a new one is drawn from torch's random state.
        generator: Draw that key from this generator instead of the default one. Not inside a
            function compiled with `fullgraph=True`.

    Returns:
        (..., out_features) of the input's dtype; (samples, ..., out_features) when not training
        and inference="gaussian".

    Raises:
        ValueError: p is outside [0, 1] (or is 1 where "gaussian" needs a variance); mask or
            inference is not one of those above; samples < 1; key is not of shape (2,); key and
            generator are both given.
        TypeError: key is not int64; an argument is of the wrong type.
        RuntimeError: p is nan; the shapes do not multiply; dtypes or devices differ; the dtype is
            none of those above.

    Example:
        >>> import torch, regops.random, regops.functional as RF
        >>> x, weight = torch.randn(8, 64), torch.randn(32, 64, requires_grad=True)
        >>> y = RF.dropconnect_linear(x, weight, p=0.5)
        >>> y.sum().backward()
        >>> key = regops.random.key(42)  # the same key, the same mask
        >>> first = RF.dropconnect_linear(x, weight, p=0.5, key=key)
        >>> torch.equal(first, RF.dropconnect_linear(x, weight, p=0.5, key=key))
        True
        >>> round((weight.grad == 0).float().mean().item(), 1)  # dropped weights learn nothing
        0.5
    """
    if has_torch_function_variadic(input, weight, bias):
        overridden: Tensor = handle_torch_function(
            dropconnect_linear,
            (input, weight, bias),
            input,
            weight,
            bias,
            p,
            training,
            mask=mask,
            drop_bias=drop_bias,
            inference=inference,
            samples=samples,
            key=key,
            generator=generator,
        )
        return overridden
    if inference not in ("mean", "gaussian"):
        raise ValueError(
            f"regops.dropconnect_linear: expected inference 'mean' or 'gaussian', got {inference!r}"
        )
    count = _count(samples)
    gaussian = not training and inference == "gaussian"
    if isinstance(p, Tensor):
        if gaussian or transform_active():  # where its value is looked at
            p = p.item()
        else:
            _check_options(0.5, mask, key, generator)
            return _composed(input, weight, bias, p, training, mask, drop_bias, key, generator)
    if torch.compiler.is_compiling():
        _check_options(p, mask, key, generator)
        if gaussian:
            return _gaussian(input, weight, bias, p, drop_bias, count, key, generator)
        return _composed(input, weight, bias, p, training, mask, drop_bias, key, generator)
    try:
        if not gaussian and not transform_active():
            return _C.dropconnect_linear(
                input, weight, bias, p, training, mask, drop_bias, key, generator
            )
        draws = training or gaussian
        _C.check_dropconnect_linear(input, weight, bias, p, draws, mask, key, generator)
    except (TypeError, RuntimeError) as error:
        raise wrong_types(
            error,
            dropconnect_linear,
            input=input,
            weight=weight,
            bias=bias,
            p=p,
            training=training,
            mask=mask,
            drop_bias=drop_bias,
            key=key,
            generator=generator,
        ) from None
    if gaussian:
        return _gaussian(input, weight, bias, p, drop_bias, count, key, generator)
    return _composed(input, weight, bias, p, training, mask, drop_bias, key, generator)


def _count(samples: int) -> int:
    try:
        count = operator.index(samples)
    except TypeError:
        got = type(samples).__name__
        raise TypeError(f"regops.dropconnect_linear: expected samples: int, got {got}") from None
    if count < 1:
        raise ValueError(f"regops.dropconnect_linear: expected samples of 1 or more, got {count}")
    return count


def _check_options(p: float, mask: str, key: Tensor | None, generator: Generator | None) -> None:
    """What no dispatcher op would refuse: of compiled code, which cannot call the binding."""
    if p < 0.0 or p > 1.0:
        raise ValueError(f"regops.dropconnect_linear: expected p in [0, 1], got {p}")
    if mask not in ("batch", "sample"):
        raise ValueError(
            f"regops.dropconnect_linear: expected mask 'batch' or 'sample', got {mask!r}"
        )
    if key is not None and generator is not None:
        raise ValueError(
            "regops.dropconnect_linear: expected key or generator, got both: a key needs no "
            "generator"
        )


def _gaussian(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    p: float,
    drop_bias: bool,
    samples: int,
    key: Tensor | None,
    generator: Generator | None,
) -> Tensor:
    """Numbers from N(mean, variance) of each output: element (s, ..., n) takes normal number i."""
    mean, variance = dropconnect_moments(input, weight, bias, p, drop_bias=drop_bias)
    key = key_for(input, key, generator)
    like = variance.detach().expand(samples, *variance.shape)
    normal = torch.ops.regops.normal_like(like, key)
    # The root has no derivative at 0, where an example that is all zero stands.
    positive = variance > 0
    deviation = torch.where(positive, variance, 1.0).sqrt() * positive
    drawn: Tensor = (mean + deviation * normal).to(mean.dtype)
    return drawn


def _composed(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    p: float | Tensor,
    training: bool,
    mask: str,
    drop_bias: bool,
    key: Tensor | None,
    generator: Generator | None,
) -> Tensor:
    """The same from dispatcher ops, which compilers and functorch can see into."""
    known = not isinstance(p, Tensor)
    if not training or (known and p == 0.0):
        return functional.linear(input, weight, bias)
    key = key_for(input, key, generator, used=isinstance(p, Tensor) or p != 1.0)
    output: Tensor
    if isinstance(p, Tensor) or not transform_active():
        overloads = torch.ops.regops.dropconnect_linear
        op = overloads.default if known else overloads.tensor_p
        output = op(input, weight, bias, p, key, mask, drop_bias)
        return output
    return _under_transforms(input, weight, bias, p, key, mask, drop_bias)


def _under_transforms(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    p: float,
    key: Tensor,
    mask: str,
    drop_bias: bool,
) -> Tensor:
    """With masks in memory, for functorch: every step is differentiable in every mode."""
    examples = (math.prod(input.shape[:-1]),) if mask == "sample" else ()
    ones = torch.ones((), dtype=torch.bfloat16, device=weight.device)
    keep = torch.ops.regops.dropout(ones.expand(*examples, *weight.shape), p, key) != 0
    keep_bias = None
    if bias is not None and drop_bias:
        # A layer of no weights is its bias.
        none = ones.expand(*(examples or (1,)), 0), ones.expand(len(bias), 0)
        kept = torch.ops.regops.dropconnect_linear(
            *none, ones.expand(len(bias)), p, key, mask, True
        )
        keep_bias = (kept if examples else kept[0]) != 0
    return masked_linear(input, weight, bias, p, keep, keep_bias)


@torch.library.register_vmap("regops::dropconnect_linear")  # type: ignore[untyped-decorator]
def _dropconnect_linear_vmap(
    info: Any, in_dims: tuple[int | None, ...], *arguments: Any
) -> tuple[Tensor, int]:
    """One call an example: each example's masks are those of its own logical indices."""
    mapped = [
        [argument] * info.batch_size if dim is None else argument.unbind(dim)
        for argument, dim in zip(arguments, in_dims, strict=True)
    ]
    outputs = [torch.ops.regops.dropconnect_linear(*each) for each in zip(*mapped, strict=True)]
    input, weight = (
        one if dim is None else one.movedim(dim, 0)[:0].sum(0)
        for one, dim in zip(arguments[:2], in_dims[:2], strict=True)
    )
    return stack(outputs, input.new_empty((*input.shape[:-1], len(weight)))), 0


@torch.library.register_vmap("regops::normal_like")  # type: ignore[untyped-decorator]
def _normal_like_vmap(
    info: Any, in_dims: tuple[int | None, int | None], like: Tensor, key: Tensor
) -> tuple[Tensor, int]:
    """One call an example: each example's numbers are those of its own logical indices."""
    one = like if in_dims[0] is None else like.movedim(in_dims[0], 0)[:0].sum(0)
    keys = [key] * info.batch_size if in_dims[1] is None else key.unbind(in_dims[1])
    numbers = [torch.ops.regops.normal_like(one, each) for each in keys]
    return stack(numbers, one), 0
