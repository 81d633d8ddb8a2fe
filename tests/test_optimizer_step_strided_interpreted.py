"""The CUDA optimizer steps of tensors that differ in their strides, executed without a GPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.optimizer_step_call import Problem
from tests.optimizer_step_problems import (
    DTYPES,
    EXTRAS,
    LOW,
    PLAIN,
    RULES,
    check,
    make,
    problem_of,
    scalar,
)


def permuted(tensor: Tensor, order: list[int]) -> Tensor:
    """The same values, in memory as if the dimensions were in this order."""
    back = [order.index(d) for d in range(tensor.dim())]
    return tensor.permute(order).contiguous().permute(back) if order else tensor


STRIDES: dict[str, Callable[[Tensor], Tensor]] = {
    "reversed": lambda x: permuted(x, list(range(x.dim()))[::-1]),
    "contiguous": lambda x: x,
    "gaps": lambda x: torch.stack([x, x], dim=-1)[..., 0],
    "last-first": lambda x: permuted(x, [*range(x.dim())][-1:] + [*range(x.dim())][:-1]),
}


def with_strides(problem: Problem) -> Problem:
    """Each list of tensors in a layout of its own."""
    lists = [problem.params, problem.grads, *problem.states, problem.masters, problem.emas]
    for i, tensors in enumerate(lists):
        layout = list(STRIDES.values())[i % len(STRIDES)]
        tensors[:] = [layout(tensor) for tensor in tensors]
    return problem


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(3, 5), (2, 3, 50), (2, 3, 4, 5), (17,), (), (0, 3), (40, 33)])
def test_strides(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    problem = make([shape], dtype=dtype, states=3, ema_decay=0.9, grad_scale=scalar(2.0))
    check(with_strides(problem), strided=True)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("options", ["all", "max-norm", "zero-grad"])
def test_strides_options(options: str, rule: str) -> None:
    arguments = RULES[rule] | (PLAIN | EXTRAS)[options]
    problem = with_strides(problem_of([(3, 21, 6)], **arguments))
    check(problem, strided=True)


@pytest.mark.parametrize("options", LOW)
def test_strides_low_precision(options: str) -> None:
    problem = with_strides(make([(3, 21, 6)], dtype=torch.bfloat16, **LOW[options]))
    problem.options["first_indices"] = [13]
    check(problem, strided=True)
