"""DropConnect with p in a tensor: as the number, but one graph of compiled code for all."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import regops.functional as RF
import regops.nn
import regops.random

KEY = regops.random.key(5)
SCHEDULE = [0.1, 3e-6, 0.0, 0.5, 1.0]
OPTIONS: list[dict[str, Any]] = [
    {"mask": mask, "drop_bias": drop_bias}
    for mask in ("batch", "sample")
    for drop_bias in (False, True)
]


def layer(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Input, weight, bias."""
    shapes = ((4, 9), (7, 9), (7,))
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("p", SCHEDULE)
def test_as_the_number_to_the_second_derivative(p: float, options: dict[str, Any]) -> None:
    inputs = layer()
    results = []
    for rate in (p, torch.tensor(p, dtype=torch.float64)):
        output = RF.dropconnect_linear(*inputs, rate, key=KEY, **options)
        first = torch.autograd.grad(output.sin().sum(), inputs, create_graph=True)
        second = torch.autograd.grad(sum(each.sin().sum() for each in first), inputs)
        results.append((output, *first, *second))
    torch.testing.assert_close(results[0], results[1])


def test_evaluation_looks_at_no_p_or_at_its_value() -> None:
    inputs = layer()
    rate = torch.tensor(0.3)
    output = RF.dropconnect_linear(*inputs, rate, training=False)
    assert torch.equal(output, nn.functional.linear(*inputs))
    gaussian: dict[str, Any] = {"training": False, "inference": "gaussian", "key": KEY}
    expected = RF.dropconnect_linear(*inputs, rate.item(), **gaussian)
    assert torch.equal(RF.dropconnect_linear(*inputs, rate, **gaussian), expected)


MODULES: dict[str, Callable[[Tensor], nn.Module]] = {
    "batch": lambda p: regops.nn.DropConnectLinear(9, 7, p=p),
    "sample": lambda p: regops.nn.DropConnectLinear(9, 7, p=p, mask="sample"),
    "wrapped": lambda p: regops.nn.DropConnect(nn.Linear(9, 7), "weight", p=p),
}


@pytest.mark.parametrize("name", MODULES)
def test_a_schedule_compiles_once_and_has_the_eager_masks(name: str) -> None:
    torch._dynamo.reset()
    p, x = torch.tensor(0.1), torch.randn(4, 9)
    module = MODULES[name](p)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    compiled(x).sum().backward()
    module.zero_grad()
    with torch.compiler.set_stance("fail_on_recompile"):
        for rate in SCHEDULE:
            p.fill_(rate)
            results = []
            for function in (module, compiled):
                torch.manual_seed(3)
                output = function(x)
                output.sum().backward()
                results.append([output, *(each.grad.clone() for each in module.parameters())])
                module.zero_grad()
            torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize("name", MODULES)
def test_copies_have_a_p_of_their_own(name: str) -> None:
    module = MODULES[name](torch.tensor(0.25))
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert twin.p.item() == 0.25
        assert twin.p is not module.p
    assert "p=0.25" in repr(module)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype: torch.dtype) -> None:
    inputs = layer(torch.float32)
    with torch.autocast("cpu", dtype):
        output = RF.dropconnect_linear(*inputs, torch.tensor(0.5), key=KEY)
        expected = RF.dropconnect_linear(*inputs, 0.5, key=KEY)
    assert output.dtype == dtype
    assert torch.equal(output, expected)


def test_functional_derivatives() -> None:
    x, weight, bias = layer()
    rate = torch.tensor(0.5)

    def loss(p: float | Tensor, weight: Tensor) -> Tensor:
        return RF.dropconnect_linear(x, weight, bias, p, key=KEY).square().sum()

    expected = torch.func.grad(loss, 1)(0.5, weight)
    torch.testing.assert_close(torch.func.grad(loss, 1)(rate, weight), expected)


def test_opcheck() -> None:
    op = torch.ops.regops.dropconnect_linear.tensor_p
    for mask in ("batch", "sample"):
        torch.library.opcheck(op, (*layer(), torch.tensor(0.3), KEY, mask, True))
    backward = torch.ops.regops.dropconnect_linear_backward.tensor_p
    x, weight, _ = layer()
    upstream = torch.randn(4, 7, dtype=torch.float64, requires_grad=True)
    arguments = (upstream, x, weight, torch.tensor(0.3), KEY, "batch", False, [True] * 3)
    torch.library.opcheck(backward, arguments)


def test_wrong_arguments() -> None:
    inputs = layer()
    for p, error, words in (
        (torch.tensor([0.1, 0.2]), ValueError, r"expected p of one element, got shape \[2\]"),
        (torch.tensor(1), TypeError, "expected p of a floating-point dtype, got torch.int64"),
        (torch.tensor(1.5), ValueError, r"expected p in \[0, 1\], got 1.5"),
        (torch.tensor(0.5, requires_grad=True), RuntimeError, "expected p without requires_grad"),
    ):
        with pytest.raises(error, match=words):
            RF.dropconnect_linear(*inputs, p)
    with pytest.raises(ValueError, match="expected mask 'batch' or 'sample', got 'row'"):
        RF.dropconnect_linear(*inputs, torch.tensor(0.5), mask="row")
    with pytest.raises(ValueError, match=r"expected p in \[0, 1\], got"):
        regops.nn.DropConnectLinear(2, 2, p=torch.tensor(-1.0))
