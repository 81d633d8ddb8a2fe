"""The report in a terminal: tables that fit 100 columns."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table

from bench.fits import fits
from bench.headlines import headlines
from bench.rows import grouped, is_usual, usual, usual_way
from bench.scaling import POOR
from bench.summary import Row, Summary
from bench.wording import NOTHING, marks, memory, percent, seconds, times

_TEXT_COLUMNS = 3


def tables(summary: Summary) -> list[Table]:
    """Of each op, device and ceiling one; then costs, and what each op comes to."""
    rows = usual(summary)
    ops = [_op(group) for group in grouped(rows, "op", "device", "ceiling")]
    scaling = [_costs(group) for group in grouped(rows, "op", "device")]
    others = [_settings(summary, group) for group in grouped(summary.rows, "op", "device")]
    known = [table for table in (*scaling, *others) if table]
    return [*ops, *known, _overview(summary)]


def rivals(row: Row) -> tuple[str, ...]:
    """With whom a row's table compares regops."""
    if row.direction == "step":
        return "eager", "foreach", "fused", "compile"
    return "eager", "compile"


def headings(row: Row) -> tuple[str, ...]:
    """Of a table of such rows: under a rival's name stands how many times as fast regops is."""
    direction = () if row.direction == "step" else ("direction",)
    return (
        *direction,
        "dtype",
        "size",
        "regops",
        *rivals(row),
        row.ceiling,
        f"{usual_way(row)}: own",
    )


def cells(row: Row) -> list[str]:
    """A row of a table; a dash where something was not timed."""
    over = row.over_ceiling()
    held = row.peak if row.direction == "step" else row.state
    return [
        *(() if row.direction == "step" else (row.direction,)),
        row.dtype,
        row.size + " *" * row.in_cache + " (!)" * bool(marks(row)),
        seconds(row.median["regops"]) if "regops" in row.median else _why(row, "regops"),
        *(
            times(row.speedup(name)) if name in row.median else _why(row, name)
            for name in rivals(row)
        ),
        percent(1 / over) if over else NOTHING,
        ": ".join(memory(held.get(name)) for name in (usual_way(row), "regops")),
    ]


def _why(row: Row, provider: str) -> str:
    return "wrong" if provider in row.wrong else "failed" if provider in row.failed else NOTHING


def _op(rows: Sequence[Row]) -> Table:
    columns = headings(rows[0])
    row = rows[0]
    title = f"{row.op}, {row.device}: regops's time, and how many times as fast as others it is"
    table = _table(title, columns, columns.index("regops"))
    held = "at the peak" if row.direction == "step" else "kept for backward"
    table.caption = f"* in cache  |  {row.ceiling}: share of its speed  |  last: bytes {held}"
    for block in grouped(rows, "dtype", "size"):
        for row in block:
            table.add_row(*cells(row))
        if len(block) > 1:
            table.add_section()
    return table


def _costs(rows: Sequence[Row]) -> Table | None:
    """Of regops and torch's default."""
    part = "a tensor" if rows[0].direction == "step" else "a row"
    table = _table(
        f"{rows[0].op}, {rows[0].device}: costs of a call and of elements, by a fit",
        ("provider", "direction", "dtype", "a call", part, "in cache", "beyond", "largest misfit"),
        _TEXT_COLUMNS,
    )
    for fit in fits(rows):
        if fit.provider in ("regops", usual_way(rows[0])):
            values = (fit.call, fit.part, fit.hot, fit.cold)
            table.add_row(
                fit.provider,
                fit.first.direction,
                fit.first.dtype,
                *(NOTHING if value is None else seconds(value) for value in values),
                f"{fit.misfit:.0%}" + " (poor fit)" * (fit.misfit > POOR),
            )
    return table if table.row_count else None


def _settings(summary: Summary, rows: Sequence[Row]) -> Table | None:
    """What regops takes with fewer threads, and without launches."""
    table = _table(
        f"{rows[0].op}, {rows[0].device}: threads and launches",
        ("direction", "dtype", "size", "threads", "launch", "regops", "speed-up"),
        _TEXT_COLUMNS,
    )
    for group in grouped(rows, "direction", "dtype", "size"):
        timed = [row for row in group if "regops" in row.median]
        timed.sort(key=lambda row: (row.launch, row.threads))  # calls before their replay
        if all(is_usual(summary, row) for row in timed):
            continue
        for row in timed:
            ratio = timed[0].median["regops"] / row.median["regops"]
            table.add_row(
                row.direction,
                row.dtype,
                row.size + " (!)" * bool(marks(row)),
                str(row.threads),
                row.launch,
                seconds(row.median["regops"]),
                times(ratio) if row is not timed[0] else NOTHING,
            )
    return table if table.row_count else None


def _overview(summary: Summary) -> Table:
    columns = ("op", "at", "vs best torch", "vs default", "memory", "ceiling", "faster in")
    table = _table("regops, in times of torch's speed", columns, 2)
    for line in headlines(summary):
        row, mark = line.row, " (!)" * bool(marks(line.row))
        table.add_row(
            f"{row.op}, {row.device}",
            f"{row.direction} {row.dtype} {row.size}{mark}",
            *(
                f"{times(row.speedup(name))} {name}" if name and line.timed else NOTHING
                for name in (line.best, line.usual)
            ),
            line.memory[0],
            f"{line.share} {row.ceiling}",
            line.counts[0].removeprefix("faster in "),
        )
    return table


def _table(title: str, columns: Sequence[str], texts: int) -> Table:
    table = Table(
        title=title,
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for index, heading in enumerate(columns):
        if index < texts:
            table.add_column(heading, overflow="fold")
        else:
            table.add_column(heading, justify="right", no_wrap=True)
    return table
