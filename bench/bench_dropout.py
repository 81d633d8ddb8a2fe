"""Dropout: torch's, compiled, regops's, and a copy of as many bytes."""

from collections.abc import Callable

import torch
from torch import Tensor

from bench.providers import Call
from regops.testing.dropout import spec  # noqa: F401  (read by conftest)


def law(call: Call, x: Tensor, y: Tensor, grad: Tensor, dx: Tensor, p: float) -> None:
    """Each element is dropped with probability p or scaled by 1/(1-p), in both directions alike."""
    dropped = (y == 0) & (x != 0)
    count, sigma = x.numel(), (x.numel() * p * (1 - p)) ** 0.5
    # Six sigma: a right implementation fails once in 5e8 runs. The 1 is for the smallest sizes.
    if abs(dropped.sum().item() - count * p) > 6 * sigma + 1:
        raise AssertionError(f"dropped {dropped.sum().item()} of {count} elements at p = {p}")
    # Scale and product are rounded once each, by eps/2 at most: (1 + eps/2)^2 - 1 <= 1.01 eps.
    rtol = 1.01 * torch.finfo(x.dtype).eps
    for what, source, result in (("output", x, y), ("gradient", grad, dx)):
        expected = (source.double() / (1 - p)).masked_fill(dropped, 0.0)
        torch.testing.assert_close(
            result.double(),
            expected,
            rtol=rtol,
            atol=0.0,
            msg=lambda message, what=what: f"{what} is neither 0 nor scaled: {message}",
        )


def test_dropout(replay: Callable[[], None]) -> None:
    replay()
