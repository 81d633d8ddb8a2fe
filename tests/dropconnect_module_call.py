"""The oracle of `regops.nn.DropConnect`: the plain module with weights that `RF.dropout` masks."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

import regops.functional as RF
from regops.nn import DropConnect


def tensors(output: Any) -> list[Tensor]:
    """All tensors in what a module returns."""
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() else []
    return [tensor for part in output or () for tensor in tensors(part)]


def run(call: Callable[[], Any], module: nn.Module, seed: int = 7) -> dict[str, Tensor]:
    """Outputs and gradients of one call under a seed, by plain names."""
    module.zero_grad()
    torch.manual_seed(seed)
    outputs = tensors(call())
    sum((output * (1 + output)).sum() for output in outputs if output.requires_grad).backward()
    results = {f"output {i}": output.detach() for i, output in enumerate(outputs)}
    for name, parameter in module.named_parameters():
        if parameter.grad is not None:
            results[plain_name(name)] = parameter.grad
    return results


def plain_name(name: str) -> str:
    """A parameter's name in the plain module, from that in a wrapped one."""
    name = re.sub(r"parametrizations\.(\w+)\.original$", r"\1", name)
    while name.startswith("module."):
        name = name.removeprefix("module.")
    return name


def expected(
    plain: nn.Module, names: Sequence[str], p: float, inputs: Any, seed: int = 7
) -> dict[str, Tensor]:
    """`run` of the plain module, its weights masked in the order of the names."""
    weights = dict(plain.named_parameters())

    def call() -> Any:
        dropped = {name: RF.dropout(weights[name], p) for name in names}
        return functional_call(plain, dropped, inputs)

    return run(call, plain, seed)


def assert_same(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    """Compares two results of `run`."""
    assert sorted(got) == sorted(want)
    for name, value in want.items():
        torch.testing.assert_close(got[name], value, msg=lambda text, name=name: f"{name}: {text}")


def check(module: nn.Module, names: Sequence[str], *inputs: Any, p: float = 0.4) -> DropConnect:
    """A wrapped copy equals the oracle, twice, then in evaluation, then again in training."""
    plain = copy.deepcopy(module)
    drop = DropConnect(copy.deepcopy(module), names, p)
    for seed in (7, 8):
        want = expected(plain, names, p, inputs, seed)
        assert_same(run(lambda: drop(*inputs), drop, seed), want)
        for name in names:  # the mask was there, and reached the gradient
            assert (want[name] == 0).any()
    for each in (drop, plain):
        each.eval()
    assert_same(run(lambda: drop(*inputs), drop), run(lambda: plain(*inputs), plain))
    for each in (drop, plain):
        each.train()
    assert_same(run(lambda: drop(*inputs), drop), expected(plain, names, p, inputs))
    return drop


class Steps(nn.Module):
    """Reads its weight in each of several steps, and once where no graph is made."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.RNNCell(5, 5)
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.seen = [self.cell.weight_hh.clone()]
        for _ in range(3):
            x = self.cell(x, x)
            self.seen.append(self.cell.weight_hh.detach().clone())
        return x
