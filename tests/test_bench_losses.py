"""What the benchmarks time of an op with several inputs and one output, such as a loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.measure import Outcome, measure
from bench.neighbours import Patience
from bench.providers import Point
from regops.testing import BenchCase, OpSpec, Tolerance
from tests.bench_profile import QUICK


def squares(x: Tensor, scale: Tensor) -> Tensor:
    return (x.square() * scale).mean()


LOSS = OpSpec(
    name="squares",
    functional=squares,
    reference=squares,
    eager=squares,
    schemas=(),
    keyed=False,
    dtypes=(torch.float32, torch.bfloat16),
    cases=(),
    bench_cases=(),
    tolerance=dict.fromkeys((torch.float32, torch.bfloat16), Tolerance(1e-6, 1e-6, "one mean")),
    rival_tolerance=dict.fromkeys((torch.float32, torch.bfloat16), Tolerance(0.02, 0.02, "low")),
    bytes_moved=lambda case, itemsize, direction: case.numel * itemsize,
    bytes_formula="",
    arguments=lambda case, dtype, device: {
        "scale": torch.full(case.shape[-1:], case.kwargs["scale"], dtype=dtype, requires_grad=True)
    },
    directions=("full", "inference"),
)
LOSS_POINT = Point(LOSS, BenchCase("64x32", (64, 32), {"scale": 0.5}), torch.float32, "cpu")


def loss_outcome(provider: str, dtype: torch.dtype = torch.float32, **changed: Any) -> Outcome:
    point = Point(dataclasses.replace(LOSS, **changed), LOSS_POINT.case, dtype, "cpu")
    return measure(point, [provider], QUICK, None, Patience(0))[provider]


@pytest.mark.parametrize("provider", ["eager", "compile", "regops", "copy"])
def test_a_loss_is_timed_in_its_own_directions(provider: str) -> None:
    outcome = loss_outcome(provider)
    assert outcome.right
    assert set(outcome.recorded) == {"full", "inference"}


def test_memory_counts_the_gradient_of_every_input() -> None:
    outcome = loss_outcome("eager")
    assert outcome.memory is not None
    assert outcome.memory.full_peak >= 4 * (64 * 32 + 32)


def wrong_for(what: str) -> Callable[[Tensor, Tensor], Tensor]:
    """The right loss, but for one thing."""

    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, scale: Tensor) -> Tensor:
            ctx.save_for_backward(x, scale)
            return squares(x, scale)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
            x, scale = ctx.saved_tensors
            if what == "the upstream gradient":
                grad = torch.ones_like(grad)
            of_scale = grad * x.square().sum(0) / x.numel()
            return grad * 2 * x * scale / x.numel(), of_scale * (1.1 if what == "an input" else 1)

    def call(x: Tensor, scale: Tensor) -> Tensor:
        y = Wrong.apply(x, scale)
        return 1.1 * y if what == "inference" and not torch.is_grad_enabled() else y

    return call


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("nothing", None),
        ("an input", "gradient 1 differs"),
        ("the upstream gradient", "gradient 0 differs"),
        ("inference", "output differs"),
    ],
)
def test_a_wrong_loss_is_not_timed(what: str, message: str | None) -> None:
    outcome = loss_outcome("regops", functional=wrong_for(what))
    if message is None:
        assert outcome.right
    else:
        assert message in str(outcome.wrong)


def test_other_libraries_are_granted_their_roundings() -> None:
    def rounded(x: Tensor, scale: Tensor) -> Tensor:
        return 1.01 * squares(x, scale)

    assert loss_outcome("eager", eager=rounded).right
    assert "differs" in str(loss_outcome("regops", functional=rounded).wrong)


def test_the_reference_is_in_float64_unless_the_op_must_equal_it() -> None:
    seen = []

    def reference(x: Tensor, scale: Tensor) -> Tensor:
        seen.append((x.dtype, scale.dtype))
        return squares(x, scale)

    loss_outcome("eager", torch.bfloat16, reference=reference)
    assert seen == [(torch.float64, torch.float64)]
