"""The report program: tables and a page from what a run recorded. It never times anything.

`python -m bench.report bench/out/benchmark.json` writes `summary.json`, `summary.md` and
`report.html` beside it and prints the table; given a `summary.json` it makes the rest from that.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jinja2
from rich import box
from rich.console import Console
from rich.table import Table

from bench.neighbours import DISTURBED
from bench.plots import ceiling_share_against_size, seconds, time_against_size
from bench.summary import Row, Summary, read, summarize, write

_TEXT_HEADINGS = ("op", "device", "direction", "dtype", "size")
_TEXT_COLUMNS = len(_TEXT_HEADINGS)
# Where op and device stand in a title, a table begins here.
_TITLED = 2
_IN_CACHE = " (in cache)"


def rivals(row: Row) -> tuple[str, ...]:
    """With whom a row's table compares regops."""
    if row.direction == "step":
        return "eager", "foreach", "fused", "compile"
    return "eager", "compile"


def headings(row: Row) -> tuple[str, ...]:
    """Of a table of such rows."""
    memory = "peak, foreach → regops" if row.direction == "step" else "state, eager → regops"
    against = (f"vs {name}" for name in (*rivals(row), row.ceiling))
    return (*_TEXT_HEADINGS, "regops", *against, "GB/s", memory)


def cells(row: Row) -> list[str]:
    """A row of the summary table; a dash where something was not timed."""
    over = row.over_ceiling()
    memory = (row.peak, "foreach") if row.direction == "step" else (row.state, "eager")
    timed = "regops" in row.median
    return [
        row.op,
        row.device,
        row.direction,
        row.dtype,
        row.size + (_IN_CACHE if row.in_cache else "") + (" (!)" if row.disturbed else ""),
        seconds(row.median["regops"]) if timed else "-",
        *(_times(row.speedup(rival)) for rival in rivals(row)),
        f"{over:.2f}x ({1 / over:.0%})" if over else "-",
        f"{row.gb_per_s('regops'):.3g}" if timed else "-",
        " → ".join(_size(memory[0].get(name)) for name in (memory[1], "regops")),
    ]


def markdown(summary: Summary) -> str:
    """The summary tables, with what they were measured on."""
    lines = [
        f"regops {summary.machine['regops']}, torch {summary.machine['torch']}, "
        f"{summary.machine['processor']}, {summary.machine['threads']} threads, "
        f"profile {summary.profile}, {summary.created}",
    ]
    by_headings: dict[tuple[str, ...], list[Row]] = {}
    for row in summary.rows:
        by_headings.setdefault(headings(row), []).append(row)
    for names, rows in by_headings.items():
        lines += ["", "| " + " | ".join(names) + " |"]
        lines += ["|" + "---|" * _TEXT_COLUMNS + "--:|" * (len(names) - _TEXT_COLUMNS)]
        lines += ["| " + " | ".join(cells(row)) + " |" for row in rows]
    lines += [""] + [f"- {line}" for line in memory_lines(summary) + end_to_end_lines(summary)]
    lines += [f"- {line}" for line in warnings(summary)]
    return "\n".join(lines).rstrip() + "\n"


def tables(summary: Summary) -> list[Table]:
    """The summary table for a terminal, an op, device and ceiling at a time, to fit 100 columns."""
    return [_terminal_table(rows) for rows in _sections(summary)]


def _terminal_table(rows: Sequence[Row]) -> Table:
    table = Table(
        title=f"{rows[0].op}, {rows[0].device}",
        title_justify="left",
        caption="* in cache: says nothing about memory",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for index, heading in enumerate(headings(rows[0])[_TITLED:], _TITLED):
        table.add_column(heading, justify="left" if index < _TEXT_COLUMNS else "right")
    for block in _grouped(rows, "dtype", "size"):
        for row in block:
            table.add_row(*(cell.replace(_IN_CACHE, " *") for cell in cells(row)[_TITLED:]))
        table.add_section()
    return table


def end_to_end_lines(summary: Summary) -> list[str]:
    """What the training example reported, a line for each implementation."""
    return [
        f"{example['name']}, {name}: {run['seconds']:.1f} s for {example['steps']} steps, "
        f"held-out accuracy {run['accuracy']:.1%}"
        for example in summary.end_to_end
        for name, run in example["runs"].items()
    ]


def memory_lines(summary: Summary) -> list[str]:
    """Memory of each op at its largest size, regops's beside torch's, a line a dtype."""
    lines = []
    for rows in _grouped(summary.rows, "op", "device", "dtype"):
        row = max(rows, key=lambda each: each.numel)
        names = ("eager", "foreach", "regops") if row.direction == "step" else ("eager", "regops")
        if set(names) <= row.peak.keys() & row.state.keys():
            used = "; ".join(f"{name} {_memory(row, name)}" for name in names)
            lines.append(f"memory, {row.op} {row.size} {row.dtype} {row.device}: {used}")
    return lines


def _memory(row: Row, name: str) -> str:
    if row.direction == "step":
        return f"{_size(row.peak[name])} at the peak of a step"
    return (
        f"{_size(row.peak[name])} at the peak of forward, "
        f"{_size(row.state[name])} kept for backward"
        # Not in summaries that were written before it was measured.
        + (f", {_size(row.full_peak[name])} at the peak of both" if row.full_peak else "")
        + (f" ({_size(row.extra[name])} beyond results)" if row.extra else "")
    )


def warnings(summary: Summary) -> list[str]:
    """What a reader must know before believing the figures."""
    lines = [
        f"{why}: {provider} of {row.group}: {reason}"
        for row in summary.rows + summary.ceilings
        for why, reasons in (("wrong", row.wrong), ("not timed", row.failed))
        for provider, reason in reasons.items()
    ]
    if any(row.disturbed for row in summary.rows):
        lines.append(
            f"(!) others used more than {DISTURBED:.0%} of the processor meanwhile, "
            "so the ratios may be theirs"
        )
    return lines


def html(summary: Summary) -> str:
    """The report as one page that loads nothing."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(
        summary=summary,
        text_columns=_TEXT_COLUMNS - _TITLED,
        warnings=warnings(summary),
        memory=memory_lines(summary),
        end_to_end=end_to_end_lines(summary),
        machine=[(name.replace("_", " "), _flat(value)) for name, value in summary.machine.items()],
        sections=[_section(rows) for rows in _sections(summary)],
    )


def _section(rows: Sequence[Row]) -> dict[str, Any]:
    return {
        "op": rows[0].op,
        "device": rows[0].device,
        "headings": headings(rows[0])[_TITLED:],
        "bytes_formula": rows[0].bytes_formula,
        "blocks": [
            [{"cells": cells(row)[_TITLED:], "row": row} for row in block]
            for block in _grouped(rows, "dtype", "size")
        ],
        "figures": [
            {
                "direction": group[0].direction,
                "dtype": group[0].dtype,
                "time": time_against_size(group),
                "share": ceiling_share_against_size(group),
            }
            for group in _grouped(rows, "direction", "dtype")
        ],
    }


def _sections(summary: Summary) -> list[list[Row]]:
    """Rows of a table each: their headings agree."""
    return _grouped(summary.rows, "op", "device", "ceiling")


def _grouped(rows: Iterable[Row], *by: str) -> list[list[Row]]:
    """Rows that agree in some fields, groups and rows in the order of the run."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(getattr(row, name) for name in by), []).append(row)
    return list(groups.values())


def _times(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}x" if value < 999.5 else f"{value:.0f}x"


def _size(count: int | None) -> str:
    if count is None:
        return "-"
    for unit, scale in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count} B"


def _flat(value: Any) -> str:
    if isinstance(value, dict):
        return "; ".join(
            f"{name.replace('_', ' ')}: {_flat(inner)}" for name, inner in value.items()
        )
    if isinstance(value, list | tuple):
        return ", ".join(map(_flat, value))
    return "none" if value is None else str(value)


def load(path: Path) -> Summary:
    """A summary from a `summary.json` or from pytest-benchmark's JSON.

    The reports of the examples are taken from `example-*.json` in the same folder.
    """
    content = json.loads(path.read_text())
    if "benchmarks" not in content:
        return read(path)
    examples = sorted(path.parent.glob("example-*.json"))
    return summarize(content, [json.loads(example.read_text()) for example in examples])


def main(arguments: Sequence[str] | None = None) -> Path:
    """Writes the report and prints the table.

    Returns:
        Path of the page.
    """
    parser = argparse.ArgumentParser(prog="python -m bench.report", description=__doc__)
    parser.add_argument("json", type=Path, nargs="?", default=Path("bench/out/benchmark.json"))
    parser.add_argument("--out", type=Path, help="folder to write to; default: the JSON's")
    options = parser.parse_args(arguments)
    out = options.out or options.json.parent
    out.mkdir(parents=True, exist_ok=True)
    summary = load(options.json)
    write(summary, out / "summary.json")
    (out / "summary.md").write_text(markdown(summary))
    page = out / "report.html"
    page.write_text(html(summary))
    console = Console()
    # Redirected output has no width to fit; a table cut to 80 columns would lose its figures.
    wide = console if console.is_terminal else Console(width=120)
    for table in tables(summary):
        wide.print(table)
    for line in memory_lines(summary) + end_to_end_lines(summary) + warnings(summary):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print(f"report: {page}", highlight=False, soft_wrap=True)
    return page


if __name__ == "__main__":
    main()
