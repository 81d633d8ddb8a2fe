"""The law of DropConnect's benchmarks, and a linear layer as its ceiling."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from bench import providers
from bench.bench_dropconnect_linear import law, spec
from bench.measure import Outcome, measure
from bench.neighbours import Patience
from bench.profiles import PROFILES, Selection
from bench.providers import Peer, Point
from bench.summary import CEILINGS
from regops.testing import BenchCase, specs
from tests.bench_profile import QUICK

OPTIONS = {"out": 64, "p": 0.5}
CASES = {
    "batch": BenchCase("32x64-64", (32, 64), OPTIONS, ceiling="linear"),
    "sample": BenchCase("32x64-64-sample", (32, 64), OPTIONS | {"mask": "sample"}),
}


def point_of(mask: str, dtype: torch.dtype = torch.float32, **changed: Any) -> Point:
    return Point(dataclasses.replace(spec, **changed), CASES[mask], dtype, "cpu")


class Products(torch.autograd.Function):
    """x W^T, where each of the three products has a factor of its own for each weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, *factors: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, *factors)
        return torch.einsum("ik,nk,ink->in", x, weight, factors[0])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        x, weight, _, of_x, of_weight = ctx.saved_tensors
        dx = torch.einsum("in,nk,ink->ik", grad, weight, of_x)
        dweight = torch.einsum("in,ik,ink->nk", grad, x, of_weight)
        return dx, dweight, None, None, None


Masks = tuple[Tensor, Tensor, Tensor]

# From a mask and another one, both 0 and 1 / (1 - p), to the factors of output and gradients.
FAULTS: dict[str, Callable[[Tensor, Tensor], Masks]] = {
    "scale": lambda mask, _: (1.01 * mask,) * 3,
    "no scale": lambda mask, _: (0.5 * mask,) * 3,
    "scale of the output": lambda mask, _: (1.01 * mask, mask, mask),
    "scale of the input's gradient": lambda mask, _: (mask, 1.01 * mask, mask),
    "scale of the weight's gradient": lambda mask, _: (mask, mask, 1.01 * mask),
    "rate": lambda mask, other: ((mask + other).clamp(max=2),) * 3,
    "other mask in the input's gradient": lambda mask, other: (mask, other, mask),
    "other mask in the weight's gradient": lambda mask, other: (mask, mask, other),
    "other mask in backward": lambda mask, other: (mask, other, other),
    "no mask in the weight's gradient": lambda mask, _: (mask, mask, torch.ones_like(mask)),
    "nothing dropped": lambda mask, _: (torch.full_like(mask, 2),) * 3,
    "inputs dropped": lambda mask, _: (mask[:, :1].expand_as(mask),) * 3,
    "outputs dropped": lambda mask, _: (mask[:, :, :1].expand_as(mask),) * 3,
}
OF_SAMPLES = {"one mask for all examples": lambda mask, _: (mask[:1].expand_as(mask),) * 3}


def provider(mask: str, fault: Callable[[Tensor, Tensor], Masks]) -> Callable[..., Any]:
    def build(point: Point, arguments: Any) -> Callable[[Tensor], Tensor]:
        weight = arguments["weight"]

        def call(x: Tensor) -> Tensor:
            rows = len(x) if mask == "sample" else 1
            masks = 2.0 * torch.randint(2, (2, rows, *weight.shape))
            of_all = masks.expand(2, len(x), *weight.shape)
            output: Tensor = Products.apply(x, weight, *fault(*of_all))
            return output

        return call

    return build


def outcome_of(
    monkeypatch: pytest.MonkeyPatch, mask: str, fault: Callable[[Tensor, Tensor], Masks]
) -> Outcome:
    peers = {"dropconnect_linear": {"other": Peer("torch", ("cpu",), provider(mask, fault))}}
    monkeypatch.setattr(providers, "PEERS", peers)
    return measure(point_of(mask), ["other"], QUICK, law, Patience(0))["other"]


@pytest.mark.parametrize("mask", CASES)
def test_a_right_provider_is_timed(monkeypatch: pytest.MonkeyPatch, mask: str) -> None:
    outcome = outcome_of(monkeypatch, mask, lambda mask, _: (mask, mask, mask))
    assert outcome.right
    assert set(outcome.recorded) == {"forward", "backward", "full"}


@pytest.mark.parametrize(
    ("mask", "fault"),
    [(mask, fault) for mask in CASES for fault in FAULTS]
    + [("sample", fault) for fault in OF_SAMPLES],
)
def test_a_wrong_provider_is_not_timed(
    monkeypatch: pytest.MonkeyPatch, mask: str, fault: str
) -> None:
    outcome = outcome_of(monkeypatch, mask, (FAULTS | OF_SAMPLES)[fault])
    assert outcome.recorded == {}
    assert outcome.wrong


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("mask", CASES)
def test_all_are_right_and_timed(mask: str, dtype: torch.dtype) -> None:
    point = point_of(mask, dtype)
    names = [name for name in point.providers if name != "compile"]  # slow to compile
    for name, outcome in measure(point, names, QUICK, law, Patience(0)).items():
        assert outcome.right, outcome
        assert set(outcome.recorded) == {"forward", "backward", "full"}
        assert (outcome.memory is None) == (name == "copy")


def test_products_that_cancel_hide_no_mask() -> None:
    """Of two examples in bfloat16 some weights' gradients are 0 though the weight was kept."""
    case = BenchCase("2x512-512", (2, 512), {"out": 512, "p": 0.5})
    outcome = measure(Point(spec, case, torch.bfloat16, "cpu"), ["eager"], QUICK, law, Patience(0))
    assert outcome["eager"].right


# ---- the ceiling ----


def test_a_linear_layer_stands_beside_one_mask_and_not_beside_many() -> None:
    assert "linear" in point_of("batch").providers
    assert "linear" not in point_of("sample").providers


def test_a_ceiling_that_is_none_is_caught() -> None:
    point = point_of("batch", ceilings={"linear": lambda x, **of: 1.01 * spec.eager(x, **of)})
    outcome = measure(point, ["linear"], QUICK, law, Patience(0))["linear"]
    assert "differs from the reference" in str(outcome.wrong)


def test_a_linear_layer_takes_no_memory_beyond_its_results() -> None:
    point = point_of("batch")
    outcomes = measure(point, ["linear", "eager"], QUICK, law, Patience(0))
    extra = {name: outcome.memory.extra for name, outcome in outcomes.items() if outcome.memory}
    assert extra["linear"] == 0
    assert extra["eager"] >= 4 * 64 * 64


@pytest.mark.parametrize("op", specs())
def test_ceilings_are_known_to_reports(op: str) -> None:
    for case in specs()[op].bench_cases:
        assert case.ceiling in CEILINGS
        assert case.ceiling in ("copy", "matmul", *specs()[op].ceilings)


# ---- what is timed ----


def test_a_case_may_have_its_own_directions() -> None:
    case = dataclasses.replace(CASES["sample"], directions=("full",))
    point = Point(spec, case, torch.float32, "cpu")
    for outcome in measure(point, ["eager", "copy"], QUICK, law, Patience(0)).values():
        assert set(outcome.recorded) == {"full"}


def sizes(profile: str, device: str) -> set[str]:
    return {
        point.case.name for point in PROFILES[profile].points(spec, Selection(devices=(device,)))
    }


def test_a_smoke_test_times_a_small_layer_in_each_mode() -> None:
    assert sizes("smoke", "cpu") == {"32x64-64", "32x64-64-sample"}


def test_the_widest_layers_are_for_gpus() -> None:
    widest = {"64x4096-4096", "2048x4096-4096"}
    assert sizes("default", "cpu") == {case.name for case in spec.bench_cases} - widest
    assert sizes("default", "cuda") == {case.name for case in spec.bench_cases}
