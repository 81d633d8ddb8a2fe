"""DropConnect in compiled and exported code."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

import regops.functional as RF
import regops.nn
from tests.dropconnect_problems import GAUSSIAN, KEY, MODES, OPTIONS, keyed_call, random_layer

by_mode = pytest.mark.parametrize("mask", MODES)
EVERY = pytest.mark.parametrize("options", [*OPTIONS, GAUSSIAN], ids=str)


@EVERY
def test_compiled_equals_eager_under_one_seed(options: dict[str, Any]) -> None:
    torch._dynamo.reset()
    layer = random_layer((5,), 20, 10, torch.float32)

    def step(*tensors: Tensor) -> Tensor:
        return RF.dropconnect_linear(*tensors, **options).tanh()

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        found = []
        for function in (step, compiled):
            torch.manual_seed(2)
            output = function(*layer)
            found.append((output, *torch.autograd.grad(output.sum(), layer), torch.rand(3)))
        torch.testing.assert_close(*found)


@EVERY
def test_compiled_once_for_all_batches(options: dict[str, Any]) -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    _, weight, bias = random_layer((5,), 20, 10, torch.float32)

    def step(x: Tensor) -> Tensor:
        return keyed_call(x, weight, bias, **options)

    compiled = torch.compile(step, backend=counter, fullgraph=True)
    for rows in (5, 7, 16, 33, 64):
        x = torch.randn(rows, 20, requires_grad=True)
        output, expected = compiled(x), step(x)
        torch.testing.assert_close(output, expected)
        upstream = torch.randn_like(output)
        torch.testing.assert_close(
            torch.autograd.grad(output, (x, weight, bias), upstream),
            torch.autograd.grad(expected, (x, weight, bias), upstream),
        )
    assert counter.frame_count <= 2  # a size becomes dynamic at its second value


@by_mode
def test_inductor_compiles_the_module(mask: str) -> None:
    torch._dynamo.reset()
    model = torch.nn.Sequential(
        torch.nn.Linear(16, 32), torch.nn.ReLU(), regops.nn.DropConnectLinear(32, 9, mask=mask)
    )
    compiled = torch.compile(model, fullgraph=True)
    x = torch.randn(8, 16)
    for _ in range(2):
        found = []
        for each in (model, compiled):
            torch.manual_seed(2)
            output = each(x)
            found.append((output, *torch.autograd.grad(output.sum(), list(model.parameters()))))
        torch.testing.assert_close(*found)
    compiled.eval()
    model.eval()
    torch.testing.assert_close(compiled(x), F.linear(model[1](model[0](x)), *model[2].parameters()))


@EVERY
def test_export(options: dict[str, Any]) -> None:
    class Layer(torch.nn.Module):
        def forward(self, x: Tensor, weight: Tensor, key: Tensor) -> Tensor:
            return RF.dropconnect_linear(x, weight, key=key, **options)

    x, weight, _ = (tensor.detach() for tensor in random_layer((5,), 20, 10))
    rows = torch.export.Dim("rows")
    exported = torch.export.export(
        Layer(), (x, weight, KEY), dynamic_shapes=({0: rows}, None, None)
    )
    longer = torch.cat([x, x])
    torch.testing.assert_close(exported.module()(longer, weight, KEY), Layer()(longer, weight, KEY))
