"""State of the optimizers: checkpoints, copies, resumption, and what an error leaves."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch.nn import Parameter

import regops.random
from regops.optim import SGDW, AdamW
from tests.optimizer_runs import (
    assert_near,
    assert_same,
    assert_unchanged,
    make_params,
    run,
    set_gradients,
    snapshot,
)

PAIRS = [(AdamW, torch.optim.AdamW, {}), (AdamW, torch.optim.AdamW, {"amsgrad": True})]
PAIRS += [(SGDW, torch.optim.SGD, {"momentum": 0.9}), (SGDW, torch.optim.SGD, {})]
RANDOM = {"gradient_noise": (0.1, 0.55), "state_dtype": torch.bfloat16, "master": "stochastic"}
EVERY_MASTER = ["none", "fp32", "kahan", "stochastic"]


def _saved_and_loaded(state_dict: dict[str, Any]) -> Any:
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


# ---- checkpoints ---------------------------------------------------------------------------------


@pytest.mark.parametrize("to_ours", [False, True])
@pytest.mark.parametrize(("ours", "theirs", "kwargs"), PAIRS)
def test_a_checkpoint_goes_on_in_the_other_optimizer(
    ours: Any, theirs: Any, kwargs: dict[str, Any], to_ours: bool, device: str
) -> None:
    first, second = (theirs, ours) if to_ours else (ours, theirs)
    kwargs = {**kwargs, "lr": 0.05}
    params, expected = make_params(device=device), make_params(device=device)
    optimizer = first(params, **kwargs)
    run(params, optimizer, range(5))
    resumed = second(params, **{**kwargs, "lr": 7.0})
    resumed.load_state_dict(_saved_and_loaded(optimizer.state_dict()))
    run(params, resumed, range(5, 10))
    assert_near(params, run(expected, theirs(expected, **kwargs), range(10)))
    back = first(params, **kwargs)
    back.load_state_dict(resumed.state_dict())
    run(params, back, range(10, 12))
    if theirs is torch.optim.AdamW:
        assert back.state[params[0]]["step"] == 12


@pytest.mark.parametrize("master", EVERY_MASTER)
@pytest.mark.parametrize("state_dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("optimizer", [AdamW, SGDW])
def test_a_resumed_run_is_the_same_bit_for_bit(
    optimizer: Any, dtype: torch.dtype, state_dtype: torch.dtype | None, master: str
) -> None:
    kwargs: dict[str, Any] = {"lr": 0.1, "ema_decay": 0.9, "gradient_noise": (0.1, 0.55)}
    kwargs |= {"master": master, "state_dtype": state_dtype, "max_grad_norm": 1.0}
    kwargs |= {"momentum": 0.9} if optimizer is SGDW else {"amsgrad": True}
    params, expected = make_params(dtype), make_params(dtype)
    torch.manual_seed(1)
    whole = optimizer(expected, **kwargs)
    torch.manual_seed(1)
    first = optimizer(params, **kwargs)
    torch.manual_seed(2)  # a key of its own would differ
    second = optimizer(params, **kwargs)
    run(params, first, range(2))
    second.load_state_dict(_saved_and_loaded(first.state_dict()))
    run(params, second, range(2, 4))
    run(expected, whole, range(4))
    assert_same(params, expected)
    for one, other in zip(params, expected, strict=True):
        assert second.state[one].keys() == whole.state[other].keys()
        assert_same(second.state[one].values(), whole.state[other].values())
        for entry, value in second.state[one].items():
            assert value.dtype == whole.state[other][entry].dtype


def test_types_of_state_of_low_precision_parameters() -> None:
    param = make_params(torch.bfloat16)[:1]
    for options, expected in (
        ({}, {"exp_avg": torch.float32, "exp_avg_sq": torch.float32}),
        ({"master": "fp32"}, {"master_param": torch.float32, "exp_avg": torch.float32}),
        ({"master": "kahan"}, {"compensation": torch.bfloat16, "exp_avg": torch.float32}),
        ({"state_dtype": torch.bfloat16}, {"exp_avg": torch.bfloat16}),
        ({"ema_decay": 0.5}, {"ema": torch.float32}),
    ):
        options_of: dict[str, Any] = options
        optimizer = AdamW(param, **options_of)
        run(param, optimizer, [0])
        state = optimizer.state[param[0]]
        assert state["step"].dtype == torch.float32
        assert state["step"].shape == ()
        assert {entry: state[entry].dtype for entry in expected} == expected


def test_load_hooks_see_tensors_and_their_dict_is_loaded_unharmed() -> None:
    params = make_params(torch.bfloat16)
    optimizer, resumed = AdamW(params), AdamW(params)
    run(params, optimizer, range(2))
    third = torch.tensor(1.0 / 3.0)

    def replace(_: Any, state_dict: dict[str, Any]) -> dict[str, Any]:
        new = copy.deepcopy(state_dict)
        for state in new["state"].values():
            state["exp_avg"] = torch.full_like(state["exp_avg"], third.item())
        return new

    resumed.register_load_state_dict_pre_hook(replace)
    done = []
    resumed.register_load_state_dict_post_hook(lambda each: done.append(each is resumed))
    resumed.load_state_dict(optimizer.state_dict())
    assert done == [True]
    assert resumed.state[params[0]]["exp_avg"].dtype == torch.float32
    assert (resumed.state[params[0]]["exp_avg"] == third).all()
    assert len(resumed._optimizer_load_state_dict_pre_hooks) == 1


def test_a_checkpoint_of_torchs_with_bfloat16_moments_and_without_extras() -> None:
    params = make_params(torch.bfloat16)
    theirs = torch.optim.AdamW(params)
    run(params, theirs, range(2))
    optimizer = AdamW(params, master="fp32", ema_decay=0.9, l1=0.25, max_grad_norm=3.0)
    optimizer.load_state_dict(theirs.state_dict())
    assert optimizer.param_groups[0]["l1"] == 0.25
    assert optimizer.param_groups[0]["master"] == "fp32"
    state = optimizer.state[params[0]]
    assert state["exp_avg"].dtype == torch.float32
    assert_same([state["exp_avg"]], [theirs.state[params[0]]["exp_avg"].float()])
    before = params[0].detach().float()
    run(params, optimizer, [2])
    assert state["step"] == 3
    assert state["master_param"].dtype == state["ema"].dtype == torch.float32
    assert not torch.equal(state["master_param"], before)
    torch.testing.assert_close(state["ema"], 0.9 * before + 0.1 * state["master_param"])


@pytest.mark.parametrize("default", [torch.float32, torch.float64])
def test_step_counts_of_any_kind_load_as_float32(default: torch.dtype) -> None:
    params = make_params()
    torch.set_default_dtype(default)
    try:
        theirs = torch.optim.AdamW(params)
        run(params, theirs, range(2))
        saved = theirs.state_dict()
        saved["state"][0]["step"] = 2  # of torch before 1.12
        optimizer = AdamW(params)
        optimizer.load_state_dict(saved)
        run(params, optimizer, [2])
    finally:
        torch.set_default_dtype(torch.float32)
    for param in params:
        assert optimizer.state[param]["step"].dtype == torch.float32
        assert optimizer.state[param]["step"] == 3


def test_sgd_without_step_is_past_its_first() -> None:
    """The buffer of the first step is the gradient itself, without dampening."""
    params, expected = make_params(), make_params()
    kwargs: dict[str, Any] = {"lr": 0.1, "momentum": 0.9, "dampening": 0.5}
    theirs = torch.optim.SGD(params, **kwargs)
    run(params, theirs, range(2))
    optimizer = SGDW(params, **kwargs)
    optimizer.load_state_dict(theirs.state_dict())
    assert optimizer.state[params[0]]["step"] == 1
    run(params, optimizer, range(2, 4))
    assert_near(params, run(expected, torch.optim.SGD(expected, **kwargs), range(4)))


def test_loaded_groups_that_do_not_fit_change_nothing() -> None:
    params = make_params()
    optimizer = AdamW(params, l1=0.5)
    run(params, optimizer, range(2))
    saved = copy.deepcopy(optimizer.state_dict())
    before = snapshot(optimizer)
    saved["param_groups"][0]["master"] = "fp23"
    with pytest.raises(ValueError, match=r"expected master one of 'none', 'fp32'.* got 'fp23'"):
        optimizer.load_state_dict(saved)
    saved["param_groups"] *= 2
    with pytest.raises(ValueError, match="different number of parameter groups"):
        optimizer.load_state_dict(saved)
    assert_unchanged(before, optimizer)
    assert optimizer.param_groups[0]["l1"] == 0.5


# ---- copies --------------------------------------------------------------------------------------


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))])
@pytest.mark.parametrize("optimizer", [AdamW, SGDW])
def test_copies_go_on_alike(optimizer: Any, copied: Any) -> None:
    params = make_params(torch.bfloat16)
    each = optimizer(params, lr=0.1, max_grad_norm=1.0, error_if_nonfinite=True, **RANDOM)
    run(params, each, range(2))
    pair = copied((params, each))
    run(*pair, range(2, 4))
    run(params, each, range(2, 4))
    assert_same(pair[0], params)
    assert pair[1].max_grad_norm == 1.0
    assert pair[1].error_if_nonfinite
    assert_same([pair[1].grad_norm], [each.grad_norm])
    alone = copied(each)
    assert alone.state_dict().keys() == each.state_dict().keys()
    assert str(alone) == str(each)


def test_a_group_added_in_training() -> None:
    params = make_params()
    optimizer = AdamW(params[:2], clip_value=0.5)
    run(params[:2], optimizer, range(2))
    optimizer.add_param_group({"params": params[2:], "lr": 1.0, "l1": 0.5})
    assert [group["l1"] for group in optimizer.param_groups] == [0.0, 0.5]
    assert optimizer.param_groups[1]["clip_value"] == 0.5
    run(params, optimizer, [2])
    assert optimizer.state[params[0]]["step"] == 3
    assert optimizer.state[params[2]]["step"] == 1
    other = Parameter(torch.ones(2))
    with pytest.raises(ValueError, match="expected l1 at least 0, got -1"):
        optimizer.add_param_group({"params": [other], "l1": -1.0})
    assert len(optimizer.param_groups) == 2
    optimizer.add_param_group({"params": [other], "gradient_noise": (0.1, 0.5)})
    numbers = {tuple(group["key"]) for group in optimizer.param_groups}
    assert len(numbers) == 1


def test_state_changed_by_hand_is_seen() -> None:
    params, expected = make_params(), make_params()
    optimizer, reference = AdamW(params), AdamW(expected)
    run(params, optimizer, [0])
    for param in params:
        optimizer.state[param] = {}
    optimizer.state[params[0]]["exp_avg"] = torch.zeros_like(params[0])
    run(expected, reference, [0])
    reference.state.clear()
    assert_same(run(params, optimizer, [1]), run(expected, reference, [1]))


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
