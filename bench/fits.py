"""What a call costs by itself and what each element adds, read off the times of several sizes.

A time is taken to be `call + parts * part + elements * element`: `call` is the overhead; a part is
a tensor of an optimizer's list, or a row of a matrix; and an element costs one thing where all
buffers stay in the cache, and another where they do not. None is negative, and relative errors are
squared, so that 5 us count as much as 5 ms. Threads that join in above some size, and caches of
several levels, are no part of this: the largest misfit says how far a time is from its fit.

Sizes with options or of more extents than two are left out: no one number tells their cost.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from bench.rows import grouped, is_plain, parts, providers
from bench.summary import Row


@dataclass(frozen=True)
class Fit:
    """Of a provider in one direction of an op, dtype and device. All in seconds.

    Attributes:
        first: A row that it was read off.
        provider: Whose times.
        call: The overhead.
        part: Of a tensor or a row; None if all sizes have one.
        hot: Of an element while all buffers stay in the cache; None without such sizes.
        cold: Of an element otherwise.
        sizes: Their names.
        misfit: The largest error of the fit, in times of what was measured.
    """

    first: Row
    provider: str
    call: float
    part: float | None
    hot: float | None
    cold: float | None
    sizes: tuple[str, ...]
    misfit: float


def fits(rows: Iterable[Row]) -> list[Fit]:
    """Those for which there is a size more than there are costs, and sizes tell the costs apart."""
    found = []
    for group in grouped(filter(is_plain, rows), "op", "device", "direction", "dtype"):
        for provider in providers(group):
            timed = [row for row in group if provider in row.median]
            fit = _fit(timed, provider)
            if fit:
                found.append(fit)
    return found


def _fit(rows: Sequence[Row], provider: str) -> Fit | None:
    counts = [parts(row) for row in rows]
    columns = {
        "call": [1.0] * len(rows),
        "part": [float(count) for count in counts],
        "hot": [float(row.numel) if row.in_cache else 0.0 for row in rows],
        "cold": [0.0 if row.in_cache else float(row.numel) for row in rows],
    }
    if len(set(counts)) == 1:
        del columns["part"]
    columns = {name: column for name, column in columns.items() if any(column)}
    if len(rows) <= len(columns):
        return None
    measured = np.array([row.median[provider] for row in rows])
    relative = np.array(list(columns.values())).T / measured[:, None]
    # Columns of one length: their scales differ by 1e9.
    scale = np.linalg.norm(relative, axis=0)
    if np.linalg.matrix_rank(relative / scale) < len(columns):
        return None
    solution, _ = nnls(relative / scale, np.ones(len(rows)))
    costs = dict(zip(columns, (solution / scale).tolist(), strict=True))
    misfit = float(np.abs(relative @ (solution / scale) - 1).max())
    return Fit(
        rows[0],
        provider,
        costs["call"],
        costs.get("part"),
        costs.get("hot"),
        costs.get("cold"),
        tuple(row.size for row in rows),
        misfit,
    )
