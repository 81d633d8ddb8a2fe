"""Small training runs that the optimizers' tests share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter


def make_params(dtype: torch.dtype = torch.float32, device: str = "cpu") -> list[Parameter]:
    """A matrix, a channels-last one, a transposed one, a vector, one element, none, and 0-d."""
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        values = torch.randn(shape, generator=generator)
        return values.to(dtype=dtype, device=device)

    values = [
        normal(5, 7),
        normal(2, 3, 4, 5).to(memory_format=torch.channels_last),
        normal(9, 4).t(),
        normal(33),
        normal(1),
        normal(0, 3),
        normal(),
    ]
    return [Parameter(value) for value in values]


def set_gradients(params: Iterable[Parameter], step: int, scale: float = 1.0) -> None:
    """Gradients that depend on the step alone, contiguous whatever the parameter's strides."""
    generator = torch.Generator().manual_seed(100 + step)
    for param in params:
        values = torch.randn(param.shape, generator=generator)
        param.grad = (values * scale).to(dtype=param.dtype, device=param.device)


def run(
    params: list[Parameter], optimizer: torch.optim.Optimizer, steps: Iterable[int]
) -> list[Parameter]:
    """Steps with the gradients of `set_gradients`."""
    for step in steps:
        set_gradients(params, step)
        optimizer.step()
    return params


def assert_same(actual: Iterable[Tensor], expected: Iterable[Tensor]) -> None:
    """Bit for bit."""
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one.detach(), other.detach(), rtol=0, atol=0, equal_nan=True)


def assert_near(actual: Iterable[Tensor], expected: Iterable[Tensor]) -> None:
    """Up to the rounding of ten steps, in either's lesser type."""
    for one, other in zip(actual, expected, strict=True):
        dtype = one.dtype if one.dtype.itemsize < other.dtype.itemsize else other.dtype
        torch.testing.assert_close(one.detach().to(dtype), other.detach().to(dtype))


def snapshot(optimizer: torch.optim.Optimizer) -> list[Any]:
    """Copies of all that a step writes."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    states = [
        {entry: value.clone() for entry, value in optimizer.state[param].items()}
        if param in optimizer.state
        else None
        for param in params
    ]
    grads = [None if param.grad is None else param.grad.clone() for param in params]
    return [[param.detach().clone() for param in params], grads, states]


def assert_unchanged(before: list[Any], optimizer: torch.optim.Optimizer) -> None:
    """Nothing was written since."""
    params, grads, states = before
    after_params, after_grads, after_states = snapshot(optimizer)
    assert_same(after_params, params)
    for one, other in zip(after_grads, grads, strict=True):
        assert (one is None) == (other is None)
        if one is not None and not one.is_sparse:
            torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
    for one, other in zip(after_states, states, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert one.keys() == other.keys()
            assert_same(one.values(), other.values())
