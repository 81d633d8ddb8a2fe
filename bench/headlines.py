"""What a run says about each op in a line: for those who decide."""

from __future__ import annotations

from dataclasses import dataclass

from bench.rows import (
    Standing,
    best_peer,
    best_way,
    grouped,
    largest,
    standing,
    usual,
    usual_way,
)
from bench.summary import Row, Summary
from bench.wording import DIRECTION, NOTHING, memory, percent, times

# Which direction speaks for an op: what users wait for.
_SPEAKING = ("full", "step", "forward", "inference", "backward")

_STANDINGS = {"faster": "faster", "slower": "slower", "even": "no clear difference"}

# Below, memory is neither saved nor wasted.
_NEGLIGIBLE = 1 << 12


@dataclass(frozen=True)
class Headline:
    """An op on a device.

    Attributes:
        row: What speaks for it: forward and backward, or a step, of its first dtype at the largest
            size that no cache holds.
        usual: What torch does by default.
        best: Torch's fastest way there; None if none was timed.
        peer: The fastest other library's there, if any was timed.
        standings: How regops compares with torch's fastest way, in every row of the op.
    """

    row: Row
    usual: str
    best: str | None
    peer: str | None
    standings: list[tuple[Row, str, Standing]]

    @property
    def timed(self) -> bool:
        """Whether there is anything to say."""
        return "regops" in self.row.median

    @property
    def where(self) -> str:
        """The row in words."""
        return f"{DIRECTION[self.row.direction]}, {self.row.dtype}, {self.row.size}"

    @property
    def share(self) -> str:
        """Of the ceiling's speed."""
        over = self.row.over_ceiling()
        return percent(1 / over) if over else NOTHING

    @property
    def memory(self) -> tuple[str, str]:
        """What is taken beyond the inputs: in short beside torch's default, and the figures."""
        row, other = self.row, self.usual
        if not {other, "regops"} <= row.full_peak.keys():
            return NOTHING, "not measured"
        own, theirs = row.full_peak["regops"], row.full_peak[other]
        if own < _NEGLIGIBLE:
            short = "none"
        elif not theirs or own > 2 * theirs:
            short = "more"
        else:
            short = f"{percent(abs(theirs - own) / theirs)} {'less' if own < theirs else 'more'}"
            short = "the same" if own == theirs else short
        figures = f"{memory(own)} at the peak, {other} {memory(theirs)}"
        if self.best not in (None, other) and self.best in row.full_peak:
            figures += f", {self.best} {memory(row.full_peak[self.best])}"
        if row.direction != "step":
            kept = [memory(row.state[name]) for name in ("regops", other)]
            figures += f"; {kept[0]} kept for backward, {other} {kept[1]}"
        return short, figures

    @property
    def counts(self) -> tuple[str, str]:
        """In how many rows regops is faster than torch's fastest way, and in how many it is not."""
        total = len(self.standings)
        if not total:
            return NOTHING, "nothing to compare with"
        of = {kind: sum(each == kind for _, _, each in self.standings) for kind in _STANDINGS}
        others = [f"{word} in {of[kind]}" for kind, word in _STANDINGS.items() if of[kind]]
        if of["faster"]:
            others = others[1:]
        return f"faster in {of['faster']} of {total}", ", ".join(others)

    @property
    def sentence(self) -> str:
        """All of it, for those who cannot see the bars."""
        row = self.row
        if not self.timed:
            return f"regops was not timed: {row.wrong.get('regops') or row.failed.get('regops')}"
        rivals = dict.fromkeys(filter(None, (self.best, self.usual, self.peer)))
        ratios = ((name, row.speedup(name)) for name in rivals)
        speeds = [f"{times(ratio)} as fast as {name}" for name, ratio in ratios if ratio]
        return ", ".join(speeds) or "nothing to compare with"


def headlines(summary: Summary) -> list[Headline]:
    """One for each op and device, in the order of the run."""
    result = []
    for rows in grouped(usual(summary), "op", "device"):
        directions = {row.direction for row in rows}
        speaking = next(name for name in _SPEAKING if name in directions)
        row = largest(
            [row for row in rows if row.direction == speaking and row.dtype == rows[0].dtype]
            or [row for row in rows if row.direction == speaking]
        )
        standings = [
            (each, rival, standing(each, rival))
            for each in rows
            if (rival := best_way(summary, each)) and "regops" in each.median
        ]
        result.append(
            Headline(
                row, usual_way(row), best_way(summary, row), best_peer(summary, row), standings
            )
        )
    return result
