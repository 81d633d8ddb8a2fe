"""Everything that is measured of one op at one dtype and size: verify, then time in turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from bench.ceilings import CeilingPoint, linear_products
from bench.ceilings import prepare as prepare_ceiling
from bench.memory import Memory, memory, peak_of
from bench.neighbours import DISTURBED, OthersShare, Patience
from bench.profiles import AnyPoint, Profile
from bench.providers import Point, build, copier, copy_runs, copy_sources, replayed, runs
from bench.setting import Setting
from bench.step_providers import build as build_step
from bench.step_providers import ceiling
from bench.steps import StepPoint, Workload
from bench.throttle import SpeedProbe
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
        wrong: Why its result is wrong, and was not timed for that; None if it is right.
        error: Why it was not timed otherwise; None if it was.
        recorded: Durations by direction.
        others: Share of the processor that went to others meanwhile, by direction; None if unknown.
        probes: Seconds that a fixed piece of arithmetic took around them, by direction.
        memory: That it takes; None for the copy.
    """

    wrong: str | None = None
    error: str | None = None
    recorded: dict[Direction, Recorded] = field(default_factory=dict)
    others: dict[Direction, float | None] = field(default_factory=dict)
    probes: dict[Direction, float] = field(default_factory=dict)
    memory: Memory | None = None

    @property
    def right(self) -> bool:
        """Whether it was timed."""
        return self.wrong is None and self.error is None


def measure(
    point: AnyPoint,
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
    with _threads(point.setting):
        return _measure(point, providers, profile, law, patience)


def _measure(
    point: AnyPoint,
    providers: Iterable[str],
    profile: Profile,
    law: Law | None,
    patience: Patience,
) -> dict[str, Outcome]:
    prepare = _preparation(point, law)
    outcomes: dict[str, Outcome] = {}
    timed: dict[str, Runs] = {}
    for name in providers:
        outcomes[name] = outcome = Outcome()
        try:
            prepared = prepare(name, outcome)
            if point.setting.graph:
                prepared = {direction: replayed(run) for direction, run in prepared.items()}
            timed[name] = prepared
        except AssertionError as error:
            outcome.wrong = str(error)
        except Exception as error:
            outcome.error = f"{type(error).__name__}: {error}"
    probe = SpeedProbe(torch.device(point.device))
    for direction in point.directions:
        turns = {name: by_direction[direction] for name, by_direction in timed.items()}
        if turns:
            before = probe()
            recorded, others = _time(turns, _clock(point), profile, patience)
            seconds = max(before, probe())
            for name, durations in recorded.items():
                outcomes[name].recorded[direction] = durations
                outcomes[name].others[direction] = others
                outcomes[name].probes[direction] = seconds
    return outcomes


@contextmanager
def _threads(setting: Setting) -> Iterator[None]:
    usual = torch.get_num_threads()
    torch.set_num_threads(setting.threads or usual)
    try:
        yield
    finally:
        torch.set_num_threads(usual)


def _preparation(point: AnyPoint, law: Law | None) -> Prepare:
    if isinstance(point, CeilingPoint):
        move = prepare_ceiling(point)
        return lambda name, outcome: {point.direction: move(name)}
    return _of_step(point) if isinstance(point, StepPoint) else _of_op(point, law)


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
        if name == "matmul":
            return {"full": linear_products(inputs.x, inputs.arguments["linear_weight"])}
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


def _clock(point: AnyPoint) -> Clock:
    device = torch.device(point.device)
    return CudaClock(device, point.cache == "flushed") if device.type == "cuda" else cpu_clock
