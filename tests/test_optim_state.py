"""State of the optimizers: checkpoints, resumption, copies."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch.nn import Parameter

from regops.optim import SGDW, AdamW
from tests.optimizer_runs import (
    assert_near,
    assert_same,
    assert_unchanged,
    make_params,
    run,
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


def test_parameters_that_share_a_loaded_step_count_apart() -> None:
    params = make_params()
    optimizer = AdamW(params)
    run(params, optimizer, range(2))
    saved = optimizer.state_dict()
    shared = torch.tensor(2.0)
    for state in saved["state"].values():
        state["step"] = shared
    optimizer.load_state_dict(saved)
    run(params, optimizer, [2])
    assert all(state["step"] == 3 for state in optimizer.state.values())
    assert shared == 2


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
