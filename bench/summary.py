"""The figures of a run, small enough to commit: from pytest-benchmark's JSON to `summary.json`.

Format 2 of `summary.json`: `format`; `created`; `commit`; `profile`; `arguments`, what `python -m
bench` was called with; `machine`; `peers`, a dict each; `rows` and `ceilings`, each a `Row`;
`end_to_end`, the reports of the examples. All times are seconds, all sizes bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from bench.neighbours import DISTURBED
from bench.throttle import THROTTLED, at_full_speed

FORMAT = 2

# Who does only what no one can leave out: the op without its regularization, its products alone, or
# as many bytes as an op, or as an optimizer's step, moves. A row's is the first of these it has.
CEILINGS = ("linear", "matmul", "copy", "stream")

# The op under whose name the machine's own ceilings are timed.
MACHINE = "machine"


@dataclass
class Row:
    """One comparison: an op, direction, dtype and size on a device, with every provider's figures.

    Attributes:
        op: Or "machine", of a row of `Summary.ceilings`.
        direction: "forward", "backward", "full", "inference" or "step"; of ceilings "move" or
            "multiply".
        threads: Of the CPU, that every provider used.
        tensors: How many an optimizer steps; 1 for an op.
        numel: Elements of the main input, or of all parameters.
        cache: "hot": all buffers stay in the cache from call to call. "memory": they are larger
            than any cache. "flushed": the cache is emptied before each turn, outside the span.
        launch: "calls", or "graph" if replays of a CUDA graph were timed.
        bytes_moved: That the op must read and write.
        flops: Of the matrix products that the op must make; 0 if it has none.
        others: Share of the processor that other processes used meanwhile; None if unknown.
        slowdown: How many times as long a fixed piece of arithmetic took around this row as in the
            run's fast moments; None if unknown.
        median: Seconds of one call, by provider.
        low: The 20th percentile of the same.
        high: The 80th.
        rounds: Durations behind each median.
        peak: Bytes beyond the inputs that forward, or a step, held at most, by provider.
        state: Bytes that forward keeps for backward besides its output, by provider.
        full_peak: Bytes beyond the inputs that forward and backward together held at most.
        extra: Those of them beyond output and gradients.
        wrong: Why a provider's result is wrong, which was not timed for that.
        failed: Why a provider was not timed otherwise.
    """

    op: str
    direction: str
    dtype: str
    size: str
    device: str
    threads: int
    tensors: int
    numel: int
    cache: str
    launch: str
    bytes_moved: int
    bytes_formula: str
    flops: int = 0
    others: float | None = None
    slowdown: float | None = None
    median: dict[str, float] = field(default_factory=dict)
    low: dict[str, float] = field(default_factory=dict)
    high: dict[str, float] = field(default_factory=dict)
    rounds: dict[str, int] = field(default_factory=dict)
    peak: dict[str, int] = field(default_factory=dict)
    state: dict[str, int] = field(default_factory=dict)
    full_peak: dict[str, int] = field(default_factory=dict)
    extra: dict[str, int] = field(default_factory=dict)
    wrong: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    # As pytest names it; ends in the number of threads where that is not the default.
    group: str = ""

    @property
    def in_cache(self) -> bool:
        """Whether its buffers stay in the cache, so that no bandwidth can be read from its time."""
        return self.cache == "hot"

    @property
    def disturbed(self) -> bool:
        """Whether others used so much of the processor that ratios may be theirs."""
        return self.others is not None and self.others > DISTURBED

    @property
    def throttled(self) -> bool:
        """Whether the processor was so much slower than at its best that times may be its."""
        return self.slowdown is not None and self.slowdown > THROTTLED

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

    def gflop_per_s(self, provider: str) -> float:
        """Operations of the products that it must make, over the time taken, in 10^9 a second."""
        return self.flops / self.median[provider] / 1e9


@dataclass
class Summary:
    """A run: where and when it was made, and its rows.

    Attributes:
        arguments: That `python -m bench` was called with, or what is like them.
        peers: Other libraries, a dict each (see `bench.peers`).
        ceilings: What the machine can do: rows of the op "machine", whose providers each move as
            many bytes, or make a matrix product.
    """

    created: str
    commit: str
    profile: str
    machine: dict[str, Any]
    rows: list[Row]
    arguments: list[str] = field(default_factory=list)
    peers: list[dict[str, Any]] = field(default_factory=list)
    ceilings: list[Row] = field(default_factory=list)
    end_to_end: list[dict[str, Any]] = field(default_factory=list)
    format: int = FORMAT


def summarize(benchmark: Mapping[str, Any], end_to_end: Sequence[dict[str, Any]] = ()) -> Summary:
    """Condenses what pytest-benchmark wrote.

    Args:
        benchmark: Its JSON, from a run of this package.
        end_to_end: What the examples' `--json` wrote, as far as they ran.
    """
    run = benchmark["regops"]
    rows: dict[str, Row] = {}
    probes: dict[str, list[float]] = {}
    for entry in benchmark["benchmarks"]:
        facts = entry["extra_info"]
        probes.setdefault(facts["device"], []).append(facts["probe_s"])
    for entry in benchmark["benchmarks"]:
        facts = entry["extra_info"]
        row, provider = _row(rows, facts), facts["provider"]
        row.others = facts["others_cpu_share"]
        full_speed = at_full_speed(probes[row.device])
        row.slowdown = round(facts["probe_s"] / full_speed, 3)
        low, median, high = np.percentile(entry["stats"]["data"], (20, 50, 80))
        row.low[provider] = _four_digits(low)
        row.median[provider] = _four_digits(median)
        row.high[provider] = _four_digits(high)
        row.rounds[provider] = entry["stats"]["rounds"]
        # Inference keeps nothing: what was measured is of calls that record a graph.
        if facts["forward_peak_bytes"] is not None and row.direction != "inference":
            row.peak[provider] = facts["forward_peak_bytes"]
            row.state[provider] = facts["forward_to_backward_bytes"]
            row.full_peak[provider] = facts["full_peak_bytes"]
            row.extra[provider] = facts["extra_bytes"]
    for facts in run["not_timed"]:
        reasons = getattr(_row(rows, facts), facts["why"])
        reasons[facts["provider"]] = facts["reason"]
    commit = benchmark["commit_info"]
    return Summary(
        created=benchmark["datetime"][:16].replace("T", " ") + " UTC",
        commit=commit["id"] + ("-dirty" if commit["dirty"] else "") if commit.get("id") else "",
        profile=run["profile"],
        arguments=run["arguments"],
        machine=_machine(benchmark),
        peers=run["peers"],
        rows=[row for row in rows.values() if row.op != MACHINE],
        ceilings=[row for row in rows.values() if row.op == MACHINE],
        end_to_end=list(end_to_end),
    )


def _row(rows: dict[str, Row], facts: Mapping[str, Any]) -> Row:
    """The row that a test belongs to, made of the facts of its first test."""
    known = {each.name for each in fields(Row)} & facts.keys()
    return rows.setdefault(facts["group"], Row(**{name: facts[name] for name in known}))


def read(path: Path) -> Summary:
    """Reads a `summary.json`.

    Raises:
        ValueError: It is of another format.
    """
    content = json.loads(path.read_text())
    if content.get("format") != FORMAT:
        raise ValueError(f"{path}: expected format {FORMAT}, got {content.get('format')}")
    lists = {name: [Row(**row) for row in content[name]] for name in ("rows", "ceilings")}
    return Summary(**{**content, **lists})


def load(path: Path) -> Summary:
    """A summary from a `summary.json` or from pytest-benchmark's JSON.

    The reports of the examples are taken from `example-*.json` in the same folder.
    """
    content = json.loads(path.read_text())
    if "benchmarks" not in content:
        return read(path)
    examples = sorted(path.parent.glob("example-*.json"))
    return summarize(content, [json.loads(example.read_text()) for example in examples])


def write(summary: Summary, path: Path) -> None:
    """Writes a `summary.json`, one row a line so that two runs can be compared by `diff`."""
    content = asdict(summary)
    lists = {name: content.pop(name) for name in ("ceilings", "rows")}
    text = json.dumps(content, indent=1).removesuffix("\n}")
    for name, rows in lists.items():
        lines = ",\n  ".join(
            json.dumps({key: value for key, value in row.items() if value != {}}) for row in rows
        )
        text += f',\n "{name}": [\n  {lines}\n ]'
    path.write_text(text + "\n}\n")


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
