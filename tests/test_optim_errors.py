"""Keys of the optimizers, and what an error leaves."""

from __future__ import annotations

import copy
import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

import regops.random
from regops.optim import SGDW, AdamW
from tests.optimizer_runs import (
    assert_same,
    assert_unchanged,
    make_params,
    run,
    set_gradients,
    snapshot,
)

# ---- randomness ----------------------------------------------------------------------------------


def test_keys() -> None:
    def train(seed: int, **options: Any) -> list[Parameter]:
        params = make_params()
        torch.manual_seed(seed)
        return run(params, AdamW(params, lr=0.1, gradient_noise=(0.1, 0.5), **options), range(2))

    assert_same(train(1), train(1))
    assert not torch.equal(train(1)[0], train(2)[0])
    key = regops.random.key(5)
    assert_same(train(1, key=key), train(2, key=key))
    state = torch.get_rng_state()
    optimizer = AdamW(make_params())
    assert torch.equal(torch.get_rng_state(), state)
    assert "key" not in optimizer.state_dict()["param_groups"][0]
    optimizer = AdamW(make_params(), key=regops.random.key(-3, 4), gradient_noise=(0.1, 0.5))
    assert optimizer.state_dict()["param_groups"][0]["key"] == [-3, 4]


def test_random_numbers_depend_on_the_position_among_all_parameters() -> None:
    def train(groups: int) -> list[Parameter]:
        params = make_params()
        split = [params] if groups == 1 else [params[:3], params[3:]]
        given = [{"params": part} for part in split]
        key = regops.random.key(1)
        return run(params, AdamW(given, gradient_noise=(0.1, 0.5), key=key), range(2))

    assert_same(train(1), train(2))


@pytest.mark.parametrize(
    ("key", "error", "match"),
    [
        (3, TypeError, "expected key an int64 tensor, got 3"),
        (torch.zeros(2), TypeError, "expected key an int64 tensor, got torch.float32"),
        (torch.zeros(3, dtype=torch.int64), ValueError, r"of shape \(2,\), got \(3,\)"),
    ],
)
def test_wrong_keys(key: Any, error: Any, match: str) -> None:
    with pytest.raises(error, match=match):
        AdamW(make_params(), key=key)


# ---- errors --------------------------------------------------------------------------------------


def _sparse(params: list[Parameter], optimizer: Any) -> None:
    params[3].grad = torch.ones(33).to_sparse()


def _nonfinite(params: list[Parameter], optimizer: Any) -> None:
    assert params[3].grad is not None
    params[3].grad[2] = float("nan")


def _of_group(option: str, value: Any) -> Any:
    def change(params: list[Parameter], optimizer: Any) -> None:
        optimizer.param_groups[1][option] = value

    change.__name__ = option
    return change


def _state(params: list[Parameter], optimizer: Any) -> None:
    state = optimizer.state[params[3]]
    entry = next(entry for entry in state if entry != "step")
    state[entry] = torch.zeros(32)


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (_sparse, RuntimeError),
        (_nonfinite, RuntimeError),
        (_state, (RuntimeError, ValueError)),
        (_of_group("lr", "fast"), (TypeError, ValueError)),
        (_of_group("weight_decay", -1.0), ValueError),
        (_of_group("clip_value", -1.0), ValueError),
    ],
)
@pytest.mark.parametrize("optimizer", [AdamW, SGDW])
def test_an_error_leaves_everything_as_it_was(
    optimizer: Any, spoil: Any, error: Any, groups: int, first: bool
) -> None:
    def make() -> tuple[list[Parameter], Any]:
        params = make_params()
        split = [params[:3], params[3:]] if groups == 2 else [[], params]
        given = [{"params": part} for part in split]
        kwargs = {"max_grad_norm": 1.0, "error_if_nonfinite": True, "ema_decay": 0.5}
        kwargs |= {"momentum": 0.9} if optimizer is SGDW else {}
        return params, optimizer(given, zero_grad=True, **kwargs)

    params, each = make()
    if spoil is _state and first:
        return  # there is none
    steps = 0 if first else 2
    run(params, each, range(steps))
    group = dict(each.param_groups[1])
    set_gradients(params, steps)
    spoil(params, each)
    before = snapshot(each)
    with pytest.raises(error):
        each.step()
    assert_unchanged(before, each)
    # and it goes on as if nothing had been
    if spoil is _state:
        return
    each.param_groups[1].update(group)
    for param in params:
        param.grad = None
    run(params, each, [steps])
    expected, reference = make()
    assert_same(params, run(expected, reference, range(steps + 1)))


@pytest.mark.parametrize("optimizer", [AdamW, SGDW])
def test_complex_and_sparse_gradients_raise_clearly(optimizer: Any) -> None:
    param = Parameter(torch.ones(2, dtype=torch.complex64))
    param.grad = torch.ones_like(param)
    each = optimizer([*make_params(), param])
    with pytest.raises(RuntimeError, match=r"regops\..*omplex"):
        each.step()
    assert not each.state
    real = Parameter(torch.ones(2))
    real.grad = torch.ones(2).to_sparse()
    with pytest.raises(RuntimeError, match=r"regops\..*parse"):
        optimizer([real]).step()


def _grouped(*values: Tensor) -> tuple[list[Parameter], list[dict[str, Any]]]:
    params = [Parameter(value) for value in values]
    for param in params:
        param.grad = torch.ones(param.shape, dtype=param.dtype)
    return params, [{"params": [param]} for param in params]


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate")
@pytest.mark.parametrize("optimizer", [AdamW, SGDW])
def test_a_parameter_that_is_there_twice_raises(optimizer: Any) -> None:
    """Two threads would step it at the same time."""
    (param,), _ = _grouped(torch.ones(3))
    each = optimizer([param, param])
    before = snapshot(each)
    with pytest.raises(ValueError, match="each of params once, got the same tensor at indices 0 a"):
        each.step()
    assert_unchanged(before, each)


@pytest.mark.parametrize("optimizer", [AdamW, SGDW])
def test_a_gradient_that_is_there_twice_raises_where_it_is_cleared(optimizer: Any) -> None:
    """The second parameter would find zeros."""
    params, _ = _grouped(torch.ones(3), torch.ones(3))
    params[1].grad = params[0].grad
    each = optimizer(params, zero_grad=True)
    before = snapshot(each)
    with pytest.raises(ValueError, match="each of grads once"):
        each.step()
    assert_unchanged(before, each)
    optimizer(params).step()
    assert_same(params[:1], params[1:])


def test_state_made_in_inference_mode_raises_before_the_step() -> None:
    """Torch refuses to count its version up, after the step would have been done."""
    params = make_params()
    optimizer = AdamW(params)
    run(params, optimizer, range(2))
    with torch.inference_mode():
        saved = copy.deepcopy(optimizer.state_dict())
    optimizer.load_state_dict(saved)
    before = snapshot(optimizer)
    with pytest.raises(RuntimeError, match=r"exp_avgs\[0\] .*made in inference mode"):
        optimizer.step()
    assert_unchanged(before, optimizer)


def test_more_dimensions_than_a_strided_step_takes_raise_before_the_first_call() -> None:
    many = torch.ones([2] * 13, dtype=torch.float64).permute(*reversed(range(13)))
    _, groups = _grouped(torch.ones(3), many)
    each = AdamW(groups)
    before = snapshot(each)
    with pytest.raises(NotImplementedError, match="at most 12 dimensions"):
        each.step()
    assert_unchanged(before, each)


# ---- what belongs to the whole optimizer, and what a state must have -----------------------------


@pytest.mark.parametrize("key", [regops.random.key(1), "a", [1, 2.0], (1, 2)])
def test_key_of_a_group_is_refused(key: Any) -> None:
    params = make_params()
    with pytest.raises(ValueError, match="expected key as an argument of the optimizer"):
        AdamW([{"params": params, "key": key}], gradient_noise=(0.1, 0.5))


def test_nothing_to_judge_without_a_norm() -> None:
    with pytest.raises(
        ValueError, match="expected max_grad_norm with error_if_nonfinite, got none"
    ):
        AdamW(make_params(), error_if_nonfinite=True)


def test_numbers_of_numpy_are_numbers() -> None:
    plain, other = make_params(), make_params()
    run(plain, AdamW(plain, max_grad_norm=0.5, l1=0.25), range(2))
    run(other, AdamW(other, max_grad_norm=np.float32(0.5), l1=np.float64(0.25)), range(2))
    assert_same(plain, other)


@pytest.mark.parametrize("entry", ["exp_avg", "exp_avg_sq"])
def test_lost_moment_is_refused(entry: str) -> None:
    params = make_params()
    optimizer = AdamW(params)
    run(params, optimizer, range(3))
    state = optimizer.state_dict()
    del state["state"][0][entry]
    optimizer.load_state_dict(state)
    set_gradients(params, 3)
    before = snapshot(optimizer)
    with pytest.raises(RuntimeError, match=f"expected {entry} in the state .* after 3 steps"):
        optimizer.step()
    assert_unchanged(before, optimizer)


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("ema_decay", "x", "expected ema_decay a number, got 'x'"),
        ("l1", "a", "expected l1 a number, got 'a'"),
        ("betas", 3, "expected betas of two numbers, got 3"),
        ("lr", None, "expected lr a number, got None"),
        ("lr", "x", "expected lr a number, got 'x'"),
        ("eps", "x", "expected eps a number, got 'x'"),
    ],
)
def test_an_option_set_to_another_type_is_named(option: str, value: object, words: str) -> None:
    parameter = torch.nn.Parameter(torch.ones(1000))
    parameter.grad = torch.ones(1000)
    optimizer = AdamW([parameter])
    optimizer.step()
    optimizer.param_groups[0][option] = value
    before = parameter.detach().clone()
    with pytest.raises(TypeError, match=re.escape(f"regops.optim.AdamW: {words}")):
        optimizer.step()
    assert torch.equal(parameter, before)
