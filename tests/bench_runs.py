"""Runs made up for the tests of what reads them: rows, summaries and their files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.summary import Row, Summary, write

MACHINE = {
    "system": "Linux x86_64",
    "processor": "A CPU",
    "cores": 2,
    "threads": 2,
    "cpu_capability": "avx512",
    "gpu": None,
    "torch": "2.13.0",
    "regops": "0.1.0",
}


def row(
    op: str,
    direction: str,
    dtype: str,
    size: str,
    rounds: Mapping[str, float | Sequence[float]],
    device: str = "cpu",
    **more: Any,
) -> Row:
    """A row of providers' durations, each a number if all its rounds took as long."""
    made = Row(
        op=op,
        direction=direction,
        dtype=dtype,
        size=size,
        device=device,
        **{
            "threads": 2,
            "tensors": 1,
            "numel": 1 << 24,
            "cache": "memory",
            "launch": "calls",
            "bytes_moved": 1 << 27,
            "bytes_formula": "read once, write once",
            "group": f"{op}-{direction}-{dtype}-{size}-{device}",
        }
        | more,
    )
    for provider, durations in rounds.items():
        each = np.atleast_1d(durations)
        low, median, high = np.percentile(each, (20, 50, 80))
        made.low[provider], made.median[provider], made.high[provider] = low, median, high
        made.rounds[provider] = len(each) if len(each) > 1 else 9
    return made


def summary(*rows: Row, **more: Any) -> Summary:
    """A run with these rows."""
    facts = {
        "created": "2026-01-02 03:04 UTC",
        "commit": "0123456789abcdef",
        "profile": "default",
        "machine": MACHINE,
        "rows": list(rows),
    }
    return Summary(**facts | more)


def written(path: Path, run: Summary) -> str:
    """The name of a file with the run."""
    write(run, path)
    return str(path)
