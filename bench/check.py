"""The ratio gate: is a run as fast as regops promises to be?

`python -m bench.check bench/out/summary.json` judges a run by the goals of `bench.thresholds`, on
the rows that were timed with the machine's own number of threads and by calls: a goal holds for
what users run, and rows of fewer threads or of graph replays are there for the report.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.rows import usual
from bench.run_files import described, run_file
from bench.summary import Row, Summary
from bench.thresholds import THRESHOLDS, Threshold
from bench.wording import warnings


@dataclass(frozen=True)
class Verdict:
    """A threshold on one row of a run."""

    threshold: Threshold
    row: Row
    measured: float

    @property
    def met(self) -> bool:
        """Whether the row is within the bound."""
        return self.threshold.met(self.measured)

    @property
    def marked(self) -> bool:
        """Whether the machine was too busy, or too slow, for the ratio to be regops's alone."""
        return self.row.disturbed or self.row.throttled

    @property
    def measured_words(self) -> str:
        """As in "1.07x", with a mark where it is to be doubted."""
        return f"{self.measured:.4g}{self.threshold.unit}{' (!)' if self.marked else ''}"


def judge(summary: Summary, thresholds: Sequence[Threshold] = THRESHOLDS) -> Iterator[Verdict]:
    """Every threshold on every row that it holds for and that was timed."""
    for threshold in thresholds:
        for row in usual(summary):
            measured = threshold.measured(row) if threshold.matches(row) else None
            if measured is not None:
                yield Verdict(threshold, row, measured)


def _tables(verdicts: Sequence[Verdict]) -> Iterator[Table]:
    """One for each op and device of the run, with goals that it has no row for."""
    for op, device in dict.fromkeys((each.row.op, each.row.device) for each in verdicts):
        goals = [
            goal for goal in THRESHOLDS if (goal.op, goal.device) == (op, device.split(":")[0])
        ]
        sources = list(dict.fromkeys(goal.source for goal in goals))
        table = Table(
            title=f"{op}, {device}",
            caption="\n".join(f"[{index}] {text}" for index, text in enumerate(sources, 1)),
            title_justify="left",
            caption_justify="left",
            box=box.SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
        )
        table.add_column("row", overflow="fold")
        table.add_column("goal")
        table.add_column("measured", justify="right", no_wrap=True)
        table.add_column("", no_wrap=True)
        table.add_column("from", no_wrap=True)
        for goal in goals:
            source = Text(f"[{sources.index(goal.source) + 1}]")
            ours = [
                each for each in verdicts if each.threshold is goal and each.row.device == device
            ]
            for each in ours:
                row = f"{each.row.direction} {each.row.dtype} {each.row.size}"
                word = Text("pass", "green") if each.met else Text("MISS", "bold red")
                table.add_row(row, goal.wording, each.measured_words, word, source)
            if not ours:
                table.add_row(goal.scope, goal.wording, "", "no row", source, style="dim")
        yield table


def _untouched(verdicts: Iterable[Verdict]) -> list[str]:
    """Ops and kinds of device with goals, but no row at all."""
    judged = {(each.threshold.op, each.threshold.device) for each in verdicts}
    every = dict.fromkeys((goal.op, goal.device) for goal in THRESHOLDS)
    return [f"{op} on {device}" for op, device in every if (op, device) not in judged]


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the verdicts.

    Returns:
        1 if a threshold is missed or regops is wrong or failed somewhere, 2 if nothing was judged,
        else 0.
    """
    parser = argparse.ArgumentParser(prog="python -m bench.check", description=__doc__)
    parser.add_argument("json", type=run_file, nargs="?", default="bench/out/summary.json")
    options = parser.parse_args(arguments)
    summary = options.json.summary
    verdicts = list(judge(summary))
    console = Console(highlight=False)
    # Redirected output has no width to fit.
    wide = console if console.is_terminal else Console(highlight=False, width=120)

    def say(line: str) -> None:
        console.print(line, markup=False, soft_wrap=True)

    say(f"{options.json.path}: {described(summary)}")
    for table in _tables(verdicts):
        wide.print("", table)
    if untouched := _untouched(verdicts):
        say(f"not judged, for the run has no row of theirs: {', '.join(untouched)}")
    for line in warnings(summary):
        say(line)
    broken = sum("regops" in {**row.wrong, **row.failed} for row in summary.rows)
    marked = sum(each.marked for each in verdicts)
    misses = [each for each in verdicts if not each.met]
    say(
        f"{len(verdicts) - len(misses)} of {len(verdicts)} met"
        + (f"; {marked} of them judged on rows marked (!)" if marked else "")
        + (f"; regops is wrong or failed in {broken} rows" if broken else "")
    )
    if misses or broken:
        return 1
    return 0 if verdicts else 2


if __name__ == "__main__":
    sys.exit(main())
