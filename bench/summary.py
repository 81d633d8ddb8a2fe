"""The figures of a run, small enough to commit: from pytest-benchmark's JSON to `summary.json`.

Format 1 of `summary.json`: `format`; `created`; `commit`; `profile`; `machine`; `not_timed` (test:
reason); `rows`, each a `Row`; `end_to_end`, the report of `examples/digits.py` or null. All times
are seconds, all sizes bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from bench.neighbours import DISTURBED

FORMAT = 1

# Who does only what no one can leave out: the op without its regularization; or moves as many bytes
# as an op, or as an optimizer's step, and computes nothing. A row's is the first of these it has.
CEILINGS = ("linear", "copy", "stream")


@dataclass
class Row:
    """One comparison: an op, direction, dtype and size on a device, with every provider's figures.

    Attributes:
        median: Seconds of one call, by provider.
        iqr: Interquartile range of the same.
        rounds: Durations behind each median.
        others: Share of the processor that other processes used meanwhile; None if unknown.
        peak: Bytes beyond the inputs that forward, or a step, held at most, by provider.
        state: Bytes that forward keeps for backward besides its output, by provider.
        full_peak: Bytes beyond the inputs that forward and backward together held at most.
        extra: Those of them beyond output and gradients; older summaries lack it.
    """

    op: str
    direction: str
    dtype: str
    size: str
    device: str
    numel: int
    in_cache: bool
    bytes_moved: int
    bytes_formula: str
    others: float | None = None
    median: dict[str, float] = field(default_factory=dict)
    iqr: dict[str, float] = field(default_factory=dict)
    rounds: dict[str, int] = field(default_factory=dict)
    peak: dict[str, int] = field(default_factory=dict)
    state: dict[str, int] = field(default_factory=dict)
    full_peak: dict[str, int] = field(default_factory=dict)
    extra: dict[str, int] = field(default_factory=dict)

    @property
    def disturbed(self) -> bool:
        """Whether others used so much of the processor that ratios may be theirs."""
        return self.others is not None and self.others > DISTURBED

    @property
    def group(self) -> str:
        """Name of the benchmark group; pytest's -k finds its tests by it."""
        return "-".join((self.op, self.direction, self.dtype, self.size, self.device))

    def speedup(self, over: str) -> float | None:
        """How many times as fast as another provider regops is; None if either was not timed."""
        if over in self.median and "regops" in self.median:
            return self.median[over] / self.median["regops"]
        return None

    @property
    def ceiling(self) -> str:
        """Who did only what cannot be left out."""
        return next((name for name in CEILINGS if name in self.median), "copy")

    def over_ceiling(self, provider: str = "regops") -> float | None:
        """A provider's time in times of the ceiling's; None if either was not timed."""
        if provider in self.median and self.ceiling in self.median:
            return self.median[provider] / self.median[self.ceiling]
        return None

    def memory_ratio(self, to: str) -> float | None:
        """Peak of forward and backward in times of another's; None if either is unknown."""
        if self.full_peak.get(to) and "regops" in self.full_peak:
            return self.full_peak["regops"] / self.full_peak[to]
        return None

    def gb_per_s(self, provider: str) -> float:
        """Bytes that the operation must move, over the time taken, in 10^9 bytes a second."""
        return self.bytes_moved / self.median[provider] / 1e9


@dataclass
class Summary:
    """A run: where and when it was made, and its rows."""

    created: str
    commit: str
    profile: str
    machine: dict[str, Any]
    not_timed: dict[str, str]
    rows: list[Row]
    end_to_end: dict[str, Any] | None = None
    format: int = FORMAT


def summarize(benchmark: Mapping[str, Any], end_to_end: dict[str, Any] | None) -> Summary:
    """Condenses what pytest-benchmark wrote.

    Args:
        benchmark: Its JSON, from a run of this package.
        end_to_end: What `examples/digits.py --json` wrote, if it ran.
    """
    rows: dict[str, Row] = {}
    row_fields = [f.name for f in fields(Row) if f.name in benchmark["benchmarks"][0]["extra_info"]]
    for entry in benchmark["benchmarks"]:
        facts, stats = entry["extra_info"], entry["stats"]
        row = rows.setdefault(entry["group"], Row(**{name: facts[name] for name in row_fields}))
        row.others = facts["others_cpu_share"]
        provider = facts["provider"]
        row.median[provider] = _four_digits(stats["median"])
        row.iqr[provider] = _four_digits(stats["iqr"])
        row.rounds[provider] = stats["rounds"]
        # Inference keeps nothing: what was measured is of calls that record a graph.
        if facts["forward_peak_bytes"] is not None and row.direction != "inference":
            row.peak[provider] = facts["forward_peak_bytes"]
            row.state[provider] = facts["forward_to_backward_bytes"]
            row.full_peak[provider] = facts["full_peak_bytes"]
            row.extra[provider] = facts["extra_bytes"]
    commit = benchmark["commit_info"]
    return Summary(
        created=benchmark["datetime"][:16].replace("T", " ") + " UTC",
        commit=commit["id"] + ("-dirty" if commit["dirty"] else "") if commit.get("id") else "",
        profile=benchmark["regops"]["profile"],
        machine=_machine(benchmark),
        not_timed=benchmark["regops"]["not_timed"],
        rows=list(rows.values()),
        end_to_end=end_to_end,
    )


def read(path: Path) -> Summary:
    """Reads a `summary.json`.

    Raises:
        ValueError: It is of another format.
    """
    content = json.loads(path.read_text())
    if content.get("format") != FORMAT:
        raise ValueError(f"{path}: expected format {FORMAT}, got {content.get('format')}")
    return Summary(**{**content, "rows": [Row(**row) for row in content["rows"]]})


def write(summary: Summary, path: Path) -> None:
    """Writes a `summary.json`, one row a line so that two runs can be compared by `diff`."""
    content = asdict(summary)
    rows = ",\n  ".join(json.dumps(row) for row in content.pop("rows"))
    head = json.dumps(content, indent=1).removesuffix("\n}")
    path.write_text(f'{head},\n "rows": [\n  {rows}\n ]\n}}\n')


def _four_digits(value: float) -> float:
    return float(f"{value:.4g}")


def _machine(benchmark: Mapping[str, Any]) -> dict[str, Any]:
    info, run = benchmark["machine_info"], benchmark["regops"]
    return {
        "system": f"{info['system']} {info['machine']}",
        # Of the minute before: others' work on the same cores shows here.
        "load_average_before": round(run["load_average"], 2),
        **run["info"],
    }
