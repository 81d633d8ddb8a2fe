"""The page's tables of scaling: threads, launches, costs, and what the machine itself can do."""

from __future__ import annotations

from collections.abc import Sequence

from bench.cells import EMPTY, WHAT, Cell, Column, Table, narrowed, ranged, title, untimed, what
from bench.fits import Fit
from bench.rows import grouped, is_usual, timed
from bench.summary import Row, Summary
from bench.wording import marks, rate, seconds, times

# A misfit beyond which costs say little.
POOR = 0.5


def settings(summary: Summary, name: str, rows: Sequence[Row]) -> list[Table]:
    """Fewer threads, and replays of graphs, beside the same rows as they are usually timed."""
    tables = []
    groups = grouped(rows, "direction", "dtype", "size")
    for launch, words in (("calls", "fewer threads"), ("graph", "calls, and replays of graphs")):
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
            f"{title(rows)}: {words}; in small, in times of the first row's speed",
            [*WHAT, setting, *(Column(each) for each in names)],
        )
        for group in shown:
            for row in group:
                how = row.threads if launch == "calls" else row.launch
                cells = (_against(row, group[0], each) for each in names)
                table.rows.append([*what(row), Cell(str(how), sort=how), *cells])
        tables.append(narrowed(table))
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
        f"{title([first])}: costs, read off a fit to all sizes",
        [
            Column("provider", number=False, choice=True),
            *WHAT[1:],
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
                *what(fit.first)[1:],
                *(_cost(values[number]) for values in kept.values()),
                Cell(f"{fit.misfit:.0%}", poor, sort=fit.misfit, tone="bad" * bool(poor)),
                Cell(str(len(fit.sizes)), ", ".join(fit.sizes), len(fit.sizes), "wide"),
            ]
        )
    return narrowed(table)


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
                    Cell(seconds(median), ranged(row, provider), sort=median),
                    Cell(rate(row, provider), sort=by / median),
                ]
            )
    return table


def _against(row: Row, first: Row, provider: str) -> Cell:
    if provider not in row.median:
        return untimed(row, provider)
    median = row.median[provider]
    known = row is not first and provider in first.median
    below = times(first.median[provider] / median) if known else ""
    return Cell(seconds(median), below, median, "own" if provider == "regops" else "")


def _cost(value: float | None) -> Cell:
    if value is None:
        return EMPTY
    return Cell(seconds(value) if value else "0", sort=value)
