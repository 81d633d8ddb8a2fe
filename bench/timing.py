"""Rounds in which providers take turns, and the timer that replays them to pytest-benchmark.

Timing one provider to its end and then the next compares two moments of the machine as much as
two providers: on a shared machine memory bandwidth changes by 2x within minutes. Here every round
gives each provider one turn, beginning with a different one each time, so that drift meets all
alike.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch

Run = Callable[[], object]

# A turn of a fast call repeats it to this length: 10^4 times the resolution of perf_counter, and
# ten times what a CUDA event resolves (0.5 us) even if the device then waits for the host.
TURN_S = 1e-3

# A call of this length is warm after one.
LONG_S = 0.2

# Turns that are enough of calls of that length, if they fill their share of the budget: such calls
# vary less from one to the next than those of microseconds do.
LEAST_ROUNDS = 3

# A provider whose turn is k times as long as the fastest one's takes part in every (k/2)-th round
# only, so that the fast ones, whose ratio is judged to a percent, get more samples in the budget.
MAX_STRIDE = 8


class Clock(Protocol):
    """Seconds that `repeats` calls of `run` take."""

    def __call__(self, run: Run, repeats: int) -> float:
        """Times one turn."""
        ...


def cpu_clock(run: Run, repeats: int) -> float:
    """Wall time. Every call's result is freed inside the span, as it is in a user's loop."""
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    return time.perf_counter() - start


class CudaClock:
    """Time between two CUDA events around the calls.

    Args:
        device: On which the calls run.
        cold: Overwrite a buffer larger than the L2 cache before each turn, outside the span. For
            sizes that no cache would hold in use.
    """

    def __init__(self, device: torch.device, cold: bool):
        l2_bytes = torch.cuda.get_device_properties(device).L2_cache_size
        self._flush = torch.empty(4 * l2_bytes if cold else 0, dtype=torch.uint8, device=device)
        self._device = device

    def __call__(self, run: Run, repeats: int) -> float:
        """Times one turn. With one call a turn, the flush hides the launch from the span."""
        start = torch.cuda.Event(enable_timing=True)
        end = torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize(self._device)
        self._flush.zero_()
        start.record()
        for _ in range(repeats):
            run()
        end.record()
        torch.cuda.synchronize(self._device)
        return start.elapsed_time(end) * 1e-3


@dataclass
class Recorded:
    """Durations of one provider's turns.

    Attributes:
        repeats: Calls in a turn.
        durations: Seconds of each turn, all its calls together.
    """

    repeats: int
    durations: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Seconds of one call."""
        return statistics.median(self.durations) / self.repeats


def interleave(
    runs: Mapping[str, Run],
    clock: Clock,
    *,
    budget_s: float,
    min_rounds: int,
    max_rounds: int,
) -> dict[str, Recorded]:
    """Times each run in turn, round after round.

    Args:
        runs: What to time, by provider.
        clock: Measures one turn.
        budget_s: Seconds to spend, warm-up not counted.
        min_rounds: Turns that every provider gets, even beyond the budget; only `LEAST_ROUNDS` of
            long calls whose share of it fewer fill.
        max_rounds: Turns that no provider exceeds, unless `min_rounds` asks for more.

    Returns:
        The durations by provider.
    """
    turns = {name: _warm_up(run, clock) for name, run in runs.items()}
    fastest = min(seconds for _, seconds in turns.values())
    strides = {
        name: min(MAX_STRIDE, max(1, int(seconds / fastest) // 2))
        for name, (_, seconds) in turns.items()
    }
    round_s = sum(seconds / strides[name] for name, (_, seconds) in turns.items())
    rounds = max(min_rounds * max(strides.values()), min(max_rounds, int(budget_s / round_s)))
    for name, (_, seconds) in turns.items():
        if seconds >= LONG_S:
            enough = max(min(LEAST_ROUNDS, min_rounds), int(budget_s / len(turns) / seconds))
            strides[name] = max(strides[name], math.ceil(rounds / enough))

    recorded = {name: Recorded(repeats) for name, (repeats, _) in turns.items()}
    order = list(runs)
    collecting = gc.isenabled()
    gc.disable()
    try:
        for turn in range(rounds):
            first = turn % len(order)
            for name in order[first:] + order[:first]:
                if turn % strides[name] == 0:
                    duration = clock(runs[name], recorded[name].repeats)
                    recorded[name].durations.append(duration)
    finally:
        if collecting:
            gc.enable()
    return recorded


def _warm_up(run: Run, clock: Clock) -> tuple[int, float]:
    """Calls that fill a turn, and that turn's seconds; grown from one call until they do."""
    repeats, seconds = 1, clock(run, 1)
    if seconds < LONG_S:
        seconds = min(seconds, clock(run, 1), clock(run, 1))
    while seconds < TURN_S / 2:
        repeats = math.ceil(repeats * min(100.0, TURN_S / max(seconds, 1e-9)))
        seconds = min(clock(run, repeats) for _ in range(3))
    return repeats, seconds


def replay_timer(durations: Iterable[float]) -> Callable[[], float]:
    """A timer that makes pytest-benchmark record the given durations.

    pytest-benchmark can only time one function to its end, so what was measured in turns is handed
    over afterwards: `benchmark.pedantic` reads its timer before and after each round, and this one
    answers 0 and then the next duration. The difference is the duration itself, bit for bit.

    Args:
        durations: Seconds of each round.

    Returns:
        The timer, good for two readings per duration.
    """
    readings = (reading for duration in durations for reading in (0.0, duration))

    def recorded() -> float:
        return next(readings)

    return recorded
