"""What the benchmarks time: right results only, by turns, and as measured."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bench import neighbours, providers, timing
from bench.bench_dropout import law, spec
from bench.measure import Outcome, measure
from bench.memory import memory
from bench.neighbours import OthersShare, Patience
from bench.profiles import PROFILES, Profile, Selection
from bench.providers import Inputs, Peer, Point
from bench.verify import Verifier, verify_copy
from regops.testing import BenchCase, specs, step_specs
from tests.bench_profile import QUICK

POINT = Point(spec, BenchCase("16k", (1 << 14,), {"p": 0.1}), torch.float32, "cpu")
DIRECTIONS = spec.directions


# ---- what is timed is right ----


def outcome_of(monkeypatch: pytest.MonkeyPatch, call: Callable[[Tensor], Tensor]) -> Outcome:
    peers = {"dropout": {"other": Peer("torch", ("cpu",), lambda point, arguments: call)}}
    monkeypatch.setattr(providers, "PEERS", peers)
    return measure(POINT, ["other"], QUICK, law, Patience(0))["other"]


def gradient_of_all(x: Tensor) -> Tensor:
    """The right output, and a gradient that forgets the mask."""
    return torch.nn.functional.dropout(x, 0.1).detach() + (x - x.detach()) / 0.9


WRONG: dict[str, Callable[[Tensor], Tensor]] = {
    "scale": lambda x: 1.001 * torch.nn.functional.dropout(x, 0.1),
    "no scale": lambda x: torch.nn.functional.dropout(x, 0.1) * 0.9,
    "rate": lambda x: torch.nn.functional.dropout(x, 0.12) * (0.88 / 0.9),
    "nothing dropped": lambda x: x / 0.9,
    "gradient": gradient_of_all,
}


@pytest.mark.parametrize("fault", WRONG)
def test_a_wrong_provider_is_not_timed(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    outcome = outcome_of(monkeypatch, WRONG[fault])
    assert outcome.recorded == {}
    assert outcome.wrong


def test_a_right_provider_is_timed_in_every_direction(monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = outcome_of(monkeypatch, lambda x: torch.nn.functional.dropout(x, 0.1))
    assert outcome.right
    assert set(outcome.recorded) == {"forward", "backward", "full"}
    assert all(recorded.median > 0 for recorded in outcome.recorded.values())


def test_a_wrong_provider_does_not_stop_the_others() -> None:
    broken = dataclasses.replace(spec, functional=lambda x, p: 1.001 * spec.functional(x, p))
    outcomes = measure(
        Point(broken, POINT.case, POINT.dtype, "cpu"),
        ["regops", "eager", "copy"],
        QUICK,
        law,
        Patience(0),
    )
    assert "output differs from the reference" in str(outcomes["regops"].wrong)
    assert len(outcomes["eager"].recorded) == len(outcomes["copy"].recorded) == 3


def test_regops_must_use_the_key_that_it_drew() -> None:
    verify = Verifier(POINT, POINT.inputs(), None)
    other_key = torch.tensor([1, 2])

    def keyed(x: Tensor) -> Tensor:
        return spec.functional(x, 0.1, key=other_key)

    verify("regops", lambda x: spec.functional(x, 0.1))
    with pytest.raises(AssertionError, match="differs from the reference"):
        verify("regops", keyed)


def test_an_op_with_random_numbers_needs_a_law() -> None:
    outcomes = measure(POINT, ["eager"], QUICK, None, Patience(0))
    assert "no law" in str(outcomes["eager"].wrong)


@pytest.mark.parametrize("wrong", [torch.zeros_like, lambda source: source])
def test_a_copy_that_is_none_is_caught(wrong: Callable[[Tensor], Tensor]) -> None:
    source = torch.randn(1000)
    verify_copy(providers.copier("cpu"), source)
    with pytest.raises(AssertionError, match="copy"):
        verify_copy(wrong, source)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_copy_moves_as_many_bytes_as_the_op(direction: Any) -> None:
    sources = providers.copy_sources(POINT)[direction]
    assert sum(2 * source.nbytes for source in sources) == POINT.bytes_moved(direction)


def test_a_peer_that_is_not_installed_says_so() -> None:
    assert not Peer("no_such_library", ("cpu",), lambda point, arguments: torch.clone).importable


# ---- time and memory ----


def test_replayed_durations_become_the_statistics(request: pytest.FixtureRequest) -> None:
    durations = [0.5, 0.1 + 0.2, 1.0]
    request.node.add_marker(pytest.mark.benchmark(timer=timing.replay_timer(durations)))
    benchmark = request.getfixturevalue("benchmark")
    benchmark.disabled = False  # pytest-xdist does that to all, as times in parallel mean little
    benchmark.pedantic(lambda: None, rounds=3, iterations=4)
    assert benchmark.stats.stats.data == [duration / 4 for duration in durations]
    assert benchmark.stats.stats.median == 0.5 / 4


def test_providers_take_turns() -> None:
    turns: list[str] = []
    runs = {name: lambda name=name: turns.append(name) for name in "abc"}

    def clock(run: timing.Run, repeats: int) -> float:
        run()
        return timing.TURN_S

    recorded = timing.interleave(runs, clock, budget_s=0, min_rounds=4, max_rounds=9)
    timed = "".join(turns[-12:])
    assert timed == "abcbcacababc"
    assert {name: len(r.durations) for name, r in recorded.items()} == {"a": 4, "b": 4, "c": 4}


def test_a_slow_provider_takes_part_in_fewer_rounds_but_enough() -> None:
    seconds = {"fast": timing.TURN_S, "slow": 100 * timing.TURN_S}
    current: list[str] = []
    runs = {name: lambda name=name: current.append(name) for name in seconds}

    def clock(run: timing.Run, repeats: int) -> float:
        run()
        return seconds[current[-1]]

    recorded = timing.interleave(runs, clock, budget_s=0, min_rounds=3, max_rounds=9)
    assert len(recorded["slow"].durations) == 3
    assert len(recorded["fast"].durations) == 3 * timing.MAX_STRIDE


def test_a_provider_that_would_exceed_its_share_gets_fewer_rounds() -> None:
    seconds = {"short": 0.1, "long": 1.0}
    current: list[str] = []
    runs = {name: lambda name=name: current.append(name) for name in seconds}

    def clock(run: timing.Run, repeats: int) -> float:
        run()
        return seconds[current[-1]]

    recorded = timing.interleave(runs, clock, budget_s=2.0, min_rounds=7, max_rounds=40)
    assert len(recorded["short"].durations) == 35
    assert len(recorded["long"].durations) == timing.LEAST_ROUNDS


def test_a_fast_call_is_repeated_to_fill_its_turn() -> None:
    def clock(run: timing.Run, repeats: int) -> float:
        return 1e-6 * repeats

    recorded = timing.interleave(
        {"fast": lambda: None}, clock, budget_s=0, min_rounds=3, max_rounds=3
    )
    assert recorded["fast"].repeats * 1e-6 >= timing.TURN_S / 2
    assert recorded["fast"].median == pytest.approx(1e-6)


def test_a_long_call_is_not_repeated_to_warm_up() -> None:
    calls: list[int] = []

    def clock(run: timing.Run, repeats: int) -> float:
        calls.append(repeats)
        return 2 * timing.LONG_S

    timing.interleave({"long": lambda: None}, clock, budget_s=0, min_rounds=2, max_rounds=9)
    assert calls == [1, 1, 1]


@pytest.mark.parametrize(
    ("call", "state", "peak", "full_peak", "extra"),
    [
        # Keeps its input, which was there before; backward holds output, cosine and gradient.
        (lambda x: x.sin(), 0, 4000, 12000, 4000),
        (lambda x: x.exp().sin(), 4000, 8000, 16000, 8000),  # keeps what exp returned
        (
            lambda x: x.neg().neg(),
            0,
            8000,
            12000,
            4000,
        ),  # holds what the first returned, lets it go
        (lambda x: spec.functional(x, 0.1), 16, 4016, 8016, 16),  # keeps the key
    ],
)
def test_memory_is_what_the_allocator_gave(
    call: Callable[[Tensor], Tensor], state: int, peak: int, full_peak: int, extra: int
) -> None:
    inputs = Inputs(torch.randn(1000, requires_grad=True), {})
    call(inputs.x)
    found = memory(call, inputs)
    assert dataclasses.astuple(found) == (peak, state, full_peak, extra)


def test_the_others_share_is_all_work_less_ones_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stat = tmp_path / "stat"
    second = os.sysconf("SC_CLK_TCK")
    now = {"wall": 0.0, "own": 0.0}
    monkeypatch.setattr(neighbours, "_STAT", stat)
    monkeypatch.setattr(neighbours.os, "cpu_count", lambda: 4)
    monkeypatch.setattr(neighbours.time, "perf_counter", lambda: now["wall"])
    monkeypatch.setattr(neighbours.time, "process_time", lambda: now["own"])

    stat.write_text("cpu  0 0 0 0 0 0 0 0 0 0\ncpu0 0 0 0 0 0 0 0 0 0 0\n")
    share = OthersShare()
    # In 10 s, 8 s of work in user mode, 3 s in the kernel, 1 s stolen by the host; 5 s were ours.
    stat.write_text(f"cpu  {8 * second} 0 {3 * second} {9 * second} 99 0 0 {second} 77 0\n")
    now.update(wall=10.0, own=5.0)
    assert share() == pytest.approx((8 + 3 + 1 - 5) / (4 * 10))
    stat.unlink()
    assert share() is None


@pytest.mark.parametrize(
    ("seconds", "kept"),
    [(0.0, {"forward": 0.5, "backward": 0.2, "full": 0.0}), (1e3, dict.fromkeys(DIRECTIONS, 0.0))],
)
def test_what_others_disturbed_is_timed_again_while_patience_lasts(
    monkeypatch: pytest.MonkeyPatch, seconds: float, kept: dict[str, float]
) -> None:
    shares = iter([0.5, 0.2, 0.0, 0.0, 0.0])
    monkeypatch.setattr("bench.measure.OthersShare", lambda: lambda: next(shares))
    outcome = measure(POINT, ["copy"], QUICK, law, Patience(seconds))["copy"]
    assert outcome.others == kept


@pytest.mark.parametrize("profile", PROFILES.values(), ids=lambda profile: profile.name)
@pytest.mark.parametrize("op", [*specs(), *step_specs()])
def test_profiles_measure_something_of_every_op(profile: Profile, op: str) -> None:
    assert list(profile.points({**specs(), **step_specs()}[op], Selection()))
