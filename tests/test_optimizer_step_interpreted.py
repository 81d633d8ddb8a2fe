"""Every CUDA kernel of the optimizer steps, and every way to launch it, executed without a GPU."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch

from tests.cuda_library import library
from tests.optimizer_step_call import step_expected, step_interpreted
from tests.optimizer_step_problems import (
    DTYPES,
    EXTRAS,
    LOW,
    PLAIN,
    RULES,
    SHAPES,
    SMALL,
    check,
    check_options,
    compare,
    make,
    scalar,
    shifted,
)
from tests.ptx import Device, require_nvcc


def uses(kernel: str, launched: set[str]) -> bool:
    return any(kernel in name for name in launched)


@pytest.mark.parametrize("rule", RULES)
def test_plain(rule: str) -> None:
    assert uses("step_plain", check_options(SHAPES, **RULES[rule]))


@pytest.mark.parametrize("options", PLAIN)
@pytest.mark.parametrize("rule", ["adamw", "nesterov"])
def test_plain_options(rule: str, options: str) -> None:
    launched = check_options(SMALL, **RULES[rule], **PLAIN[options])
    assert uses("step_plain", launched)
    assert not uses("step_general", launched)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rule", [*RULES, "amsgrad"])
def test_general(rule: str, dtype: torch.dtype) -> None:
    arguments = RULES.get(rule, {"states": 3})
    # float32 would be plain.
    launched = check_options(SHAPES, **arguments, dtype=dtype, l2=0.1)
    assert uses("step_general", launched)
    assert not uses("step_plain", launched)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", [*PLAIN, *EXTRAS])
def test_general_options(options: str, dtype: torch.dtype) -> None:
    arguments = (PLAIN | EXTRAS)[options]
    check_options(SMALL, dtype=dtype, states=3, **arguments)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("options", LOW)
@pytest.mark.parametrize("rule", ["adamw", "momentum"])
def test_low_precision(rule: str, options: str, dtype: torch.dtype) -> None:
    if rule == "momentum" and "amsgrad" in options:
        pytest.skip("SGDW has one state")
    check_options(SHAPES, **(RULES[rule] | LOW[options]), dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_masters_of_full_precision(dtype: torch.dtype) -> None:
    """Allowed, and nothing but a copy."""
    for master in ("fp32", "kahan", "stochastic"):
        check_options(SMALL, dtype=dtype, master=master)


def test_bfloat16_state_of_float32() -> None:
    check_options(SHAPES, state_dtype=torch.bfloat16, states=3)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_general_with_several_blocks(dtype: torch.dtype) -> None:
    check_options([(8192,), (16389,), (7,)], dtype=dtype, ema_decay=0.5, l1=1.0)


@pytest.mark.parametrize("grad_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_gradients_of_another_type(dtype: torch.dtype, grad_dtype: torch.dtype) -> None:
    check_options(SMALL, dtype=dtype, grad_dtype=grad_dtype, grad_scale=scalar(2.0), l1=0.5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("first", [0, 5, 2**35 + 3])
def test_max_norm(first: int, dtype: torch.dtype) -> None:
    """Rows that end within groups, of more than a block's threads; vectors have none."""
    shapes: list[tuple[int, ...]] = [(5, 3), (40,), (2, 2100), (7, 1), (2, 3, 8), (3, 0), (0, 3)]
    arguments: dict[str, Any] = {"gradient_noise": (0.01, 0.55), "max_norm": 1.5}
    if dtype.itemsize == 2:
        arguments["master"] = "stochastic"
    problem = make(shapes, dtype=dtype, **arguments)
    problem.options["first_indices"] = [first] * len(shapes)
    check(problem)
    for param in problem.params:
        if param.dim() >= 2 and param.numel():
            norms = param.double().flatten(1).norm(dim=1)
            # Rounded to 16 bits after the scaling.
            assert (norms <= 1.5 * (1 + torch.finfo(dtype).eps)).all()


@pytest.mark.parametrize("firsts", [[1, 2, 7], [8, 4, 2**35 + 4]])
@pytest.mark.parametrize("options", ["stochastic", "all-random"])
def test_random_numbers_belong_to_indices(options: str, firsts: list[int]) -> None:
    arguments = LOW[options] | {"streams": [9, 2**40, 0], "first_indices": firsts}
    check_options([(1000,), (37,), (16500,)], dtype=torch.bfloat16, **arguments)


def test_key_on_the_device() -> None:
    problem = make(SHAPES, dtype=torch.bfloat16, **LOW["all-random"])
    problem.key_on_device = True
    check(problem)


@pytest.mark.parametrize("lr_dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("rule", ["adamw", "sgd"])
def test_lr_on_the_device(rule: str, lr_dtype: torch.dtype) -> None:
    problem = make(SMALL, **RULES[rule])
    problem.hyper["lr"] = scalar(0.02, lr_dtype)
    check(problem)


@pytest.mark.parametrize("zero_grad", [False, True])
@pytest.mark.parametrize("found_inf", [1.0, math.nan])
@pytest.mark.parametrize("options", ["none", "max-norm"])
def test_gradients_that_are_not_finite(options: str, found_inf: float, zero_grad: bool) -> None:
    arguments = (PLAIN | EXTRAS)[options] | {"grad_scale": scalar(4.0)}
    problem = make(SHAPES, found_inf=scalar(found_inf), zero_grad=zero_grad, **arguments)
    problem.grads[0][0] = math.inf
    before = copy.deepcopy(problem)
    check(problem)
    assert torch.equal(problem.params[3], before.params[3])
    assert torch.equal(problem.steps[3], before.steps[3])
    assert (problem.grads[3] == 0).all() == zero_grad


@pytest.mark.parametrize("norm", [math.inf, math.nan])
def test_norms_that_are_not_finite(norm: float) -> None:
    problem = make(SMALL, max_grad_norm=1.0, grad_norm=scalar(norm, torch.float64))
    problem.grads[0][0, :2] = torch.tensor([math.inf, math.nan])
    check(problem)


@pytest.mark.parametrize(("rule", "count"), [("adamw", 81), ("sgd", 240)])
def test_more_tensors_than_a_launch_takes(rule: str, count: int) -> None:
    shapes: list[tuple[int, ...]] = [(k * 5 % 19,) for k in range(count)]
    check(make(shapes, **RULES[rule]))
    check(make(shapes, **RULES[rule], clip_value=0.5))


@pytest.mark.parametrize(
    "operand", ["param", "grad", "first", "second", "largest", "master", "ema"]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_one_operand_is_misaligned(dtype: torch.dtype, operand: str) -> None:
    extras = operand in ("largest", "master", "ema")
    arguments: dict[str, Any] = {"master": "fp32", "ema_decay": 0.9, "states": 3} if extras else {}
    problem = make([(1003,), (6, 7)], dtype=dtype, **arguments)
    lists = [problem.params, problem.grads, *problem.states, problem.masters, problem.emas]
    names = ["param", "grad", *("first", "second", "largest")[: len(problem.states)]]
    tensors = dict(zip([*names, "master", "ema"], lists, strict=True))[operand]
    tensors[:] = [shifted(tensor, 1) for tensor in tensors]
    check(problem)


def test_several_steps() -> None:
    """Not synchronised between steps: errors add up."""
    steps = 5
    several: list[dict[str, Any]] = [
        {},
        {"dtype": torch.float64, "l1": 0.1},
        {"rule": "sgdw", "clip_value": 0.5},
    ]
    for arguments in several:
        problem = make(SMALL, done=0, **arguments)
        actual = copy.deepcopy(problem)
        for step in range(steps):
            for ours, theirs in zip(actual.grads, problem.grads, strict=True):
                theirs.copy_(torch.randn(theirs.shape) + step)
                ours.copy_(theirs)
            step_interpreted(actual)
            step_expected(problem)
        compare(actual, problem, steps)


@pytest.mark.parametrize("order", ["reverse", 3])
def test_blocks_in_any_order(order: str | int) -> None:
    """Bit for bit the same: no block reads what another writes."""
    require_nvcc()
    problem = make([(2, 5000), (300,)], max_norm=2.0, grad_scale=scalar(2.0))
    other = copy.deepcopy(problem)
    step_interpreted(problem)
    step_interpreted(other, Device(library("compute_90"), order=order))
    for k in range(2):
        for name, tensor in problem.operands(k).items():
            assert torch.equal(tensor, other.operands(k)[name])
