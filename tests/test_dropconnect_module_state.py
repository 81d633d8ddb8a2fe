"""What `regops.nn.DropConnect` keeps: copies, pickles, moves, removal, nothing of a call."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from regops.nn import DropConnect
from tests.dropconnect_module_call import Steps, assert_same, expected, run, tensors

LAYERS = ["weight_hh_l0", "weight_hh_l1"]


def an_lstm(p: float = 0.4, **options: Any) -> DropConnect:
    return DropConnect(nn.LSTM(3, 5, **options), "weight_hh_l0", p)


def through_pickle(module: nn.Module) -> nn.Module:
    twin: nn.Module = pickle.loads(pickle.dumps(module))
    return twin


def through_save(module: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    twin: nn.Module = torch.load(file, weights_only=False)
    return twin


def through_state_dict(module: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    twin = an_lstm(num_layers=2)
    twin.load_state_dict(torch.load(file, weights_only=True))
    return twin


def through_assigned_state_dict(module: nn.Module) -> nn.Module:
    twin = an_lstm(num_layers=2)
    state = {name: value.clone() for name, value in module.state_dict().items()}
    twin.load_state_dict(state, assign=True)
    return twin


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, through_pickle, through_save, through_state_dict, through_assigned_state_dict],
)
@pytest.mark.parametrize("before", ["new", "called", "trained", "evaluated"])
def test_copies_are_whole_and_independent(
    copied: Callable[[nn.Module], nn.Module], before: str
) -> None:
    drop, x = an_lstm(num_layers=2), torch.randn(4, 2, 3)
    if before != "new":
        output = drop.train(before != "evaluated")(x)[0]
        if before == "trained":
            output.sum().backward()
        drop.train()
    want = run(lambda: drop(x), drop)
    twin = copied(drop)
    assert_same(run(lambda: twin(x), twin), want)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert tensors(twin.eval()(x))[0].abs().max() == 0
    assert_same(run(lambda: drop(x), drop), want)
    parametrize.remove_parametrizations(twin.module, "weight_hh_l0")
    assert type(twin.module) is nn.LSTM
    assert_same(run(lambda: drop(x), drop), want)


@pytest.mark.parametrize(
    "moved",
    [
        lambda module: module.double(),
        lambda module: module.bfloat16(),
        lambda module: module.to(torch.float64),
        lambda module: module.float(),
        lambda module: module.requires_grad_(True).share_memory(),
    ],
)
@pytest.mark.parametrize("called", [False, True])
def test_moved_modules(moved: Callable[[nn.Module], nn.Module], called: bool) -> None:
    plain = nn.LSTM(3, 5, num_layers=2)
    drop, x = DropConnect(copy.deepcopy(plain), LAYERS, 0.4), torch.randn(4, 2, 3)
    if called:
        drop(x)
    state = torch.get_rng_state()
    moved(drop), moved(plain)
    assert torch.equal(torch.get_rng_state(), state)
    x = x.to(plain.weight_hh_l0.dtype)
    want = expected(plain, LAYERS, 0.4, (x,))
    assert_same(run(lambda: drop(x), drop), want)


def test_to_empty_device() -> None:
    with torch.device("meta"):
        drop = an_lstm()
    assert drop(torch.randn(4, 2, 3, device="meta"))[0].is_meta
    plain, x = nn.LSTM(3, 5), torch.randn(4, 2, 3)
    drop.to_empty(device="cpu")
    drop.load_state_dict(DropConnect(copy.deepcopy(plain), "weight_hh_l0").state_dict())
    assert_same(run(lambda: drop(x), drop), expected(plain, ["weight_hh_l0"], 0.4, (x,)))


def test_the_optimizer_moves_the_weight_that_is_used() -> None:
    plain, x = nn.LSTM(3, 5), torch.randn(4, 2, 3)
    drop = DropConnect(copy.deepcopy(plain), "weight_hh_l0", 0.4)
    for step in range(3):
        want = expected(plain, ["weight_hh_l0"], 0.4, (x,), step)
        assert_same(run(lambda: drop(x), drop, step), want)
        for each in (plain, drop):
            torch.optim.SGD(each.parameters(), 0.1).step()
    assert torch.equal(drop.eval()(x)[0], plain.eval()(x)[0])


def test_assigned_weights_are_used() -> None:
    plain, x = nn.LSTM(3, 5), torch.randn(4, 2, 3)
    drop = DropConnect(copy.deepcopy(plain), "weight_hh_l0", 0.4)
    value = torch.randn(20, 5)
    plain.weight_hh_l0.data.copy_(value)
    drop.module.weight_hh_l0 = value  # a Parameter, torch refuses
    for mode in (False, True):
        want = run(lambda: plain(x), plain)
        if mode:
            want = expected(plain, ["weight_hh_l0"], 0.4, (x,))
        drop.train(mode)
        assert_same(run(lambda: drop(x), drop), want)


def test_removal_gives_the_plain_module_back() -> None:
    plain, x = nn.LSTM(3, 5), torch.randn(4, 2, 3)
    for leave_parametrized in (False, True):
        drop = DropConnect(copy.deepcopy(plain), "weight_hh_l0")
        drop(x)[0].sum().backward()
        parametrize.remove_parametrizations(drop.module, "weight_hh_l0", leave_parametrized)
        assert type(drop.module) is nn.LSTM
        assert sorted(drop.module.state_dict()) == sorted(plain.state_dict())
        assert torch.equal(drop.module.weight_hh_l0, plain.weight_hh_l0)
        assert_same(run(lambda drop=drop: drop(x), drop), run(lambda: plain(x), plain))


@pytest.mark.parametrize("fail", [False, True])
def test_nothing_of_a_call_is_left_behind(fail: bool) -> None:
    drop = DropConnect(
        nn.Sequential(nn.LSTM(5, 5), Steps()), ["0.weight_hh_l0", "1.cell.weight_hh"]
    )
    made: list[weakref.ref[Tensor]] = []
    for host, name in ((drop.module[0], "weight_hh_l0"), (drop.module[1].cell, "weight_hh")):
        host.register_forward_pre_hook(
            lambda module, inputs, name=name: made.append(weakref.ref(getattr(module, name)))
        )
    drop.module[0].register_forward_hook(lambda module, inputs, output: output[0][0])
    if fail:
        drop.module[1].register_forward_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            drop(torch.randn(3, 2, 5))
    else:
        drop(torch.randn(3, 2, 5))
    gc.collect()
    assert len(made) == 4
    assert [each() for each in made] == [None] * 4
    lstm, cell = drop.module[0], drop.module[1].cell
    assert lstm.weight_hh_l0 is lstm.parametrizations.weight_hh_l0.original
    assert lstm._flat_weights[1] is lstm.weight_hh_l0
    assert cell.weight_hh is cell.parametrizations.weight_hh.original


def test_calls_do_not_move_the_weights_of_rnns(monkeypatch: pytest.MonkeyPatch) -> None:
    """On CUDA flattening writes into parameters, which earlier graphs have saved."""
    drop, flattened = an_lstm(num_layers=2), []
    monkeypatch.setattr(nn.LSTM, "flatten_parameters", lambda lstm: flattened.append(lstm))
    for mode in (True, True, False, True):
        drop.train(mode)(torch.randn(4, 2, 3))
    assert flattened == []
