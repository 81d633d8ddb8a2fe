"""The page's tables, as cells: what stands in them, and by what they are sorted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from bench.fits import Fit
from bench.rows import OWN, grouped, is_usual, providers, standing, timed
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

# A misfit beyond which costs say little.
POOR = 0.5


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


_EMPTY = Cell(NOTHING)
_WHAT = [
    Column("size", number=False),
    Column("direction", number=False, choice=True),
    Column("dtype", number=False, choice=True),
]


def _narrowed(table: Table) -> Table:
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
        f"{_title(rows)}: times",
        [
            *_WHAT,
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
                *_what(row),
                Cell(CACHE[row.cache], sort=row.cache),
                _own(row),
                *(_rival(row, rival) for rival in rivals),
                _ceiling(row),
                Cell(percent(1 / over), sort=1 / over) if over else _EMPTY,
                Cell("", code=command(row, summary.profile)),
            ]
        )
    return _narrowed(table)


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
    what = "a step"
    if not step:
        what = (
            "forward; in small, what is kept for backward besides the output, and the peak of both"
        )
    table = Table(
        f"{name}-memory",
        f"{_title(rows)}: memory beyond the inputs at the peak of {what}",
        [_WHAT[0], _WHAT[2], *(Column(each) for each in names)],
        [
            [_size(row), _what(row)[2], *(_memory(row, each, step) for each in names)]
            for row in kept
        ],
    )
    return _narrowed(table)


def settings(summary: Summary, name: str, rows: Sequence[Row]) -> list[Table]:
    """Fewer threads, and replays of graphs, beside the same rows as they are usually timed."""
    tables = []
    groups = grouped(rows, "direction", "dtype", "size")
    for launch, what in (("calls", "fewer threads"), ("graph", "calls and replays of CUDA graphs")):
        shown = []
        for group in groups:
            usual = [row for row in group if is_usual(summary, row)]
            other = [row for row in group if row.launch == launch and row not in usual]
            if other:
                # From the slow to the fast: few threads first, and calls before their replay.
                order = sorted(other, key=lambda row: row.threads)
                shown.append([*order, *usual] if launch == "calls" else [*usual, *order])
        if not shown:
            continue
        names = timed(row for group in shown for row in group)
        setting = Column("threads" if launch == "calls" else "launch", number=launch == "calls")
        table = Table(
            f"{name}-{setting.heading}",
            f"{_title(rows)}: {what}; in small, in times of the first row's speed",
            [*_WHAT, setting, *(Column(each) for each in names)],
        )
        for group in shown:
            for row in group:
                how = str(row.threads) if launch == "calls" else row.launch
                cells = (_against(row, group[0], each) for each in names)
                table.rows.append([*_what(row), Cell(how, sort=row.threads), *cells])
        tables.append(_narrowed(table))
    return tables


def costs(name: str, fits: Sequence[Fit]) -> Table | None:
    """What calls and elements cost."""
    if not fits:
        return None
    first = fits[0].first
    part = "per tensor" if first.direction == "step" else "per row"
    columns = {
        "per call": [fit.call for fit in fits],
        part: [fit.part for fit in fits],
        "per element in cache": [fit.hot for fit in fits],
        "per element beyond it": [fit.cold for fit in fits],
    }
    kept = {name: values for name, values in columns.items() if any(v is not None for v in values)}
    table = Table(
        f"{name}-costs",
        f"{_title([first])}: costs, read off a fit to all sizes",
        [
            Column("provider", number=False, choice=True),
            *_WHAT[1:],
            *(Column(heading) for heading in kept),
            Column("largest misfit"),
            Column("sizes fitted", number=False),
        ],
    )
    for number, fit in enumerate(fits):
        poor = "poor fit" if fit.misfit > POOR else ""
        table.rows.append(
            [
                Cell(fit.provider, sort=fit.provider, tone="own" * (fit.provider == "regops")),
                *_what(fit.first)[1:],
                *(_cost(values[number]) for values in kept.values()),
                Cell(f"{fit.misfit:.0%}", poor, sort=fit.misfit, tone="bad" * bool(poor)),
                Cell(str(len(fit.sizes)), ", ".join(fit.sizes), len(fit.sizes), "wide"),
            ]
        )
    return _narrowed(table)


def machine_ceilings(summary: Summary) -> Table | None:
    """What the machine moves and multiplies."""
    rows = summary.ceilings
    if not rows:
        return None
    columns = ["what", "device", "dtype", "size", "threads", "median", "rate"]
    table = Table(
        "ceilings",
        "The machine's own: bytes moved and products made with nothing else to do",
        [Column(each, number=each in ("median", "rate")) for each in columns],
    )
    for row in rows:
        for provider, median in row.median.items():
            by = row.flops or row.bytes_moved
            about = [row.device, row.dtype if row.flops else "any", row.size, str(row.threads)]
            table.rows.append(
                [
                    Cell(provider, marks(row)),
                    *map(Cell, about),
                    Cell(seconds(median), _spread(row, provider), sort=median),
                    Cell(rate(row, provider), sort=by / median),
                ]
            )
    return table


def _title(rows: Sequence[Row]) -> str:
    return f"{rows[0].op}, {rows[0].device}"


def _size(row: Row) -> Cell:
    return Cell(row.size, f"{row.tensors} tensors" if row.tensors > 1 else "", sort=row.numel)


def _what(row: Row) -> list[Cell]:
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
        return _untimed(row, "regops")
    return Cell(
        seconds(row.median["regops"]), _spread(row, "regops"), row.median["regops"], tone="own"
    )


def _rival(row: Row, rival: str) -> Cell:
    if rival not in row.median:
        return _untimed(row, rival)
    time = f"{seconds(row.median[rival])} ({_spread(row, rival)})"
    ratio = row.speedup(rival)
    if ratio is None:
        return Cell(NOTHING, time)
    slower = standing(row, rival) == "slower"
    return Cell(times(ratio), time, ratio, "slower" if slower else "")


def _untimed(row: Row, provider: str) -> Cell:
    if provider in row.wrong:
        return Cell("wrong", row.wrong[provider], tone="bad")
    if provider in row.failed:
        return Cell("not timed", row.failed[provider], tone="bad")
    return _EMPTY


def _ceiling(row: Row) -> Cell:
    name = row.ceiling
    if name not in row.median:
        return _untimed(row, name)
    by = row.flops if name in ("linear", "matmul") else row.bytes_moved
    return Cell(name, rate(row, name), sort=by / row.median[name])


def _memory(row: Row, provider: str, step: bool) -> Cell:
    if provider not in row.peak:
        return _EMPTY
    peak = row.peak[provider]
    below = (
        ""
        if step
        else (f"keeps {memory(row.state[provider])}, both {memory(row.full_peak[provider])}")
    )
    return Cell(memory(peak), below, peak, "own" if provider == "regops" else "")


def _against(row: Row, first: Row, provider: str) -> Cell:
    if provider not in row.median:
        return _untimed(row, provider)
    median = row.median[provider]
    known = row is not first and provider in first.median
    below = times(first.median[provider] / median) if known else ""
    return Cell(seconds(median), below, median, "own" if provider == "regops" else "")


def _cost(value: float | None) -> Cell:
    if value is None:
        return _EMPTY
    return Cell(seconds(value) if value else "0", sort=value)


def _spread(row: Row, provider: str) -> str:
    return spread(row.low[provider], row.high[provider])
