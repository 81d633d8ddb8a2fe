"""Clusters of blocks: their barriers, addresses of each other's shared memory, and its lifetime.

A cluster barrier is passed in phases. Whoever arrives at phase p publishes what it did before, and
whoever has waited for phase p sees that. So an access is stamped with the number of arrivals of its
thread, and is ordered before a later one whose thread has waited for a phase of that number or a
later one.

What one thread acquires by waiting the others of its block get at their next block barrier. What is
not followed: a thread that arrives for what another thread of its block does later. Publishing is
known by block: where some threads of a block arrive relaxed with accesses of their own behind them,
the phase publishes nothing of that block.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

import numpy as np

from .lanes import AT_CLUSTER_BARRIER, EXITED, RESCHEDULE, RUNNING, Lanes

if TYPE_CHECKING:
    from .machine import Group

Array = np.ndarray
# Rank r's shared memory begins at (r + 1) * RANK_STEP of the shared window, the own block's at 0.
# More than any block has: an address short of a block's memory does not fall into another's.
RANK_STEP = 1 << 24


def rank_field(addresses: Array) -> Array:
    """0 for addresses of a thread's own block, else 1 + rank; they may lie a little outside."""
    return (addresses + RANK_STEP // 2) // RANK_STEP


class Clusters:
    """Who has arrived and waited at the cluster barriers of a group of blocks."""

    def __init__(self, group: Group) -> None:
        self.group = group
        self.size = group.launch.cluster_size
        self.used = any(
            i.opcode == "barrier" and "cluster" in i.modifiers
            for i in group.program.kernel.instructions
        )
        rows = group.blocks.size
        self.rank = np.arange(rows) % self.size
        self.cluster = group.block_row // self.size
        # Replaced, not changed: the log of global accesses holds on to the old ones.
        self.arrivals = np.zeros(group.count, np.int64)
        self.acquired = np.zeros(group.count, np.int64)
        self.waits = np.zeros(group.count, np.int64)
        self.opened = np.zeros(rows // self.size, np.int64)
        # limits[w, row]: a thread that has waited for w phases sees the accesses of a row's threads
        # with stamps below it.
        self.limits = np.zeros((2, rows), np.int64)
        # Threads with accesses that neither an arrival nor a fence has published.
        self.unpublished = np.zeros(group.count, bool)
        self.withheld = np.zeros(rows, bool)
        # The latest access by another block to a row's shared memory: 1 + stamp, thread, place.
        self.touched, self.toucher, self.touched_at = np.zeros((3, rows), np.int64)

    def arrive(self, lanes: Lanes, relaxed: bool) -> None:
        """Notes the arrival of lanes at the current phase."""
        twice = self.arrivals[lanes.index] > self.waits[lanes.index]
        if twice.any():
            message = "second barrier.cluster.arrive with no barrier.cluster.wait between"
            self.group.fail(message, lanes, int(twice.argmax()))
        if relaxed:
            secret = lanes.index[self.unpublished[lanes.index]]
            self.withheld[self.group.block_row[secret]] = True
        else:
            self.unpublished[lanes.index] = False
        self.arrivals = self.arrivals.copy()
        self.arrivals[lanes.index] += 1

    def wait(self, lanes: Lanes) -> int:
        """Makes lanes wait until their whole cluster has arrived."""
        group = self.group
        early = self.arrivals[lanes.index] == self.waits[lanes.index]
        if early.any():
            message = "barrier.cluster.wait with no barrier.cluster.arrive before it"
            group.fail(message, lanes, int(early.argmax()))
        group.state[lanes.index] = AT_CLUSTER_BARRIER
        group.pc[lanes.index] = group.current
        group.trail[lanes.index] = group.current
        return RESCHEDULE

    def release(self) -> bool:
        """Called when no thread can run: lets those go on whose cluster has arrived."""
        group = self.group
        waiting = np.flatnonzero(group.state == AT_CLUSTER_BARRIER)
        if waiting.size == 0:
            return False
        missing = (group.state != EXITED) & (self.arrivals <= self.opened[self.cluster])
        blocked = missing.reshape(self.opened.size, -1).any(axis=1)
        wanted = np.zeros(self.opened.size, bool)
        wanted[self.cluster[waiting[self.waits[waiting] == self.opened[self.cluster[waiting]]]]] = (
            True
        )
        opening = wanted & ~blocked
        if opening.any():
            self._check_exits(opening, waiting)
            self._open(opening)
        ready = waiting[self.waits[waiting] < self.opened[self.cluster[waiting]]]
        self.waits[ready] += 1
        self.acquired = np.maximum(self.acquired, self.waits)
        group.pc[ready] += 1
        group.state[ready] = RUNNING
        return ready.size > 0

    def _open(self, opening: Array) -> None:
        """Completes the current phase of some clusters."""
        rows = np.flatnonzero(np.repeat(opening, self.size))
        phase = self.opened[rows // self.size]
        if int(phase.max()) + 2 > len(self.limits):
            self.limits = np.concatenate([self.limits, np.zeros_like(self.limits)])
        before = self.limits[phase, rows]
        self.limits[phase + 1, rows] = np.where(self.withheld[rows], before, phase + 1)
        self.withheld[rows] = False
        self.opened[opening] += 1

    def _check_exits(self, opening: Array, waiting: Array) -> None:
        """A thread may end early, but may not step around the barrier and run on behind it."""
        group = self.group
        gone = (group.state == EXITED) & (self.arrivals == self.opened[self.cluster])
        for cluster in np.flatnonzero(opening):
            left = gone & (self.cluster == cluster)
            if not left.any():
                continue
            here = waiting[self.cluster[waiting] == cluster]
            for pc in np.unique(group.pc[here]):
                if group.barriers.any_behind(int(pc), group.trail[left]):
                    group.fail(
                        f"divergent barrier: {np.count_nonzero(left)} threads of the cluster went "
                        "around it",
                        Lanes(here[group.pc[here] == pc], False),
                        pc=int(pc),
                    )

    def join_blocks(self, members: Array | None = None) -> None:
        """At a block barrier, of some threads of one block or of all blocks at once."""
        if self.used:
            if members is None:
                newest = self.acquired.reshape(-1, self.group.threads).max(axis=1)
                self.acquired = np.repeat(newest, self.group.threads)
            else:
                self.acquired = self.acquired.copy()
                self.acquired[members] = self.acquired[members].max()

    def note_access(self, lanes: Lanes) -> None:
        """Notes that lanes have touched memory that others see."""
        if self.used:
            self.unpublished[lanes.index] = True

    def note_fence(self, lanes: Lanes) -> None:
        """Notes a fence of cluster scope or wider."""
        self.unpublished[lanes.index] = False

    def locate(self, lanes: Lanes, addresses: Array, kind: str) -> tuple[Array, Array]:
        """Rows whose shared memory addresses of the shared window mean, and the offsets there."""
        field = rank_field(addresses)
        absent = (field < 0) | (field > self.size)
        if absent.any():
            which = int(absent.argmax())
            message = f"out of bounds: {kind} in shared memory of rank {int(field[which]) - 1}"
            message += f" of a cluster of {self.size}"
            self.group.fail(message, lanes, which)
        own = self.group.block_row[lanes.index]
        rows = np.where(field == 0, own, own - self.rank[own] + field - 1)
        return rows, addresses - field * RANK_STEP

    def note_remote(self, lanes: Lanes, rows: Array) -> None:
        """Checks that other blocks have started before lanes touch their shared memory."""
        group = self.group
        remote = rows != group.block_row[lanes.index]
        if not remote.any():
            return
        index, rows = lanes.index[remote], rows[remote]
        early = self.acquired[index] == 0
        if early.any():
            message = "no cluster barrier before an access to another block's shared memory: that "
            message += "block may not have started"
            group.fail(message, Lanes(index, False), int(early.argmax()))
        stamp = self.arrivals[index] + 1
        later = stamp >= self.touched[rows]
        self.touched[rows[later]] = stamp[later]
        self.toucher[rows[later]] = index[later]
        self.touched_at[rows[later]] = group.current

    def check_lifetimes(self) -> None:
        """After all threads have ended: no block may have ended before others' last accesses."""
        group = self.group
        waited = self.waits.reshape(-1, group.threads).max(axis=1)
        seen = self.limits[waited, group.block_row[self.toucher]]
        bad = np.flatnonzero(self.touched > seen)
        if bad.size:
            row = int(bad[0])
            message = "no cluster barrier after an access to another block's shared memory: "
            message += f"{group.describe_block(row)} may have ended"
            toucher = Lanes(self.toucher[row : row + 1], False)
            group.fail(message, toucher, pc=int(self.touched_at[row]))

    def fail_stuck(self) -> NoReturn:
        """Names threads that wait for others that will not arrive."""
        group = self.group
        waiting = np.flatnonzero(group.state == AT_CLUSTER_BARRIER)
        pc = int(group.pc[waiting].min())
        here = waiting[group.pc[waiting] == pc]
        same = self.cluster == self.cluster[here[0]]
        late = same & (group.state != EXITED) & (self.arrivals <= self.waits[here[0]])
        places = {str(group.instruction(int(at)).source) for at in np.unique(group.pc[late])}
        message = "divergent barrier: not every thread of the cluster comes here; others wait at "
        group.fail(message + ", ".join(sorted(places)), Lanes(here, False), pc=pc)
