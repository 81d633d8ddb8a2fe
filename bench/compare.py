"""Prints what moved from one run to another: `python -m bench compare A B`.

`bench.moves` has the rule. The status is 1 if regops became slower somewhere, or wrong, or fails
where it was timed; 2 if nothing could be judged; what other libraries do is shown and is no fault.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections import Counter
from collections.abc import Iterator, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from bench import moves
from bench.run_files import described, run_file
from bench.summary import Summary

_STYLES = {"slower": "red", "faster": "green"}


def _times(comparisons: Sequence[moves.Comparison]) -> Table:
    table = Table(
        title="time, B's over A's ± noise: relative to the ceiling, to eager, by the clock",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("row", overflow="fold")
    for name in ("provider", ""):
        table.add_column(name, no_wrap=True)
    for name in ("at least", *moves.MEASURES):
        table.add_column(name, justify="right", no_wrap=True)
    for each in comparisons:
        table.add_row(
            each.row.group,
            each.provider,
            each.verdict,
            f"{each.moved:.2f}x" if each.moved != 1 else "",
            *(_change(each.changes.get(measure)) for measure in moves.MEASURES),
            style=_STYLES.get(each.verdict, ""),
        )
    return table


def _change(change: moves.Change | None) -> str:
    if change is None:
        return "-"
    return f"{math.exp(change.log):.2f}x ±{math.expm1(change.noise):.0%}"


def _memory(changes: Sequence[moves.MemoryChange]) -> Table:
    table = Table(
        title="memory, bytes", title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    table.add_column("row", overflow="fold")
    for name in ("provider", "of"):
        table.add_column(name, no_wrap=True)
    for name in ("A", "B", "more"):
        table.add_column(name, justify="right", no_wrap=True)
    for each in changes:
        more = each.after - each.before
        numbers = (f"{each.before:,}", f"{each.after:,}", f"{more:+,}")
        table.add_row(each.row.group, each.provider, each.kind.replace("_", " "), *numbers)
    return table


def _notes(a: Summary, b: Summary) -> Iterator[str]:
    """What a reader must know of the two runs."""
    if machines := moves.differing(a, b, moves.MACHINE_FACTS):
        yield f"the machines differ, so the clock says nothing: {'; '.join(machines)}"
    if software := moves.differing(a, b, moves.SOFTWARE_FACTS):
        yield f"what others run on differs: {'; '.join(software)}"
    if a.profile != b.profile:
        yield f"the profiles differ: {a.profile} and {b.profile}"
    before = {row.group: row for row in a.ceilings}
    for row in b.ceilings:
        medians = before[row.group].median if row.group in before else {}
        ratios = [
            f"{name} {row.median[name] / medians[name]:.2f}x"
            for name in row.median
            if name in medians
        ]
        if ratios:
            yield f"the machine itself, {row.size}, B's time over A's: {', '.join(ratios)}"


def _alone(name: str, these: Summary, those: Summary) -> Iterator[str]:
    """What one run timed and the other did not."""
    others = {row.group: row for row in those.rows}
    missing: dict[str, list[str]] = {}
    for row in these.rows:
        if row.group not in others:
            missing.setdefault("rows", []).append(row.group)
            continue
        other = others[row.group]
        for provider in row.median.keys() - {*other.median, *other.wrong, *other.failed}:
            missing.setdefault(provider, []).append(row.group)
    for what, groups in missing.items():
        yield f"{what} in {name} alone ({len(groups)}): {', '.join(groups)}"


def _counted(what: str, comparisons: Sequence[moves.Comparison]) -> str:
    counts = Counter(each.verdict for each in comparisons)
    why = Counter(each.unjudged for each in comparisons if each.unjudged)
    reasons = ", ".join(f"{reason}: {count}" for reason, count in why.items())
    judged = [each.visible for each in comparisons if not each.unjudged]
    seen = f"; {statistics.median(judged):.2f}x would show in half of these" if judged else ""
    return (
        f"{what}: {counts['slower']} slower, {counts['faster']} faster, {counts['same']} the same, "
        f"{counts['not judged']} not judged" + (f" ({reasons})" if reasons else "") + seen
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints what moved.

    Returns:
        1 if regops became slower or wrong, or fails; 2 if nothing was judged; else 0.
    """
    parser = argparse.ArgumentParser(
        prog="python -m bench compare",
        description="What moved from one run to another, beyond noise.",
        epilog=moves.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("a", type=run_file, metavar="A", help="summary.json or benchmark.json")
    parser.add_argument("b", type=run_file, metavar="B", help="the same, of a later run")
    parser.add_argument("--all", action="store_true", help="show what did not move, too")
    options = parser.parse_args(arguments)
    a, b = options.a.summary, options.b.summary
    console = Console(highlight=False)
    # Redirected output has no width to fit.
    wide = console if console.is_terminal else Console(highlight=False, width=140)

    def say(line: str, style: str = "") -> None:
        console.print(line, style=style, markup=False, soft_wrap=True)

    say(f"A  {options.a.path}: {described(a)}")
    say(f"B  {options.b.path}: {described(b)}")
    for note in _notes(a, b):
        say(note, "yellow")

    comparisons = sorted(moves.compare(a, b), key=lambda each: -abs(math.log(each.moved)))
    if shown := [each for each in comparisons if options.all or each.moved != 1]:
        wide.print(_times(shown))
    if memory := list(moves.memory_changes(a, b)):
        wide.print(_memory(memory))
    news = list(moves.broken(a, b))
    for each in news:
        say(f"in B alone, {each.provider} of {each.row.group} is {each.reason}", "red")
    for each in moves.broken(b, a):
        say(f"in A alone, {each.provider} of {each.row.group} was {each.reason}")
    for line in (*_alone("A", a, b), *_alone("B", b, a)):
        say(line)

    if not comparisons:
        say("no provider was timed in the same row of both")
    ours = [each for each in comparisons if each.provider == "regops"]
    say(_counted("regops", ours))
    say(_counted("all", comparisons))
    if any(each.provider == "regops" for each in news) or any(each.moved > 1 for each in ours):
        return 1
    return 2 if all(each.unjudged for each in comparisons) else 0


if __name__ == "__main__":
    sys.exit(main())
