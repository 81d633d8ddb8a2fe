"""Everything that is measured of one op at one dtype and size: verify, then time in turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch

from bench.memory import Memory, memory, peak_of
from bench.neighbours import DISTURBED, OthersShare, Patience
from bench.profiles import Profile
from bench.providers import Point, build, copier, copy_runs, copy_sources, runs
from bench.step_providers import build as build_step
from bench.step_providers import ceiling
from bench.steps import StepPoint, Workload
from bench.timing import Clock, CudaClock, Recorded, Run, cpu_clock, interleave
from bench.verify import Law, Verifier, verify_copy
from bench.verify_steps import StepVerifier
from regops.testing import Direction

Runs = dict[Direction, Run]
# From a provider's name and its outcome, where its memory goes: what to time, verified.
Prepare = Callable[[str, "Outcome"], Runs]


@dataclass
class Outcome:
    """What became of one provider.

    Attributes:
        error: Why it was not timed; None if it was.
        recorded: Durations by direction.
        others: Share of the processor that went to others meanwhile, by direction; None if unknown.
        memory: That it takes; None for the copy.
    """

    error: str | None = None
    recorded: dict[Direction, Recorded] = field(default_factory=dict)
    others: dict[Direction, float | None] = field(default_factory=dict)
    memory: Memory | None = None


def measure(
    point: Point | StepPoint,
    providers: Iterable[str],
    profile: Profile,
    law: Law | None,
    patience: Patience,
) -> dict[str, Outcome]:
    """Verifies and times the providers of a point.

    A provider that is wrong, or raises, is left out of the timing and its outcome says why; the
    others are measured all the same.

    Args:
        point: The op or step, dtype, size and device.
        providers: Names, of the point's.
        profile: How long to measure.
        law: See `bench.verify`.
        patience: What is left of it to time again.
    """
    prepare = _of_step(point) if isinstance(point, StepPoint) else _of_op(point, law)
    outcomes: dict[str, Outcome] = {}
    timed: dict[str, Runs] = {}
    for name in providers:
        outcomes[name] = Outcome()
        try:
            timed[name] = prepare(name, outcomes[name])
        except Exception as error:
            outcomes[name].error = f"{name} was not timed: {type(error).__name__}: {error}"
    for direction in point.directions:
        turns = {name: by_direction[direction] for name, by_direction in timed.items()}
        if turns:
            recorded, others = _time(turns, _clock(point), profile, patience)
            for name, durations in recorded.items():
                outcomes[name].recorded[direction] = durations
                outcomes[name].others[direction] = others
    return outcomes


def _time(
    turns: dict[str, Run], clock: Clock, profile: Profile, patience: Patience
) -> tuple[dict[str, Recorded], float | None]:
    """The durations, taken again while others are busy; the quietest attempt counts, as a whole."""
    attempts = []
    while True:
        start = time.perf_counter()
        share = OthersShare()
        recorded = interleave(
            turns,
            clock,
            budget_s=profile.budget_s,
            min_rounds=profile.min_rounds,
            max_rounds=profile.max_rounds,
        )
        others = share()
        attempts.append((recorded, others))
        seconds = time.perf_counter() - start
        if others is None or others <= DISTURBED or patience.seconds_left < seconds:
            return min(attempts, key=lambda attempt: attempt[1] or 0.0)
        patience.seconds_left -= seconds


def _of_op(point: Point, law: Law | None) -> Prepare:
    inputs = point.inputs()
    verify = Verifier(point, inputs, law)

    def prepare(name: str, outcome: Outcome) -> Runs:
        if name == "copy":
            copy, sources = copier(point.device), copy_sources(point)
            for tensors in sources.values():
                for source in tensors:
                    verify_copy(copy, source)
            return copy_runs(copy, sources)
        call = build(name, point, inputs.arguments)
        verify(name, call)
        outcome.memory = memory(call, inputs)
        return runs(call, inputs, point.directions)

    return prepare


def _of_step(point: StepPoint) -> Prepare:
    work = Workload(point)
    verify = StepVerifier(point, work)

    def prepare(name: str, outcome: Outcome) -> Runs:
        if name == point.ceiling:
            return {"step": ceiling(point, work)}
        stepper = build_step(name, point, work)
        verify(name, stepper)
        peak, held = peak_of(stepper.run, torch.device(point.device))
        outcome.memory = Memory(peak, held, peak, peak)
        return {"step": stepper.run}

    return prepare


def _clock(point: Point | StepPoint) -> Clock:
    device = torch.device(point.device)
    return CudaClock(device, cold=not point.case.in_cache) if device.type == "cuda" else cpu_clock
