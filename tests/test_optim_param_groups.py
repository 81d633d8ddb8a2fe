"""The usual split of parameters."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from regops.optim import AdamW, param_groups


class RootMeanSquareNorm(nn.Module):
    """A norm layer of somebody's own, with a parameter of two dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1, 4))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 4)
        self.position = nn.Parameter(torch.zeros(3, 4))
        self.blocks = nn.ModuleList([nn.Linear(4, 4), nn.Conv2d(4, 4, 1), nn.LayerNorm(4)])
        self.batch_norm = nn.BatchNorm2d(4)
        self.own_norm = RootMeanSquareNorm()
        self.attention = nn.MultiheadAttention(4, 2)
        self.recurrent = nn.LSTM(4, 4)
        self.temperature = nn.Parameter(torch.ones(()))
        self.frozen = nn.Linear(4, 4)
        self.frozen.requires_grad_(False)
        self.head = nn.Linear(4, 10)
        self.head.weight = self.embedding.weight


DECAYED = ["position", "embedding.weight", "blocks.0.weight", "blocks.1.weight"]
DECAYED += ["attention.in_proj_weight", "attention.out_proj.weight"]
DECAYED += ["recurrent.weight_ih_l0", "recurrent.weight_hh_l0"]


def test_biases_and_norms_do_not_decay() -> None:
    model = Model()
    groups = param_groups(model, 0.1)
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert groups.names[0] == DECAYED
    named = dict(model.named_parameters())
    for group, names in zip(groups, groups.names, strict=True):
        assert all(param is named[name] for param, name in zip(group["params"], names, strict=True))
    trained = {param for param in model.parameters() if param.requires_grad}
    members = [param for group in groups for param in group["params"]]
    assert len(members) == len(trained)
    assert set(members) == trained
    assert groups.frozen == ["frozen.weight", "frozen.bias"]
    assert groups.shared == {"head.weight": "embedding.weight"}


def test_patterns_of_names_also_of_shared_parameters() -> None:
    groups = param_groups(Model(), 0.1, no_decay=["pos*", "head.*"])
    assert groups.names[0] == [
        name for name in DECAYED if name not in ("position", "embedding.weight")
    ]


def test_it_says_what_it_did() -> None:
    text = str(param_groups(Model(), 0.1))
    assert text.startswith("weight_decay=0.1: 8 parameters, 276 elements\n  position\n")
    assert "\n  own_norm.scale\n" in text
    assert "\nfrozen: 2 parameters\n  frozen.weight\n" in text
    assert text.endswith("\nshared: 1 names\n  head.weight is embedding.weight")


def test_optimizers_take_it() -> None:
    model = Model()
    optimizer = AdamW(param_groups(model, 0.5), lr=0.1)
    before: dict[str, Tensor] = {}
    for name, param in model.named_parameters():
        before[name] = param.detach().clone()
        param.grad = torch.zeros_like(param) if param.requires_grad else None
    optimizer.step()
    for name, param in model.named_parameters():
        factor = 0.95 if name in DECAYED else 1.0
        torch.testing.assert_close(param.detach(), before[name] * factor)


def test_errors() -> None:
    model = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="expected weight_decay at least 0, got -1"):
        param_groups(model, -1.0)
    with pytest.raises(ValueError, match="got 'wieght', which matches none"):
        param_groups(model, 0.1, no_decay=["weight", "wieght"])
    with pytest.raises(TypeError, match=r"expected no_decay=\['bias'\], a list"):
        param_groups(model, 0.1, no_decay="bias")
    with pytest.raises(TypeError, match="expected a module, got generator"):
        param_groups(model.parameters(), 0.1)  # type: ignore[arg-type]
