"""regops.optim beside torch.optim: arguments, errors, steps."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import pytest
import torch
from torch.nn import Parameter
from torch.testing._internal.common_optimizers import (
    ErrorOptimizerInput,
    OptimizerErrorEnum,
    OptimizerInput,
    optim_db,
)

from regops.optim import SGDW, AdamW
from tests.optimizer_runs import assert_near, assert_same, make_params, run, set_gradients

PAIRS = [(AdamW, torch.optim.AdamW), (SGDW, torch.optim.SGD)]
OURS = {torch.optim.AdamW: AdamW, torch.optim.SGD: SGDW}
INFOS = [info for info in optim_db if info.optim_cls in OURS]


def _inputs() -> list[Any]:
    return [
        pytest.param(info.optim_cls, given, id=f"{info.name}-{given.desc}")
        for info in INFOS
        for given in info.optim_inputs_func(device="cpu")
    ]


def _error_inputs() -> list[Any]:
    return [
        pytest.param(info.optim_cls, given, id=f"{info.name}-{given.optimizer_error_input.desc}")
        for info in INFOS
        for given in info.optim_error_inputs_func(device="cpu", dtype=torch.float32)
    ]


class _DecoupledSGD(torch.optim.SGD):
    """torch's SGD, whose decay is of the gradient, after one of the weights."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        decays = [group["weight_decay"] for group in self.param_groups]
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    param.mul_(1.0 - float(group["lr"]) * group["weight_decay"])
            group["weight_decay"] = 0.0
        loss = super().step(closure)
        for group, decay in zip(self.param_groups, decays, strict=True):
            group["weight_decay"] = decay
        return loss


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("torch_class", "given"), _inputs())
def test_ten_steps_of_torchs_inputs(
    torch_class: Any, given: OptimizerInput, dtype: torch.dtype, device: str
) -> None:
    def train(optimizer: Any, dtype: torch.dtype) -> list[Parameter]:
        params = make_params(dtype, device)
        return run(params, optimizer(params, **copy.deepcopy(given.kwargs)), range(10))

    theirs = torch.optim.AdamW if torch_class is torch.optim.AdamW else _DecoupledSGD
    actual = train(OURS[torch_class], dtype)
    assert_near(actual, train(theirs, dtype))
    assert_near(actual, train(theirs, torch.float64))


@pytest.mark.parametrize(("torch_class", "given"), _error_inputs())
def test_torchs_errors(torch_class: Any, given: ErrorOptimizerInput) -> None:
    inputs = given.optimizer_error_input
    params = inputs.params if inputs.params is not None else [Parameter(torch.ones(2))]
    if given.error_on == OptimizerErrorEnum.CONSTRUCTION_ERROR:
        expectation = (
            pytest.warns(given.error_type, match=given.error_regex)
            if issubclass(given.error_type, Warning)
            else pytest.raises(given.error_type, match=given.error_regex)
        )
        with expectation:
            OURS[torch_class](params, **inputs.kwargs)
    else:
        optimizer = OURS[torch_class](params, **inputs.kwargs)
        with pytest.raises(given.error_type, match=given.error_regex):
            optimizer.step()


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_arguments_are_torchs(ours: Any, theirs: Any) -> None:
    def arguments(optimizer: Any) -> list[Any]:
        return [
            (parameter.name, parameter.kind, parameter.default)
            for parameter in inspect.signature(optimizer.__init__).parameters.values()
            if parameter.kind != inspect.Parameter.VAR_KEYWORD
        ]

    assert arguments(ours) == arguments(theirs)
    optimizer = ours([Parameter(torch.ones(1))])
    assert isinstance(optimizer, theirs)
    assert theirs([Parameter(torch.ones(1))]).defaults.items() <= optimizer.defaults.items()


@pytest.mark.parametrize("optimizer", [AdamW, SGDW])
def test_differentiable_raises(optimizer: Any) -> None:
    with pytest.raises(ValueError, match="expected differentiable=False, got True"):
        optimizer([Parameter(torch.ones(1))], differentiable=True)


def test_capturable_raises_on_the_cpu_as_torchs() -> None:
    params = make_params()
    set_gradients(params, 0)
    with pytest.raises(AssertionError, match="If capturable=True, params and state_steps must be"):
        AdamW(params, capturable=True).step()


@pytest.mark.parametrize("foreach", [None, False, True])
@pytest.mark.parametrize("fused", [None, False, True])
@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_foreach_and_fused_have_no_effect(
    ours: Any, theirs: Any, foreach: bool | None, fused: bool | None
) -> None:
    params, plain = make_params(), make_params()
    if foreach and fused:
        with pytest.raises(RuntimeError, match="cannot be `True` together"):
            ours(params, foreach=foreach, fused=fused)
        return
    run(params, ours(params, foreach=foreach, fused=fused), range(2))
    assert_same(params, run(plain, ours(plain), range(2)))


@pytest.mark.parametrize("as_groups", [False, True])
def test_tensor_hyper_parameters_are_read_at_each_step(as_groups: bool) -> None:
    params, plain = make_params(), make_params()
    lr = torch.tensor(1e-2)
    betas = (torch.tensor(0.8), torch.tensor([0.95]))
    given: Any = [{"params": params, "lr": lr}] if as_groups else params
    optimizer = AdamW(given, lr=lr, betas=betas)
    expected = AdamW(plain, lr=1e-2, betas=(0.8, 0.95))
    for step in range(4):
        run(params, optimizer, [step])
        run(plain, expected, [step])
        lr.mul_(0.5)
        expected.param_groups[0]["lr"] = lr.item()
    assert_near(params, plain)


@pytest.mark.parametrize("optimizer", [AdamW, SGDW])
def test_steps_of_meta_tensors(optimizer: Any) -> None:
    """As torch's: how much memory a run takes, before there is any."""
    params = make_params(device="meta")
    each = optimizer(params, max_grad_norm=1.0, ema_decay=0.9, gradient_noise=(0.1, 0.5))
    run(params, each, range(2))
    assert all(state["ema"].shape == param.shape for param, state in each.state.items())


def test_without_first_moment_it_is_the_gradient() -> None:
    """The formula m + (1 - beta1) (g - m) alone would leave 2 % of rounding error in it here."""
    param = Parameter(torch.zeros(1))
    optimizer = AdamW([param], betas=(0.0, 0.999))
    for gradient in (1e4, 1e-3):
        param.grad = torch.full((1,), gradient)
        optimizer.step()
    assert torch.equal(optimizer.state[param]["exp_avg"], param.grad)


def test_strides_of_a_state_may_differ_from_the_parameters() -> None:
    """A contiguous checkpoint resumed in channels_last: torch's fused CPU step is wrong there."""
    params, expected = make_params(), make_params()
    optimizer, reference = AdamW(params), AdamW(expected)
    for params_of, each in ((params, optimizer), (expected, reference)):
        run(params_of, each, range(2))
    saved = optimizer.state_dict()
    for state in saved["state"].values():
        for entry, value in state.items():
            state[entry] = value.clone(memory_format=torch.contiguous_format)
    optimizer.load_state_dict(saved)
    run(params, optimizer, range(2, 4))
    assert_same(params, run(expected, reference, range(2, 4)))


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_parameters_without_gradient_and_groups_without_parameters(ours: Any, theirs: Any) -> None:
    params = make_params()
    optimizer = ours([{"params": params[:2]}, {"params": []}, {"params": params[2:]}], lr=0.1)
    before = [param.detach().clone() for param in params]
    optimizer.step()
    assert not optimizer.state
    set_gradients(params[1:3], 0)
    optimizer.step()
    assert_same(params[:1] + params[3:], before[:1] + before[3:])
    assert set(optimizer.state) == set(params[1:3])
    assert not torch.equal(params[1], before[1])
