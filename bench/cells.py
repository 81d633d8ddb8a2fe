"""The page's tables, as cells: what stands in them, and by what they are sorted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from bench.rows import OWN, grouped, providers, standing
from bench.summary import CEILINGS, Row, Summary
from bench.wording import (
    CACHE,
    DIRECTION,
    NOTHING,
    command,
    marks,
    memory,
    percent,
    rate,
    seconds,
    spread,
    times,
)


@dataclass(frozen=True)
class Cell:
    """What stands in a table.

    Attributes:
        text: The figure.
        below: What belongs to it, in small.
        sort: What rows are sorted by; None for what comes last.
        tone: "own", "slower", "bad", "wide" or "".
        code: A command, that can be copied.
    """

    text: str
    below: str = ""
    sort: float | str | None = None
    tone: str = ""
    code: str = ""


@dataclass(frozen=True)
class Column:
    """A column; one with a choice can be filtered by what stands in it."""

    heading: str
    number: bool = True
    choice: bool = False


@dataclass(frozen=True)
class Table:
    """A table; its first column names the rows."""

    name: str
    caption: str
    columns: list[Column]
    rows: list[list[Cell]] = field(default_factory=list)


EMPTY = Cell(NOTHING)
WHAT = [
    Column("size", number=False),
    Column("direction", number=False, choice=True),
    Column("dtype", number=False, choice=True),
]


def narrowed(table: Table) -> Table:
    """Without the choices that are no choice; the caption says what all rows have in common."""
    kept, common = [], []
    for index, column in enumerate(table.columns):
        values = {row[index].text for row in table.rows}
        if column.choice and len(values) == 1:
            common += values
        else:
            kept.append(index)
    return Table(
        table.name,
        ", ".join((table.caption, *common)),
        [table.columns[index] for index in kept],
        [[row[index] for index in kept] for row in table.rows],
    )


def comparisons(summary: Summary, name: str, rows: Sequence[Row]) -> Table:
    """Every row of an op with all providers' times."""
    rivals = [each for each in providers(rows) if each not in (*OWN[:1], *CEILINGS)]
    table = Table(
        f"{name}-times",
        f"{title(rows)}: times",
        [
            *WHAT,
            Column("buffers", number=False, choice=True),
            Column("regops"),
            *(Column(f"vs {rival}") for rival in rivals),
            Column("ceiling"),
            Column("share of it"),
            Column("measure again", number=False),
        ],
    )
    for row in rows:
        over = row.over_ceiling()
        table.rows.append(
            [
                *what(row),
                Cell(CACHE[row.cache], sort=row.cache),
                _own(row),
                *(_rival(row, rival) for rival in rivals),
                _ceiling(row),
                Cell(percent(1 / over), sort=1 / over) if over else EMPTY,
                Cell("", code=command(row, summary.profile)),
            ]
        )
    return narrowed(table)


def memories(name: str, rows: Sequence[Row]) -> Table | None:
    """What each provider takes beyond the inputs; None if it was not measured."""
    measured = [
        next((row for row in group if row.peak), None) for group in grouped(rows, "dtype", "size")
    ]
    kept = [row for row in measured if row is not None]
    if not kept:
        return None
    names = [each for each in providers(kept) if any(each in row.peak for row in kept)]
    step = kept[0].direction == "step"
    peak = "a step"
    if not step:
        peak = (
            "forward; in small, what is kept for backward besides the output, and the peak of both"
        )
    table = Table(
        f"{name}-memory",
        f"{title(rows)}: memory beyond the inputs at the peak of {peak}",
        [WHAT[0], WHAT[2], *(Column(each) for each in names)],
        [[_size(row), what(row)[2], *(_memory(row, each, step) for each in names)] for row in kept],
    )
    return narrowed(table)


def title(rows: Sequence[Row]) -> str:
    return f"{rows[0].op}, {rows[0].device}"


def _size(row: Row) -> Cell:
    return Cell(row.size, f"{row.tensors} tensors" if row.tensors > 1 else "", sort=row.numel)


def what(row: Row) -> list[Cell]:
    size = _size(row)
    if marks(row):
        size = Cell(row.size, marks(row), sort=row.numel, tone="bad")
    return [
        size,
        Cell(DIRECTION[row.direction], sort=row.direction),
        Cell(row.dtype, sort=row.dtype),
    ]


def _own(row: Row) -> Cell:
    if "regops" not in row.median:
        return untimed(row, "regops")
    return Cell(
        seconds(row.median["regops"]), ranged(row, "regops"), row.median["regops"], tone="own"
    )


def _rival(row: Row, rival: str) -> Cell:
    if rival not in row.median:
        return untimed(row, rival)
    time = f"{seconds(row.median[rival])} ({ranged(row, rival)})"
    ratio = row.speedup(rival)
    if ratio is None:
        return Cell(NOTHING, time)
    slower = standing(row, rival) == "slower"
    return Cell(times(ratio), time, ratio, "slower" if slower else "")


def untimed(row: Row, provider: str) -> Cell:
    if provider in row.wrong:
        return Cell("wrong", row.wrong[provider], tone="bad")
    if provider in row.failed:
        return Cell("not timed", row.failed[provider], tone="bad")
    return EMPTY


def _ceiling(row: Row) -> Cell:
    name = row.ceiling
    if name not in row.median:
        return untimed(row, name)
    by = row.flops if name in ("linear", "matmul") else row.bytes_moved
    return Cell(name, rate(row, name), sort=by / row.median[name])


def _memory(row: Row, provider: str, step: bool) -> Cell:
    if provider not in row.peak:
        return EMPTY
    peak = row.peak[provider]
    below = (
        ""
        if step
        else (f"keeps {memory(row.state[provider])}, both {memory(row.full_peak[provider])}")
    )
    return Cell(memory(peak), below, peak, "own" if provider == "regops" else "")


def ranged(row: Row, provider: str) -> str:
    return spread(row.low[provider], row.high[provider])
