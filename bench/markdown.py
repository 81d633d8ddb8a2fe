"""The report as Markdown, for pasting."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bench import cells, scaling
from bench.fits import fits
from bench.headlines import headlines
from bench.rows import grouped, is_usual
from bench.summary import Row, Summary
from bench.wording import NOTHING, machine_line, marks, times, warnings


def markdown(summary: Summary) -> str:
    """All tables of the page, with what they were measured on."""
    parts = [machine_line(summary), _overview(summary), *_warnings(summary)]
    for rows in grouped(summary.rows, "op", "device"):
        parts.append(f"## {rows[0].op}, {rows[0].device}")
        parts += [_table(table) for table in _of_op(summary, rows)]
    parts += [*_end_to_end(summary), "## Machine"]
    ceilings = scaling.machine_ceilings(summary)
    parts += [_table(ceilings)] if ceilings else []
    parts += _peers(summary)
    return "\n\n".join(parts) + "\n"


def _of_op(summary: Summary, rows: Sequence[Row]) -> list[cells.Table]:
    usual = [row for row in rows if is_usual(summary, row)]
    if not usual:
        return scaling.settings(summary, "", rows)
    found = [
        cells.comparisons(summary, "", usual),
        cells.memories("", usual),
        scaling.costs("", fits(usual)),
        *scaling.settings(summary, "", rows),
    ]
    return [table for table in found if table]


def _overview(summary: Summary) -> str:
    columns = ["op", "at", "vs torch's fastest", "vs its default", "memory beyond inputs"]
    columns += ["share of the ceiling", "against torch's fastest"]
    lines = []
    for line in headlines(summary):
        row = line.row
        speeds = [
            f"{times(row.speedup(name))} {name}" if name and line.timed else NOTHING
            for name in (line.best, line.usual)
        ]
        about = (line.memory, (line.share, row.ceiling), line.counts)
        lines.append(
            [
                f"{row.op}, {row.device}",
                f"{line.where} {marks(row)}".strip(),
                *speeds,
                *(": ".join(filter(None, pair)) for pair in about),
            ]
        )
    return _rows(columns, [False] * 2 + [True] * 2 + [False] * 3, lines)


def _table(table: cells.Table) -> str:
    kept = [
        index
        for index in range(len(table.columns))
        if not any(row[index].code for row in table.rows)
    ]
    columns = [table.columns[index] for index in kept]
    rows = [[_cell(row[index]) for index in kept] for row in table.rows]
    lines = _rows(
        [column.heading for column in columns], [column.number for column in columns], rows
    )
    return f"{table.caption}\n\n{lines}"


def _rows(columns: Sequence[str], numbers: Sequence[bool], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["--:" if number else "---" for number in numbers]]
    lines += [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(cell: cells.Cell) -> str:
    if not cell.below:
        return cell.text
    return f"{cell.text}, {cell.below}" if "(" in cell.below else f"{cell.text} ({cell.below})"


def _warnings(summary: Summary) -> Iterator[str]:
    lines = warnings(summary)
    if lines:
        yield "Before you believe it:\n\n" + "\n".join(f"- {line}" for line in lines)


def _end_to_end(summary: Summary) -> Iterator[str]:
    lines = end_to_end_lines(summary)
    if lines:
        yield "## End to end\n\n" + "\n".join(f"- {line}" for line in lines)


def end_to_end_lines(summary: Summary) -> list[str]:
    """What each example came to, a line for each implementation."""
    return [
        f"{example['name']}, {name}: {run['seconds']:.1f} s for {example['steps']} steps, "
        + (f"held-out loss {run['loss']:.4f}, " if "loss" in run else "")
        + f"held-out accuracy {run['accuracy']:.1%}"
        for example in summary.end_to_end
        for name, run in example["runs"].items()
    ]


def _peers(summary: Summary) -> Iterator[str]:
    lines = [
        f"- {peer['name']} ({peer['package']} {peer['installed'] or peer['pinned'] or ''}): "
        + (f"not timed: {peer['absent']}" if peer.get("absent") else "timed")
        for peer in summary.peers
    ]
    if lines:
        yield "Other libraries:\n\n" + "\n".join(lines)
