"""The sets of threads that execute an instruction together, and the states a thread can be in."""

from __future__ import annotations

import numpy as np

Array = np.ndarray
RUNNING, AT_BARRIER, AT_WARP_SYNC, AT_CLUSTER_BARRIER, EXITED = range(5)
# What an instruction returns when it has set the program counters itself.
RESCHEDULE = -1


class Lanes:
    """The threads that execute an instruction together: positions in the group of blocks."""

    __slots__ = ("full", "index")

    def __init__(self, index: Array, full: bool) -> None:
        self.index = index
        self.full = full

    @property
    def count(self) -> int:
        return self.index.size

    def where(self, condition: Array) -> Lanes:
        """The lanes at which a condition, one element per lane, holds."""
        return self if condition.all() else Lanes(self.index[condition], False)
