"""Which rows are compared with which, and with whom regops."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from bench.summary import CEILINGS, Row, Summary

# Once more regops, not a rival: see `bench.steps`.
OWN = ("regops", "float32-states")

# "even": the ranges from the 20th to the 80th percentile overlap.
Standing = Literal["faster", "even", "slower"]

_COUNT = re.compile(r"\d+[kMG]?")
_ALIKE = re.compile(r"(\d+)x(\d+)")


def grouped(rows: Iterable[Row], *by: str) -> list[list[Row]]:
    """Rows that agree in some fields, groups and rows in the order of the run."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(getattr(row, name) for name in by), []).append(row)
    return list(groups.values())


def anchor(row: Row) -> str:
    """What the page and the figures call an op on a device."""
    return f"{row.op}-{row.device.replace(':', '')}"


def is_usual(summary: Summary, row: Row) -> bool:
    """Whether it was timed as users call it: with all threads, each call launched by itself."""
    return row.launch == "calls" and row.threads == summary.machine["threads"]


def usual(summary: Summary) -> list[Row]:
    """The rows by which regops is judged."""
    return [row for row in summary.rows if is_usual(summary, row)]


def providers(rows: Iterable[Row]) -> list[str]:
    """Who has a figure or a reason in some row: torch's first, then regops, ceilings, others."""
    names = dict.fromkeys(
        name for row in rows for kind in (row.median, row.wrong, row.failed) for name in kind
    )
    order = ("eager", "foreach", "fused", "compile", *OWN, *CEILINGS)
    return sorted(names, key=lambda name: order.index(name) if name in order else len(order))


def timed(rows: Iterable[Row]) -> list[str]:
    """Those who have a time in some row."""
    every = list(rows)
    return [name for name in providers(every) if any(name in row.median for row in every)]


def torch_ways(summary: Summary, row: Row) -> list[str]:
    """Who is torch itself, of those with a time."""
    own = ["eager", "foreach", "fused", "compile"]
    own += [peer["name"] for peer in summary.peers if peer.get("package") == "torch"]
    return [name for name in own if name in row.median]


def usual_way(row: Row) -> str:
    """What torch does by default: its optimizers take lists of tensors on CUDA only."""
    return "foreach" if row.direction == "step" and row.device.startswith("cuda") else "eager"


def best_way(summary: Summary, row: Row) -> str | None:
    """The fastest of torch's."""
    ways = torch_ways(summary, row)
    return min(ways, key=row.median.__getitem__) if ways else None


def best_peer(summary: Summary, row: Row) -> str | None:
    """The fastest that is neither torch's nor regops's."""
    known = {*torch_ways(summary, row), *OWN, *CEILINGS}
    others = row.median.keys() - known
    return min(others, key=row.median.__getitem__) if others else None


def standing(row: Row, rival: str) -> Standing:
    """How regops compares with another in a row where both were timed."""
    if row.high["regops"] < row.low[rival]:
        return "faster"
    return "slower" if row.low["regops"] > row.high[rival] else "even"


def elements(row: Row) -> int | None:
    """How many elements there are, if the name of the size says no more than that."""
    return row.numel if _COUNT.fullmatch(row.size) else None


def is_plain(row: Row) -> bool:
    """Whether the name of the size says all: so many elements, a matrix, or a list of tensors."""
    return bool(_COUNT.fullmatch(row.size) or _ALIKE.fullmatch(row.size))


def parts(row: Row) -> int:
    """Tensors of a step, rows of a matrix, or else 1."""
    matrix = _ALIKE.fullmatch(row.size)
    return row.tensors if row.direction == "step" or not matrix else int(matrix[1])


def largest(rows: Sequence[Row]) -> Row:
    """The largest that no cache holds, or else the largest; of equals the first."""
    beyond = [row for row in rows if not row.in_cache]
    return max(beyond or rows, key=lambda row: row.numel)
