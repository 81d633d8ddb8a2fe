"""DropConnectLinear, which is torch.nn.Linear to whatever asks."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import regops.functional as RF
import regops.nn
from tests.dropconnect_problems import MODES

OPTIONS = {"p": 0.3, "mask": "sample", "drop_bias": True, "inference": "gaussian", "samples": 3}


@pytest.mark.parametrize("bias", [False, True])
def test_it_is_torchs_layer_with_torchs_state(bias: bool) -> None:
    torch.manual_seed(1)
    ours = regops.nn.DropConnectLinear(20, 30, bias=bias)
    torch.manual_seed(1)
    torchs = nn.Linear(20, 30, bias=bias)
    assert isinstance(ours, nn.Linear)
    state = torchs.state_dict()
    assert list(ours.state_dict()) == list(state)
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, state[name])  # initialized alike
    for one, other in ((ours, torchs), (torchs, ours)):
        with torch.no_grad():
            one.weight.add_(1)
        other.load_state_dict(one.state_dict())
        assert torch.equal(other.weight, one.weight)
    x = torch.randn(4, 20)
    assert torch.equal(ours.eval()(x), torchs(x))


@pytest.mark.parametrize("mask", MODES)
def test_forward_is_the_function(mask: str) -> None:
    module = regops.nn.DropConnectLinear(20, 30, p=0.3, mask=mask, drop_bias=True)
    x = torch.randn(4, 20)
    torch.manual_seed(1)
    output = module(x)
    torch.manual_seed(1)
    expected = RF.dropconnect_linear(x, module.weight, module.bias, 0.3, mask=mask, drop_bias=True)
    assert torch.equal(output, expected)


def test_copies_keep_every_option() -> None:
    module = regops.nn.DropConnectLinear(4, 5, **OPTIONS).double()
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert {name: getattr(twin, name) for name in OPTIONS} == OPTIONS
        x = torch.randn(3, 4, dtype=torch.float64)
        found = []
        for each in (module, twin):
            for training in (True, False):
                torch.manual_seed(1)
                found.append(each.train(training)(x))
        assert torch.equal(found[0], found[2])
        assert torch.equal(found[1], found[3])


def test_repr_says_what_is_not_default() -> None:
    assert repr(regops.nn.DropConnectLinear(4, 5)) == (
        "DropConnectLinear(in_features=4, out_features=5, bias=True, p=0.5, mask='batch')"
    )
    assert repr(regops.nn.DropConnectLinear(4, 5, bias=False, **OPTIONS)) == (
        "DropConnectLinear(in_features=4, out_features=5, bias=False, p=0.3, mask='sample', "
        "drop_bias=True, inference='gaussian', samples=3)"
    )


def test_parameters_are_made_where_and_as_asked() -> None:
    module = regops.nn.DropConnectLinear(4, 5, True, "meta", torch.bfloat16)
    assert all(p.is_meta and p.dtype == torch.bfloat16 for p in module.parameters())
    assert module(torch.empty(2, 4, device="meta", dtype=torch.bfloat16)).shape == (2, 5)


def test_options_may_change_between_calls() -> None:
    module = regops.nn.DropConnectLinear(4, 5)
    x = torch.randn(3, 4)
    module.p = 0.0
    assert torch.equal(module(x), nn.functional.linear(x, module.weight, module.bias))
    module.p = 3.0
    with pytest.raises(ValueError, match="got 3"):
        module(x)


@pytest.mark.parametrize("which", [0, 1, 2])
def test_subclasses_may_override(which: int) -> None:
    class Tagged(Tensor):
        pass

    layer = [torch.ones(2, 4), torch.ones(5, 4), torch.ones(5)]
    layer[which] = layer[which].as_subclass(Tagged)
    assert isinstance(RF.dropconnect_linear(*layer), Tagged)
    drawn = RF.dropconnect_linear(*layer, training=False, inference="gaussian")
    assert isinstance(drawn, Tagged)
    assert all(isinstance(moment, Tagged) for moment in RF.dropconnect_moments(*layer))


@pytest.mark.parametrize("mask", MODES)
def test_it_learns(mask: str) -> None:
    """Through two layers and half of their weights dropped, a function no linear one is."""
    torch.manual_seed(0)
    x = torch.randn(128, 2)
    y = (x[:, 0] * x[:, 1] > 0).float()
    layers = (regops.nn.DropConnectLinear(a, b, mask=mask) for a, b in ((2, 64), (64, 1)))
    model = nn.Sequential(next(layers), nn.ReLU(), next(layers), nn.Flatten(0))
    model[0].p, model[2].p = 0.1, 0.3
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(200):
        optimizer.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(model(x), y).backward()
        optimizer.step()
    assert ((model.eval()(x) > 0) == (y > 0)).float().mean() > 0.9


@pytest.mark.parametrize(
    ("arguments", "options", "error", "text"),
    [
        ((3, 4, 0.2), {}, TypeError, "expected bias: bool, got float"),
        ((3, 4), {"p": "a"}, TypeError, "expected p: float | Tensor, got str"),
        ((3, 4), {"p": True}, TypeError, "expected p: float | Tensor, got bool"),
        ((3, 4), {"p": 1.5}, ValueError, r"expected p in \[0, 1\], got 1.5"),
        ((3, 4), {"p": float("nan")}, ValueError, r"expected p in \[0, 1\], got nan"),
        ((3, 4), {"samples": 1.5}, TypeError, "expected samples: int, got float"),
        ((3, 4), {"samples": 0}, ValueError, "expected samples of 1 or more, got 0"),
        ((3, 4), {"drop_bias": "no"}, TypeError, "expected drop_bias: bool, got str"),
        ((3, 4), {"mask": "row"}, ValueError, "expected mask 'batch' or 'sample', got 'row'"),
        ((3, 4), {"inference": "x"}, ValueError, "expected inference 'mean' or 'gaussian'"),
        ((3, 4), {"inference": "gaussian", "p": 1.0}, ValueError, r"expected p in \[0, 1\)"),
    ],
)
def test_bad_arguments(
    arguments: tuple[Any, ...], options: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=f"regops.nn.DropConnectLinear: {text}"):
        regops.nn.DropConnectLinear(*arguments, **options)
