"""What moved from one run, A, to another, B, beyond noise.

A provider's time in a row is compared by up to three measures: in times of the row's ceiling and in
times of eager's, each within its run, and by the clock where both runs are of one machine. B's
measure over A's is a change. It is beyond noise if its logarithm exceeds both

- `FLOOR`: where pages and code happen to lie moves a run as a whole, and its rounds do not show it;
- twice the standard deviation of single rounds, of all medians that the measure is made of together
  (two by the clock, four of a ratio). The deviation is read off the 20th and 80th percentile, as if
  logarithms of times were normal; of few rounds these are too close, by up to `1 + 2 / rounds`.

That a median of n rounds is steadier than one round, by sqrt(n), is not made use of: rounds share
the moment of the machine. Of two quiet runs of one commit, minutes apart, ratios of medians were up
to 5 standard errors of independent rounds apart, but no more than 1 deviation of single ones. In
five pairs of four quiet runs of dropout nothing moved by this rule; with regops's times made 1.3
times as long in one of a pair, 19 of its 30 rows did, and 27 with twice the time.

A provider moved if two measures did, the same way, and by as much as two of them say. So a ceiling
that alone became faster moves itself, by the clock and against eager, and no one else. Nothing is
said of a provider with one measure, nor of a row during which, in either run, others used the
processor or it ran slowly. Bytes of memory are exact: any difference is one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from bench.summary import CEILINGS, Row, Summary

MEASURES = ("ceiling", "eager", "clock")
MACHINE_FACTS = ("system", "processor", "cores", "threads", "cpu_capability", "gpu")
SOFTWARE_FACTS = ("torch", "python", "compiler", "cuda_torch")

FLOOR = math.log(1.05)
_DEVIATIONS = 2.0
_AGREEING = 2
# From the 20th to the 80th percentile, in standard deviations of a normal distribution.
_WIDTH = 1.6832


@dataclass(frozen=True)
class Change:
    """B's figure over A's, and what noise alone may make of it: logarithms both."""

    log: float
    noise: float

    @property
    def beyond_noise(self) -> bool:
        """Whether it moved, either way."""
        return abs(self.log) > self.noise


@dataclass(frozen=True)
class Comparison:
    """A provider's times in a row of both runs.

    Attributes:
        row: Of run B.
        provider: Whose.
        changes: By measure, as far as there are figures for it.
        unjudged: Why nothing is said of it; None if it is judged.
    """

    row: Row
    provider: str
    changes: dict[str, Change]
    unjudged: str | None = None

    @property
    def moved(self) -> float:
        """How many times as long B takes as A, or more, by two measures; 1 if two do not agree."""
        if self.unjudged is None:
            logs = [change.log for change in self.changes.values() if change.beyond_noise]
            for way in (1, -1):
                agreeing = sorted((way * log for log in logs if way * log > 0), reverse=True)
                if len(agreeing) >= _AGREEING:
                    return math.exp(way * agreeing[_AGREEING - 1])
        return 1.0

    @property
    def visible(self) -> float:
        """The least factor that would have been beyond noise by enough measures."""
        return math.exp(sorted(change.noise for change in self.changes.values())[_AGREEING - 1])

    @property
    def verdict(self) -> str:
        """In a word or two."""
        if self.unjudged:
            return "not judged"
        return "slower" if self.moved > 1 else "faster" if self.moved < 1 else "same"


def compare(a: Summary, b: Summary) -> Iterator[Comparison]:
    """Every provider that both runs timed, row by row."""
    clock = not differing(a, b, MACHINE_FACTS)
    before = _rows(a)
    for row in b.rows:
        if row.group in before:
            yield from _compare_rows(before[row.group], row, clock)


def _rows(summary: Summary) -> dict[str, Row]:
    # A group's name has the number of threads only if it is not the machine's own.
    return {row.group: row for row in summary.rows}


def _compare_rows(a: Row, b: Row, clock: bool) -> Iterator[Comparison]:
    both = [name for name in b.median if name in a.median]
    rivals = {"ceiling": next((name for name in CEILINGS if name in both), None)}
    if "eager" in both:
        rivals["eager"] = "eager"
    for provider in both:
        changes = {
            measure: _change(a, b, (provider, rival))
            for measure, rival in rivals.items()
            if rival and rival != provider
        }
        if clock:
            changes["clock"] = _change(a, b, (provider,))
        yield Comparison(b, provider, changes, _unjudged(a, b, changes))


def _unjudged(a: Row, b: Row, changes: dict[str, Change]) -> str | None:
    if a.disturbed or b.disturbed:
        return "others used the processor"
    if a.throttled or b.throttled:
        return "the processor was slow"
    return "one measure only" if len(changes) < _AGREEING else None


def _change(a: Row, b: Row, providers: tuple[str, ...]) -> Change:
    """Of a provider's time, in times of another's if there are two."""
    logs = [math.log(b.median[name] / a.median[name]) for name in providers]
    deviations = [_deviation(row, name) for row in (a, b) for name in providers]
    return Change(logs[0] - sum(logs[1:]), max(FLOOR, _DEVIATIONS * math.hypot(*deviations)))


def _deviation(row: Row, provider: str) -> float:
    """Of the logarithm of a round's time."""
    spread = math.log(row.high[provider] / row.low[provider]) / _WIDTH
    return spread * (1 + 2 / row.rounds[provider])


def differing(a: Summary, b: Summary, facts: Sequence[str]) -> list[str]:
    """In which facts about their machines two runs differ, in words."""
    return [
        f"{fact.replace('_', ' ')} {a.machine.get(fact)} and {b.machine.get(fact)}"
        for fact in facts
        if a.machine.get(fact) != b.machine.get(fact)
    ]


class MemoryChange(NamedTuple):
    """Bytes that a provider takes in a row, where they differ; `kind` is a field of `Row`."""

    row: Row
    provider: str
    kind: str
    before: int
    after: int


def memory_changes(a: Summary, b: Summary) -> Iterator[MemoryChange]:
    """Of every provider whose memory both runs have."""
    rows = _rows(a)
    for row in b.rows:
        for kind in ("peak", "state", "full_peak", "extra") if row.group in rows else ():
            before, after = getattr(rows[row.group], kind), getattr(row, kind)
            for provider in after:
                if before.get(provider, after[provider]) != after[provider]:
                    yield MemoryChange(row, provider, kind, before[provider], after[provider])


class Broken(NamedTuple):
    """A provider that one run alone could not time, and why."""

    provider: str
    row: Row
    reason: str


def broken(a: Summary, b: Summary) -> Iterator[Broken]:
    """Who is wrong in B and was not in A, or fails in B and was timed in A."""
    rows = _rows(a)
    for row in b.rows:
        before = rows.get(row.group)
        for provider, reason in row.wrong.items():
            if before is None or provider not in before.wrong:
                yield Broken(provider, row, f"wrong: {reason}")
        for provider, reason in row.failed.items():
            if before is not None and provider in before.median:
                yield Broken(provider, row, f"failed: {reason}")
