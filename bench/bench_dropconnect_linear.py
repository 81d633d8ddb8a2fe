"""DropConnect: torch's way, compiled, regops's, a copy of as many bytes, and a plain linear layer.

With a mask for each example a linear layer is no ceiling: its weights meet all examples at once.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bench.providers import Call
from regops.testing.dropconnect_linear import spec  # noqa: F401  (read by conftest)

# A right implementation is further off once in 5e8 trials.
_SIGMAS = 6

# Roundings of a result and its terms, in another order: relative to it, and to the largest.
_OF_RESULT, _OF_LARGEST = 2, 16

# Sums are in float32 also where what they are rounded to is less.
_FLOAT_EPS = torch.finfo(torch.float32).eps


def law(
    call: Call,
    x: Tensor,
    y: Tensor,
    grad: Tensor,
    dx: Tensor,
    dweight: Tensor,
    *,
    weight: Tensor,
    p: float,
    mask: str = "batch",
) -> None:
    """Products of weights that are dropped at random, each by itself, in all directions alike."""
    if mask == "batch":
        _of_one_mask(x, y, grad, dx, dweight, weight.detach(), p)
    else:
        _of_unseen_masks(x, y, grad, dx, dweight, weight.detach(), p)
        _of_seen_masks(call, x, grad, weight, p)


def _of_one_mask(
    x: Tensor, y: Tensor, grad: Tensor, dx: Tensor, dweight: Tensor, weight: Tensor, p: float
) -> None:
    """The weights' gradient shows the mask: it is 0 where a weight was dropped."""
    keep = dweight != 0
    _assert_independent(keep, p)
    x, grad, scaled = x.double(), grad.double(), weight.double() / (1 - p)
    of_all = grad.T @ x / (1 - p)
    masked = scaled.masked_fill(~keep, 0.0)
    # Few products may cancel to 0 where the weight was kept; either is right then.
    cancelled = of_all.abs() <= _OF_LARGEST * _FLOAT_EPS * of_all.abs().max()
    out, place = (cancelled & ~keep).nonzero(as_tuple=True)
    either = scaled[out, place].abs()
    slack_y = torch.zeros_like(y, dtype=torch.double).index_add_(1, out, x[:, place].abs() * either)
    slack_dx = torch.zeros_like(x).index_add_(1, place, grad[:, out].abs() * either)
    _assert_close("the gradient of the weight", dweight, of_all.masked_fill_(~keep, 0.0))
    _assert_close("the output", y, x @ masked.T, slack_y)
    _assert_close("the gradient of the input", dx, grad @ masked, slack_dx)


def _of_unseen_masks(
    x: Tensor, y: Tensor, grad: Tensor, dx: Tensor, dweight: Tensor, weight: Tensor, p: float
) -> None:
    """Sums and moments of products with masks that cannot be told from them."""
    eps = torch.finfo(x.dtype).eps
    x, y, grad, dx, dweight, weight = (one.double() for one in (x, y, grad, dx, dweight, weight))
    # Whatever the masks are, each example's and each output's products have one sum, made of the
    # results of either direction.
    products = grad * y
    for what, dim, one in (("input", 1, x * dx), ("weight", 0, (weight * dweight).T)):
        off = one.sum(dim) - products.sum(dim)
        if (off.abs() > 64 * eps * products.norm(dim=dim)).any():
            raise AssertionError(f"the gradient of the {what} is that of other masks")
    if (y == 0).any():
        raise AssertionError("an output of which all weights were dropped")
    variance = p / (1 - p) * x.square() @ weight.square().T
    z = (y - x @ weight.T) / variance.sqrt()
    # Of variance 1 and, as sums of many, nearly normal: then their squares are of variance 2.
    for what, sum, deviation in (
        ("mean", z.sum(), z.numel() ** 0.5),
        ("variance", (z.square() - 1).sum(), (2 * z.numel()) ** 0.5),
    ):
        if abs(sum.item()) > _SIGMAS * deviation:
            raise AssertionError(f"the outputs' {what} is off by {sum.item() / z.numel()}")


def _of_seen_masks(call: Call, x: Tensor, grad: Tensor, weight: Tensor, p: float) -> None:
    """A second call, of examples with one number each, and two of them with the same."""
    rows = torch.arange(len(x), device=x.device)
    places = rows // 2 % x.shape[1]
    single = torch.zeros_like(x)
    single[rows, places] = 1.0
    single.requires_grad_()
    y = call(single)
    dx, dweight = torch.autograd.grad(y, (single, weight), grad)
    keep = y != 0
    _assert_independent(keep, p)
    seen = weight.detach().double()[:, places].T.div_(1 - p).masked_fill_(~keep, 0.0)
    _assert_close("the output of a single number", y.detach(), seen)
    _assert_close(
        "the gradient of a single number", dx[rows, places], (grad.double() * seen).sum(1)
    )
    of_places = (grad.double() / (1 - p)).masked_fill_(~keep, 0.0).T
    of_weight = torch.zeros_like(weight, dtype=torch.double).index_add_(1, places, of_places)
    _assert_close("the gradient of the weights of single numbers", dweight, of_weight)


def _assert_independent(keep: Tensor, p: float) -> None:
    """At the right rate, and no neighbour's decision is another's."""
    _assert_share("kept", keep, 1 - p)
    for dim, size in enumerate(keep.shape):
        first, second = (keep.narrow(dim, 0, size // 2 * 2).unflatten(dim, (-1, 2))).unbind(dim + 1)
        _assert_share(f"alike along dimension {dim}", first == second, p * p + (1 - p) ** 2)


def _assert_share(what: str, found: Tensor, share: float) -> None:
    count, total = found.sum().item(), found.numel()
    if abs(count - total * share) > _SIGMAS * (total * share * (1 - share)) ** 0.5:
        raise AssertionError(f"{count} of {total} masks are {what}, expected {share:.2%}")


def _assert_close(what: str, got: Tensor, wanted: Tensor, slack: Tensor | float = 0.0) -> None:
    of_largest = _OF_LARGEST * _FLOAT_EPS * wanted.abs().max()
    bound = _OF_RESULT * torch.finfo(got.dtype).eps * wanted.abs() + of_largest + slack
    off = (got - wanted).abs() / bound
    if not (off <= 1).all():
        raise AssertionError(f"{what} is of another mask or scale: {off.max():.3g} times the bound")


def test_dropconnect_linear(replay: Callable[[], None]) -> None:
    replay()
