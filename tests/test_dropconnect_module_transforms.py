"""`regops.nn.DropConnect` under torch's transforms: compile, checkpoint, vmap, functional_call."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import regops.functional as RF
from regops.nn import DropConnect
from tests.dropconnect_module_call import assert_same, expected, run

ORIGINAL = "module.parametrizations.weight.original"


def test_compiled_into_one_graph() -> None:
    torch._dynamo.reset()
    plain = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    names, x = ["0.weight", "2.weight"], torch.randn(4, 6)
    drop = DropConnect(copy.deepcopy(plain), names, 0.4)
    compiled = torch.compile(drop, fullgraph=True)
    for p in (0.4, 0.4, 0.2):
        drop.p = p
        assert_same(run(lambda: compiled(x), drop), expected(plain, names, p, (x,)))
    drop.eval()
    assert_same(run(lambda: compiled(x), drop), run(lambda: plain(x), plain))


@pytest.mark.parametrize("rnn", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("inside", [False, True])
def test_compiled_around_rnns(rnn: type[nn.Module], inside: bool) -> None:
    """Which torch does not compile: a graph break, and the masks of eager."""
    torch._dynamo.reset()
    plain, x = rnn(3, 5), torch.randn(4, 2, 3)
    drop = DropConnect(copy.deepcopy(plain), "weight_hh_l0", 0.4)
    compiled = torch.compile((lambda x: drop(x)) if inside else drop)
    for seed in (1, 2, 3):
        want = expected(plain, ["weight_hh_l0"], 0.4, (x,), seed)
        assert_same(run(lambda: compiled(x), drop, seed), want)
    copy.deepcopy(drop)


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("rnn", [False, True])
def test_checkpoint_around_it(use_reentrant: bool, rnn: bool) -> None:
    plain = nn.GRU(3, 5) if rnn else nn.Linear(3, 5)
    names, x = ["weight_hh_l0" if rnn else "weight"], torch.randn(4, 2, 3, requires_grad=True)
    drop = DropConnect(copy.deepcopy(plain), names, 0.4)
    want = expected(plain, names, 0.4, (x,))
    got = run(lambda: checkpoint(drop, x, use_reentrant=use_reentrant), drop)
    assert_same(got, want)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpoint_around_nested_wraps(use_reentrant: bool) -> None:
    drop = DropConnect(DropConnect(nn.Linear(6, 5), "weight"), "module.weight")
    x = torch.randn(4, 6, requires_grad=True)
    want = run(lambda: drop(x), drop)
    assert_same(run(lambda: checkpoint(drop, x, use_reentrant=use_reentrant), drop), want)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpoint_inside_it_is_refused(use_reentrant: bool) -> None:
    class Inside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            output: Tensor = checkpoint(self.linear, x, use_reentrant=use_reentrant)
            return output

    drop = DropConnect(Inside(), "linear.weight")
    output = drop(torch.randn(2, 3, requires_grad=True))
    with pytest.raises(RuntimeError, match="expected activation checkpoints around the DropConn"):
        output.sum().backward()
    drop.eval()(torch.randn(2, 3, requires_grad=True)).sum().backward()


def test_functional_call_and_grad() -> None:
    drop, x, weight = DropConnect(nn.Linear(6, 5), "weight", 0.4), torch.randn(4, 6), None
    before = drop.module.weight.detach().clone()
    weight = torch.randn(5, 6)

    def loss(weight: Tensor) -> Tensor:
        output: Tensor = functional_call(drop, {ORIGINAL: weight}, (x,))
        return output.square().sum()

    def by_hand(weight: Tensor) -> Tensor:
        return F.linear(x, RF.dropout(weight, 0.4), drop.module.bias).square().sum()

    results = []
    for function in (loss, by_hand):
        torch.manual_seed(1)
        results.append(grad(function)(weight))
    torch.testing.assert_close(*results)
    assert torch.equal(drop.module.weight, before)


def test_functional_call_of_an_lstm_leaves_it_whole() -> None:
    plain, x = nn.LSTM(3, 5), torch.randn(4, 2, 3)
    drop = DropConnect(copy.deepcopy(plain), "weight_hh_l0", 0.4)
    name = "module.parametrizations.weight_hh_l0.original"
    zero = functional_call(drop, {name: torch.zeros(20, 5)}, (x,))[0]
    want = functional_call(plain, {"weight_hh_l0": torch.zeros(20, 5)}, (x,))[0]
    torch.testing.assert_close(zero, want)
    assert_same(run(lambda: drop(x), drop), expected(plain, ["weight_hh_l0"], 0.4, (x,)))
    drop.eval()
    assert_same(run(lambda: drop(x), drop), run(lambda: plain(x), plain))


@pytest.mark.parametrize(("randomness", "count"), [("same", 1), ("different", 3)])
def test_vmap_over_examples(randomness: str, count: int) -> None:
    """With "different", a mask for each example: DropConnect as Wan et al. train it."""
    drop, x = DropConnect(nn.Linear(4, 50, bias=False), "weight"), torch.eye(4)[[2, 2, 2]]
    outputs = torch.vmap(drop, randomness=randomness)(x)
    assert len({tuple(output.tolist()) for output in outputs}) == count
    with pytest.raises(RuntimeError, match="randomness"):
        torch.vmap(drop)(x)
    assert drop.module.weight is drop.module.parametrizations.weight.original


def test_vmap_over_an_ensemble() -> None:
    drop, x = DropConnect(nn.Linear(6, 5, bias=False), "weight", 0.4), torch.randn(4, 6)
    weights = torch.randn(3, 5, 6)
    torch.manual_seed(1)
    call = torch.vmap(lambda w: functional_call(drop, {ORIGINAL: w}, (x,)), randomness="same")
    outputs = call(weights)
    torch.manual_seed(1)
    mask = RF.dropout(torch.ones(5, 6), 0.4)
    torch.testing.assert_close(outputs, torch.einsum("bi,eoi,oi->ebo", x, weights, mask))


class Inner(nn.Module):
    """Reads its weight inside a transform or another grad mode before it does so plainly."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.linear = nn.Linear(20, 20, bias=False)
        self.mode = mode

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.mode == "vmap":
            return torch.vmap(lambda row: self.linear(row))(x), self.linear(x)
        with torch.set_grad_enabled(self.mode == "enable_grad"):
            first = self.linear(x)
        return first, self.linear(x)


@pytest.mark.parametrize("mode", ["vmap", "no_grad", "enable_grad"])
def test_reads_in_other_modes_share_the_mask_and_no_more(mode: str) -> None:
    drop, x = DropConnect(Inner(mode), "linear.weight"), torch.randn(3, 20)
    with torch.set_grad_enabled(mode != "enable_grad"):
        first, second = drop(x)
    torch.testing.assert_close(first, second)
    assert first.requires_grad == (mode != "no_grad")
    assert second.requires_grad == (mode != "enable_grad")
    (first if mode == "enable_grad" else second).sum().backward()
    gradient = drop.module.linear.parametrizations.weight.original.grad
    assert 0.2 < (gradient == 0).double().mean() < 0.8


def test_double_backward() -> None:
    drop = DropConnect(nn.Linear(4, 3).double(), "weight")
    x = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)

    def call(weight: Tensor, x: Tensor) -> Tensor:
        torch.manual_seed(5)
        output: Tensor = functional_call(drop, {ORIGINAL: weight}, (x,))
        return output.square()

    weight = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(call, (weight, x))
