"""Optimizers in training loops: closures, hooks, schedulers, GradScaler, torch.compile."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch.nn import Parameter
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, OneCycleLR, ReduceLROnPlateau

from regops import _C
from regops.optim import SGDW, AdamW
from tests.optimizer_runs import assert_near, assert_same, make_params, run, set_gradients

PAIRS = [(AdamW, torch.optim.AdamW), (SGDW, torch.optim.SGD)]


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
