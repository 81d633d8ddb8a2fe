"""How figures and facts are written, alike in every form of the report."""

from __future__ import annotations

from typing import Any

from bench.neighbours import DISTURBED
from bench.summary import Row, Summary
from bench.throttle import THROTTLED

NOTHING = "–"

# Where the buffers are when a turn begins.
CACHE = {"hot": "in cache", "memory": "from memory", "flushed": "cache flushed"}

# Rows that a warning names; all of them bear the mark where they stand.
_NAMED = 8

# What is timed.
DIRECTION = {
    "forward": "forward",
    "backward": "backward",
    "full": "forward and backward",
    "inference": "inference",
    "step": "one step",
}


def seconds(value: float) -> str:
    """A time with the unit that suits it, to three digits."""
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if value * scale >= 1:
            return f"{_three_digits(value * scale)} {unit}"
    return f"{value * 1e9:.3g} ns"


def spread(low: float, high: float) -> str:
    """A range of times; the unit stands once if both have it."""
    first, last = seconds(low), seconds(high)
    if first.split()[1] == last.split()[1]:
        first = first.split()[0]
    return f"{first}–{last}"


def times(value: float | None) -> str:
    """A ratio, as in "12.5×"."""
    if value is None:
        return NOTHING
    return f"{_three_digits(value)}×"


def _three_digits(value: float) -> str:
    return f"{value:.3g}" if value < 999.5 else f"{value:.0f}"


def percent(value: float | None) -> str:
    """A share; one that is small keeps two digits."""
    if value is None:
        return NOTHING
    return f"{value:.0%}" if value >= 0.0995 else f"{100 * value:.2g}%"


def memory(count: int | None) -> str:
    """Bytes, to three digits."""
    if count is None:
        return NOTHING
    for unit, scale in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= scale:
            return f"{_three_digits(count / scale)} {unit}"
    return f"{count} B"


def rate(row: Row, provider: str) -> str:
    """Of products how many operations are made, of all else how many bytes are moved."""
    if row.flops and provider in ("linear", "matmul"):
        return f"{row.gflop_per_s(provider):.3g} GFLOP/s"
    return f"{row.gb_per_s(provider):.3g} GB/s"


def marks(row: Row) -> str:
    """Empty, or a mark and what it stands for; `warnings` says it at length."""
    reasons = []
    if row.disturbed:
        reasons.append(f"others {row.others:.0%}")
    if row.throttled:
        reasons.append(f"slowed {times(row.slowdown)}")
    return f"(!) {', '.join(reasons)}" if reasons else ""


def command(row: Row, profile: str) -> str:
    """What measures a row again, with those that differ from it in direction and setting only."""
    told = "" if profile == "default" else f" --profile {profile}"
    return (
        f"python -m bench --op {row.op} --size {row.size} --dtype {row.dtype} "
        f"--device {row.device}{told}"
    )


def flat(value: Any) -> str:
    """A fact about the machine in one line."""
    if isinstance(value, dict):
        facts = ((name.replace("_", " "), flat(inner)) for name, inner in value.items())
        return "; ".join(": ".join(fact) for fact in facts)
    if isinstance(value, list | tuple):
        return ", ".join(map(flat, value))
    return "none" if value is None else str(value)


def machine_line(summary: Summary) -> str:
    """What was measured on what, and when."""
    machine = summary.machine
    gpu = f", {flat(machine['gpu'])}" if machine.get("gpu") else ""
    return (
        f"regops {machine['regops']}, torch {machine['torch']}, {machine['processor']}, "
        f"{machine['threads']} threads{gpu}, profile {summary.profile}, {summary.created}"
    )


def warnings(summary: Summary) -> list[str]:
    """What a reader must know before believing the figures."""
    rows = summary.rows + summary.ceilings
    lines = [
        f"{why}: {provider} of {row.group}: {reason}"
        for row in rows
        for why, reasons in (("wrong", row.wrong), ("not timed", row.failed))
        for provider, reason in reasons.items()
    ]
    for marked, what in (
        (
            [row for row in rows if row.disturbed],
            f"others used more than {DISTURBED:.0%} of the processor meanwhile",
        ),
        (
            [row for row in rows if row.throttled],
            f"the processor was more than {THROTTLED} times as slow as at its best",
        ),
    ):
        if marked:
            named = ", ".join(row.group for row in marked[:_NAMED])
            more = f" and {len(marked) - _NAMED} more" if len(marked) > _NAMED else ""
            lines.append(f"(!) {what} in {len(marked)} of {len(rows)} rows: {named}{more}")
    return lines
