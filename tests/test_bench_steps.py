"""What the benchmarks time of an optimizer step: all of the work, by everyone, and right."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch

from bench import providers, step_providers
from bench.measure import Outcome, measure
from bench.neighbours import Patience
from bench.providers import Peer
from bench.step_providers import stream_lists
from bench.steps import FLOAT_STATES, StepPoint, Workload
from bench.verify import verify_stream
from regops import _C
from regops.testing import StepBenchCase, step_specs
from tests.bench_profile import QUICK

SHAPES = ((33, 65), (), (7,))


def of_rule(op: str) -> list[StepBenchCase]:
    """Every option that the rule is timed with, on few elements."""
    found: dict[str, StepBenchCase] = {}
    for case in step_specs()[f"{op}_step_"].bench_cases:
        found.setdefault(case.options, dataclasses.replace(case, shapes=SHAPES))
    return list(found.values())


def point_of(op: str, case: StepBenchCase) -> StepPoint:
    return StepPoint(step_specs()[f"{op}_step_"], case, "cpu")


POINTS = [point_of(op, case) for op in ("adamw", "sgdw") for case in of_rule(op)]
EVERYTHING = next(point for point in POINTS if point.case.kwargs.get("zero_grad"))


def outcome_of(point: StepPoint, provider: str) -> Outcome:
    return measure(point, [provider], QUICK, None, Patience(0))[provider]


@pytest.mark.parametrize("point", POINTS, ids=lambda point: point.group("step"))
def test_all_are_right_and_timed(point: StepPoint) -> None:
    present = [name for name in point.providers if name not in point.peers]
    assert {"eager", "foreach", "fused", "regops", "stream"} <= set(present)
    for name, outcome in measure(point, present, QUICK, None, Patience(0)).items():
        assert outcome.right, outcome
        assert set(outcome.recorded) == {"step"}
        assert (outcome.memory is None) == (name == "stream")


def test_one_parameter_is_compiled_too() -> None:
    case = dataclasses.replace(of_rule("adamw")[0], shapes=((64,),))
    assert outcome_of(point_of("adamw", case), "compile").right


def test_float_moments_are_timed_beside_those_of_bfloat16() -> None:
    names = {point.case.options: point.providers for point in POINTS if point.op == "adamw"}
    assert [options for options, of_case in names.items() if FLOAT_STATES in of_case] == [
        "bfloat16 moments"
    ]


def test_the_step_itself_allocates_nothing_but_numbers() -> None:
    outcome = outcome_of(point_of("adamw", of_rule("adamw")[0]), "regops")
    assert outcome.memory is not None
    assert outcome.memory.full_peak < 100


# What an optimizer may forget: its option, and what then shows it.
FORGOTTEN: dict[str, tuple[dict[str, Any], str]] = {
    "decay": ({"weight_decay": 0.0}, "param 0"),
    "rate": ({"lr": 1.01e-3}, "param 0"),
    "clipping": ({"max_grad_norm": None}, "differs"),
    "average": ({"ema_decay": 0.9}, "ema 0"),
    "clearing": ({"zero_grad": False}, "did not clear the gradients"),
    "moment": ({"betas": (0.999, 0.99)}, "differs"),
}


@pytest.mark.parametrize("what", FORGOTTEN)
def test_a_step_that_forgets_something_is_not_timed(
    monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    changed, message = FORGOTTEN[what]
    make = step_providers.REGOPS["adamw"]

    def wrong(params: Any, **arguments: Any) -> torch.optim.Optimizer:
        return make(params, **{**arguments, **changed})

    monkeypatch.setitem(step_providers.REGOPS, "adamw", wrong)
    outcome = outcome_of(EVERYTHING, "regops")
    assert outcome.recorded == {}
    assert message in str(outcome.wrong)


@pytest.mark.parametrize("right", [True, False])
def test_a_peer_is_verified_by_its_parameters(monkeypatch: pytest.MonkeyPatch, right: bool) -> None:
    def build(params: Any, arguments: Any) -> torch.optim.Optimizer:
        decay = arguments["weight_decay"] if right else 0.0
        return torch.optim.AdamW(params, **{**arguments, "weight_decay": decay})

    peers = {"adamw": {"other": Peer("torch", ("cpu",), build)}}
    monkeypatch.setattr(providers, "PEERS", peers)
    monkeypatch.setattr("bench.steps.PEERS", peers)
    assert "other" in EVERYTHING.providers
    assert (outcome_of(EVERYTHING, "other").wrong is None) == right


# ---- the ceiling ----


@pytest.mark.parametrize("point", POINTS, ids=lambda point: point.group("step"))
def test_the_stream_moves_as_many_bytes_as_the_step(point: StepPoint) -> None:
    written, read = stream_lists(point, Workload(point))
    count = [sum(one.nbytes for each in lists for one in each) for lists in (written, read)]
    assert 2 * count[0] + count[1] == point.bytes_moved("step")


@pytest.mark.parametrize("numel", [0, 1, 63, 1000, 40001])
def test_the_stream_reads_and_rewrites_every_byte(numel: int, cpu_capability: str) -> None:
    written = [[torch.randn(numel), torch.randn(3)], [torch.randn(numel).bfloat16(), torch.ones(3)]]
    verify_stream(written, [])
    one, other = torch.randn(numel), torch.randint(-9, 9, (numel,))
    before = _C.read_write_([], [[one], [other]])
    assert before == _C.read_write_([], [[one], [other]])
    for tensor in (one, other) if numel else ():
        index = numel - 1
        tensor[index] += 1
        assert _C.read_write_([], [[one], [other]]) != before
        tensor[index] -= 1


@pytest.mark.parametrize(
    ("written", "read", "message"),
    [
        ([], [], "a list"),
        ([[torch.ones(2)]], [[torch.ones(3)]], "of one size"),
        ([[torch.ones(2)]], [[]], "of one length"),
        ([[torch.ones(2, 2).t()[:1]]], [], "contiguous"),
        ([[torch.ones(1)]] * 9, [], "8 lists"),
    ],
)
def test_a_stream_of_other_tensors_is_refused(written: Any, read: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _C.read_write_(written, read)


@pytest.mark.parametrize("wrong", [lambda *_: None, lambda written, _: written[0][0].neg_()])
def test_a_stream_that_is_none_is_caught(
    monkeypatch: pytest.MonkeyPatch, wrong: Callable[..., object]
) -> None:
    monkeypatch.setattr(_C, "read_write_", wrong)
    with pytest.raises(AssertionError, match="stream"):
        verify_stream([[torch.randn(5)]], [])
