"""regops.optim beside torch.optim: arguments, errors, steps, hooks, schedulers, GradScaler."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import pytest
import torch
from torch.nn import Parameter
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, OneCycleLR, ReduceLROnPlateau
from torch.testing._internal.common_optimizers import (
    ErrorOptimizerInput,
    OptimizerErrorEnum,
    OptimizerInput,
    optim_db,
)

from regops import _C
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


@pytest.mark.parametrize("optimizer", [AdamW, SGDW])
def test_closure(optimizer: Any) -> None:
    param = Parameter(torch.tensor([2.0]))
    each = optimizer([param], lr=0.1)
    calls = []

    def closure() -> torch.Tensor:
        each.zero_grad()
        loss = (param * param).sum()
        loss.backward()
        calls.append(torch.is_grad_enabled())
        return loss

    with torch.no_grad():
        assert each.step(closure).item() == 4.0
    assert calls == [True]
    assert param.item() < 2.0
    assert each.step() is None


def test_hooks_run_once_a_step_and_may_change_arguments() -> None:
    params = make_params()
    optimizer = AdamW(params)
    seen: list[str] = []

    def pre(*_: Any) -> Any:
        seen.append("pre")
        return (optimizer,), {"closure": lambda: seen.append("closure")}

    handle = optimizer.register_step_pre_hook(pre)
    optimizer.register_step_post_hook(lambda *_: seen.append("post"))
    run(params, optimizer, [0])
    assert seen == ["pre", "closure", "post"]
    handle.remove()
    with torch.profiler.profile() as profile:
        run(params, optimizer, [1])
    assert seen[3:] == ["post"]
    assert "Optimizer.step#AdamW.step" in {event.key for event in profile.key_averages()}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "make",
    [
        lambda each: CosineAnnealingLR(each, 5),
        lambda each: LambdaLR(each, lambda epoch: 1.0 / (1 + epoch)),
        lambda each: OneCycleLR(each, 0.1, total_steps=8),
        ReduceLROnPlateau,
    ],
)
@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_schedulers(make: Any, ours: Any, theirs: Any) -> None:
    def train(optimizer_class: Any) -> list[Parameter]:
        params = make_params()
        kwargs = {"momentum": 0.9} if optimizer_class in (SGDW, torch.optim.SGD) else {}
        optimizer = optimizer_class(params, lr=0.05, **kwargs)
        scheduler = make(optimizer)
        for step in range(6):
            run(params, optimizer, [step])
            scheduler.step(*([1.0] if make is ReduceLROnPlateau else []))
        return params

    assert_near(train(ours), train(theirs))


@pytest.mark.parametrize("unscale", [False, True])
@pytest.mark.parametrize("options", [{}, {"max_grad_norm": 0.5}, {"zero_grad": True}])
@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_grad_scaler_with_infs(
    ours: Any, theirs: Any, options: dict[str, Any], unscale: bool, device: str
) -> None:
    def train(optimizer_class: Any) -> tuple[list[Parameter], list[float], Any]:
        fused = {"fused": True} if optimizer_class is theirs else options
        params = make_params(device=device)
        # torch's fused step is wrong where gradients are of other strides
        params = [params[0], *params[3:]]
        optimizer = optimizer_class(params, lr=0.1, **fused)
        scaler = torch.amp.GradScaler(device, init_scale=1024.0, growth_interval=3)
        scaler.scale(torch.ones((), device=device))  # or it does not know its device
        scales = []
        for step in range(8):
            set_gradients(params, step, scaler.get_scale())
            if step in (0, 4):
                params[1].grad[3] = float("inf") if step else float("nan")
            if unscale or (optimizer_class is theirs and "max_grad_norm" in options):
                scaler.unscale_(optimizer)
            if optimizer_class is theirs and "max_grad_norm" in options:
                torch.nn.utils.clip_grad_norm_(params, 0.5)
            scaler.step(optimizer)
            scaler.update()
            scales.append(scaler.get_scale())
            if optimizer_class is ours and "zero_grad" in options:
                assert not any(param.grad.any() for param in params)
        return params, scales, optimizer

    actual, scales, optimizer = train(ours)
    expected, expected_scales, _ = train(theirs)
    assert scales == expected_scales
    assert min(scales) < max(scales)
    assert_near(actual, expected)
    assert optimizer.state[actual[0]]["step"] == 6
    if "max_grad_norm" in options:
        # They are unscaled in memory, by the scaler or by the step.
        norm = torch.stack([param.grad.double().norm() for param in actual]).norm()
        torch.testing.assert_close(optimizer.grad_norm, norm)


def test_gradients_are_unscaled_in_memory_as_by_torch() -> None:
    params, plain = make_params(), make_params()
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(torch.ones(()))
    set_gradients(params, 0, 8.0)
    scaler.step(AdamW(params))
    set_gradients(plain, 0)
    assert_same([p.grad for p in params], [p.grad for p in plain])


@pytest.mark.parametrize(("ours", "op"), [(AdamW, "adamw_step_"), (SGDW, "sgdw_step_")])
def test_a_step_is_one_call_a_group_and_dtype(
    ours: Any, op: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, int]] = []

    def count(name: str) -> None:
        function = getattr(_C, name)

        def counted(params: Any, *rest: Any) -> None:
            calls.append((name, len(params)))
            function(params, *rest)

        monkeypatch.setattr(_C, name, counted)

    count(op)
    count("check_" + op)
    params = make_params()
    run(params, ours(params, ema_decay=0.5), [0])
    assert calls == [(op, 7)]
    calls.clear()
    more = [*params, *make_params(torch.float64)[:2]]
    run(more, ours([{"params": more[:3]}, {"params": more[3:]}], max_grad_norm=1.0), [0])
    assert calls == [(name, count) for name in ("check_" + op, op) for count in (3, 4, 2)]


@pytest.mark.parametrize("ours", [AdamW, SGDW])
def test_compiled_step(ours: Any) -> None:
    params, plain = make_params(), make_params()
    options: dict[str, Any] = {"lr": 0.1, "max_grad_norm": 1.0, "ema_decay": 0.9}
    optimizer, reference = ours(params, **options), ours(plain, **options)
    compiled = torch.compile(optimizer.step, backend="eager")
    for step in range(3):
        set_gradients(params, step)
        compiled()
        run(plain, reference, [step])
    assert_same(params, plain)


def test_compiled_training_step() -> None:
    model = torch.nn.Linear(3, 2)
    expected = copy.deepcopy(model)
    optimizer, reference = AdamW(model.parameters(), lr=0.1), AdamW(expected.parameters(), lr=0.1)

    def train(each: torch.nn.Module, optimizer: Any, input: torch.Tensor) -> None:
        optimizer.zero_grad()
        each(input).square().sum().backward()
        optimizer.step()

    compiled = torch.compile(train, backend="eager")
    for step in range(3):
        input = torch.full((4, 3), 1.0 + step)
        compiled(model, optimizer, input)
        train(expected, reference, input)
    assert_near(model.parameters(), expected.parameters())
