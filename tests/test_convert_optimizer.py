"""`regops.convert_` and `regops.revert_` of running optimizers.

Long, as every pair of optimizers goes through all that may hold one: schedulers, scalers, hooks.
"""

from __future__ import annotations

import copy
import pickle
import warnings
from pathlib import Path
from types import MethodType
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, OneCycleLR, SequentialLR

import regops
from regops._swaps import Swap
from regops.optim import SGDW, AdamW
from tests.optimizer_runs import assert_near, assert_same, make_params, run, set_gradients

PAIRS: list[tuple[Any, Any, dict[str, Any]]] = [
    (torch.optim.AdamW, AdamW, {"lr": 0.05, "weight_decay": 0.1}),
    (torch.optim.AdamW, AdamW, {"lr": 0.05, "amsgrad": True, "maximize": True}),
    (torch.optim.AdamW, AdamW, {"lr": 0.05, "foreach": True}),
    (torch.optim.AdamW, AdamW, {"lr": 0.05, "fused": True, "betas": (0.8, 0.99), "eps": 1e-4}),
    (torch.optim.AdamW, AdamW, {"lr": torch.tensor(0.05), "foreach": False}),
    (torch.optim.Adam, AdamW, {"lr": 0.05}),
    (torch.optim.Adam, AdamW, {"lr": 0.05, "weight_decay": 0.1, "decoupled_weight_decay": True}),
    (torch.optim.SGD, SGDW, {"lr": 0.05}),
    (torch.optim.SGD, SGDW, {"lr": 0.05, "momentum": 0.9, "dampening": 0.5}),
    (torch.optim.SGD, SGDW, {"lr": 0.05, "momentum": 0.9, "nesterov": True, "fused": True}),
]
each_pair = pytest.mark.parametrize(("theirs", "ours", "kwargs"), PAIRS)


def described(optimizer: torch.optim.Optimizer) -> Any:
    """All of an optimizer in plain values, with the types and devices of its state."""
    state = {
        index: {entry: (value.dtype, value.device, value.tolist()) for entry, value in of.items()}
        for index, of in optimizer.state_dict()["state"].items()
    }
    own = {name for name in vars(optimizer) if name not in ("state", "param_groups", "step")}
    return type(optimizer), state, optimizer.state_dict()["param_groups"], optimizer.defaults, own


# ---- training goes on ----------------------------------------------------------------------------


@each_pair
def test_training_goes_on_there_and_back(
    theirs: Any, ours: Any, kwargs: dict[str, Any], device: str
) -> None:
    params, expected = make_params(device=device), make_params(device=device)
    if kwargs.get("fused"):  # torch's is wrong where strides of gradient and parameter differ
        params, expected = ([p for p in of if p.is_contiguous()] for of in (params, expected))
    optimizer, reference = theirs(params, **kwargs), theirs(expected, **kwargs)
    groups, state = optimizer.param_groups[0], optimizer.state
    run(params, optimizer, range(3))
    report = regops.convert_(optimizer)
    assert type(optimizer) is ours
    assert [(entry.name, entry.before, entry.after) for entry in report.swapped] == [
        ("", f"torch.optim.{theirs.__name__}", f"regops.optim.{ours.__name__}")
    ]
    assert optimizer.param_groups[0] is groups
    assert optimizer.state is state
    assert_near(run(params, optimizer, range(3, 6)), run(expected, reference, range(6)))
    assert regops.revert_(optimizer).swapped[0].after == f"torch.optim.{theirs.__name__}"
    assert_near(run(params, optimizer, range(6, 9)), run(expected, reference, range(6, 9)))
    for one, other in zip(described(optimizer), described(reference), strict=True):
        if not isinstance(one, dict) or 0 not in one:
            assert one == other
    assert len(optimizer.state) == len(reference.state)
    of = {id(param): other for param, other in zip(params, expected, strict=True)}
    for param, of_param in optimizer.state.items():
        of_reference = reference.state[of[id(param)]]
        assert of_param.keys() == of_reference.keys()
        for entry, value in of_param.items():
            assert value.dtype == of_reference[entry].dtype
            assert value.device == of_reference[entry].device
    assert_near(
        [value for each in optimizer.state.values() for value in each.values()],
        [value for each in reference.state.values() for value in each.values()],
    )


@each_pair
def test_conversion_and_reversion_alone_change_nothing(
    theirs: Any, ours: Any, kwargs: dict[str, Any]
) -> None:
    params = make_params()
    optimizer = theirs(params, **kwargs)
    run(params, optimizer, range(2))
    before = copy.deepcopy(described(optimizer))
    regops.convert_(optimizer)
    assert str(regops.convert_(optimizer)).endswith(" 0 swapped, 0 left, 1 of regops already")
    regops.revert_(optimizer)
    assert described(optimizer) == before
    assert str(regops.revert_(optimizer)).endswith(" 0 swapped, 0 left, 1 of torch already")


@pytest.mark.parametrize("steps", [0, 2])
def test_groups_with_options_of_their_own(steps: int) -> None:
    params, expected = make_params(), make_params()

    def made(params: list[Any]) -> torch.optim.Optimizer:
        groups: list[Any] = [
            {"params": params[:3], "lr": 0.1, "name": "first"},
            {"params": params[3:]},
        ]
        groups[1] |= {"weight_decay": 0.5, "betas": (0.5, 0.9), "amsgrad": True}
        return torch.optim.AdamW(groups, lr=0.01)

    optimizer, reference = made(params), made(expected)
    run(params, optimizer, range(steps))
    regops.convert_(optimizer)
    assert [group["ema_decay"] for group in optimizer.param_groups] == [None, None]
    assert_near(run(params, optimizer, range(steps, 4)), run(expected, reference, range(4)))
    optimizer.add_param_group({"params": make_params()[:1], "l1": 0.5})
    assert [group["l1"] for group in optimizer.param_groups] == [0.0, 0.0, 0.5]
    assert regops.revert_(optimizer).left[0].why == "torch has no l1=0.5"
    assert type(optimizer) is AdamW


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_moments_of_other_types(dtype: torch.dtype) -> None:
    params, expected = make_params(dtype), make_params(dtype)
    optimizer, reference = torch.optim.AdamW(params), AdamW(expected)
    run(params, optimizer, range(2))
    reference.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    regops.convert_(optimizer)
    real = torch.promote_types(dtype, torch.float32)
    assert optimizer.state[params[0]]["exp_avg"].dtype == real
    for param, other in zip(params, expected, strict=True):
        other.data.copy_(param.data)
    assert_same(run(params, optimizer, range(2, 4)), run(expected, reference, range(2, 4)))
    regops.revert_(optimizer)
    assert optimizer.state[params[0]]["exp_avg"].dtype == dtype
    run(params, optimizer, [4])


def test_a_first_step_that_was_skipped() -> None:
    """SGD's buffer begins as the gradient, without dampening, after a skipped step as well."""
    params, expected = make_params(), make_params()
    kwargs: dict[str, Any] = {"lr": 0.1, "momentum": 0.9, "dampening": 0.5}
    optimizer: Any = SGDW(params, **kwargs)
    optimizer.found_inf = torch.ones(())  # as GradScaler
    run(params, optimizer, [0])
    del optimizer.found_inf
    assert optimizer.state[params[0]]["step"] == 0
    regops.revert_(optimizer)
    assert type(optimizer) is torch.optim.SGD
    reference = torch.optim.SGD(expected, **kwargs)
    assert_same(run(params, optimizer, range(2)), run(expected, reference, range(2)))


# ---- who else holds the optimizer ----------------------------------------------------------------


@pytest.mark.parametrize("back", [False, True])
def test_schedulers_go_on(back: bool) -> None:
    """They wrap `step` on the object, and warn where it is not wrapped or not called."""
    params, expected = make_params(), make_params()
    optimizer, reference = torch.optim.AdamW(params, lr=0.1), torch.optim.AdamW(expected, lr=0.1)

    def scheduled(each: torch.optim.Optimizer) -> Any:
        first, second = LambdaLR(each, lambda step: (step + 1) / 4), CosineAnnealingLR(each, 4)
        return SequentialLR(each, [first, second], milestones=[3])

    schedulers = scheduled(optimizer), scheduled(reference)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        regops.convert_(optimizer)
        if back:
            regops.revert_(optimizer)
        for step in range(6):
            for of, each, schedule in zip(
                (params, expected), (optimizer, reference), schedulers, strict=True
            ):
                run(of, each, [step])
                schedule.step()
            if step == 4:
                regops.convert_(optimizer)
    assert optimizer.param_groups[0]["lr"] == reference.param_groups[0]["lr"]
    assert_near(params, expected)
    assert optimizer.step.__wrapped__ is AdamW.step  # type: ignore[attr-defined]
    assert "step" in vars(optimizer)


def test_a_scheduler_that_is_made_after() -> None:
    params, expected = make_params(), make_params()
    optimizer, reference = torch.optim.AdamW(params), torch.optim.AdamW(expected)
    regops.convert_(optimizer)
    for of, each in ((params, optimizer), (expected, reference)):
        schedule = OneCycleLR(each, 0.1, total_steps=4)
        for step in range(4):
            run(of, each, [step])
            if step < 3:
                schedule.step()
    assert_near(params, expected)


def test_hooks_of_all_kinds() -> None:
    params = make_params()
    optimizer = torch.optim.AdamW(params)
    fired: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: fired.append("before"))
    optimizer.register_step_post_hook(lambda *_: fired.append("after"))
    optimizer.register_state_dict_post_hook(lambda *_: fired.append("saved"))
    optimizer.register_load_state_dict_pre_hook(lambda *_: fired.append("loading"))
    for change in (regops.convert_, regops.revert_):
        change(optimizer)
        assert not fired
        run(params, optimizer, [0])
        optimizer.load_state_dict(optimizer.state_dict())
        assert fired == ["before", "after", "saved", "loading"]
        fired.clear()


def test_hooks_fire_where_no_optimizer_of_ours_was_made_before() -> None:
    """Torch hooks `step` of a class when its first object is constructed; here none is."""

    class Fresh(AdamW):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            self._step()

    optimizer = torch.optim.AdamW(make_params())
    fired: list[str] = []
    optimizer.register_step_post_hook(lambda *_: fired.append("after"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(regops.optim._convert, "OPTIMIZER_SWAPS", [Swap(torch.optim.AdamW, Fresh)])
        regops.convert_(optimizer)
    assert type(optimizer) is Fresh
    optimizer.step()
    assert fired == ["after"]


@pytest.mark.parametrize("unscaled", [False, True])
def test_grad_scaler_goes_on(unscaled: bool) -> None:
    """Also between its `unscale_` and its `step`; the second of its steps overflows."""
    params, expected = make_params(), make_params()
    optimizer, reference = torch.optim.AdamW(params, lr=0.1), torch.optim.AdamW(expected, lr=0.1)
    for of, each in ((params, optimizer), (expected, reference)):
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
        for step in range(4):
            set_gradients(of, step, float(scaler.scale(torch.ones(()))))
            if step == 1:
                of[0].grad = torch.full_like(of[0], torch.inf)
            if unscaled:
                scaler.unscale_(each)
            if each is optimizer and step == 1:
                regops.convert_(each)
            scaler.step(each)
            scaler.update()
        assert scaler.get_scale() == 2.0
    assert type(optimizer) is AdamW
    assert_near(params, expected)


def test_closures_and_profiles() -> None:
    params = make_params()
    optimizer = torch.optim.AdamW(params)
    regops.convert_(optimizer)

    def closure() -> float:
        set_gradients(params, 0)
        return 3.0

    with torch.profiler.profile() as profile:
        assert optimizer.step(closure) == 3.0
    assert "Optimizer.step#AdamW.step" in {event.key for event in profile.key_averages()}


def test_compiled_steps_go_on() -> None:
    """One that takes the step from the object becomes ours; one that took it before stays torch's.

    Both must be right, on the state that they share.
    """
    torch._dynamo.reset()
    params, expected = make_params(), make_params()
    optimizer, reference = torch.optim.AdamW(params, lr=0.1), torch.optim.AdamW(expected, lr=0.1)
    named = torch.compile(lambda: optimizer.step(), backend="eager")
    bound = torch.compile(optimizer.step, backend="eager")
    for step in range(6):
        set_gradients(params, step)
        (named if step % 2 else bound)()
        if step == 1:
            regops.convert_(optimizer)
    assert_near(params, run(expected, reference, range(6)))


@pytest.mark.skipif(not dist.is_available(), reason="torch without distributed")
def test_sharded_parameters(tmp_path: Path) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    plain = nn.Linear(4, 3)
    sharded = copy.deepcopy(plain)
    init = f"file://{tmp_path}/store"
    dist.init_process_group("gloo", init_method=init, rank=0, world_size=1)
    try:
        fully_shard(sharded, mesh=init_device_mesh("cpu", (1,)))
        optimizers = [torch.optim.AdamW(each.parameters(), lr=0.1) for each in (sharded, plain)]
        for step in range(6):
            for model, optimizer in zip((sharded, plain), optimizers, strict=True):
                model(torch.full((2, 4), 1.0 + step)).square().sum().backward()
                optimizer.step()
                optimizer.zero_grad()
            if step in (1, 3):
                change = regops.convert_ if step == 1 else regops.revert_
                assert change(optimizers[0]).swapped
        whole: list[Any] = list(sharded.parameters())
        assert_near([param.full_tensor() for param in whole], plain.parameters())
        assert type(optimizers[0].state[whole[0]]["exp_avg"]) is type(whole[0].data)
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))])
def test_copies_know_where_they_came_from(copied: Any) -> None:
    params = make_params()
    optimizer = torch.optim.Adam(params, lr=0.1)
    run(params, optimizer, range(2))
    regops.convert_(optimizer)
    pair: Any = copied((params, optimizer))
    assert type(pair[1]) is AdamW
    regops.revert_(pair[1])
    assert type(pair[1]) is torch.optim.Adam
    assert_near(run(pair[0], pair[1], range(2, 4)), run(params, optimizer, range(2, 4)))


def test_ours_from_the_start_become_torchs() -> None:
    params = make_params()
    optimizer = AdamW(params, lr=0.1)
    run(params, optimizer, range(2))
    expected = copy.deepcopy(params)
    reference = torch.optim.AdamW(expected, lr=0.1)
    reference.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    regops.revert_(optimizer)
    assert type(optimizer) is torch.optim.AdamW
    assert_same(run(params, optimizer, range(2, 4)), run(expected, reference, range(2, 4)))
    assert "master" not in optimizer.defaults
    optimizer.add_param_group({"params": make_params()[:1]})
    assert "master" not in optimizer.param_groups[1]


# ---- what is left --------------------------------------------------------------------------------


class OwnAdamW(torch.optim.AdamW):
    pass


class OurOwnAdamW(AdamW):
    pass


def with_sparse_gradient() -> torch.optim.Optimizer:
    table = nn.Embedding(4, 2, sparse=True)
    table(torch.tensor([1])).sum().backward()
    return torch.optim.SGD(table.parameters())


def with_replaced_step(params: list[Any]) -> torch.optim.Optimizer:
    optimizer = torch.optim.AdamW(params)
    LambdaLR(optimizer, lambda _: 1.0)
    step = optimizer.step
    optimizer.step = lambda closure=None: step(closure)  # type: ignore[method-assign]
    return optimizer


def with_scheduler_around_replaced_step(params: list[Any]) -> torch.optim.Optimizer:
    optimizer = torch.optim.AdamW(params)
    optimizer.step = MethodType(lambda each: None, optimizer)  # type: ignore[method-assign]
    LambdaLR(optimizer, lambda _: 1.0)
    return optimizer


def of_complex() -> list[nn.Parameter]:
    return [nn.Parameter(torch.ones(2, dtype=torch.complex64))]


LEFT: list[tuple[Any, str]] = [
    (lambda p: OwnAdamW(p), "a subclass of torch.optim.AdamW, whose own code"),
    (lambda p: torch.optim.RMSprop(p), "none of its rule"),
    (lambda p: torch.optim.AdamW(p, differentiable=True), "differentiable=True"),
    (
        lambda p: torch.optim.AdamW([{"params": p, "l1": "mine"}]),
        "an option of ours: regops.optim.AdamW: expected l1 a number",
    ),
    (lambda p: torch.optim.Adam(p, weight_decay=0.1), "AdamW that is l2=0.1"),
    (lambda p: torch.optim.SGD(p, weight_decay=1e-4), "SGDW, where that is l2=0.0001"),
    (lambda p: torch.optim.AdamW(of_complex()), "a parameter is of type complex64"),
    (lambda p: with_sparse_gradient(), "a gradient is sparse"),
    (with_replaced_step, "its step was replaced on the object"),
    (with_scheduler_around_replaced_step, "its step was replaced on the object"),
]


@pytest.mark.parametrize(("made", "why"), LEFT, ids=lambda each: each if type(each) is str else "")
def test_what_is_left_and_why(made: Any, why: str) -> None:
    optimizer = made(make_params())
    before = type(optimizer), set(vars(optimizer)), copy.deepcopy(optimizer.state_dict())
    report = regops.convert_(optimizer)
    assert not report.swapped
    assert why in report.left[0].why
    assert why in str(report)
    assert (type(optimizer), set(vars(optimizer)), optimizer.state_dict()) == before


LEFT_OF_OURS: list[tuple[Any, str]] = [
    (lambda p: OurOwnAdamW(p), "a subclass of regops.optim.AdamW, whose own code"),
    (lambda p: AdamW(p, max_grad_norm=1.0), "torch has no max_grad_norm=1.0"),
    (lambda p: AdamW(p, ema_decay=0.5, zero_grad=True), "torch has no ema_decay=0.5, zero_grad"),
    (lambda p: SGDW(p, l2=0.1), "torch has no l2=0.1"),
    (lambda p: SGDW(p, weight_decay=0.1), "weight_decay=0.1 enters the gradient in torch.optim"),
    (lambda p: AdamW(p, state_dtype=torch.bfloat16), "torch has no state_dtype=torch.bfloat16"),
]


@pytest.mark.parametrize(("made", "why"), LEFT_OF_OURS, ids=lambda each: "")
def test_what_revert_leaves(made: Any, why: str) -> None:
    params = make_params()
    optimizer = made(params)
    before = type(optimizer)
    report = regops.revert_(optimizer)
    assert why in report.left[0].why
    assert type(optimizer) is before
    run(params, optimizer, [0])
    assert regops.convert_(optimizer).already == ("",)


def test_no_reversion_inside_averaged_parameters() -> None:
    params = make_params()
    optimizer = AdamW(params, ema_decay=0.5)
    run(params, optimizer, [0])
    with optimizer.averaged_parameters():
        assert "inside averaged_parameters()" in regops.revert_(optimizer).left[0].why


@pytest.mark.parametrize(
    "options", [{}, {"ema_decay": 0.9, "state_dtype": torch.bfloat16}], ids=str
)
def test_after_a_checkpoint_of_ours_was_loaded(options: dict[str, Any]) -> None:
    """A script that converts, and resumes before it converts."""
    params, expected = make_params(), make_params()
    key = {"key": regops.random.key(3)} if options else {}
    saved = AdamW(params, lr=0.05, **options, **key)
    reference = AdamW(expected, lr=0.05, **options, **key)
    run(params, saved, range(3))
    run(expected, reference, range(5))
    resumed = torch.optim.AdamW(params, lr=0.1)
    resumed.load_state_dict(copy.deepcopy(saved.state_dict()))
    report = regops.convert_(resumed)
    assert report.swapped, report
    run(params, resumed, [3, 4])
    assert_near(params, expected)
    assert all(resumed.param_groups[0][option] == value for option, value in options.items())
