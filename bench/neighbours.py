"""How much of the processor went to others while something was timed.

A thread that waits at a barrier for one that lost its core waits for milliseconds, so another busy
process can make a parallel op of 16 us take 5 ms, and leave a serial one as it is: ratios then
measure the neighbour. Seen as 100x too good a figure for regops on two cores.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

# Medians stand as long as fewer than half of the turns are hit. On two cores one busy neighbour
# that runs a fifth of the time is a share of 0.1.
DISTURBED = 0.1

_STAT = Path("/proc/stat")


@dataclass
class Patience:
    """Seconds that a whole run may spend on timing again what others disturbed.

    Enough for a passing disturbance; a machine that is never quiet gets a run of bounded length
    with marked rows.
    """

    seconds_left: float


class OthersShare:
    """Share of all cores' time that others have used since this was made."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._busy = _busy_seconds()
        self._own = time.process_time()

    def __call__(self) -> float | None:
        """The share, 0 to 1; None where the system does not tell (it is Linux that does)."""
        busy = _busy_seconds()
        if busy is None or self._busy is None:
            return None
        others = (busy - self._busy) - (time.process_time() - self._own)
        cores = os.cpu_count() or 1
        return min(1.0, max(0.0, others / (cores * (time.perf_counter() - self._start))))


def _busy_seconds() -> float | None:
    """Seconds that all cores together were not idle: by anyone here, or stolen by the host."""
    if not _STAT.exists():
        return None
    # user nice system idle iowait irq softirq steal (then guest times, counted in user already)
    ticks = [int(field) for field in _STAT.read_text().split("\n", 1)[0].split()[1:9]]
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")
