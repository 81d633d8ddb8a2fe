"""A provider is right before it is timed.

regops is compared with its reference under the key that it drew. Providers with other random
numbers obey the op's law instead: a function beside the op's benchmark that says what every right
result has in common. Providers of an op without random numbers are compared with the reference.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import regops.random
from bench.providers import Call, Point

SEED = 20110

# (input, output, gradient of the output, gradient of the input, the op's arguments); raises
# AssertionError if no right implementation could give these.
Law = Callable[..., None]


def verify(name: str, call: Call, point: Point, x: Tensor, grad: Tensor, law: Law | None) -> None:
    """Raises AssertionError unless a provider's output and gradient are right.

    Args:
        name: Of the provider.
        call: What it offers; exactly this is timed afterwards.
        point: The op and its arguments.
        x: Input; requires grad.
        grad: Gradient of the output.
        law: For providers whose random numbers are not the reference's.
    """
    torch.manual_seed(SEED)
    y = call(x)
    (dx,) = torch.autograd.grad(y, x, grad)
    kwargs = dict(point.case.kwargs)
    if point.spec.keyed and name != "regops":
        if law is None:
            raise AssertionError(f"no law says what is right for {name} of {point.spec.name}")
        law(x.detach(), y.detach(), grad, dx, **kwargs)
        return
    if point.spec.keyed:
        torch.manual_seed(SEED)
        kwargs["key"] = regops.random.new_key(x.device)
    expected = point.spec.reference(x, **kwargs)
    (expected_dx,) = torch.autograd.grad(expected, x, grad)
    tolerance = point.spec.tolerance[point.dtype]
    for what, got, want in (("output", y, expected), ("gradient", dx, expected_dx)):
        torch.testing.assert_close(
            got,
            want,
            rtol=tolerance.rtol,
            atol=tolerance.atol,
            msg=lambda message, what=what: f"{what} differs from the reference: {message}",
        )


def verify_copy(copy: Call, source: Tensor) -> None:
    """Raises AssertionError unless the copy equals its source and is another tensor."""
    copied = copy(source)
    same = torch.equal(copied.view(torch.uint8), source.view(torch.uint8))
    if not same or copied.data_ptr() == source.data_ptr():
        raise AssertionError("the copy differs from its source")
