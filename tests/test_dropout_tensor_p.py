"""Dropout with p in a tensor: schedules that do not compile anew, and vmap over p."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

import regops
import regops.functional as RF
import regops.nn
import regops.random
from regops.testing import make_input

KEY = regops.random.key(5)
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
SCHEDULE = [0.1, 0.25, 3e-6, 0.0, 0.5, 1.0, 0.9]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("p", SCHEDULE)
@pytest.mark.parametrize("of_p", [torch.float32, torch.float64])
def test_as_the_number(dtype: torch.dtype, p: float, of_p: torch.dtype, device: str) -> None:
    rate = torch.tensor(p, dtype=of_p, device=device)
    input = make_input((33, 17), dtype, device).requires_grad_()
    output = RF.dropout(input, rate, key=KEY)
    expected = RF.dropout(input, rate.item(), key=KEY)
    assert torch.equal(output, expected)
    upstream = torch.randn_like(output)
    (gradient,) = torch.autograd.grad(output, input, upstream)
    assert torch.equal(gradient, RF.dropout(upstream, rate.item(), key=KEY))
    in_place = input.detach().clone()
    assert RF.dropout(in_place, rate, inplace=True, key=KEY) is in_place
    assert torch.equal(in_place, expected)
    assert RF.dropout(input, rate, training=False) is input


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_schedule_compiles_once_and_has_the_eager_masks(dynamic: bool) -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("inductor")
    module = regops.nn.Dropout(torch.tensor(0.1))
    compiled = torch.compile(module, fullgraph=True, backend=counter, dynamic=dynamic)
    for p in SCHEDULE:
        module.p.fill_(p)
        outputs = []
        for each in (module, compiled):
            input = torch.ones(100, requires_grad=True)
            torch.manual_seed(3)
            output = each(input)
            output.sum().backward()
            outputs.append((output, input.grad))
        (eager, gradient), (ours, ours_gradient) = outputs
        assert torch.equal(eager, ours)
        assert torch.equal(gradient, ours_gradient)
    assert counter.frame_count == 1


def test_every_p_draws_a_key() -> None:
    """Else the masks that follow would depend on whether a function is compiled."""
    for p in (0.0, 0.5, 1.0):
        before = torch.get_rng_state()
        RF.dropout(torch.ones(3), torch.tensor(p))
        assert not torch.equal(torch.get_rng_state(), before)


def test_transforms() -> None:
    input = torch.randn(3, 40)
    rates = torch.tensor([0.0, 0.5, 1.0])
    mapped = torch.vmap(lambda x, p: RF.dropout(x, p, key=KEY))(input, rates)
    for x, p, output in zip(input, rates, mapped, strict=True):
        assert torch.equal(output, RF.dropout(x, p.item(), key=KEY))
    inside = torch.vmap(lambda p: RF.dropout(input, p, key=KEY))(rates)
    assert torch.equal(inside[1], RF.dropout(input, 0.5, key=KEY))

    def call(x: Tensor) -> Tensor:
        return RF.dropout(x, rates[1], key=KEY)

    gradient = torch.func.grad(lambda x: call(x).sum())(input)
    assert torch.equal(gradient, call(torch.ones_like(input)))
    _, moved = torch.func.jvp(call, (input,), (torch.ones_like(input),))
    assert torch.equal(moved, gradient)


def test_p_that_changed_before_backward_is_an_error() -> None:
    p = torch.tensor(0.5)
    output = RF.dropout(torch.ones(3, requires_grad=True), p)
    p.fill_(0.1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_opcheck() -> None:
    op = torch.ops.regops.dropout.tensor_p
    for requires_grad in (False, True):
        input = torch.randn(5, 6, requires_grad=requires_grad)
        torch.library.opcheck(op, (input, torch.tensor(0.3), KEY))


def test_wrong_arguments() -> None:
    x = torch.ones(3)
    with pytest.raises(ValueError, match=r"expected p of one element, got shape \[2\]"):
        RF.dropout(x, torch.tensor([0.1, 0.2]))
    with pytest.raises(TypeError, match=r"expected p of a floating-point dtype, got torch.int64"):
        RF.dropout(x, torch.tensor(1))
    with pytest.raises(ValueError, match=r"expected p in \[0, 1\], got 1.5"):
        RF.dropout(x, torch.tensor(1.5))
    with pytest.raises(ValueError, match=r"expected p in \[0, 1\], got"):
        regops.nn.Dropout(torch.tensor(-0.5))
    with pytest.raises(RuntimeError, match="expected p without requires_grad"):
        RF.dropout(x, torch.tensor(0.5, requires_grad=True))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"key": "a"}, "expected key: Tensor | None, got str"),
        ({"input": "x"}, "expected input: Tensor, got str"),
        ({"generator": 4}, "expected generator: Generator | None, got int"),
        ({"training": "no"}, "expected training: bool, got str"),
        ({"inplace": "q"}, "expected inplace: bool, got str"),
    ],
)
def test_arguments_of_a_wrong_type_are_named(arguments: dict[str, Any], words: str) -> None:
    arguments = {"input": torch.ones(3), "p": torch.tensor(0.5), **arguments}
    with pytest.raises(TypeError, match=re.escape(f"regops.dropout: {words}")):
        RF.dropout(**arguments)


@pytest.mark.parametrize(
    ("p", "error", "words"),
    [
        ("a", TypeError, "expected p: float | Tensor, got str"),
        (None, TypeError, "expected p: float | Tensor, got NoneType"),
        (torch.tensor(1), ValueError, "a floating-point dtype, got shape [] and torch.int64"),
        (torch.ones(2), ValueError, "expected p of one element and"),
        (float("nan"), ValueError, "expected p in [0, 1], got nan"),
    ],
)
def test_a_module_checks_its_p(p: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=re.escape(words)):
        regops.nn.Dropout(p)


def test_revert_leaves_a_module_with_a_tensor() -> None:
    module = regops.nn.Dropout(torch.tensor(0.3))
    report = regops.revert_(module)
    assert type(module) is regops.nn.Dropout
    assert "its p is a tensor" in report.left[0].why


def test_a_module_passes_a_key_on() -> None:
    input = torch.randn(50)
    module = regops.nn.Dropout(0.3)
    assert torch.equal(module(input, key=KEY), RF.dropout(input, 0.3, key=KEY))
    assert module.eval()(input, key=KEY) is input
