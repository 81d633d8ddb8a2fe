"""Races on global memory, found after a launch from a log of its accesses.

Two accesses of the same bytes by different threads, at least one of them a plain write, must be
ordered: by a barrier within a block, by `__syncwarp` within a warp, by a cluster barrier within a
cluster, or across blocks by a fence of the first thread's block followed by an atomic of the
second's (the pattern by which the last block to finish reads what others wrote). Writes of one and
the same value, and atomics among themselves, are no races.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from .lanes import Lanes

if TYPE_CHECKING:
    from .machine import Group
    from .regions import Access

Array = np.ndarray
NOBODY, ATOMIC = -1, -2
# Accesses of one place that a later one is compared with; bounds the time that a contended place
# takes.
MOST_COMPARED = 256


@dataclass
class Record:
    """What one instruction did to one buffer."""

    group: Group
    lanes: Lanes
    offsets: Array
    access: Access
    values: Array | None
    pc: int
    time: int
    block_epoch: Array
    warp_epoch: Array
    arrivals: Array
    acquired: Array

    @cached_property
    def threads(self) -> Array:
        """Numbers of the threads, unique in the launch."""
        group = self.group
        numbers = group.block_number[self.lanes.index].astype(np.int64)
        return numbers * group.threads + group.thread[self.lanes.index]


class GlobalAccessLog:
    """Accesses of a launch to writable buffers."""

    def __init__(self) -> None:
        self.records: dict[int, list[Record]] = {}
        self.fences: dict[int, list[int]] = {}
        self.atomics: dict[int, list[int]] = {}
        self.time = 0

    def add(
        self,
        group: Group,
        lanes: Lanes,
        buffer: int,
        offsets: Array,
        access: Access,
        values: Array | None,
    ) -> None:
        """Notes an access."""
        self.time += 1
        group.clusters.note_access(lanes)
        if access.kind == "atomic" or access.strong:
            self._note(self.atomics, group, lanes)
        self.records.setdefault(buffer, []).append(
            Record(
                group,
                lanes,
                offsets,
                access,
                values,
                group.current,
                self.time,
                group.block_epoch,
                group.warp_epoch,
                group.clusters.arrivals,
                group.clusters.acquired,
            )
        )

    def fence(self, group: Group, lanes: Lanes) -> None:
        """Notes a memory fence of device or system scope."""
        self.time += 1
        self._note(self.fences, group, lanes)

    def _note(self, table: dict[int, list[int]], group: Group, lanes: Lanes) -> None:
        for block in np.unique(group.block_number[lanes.index]):
            table.setdefault(int(block), []).append(self.time)

    def check(self) -> None:
        """Raises DeviceError for the first race of the launch."""
        for records in self.records.values():
            if any(record.access.kind != "read" for record in records):
                suspects = _suspect_units(records)
                if suspects.size:
                    self._check_units(records, suspects)

    def _check_units(self, records: list[Record], suspects: Array) -> None:
        unit = _unit(records)
        events: dict[int, list[tuple[Record, int]]] = {}
        for record in records:
            units, positions = _expand(record, unit)
            for k in np.flatnonzero(np.isin(units, suspects)):
                events.setdefault(int(units[k]), []).append((record, int(positions[k])))
        for accesses in events.values():
            earlier: list[tuple[Record, int]] = []
            for access in accesses:
                for other in earlier[-MOST_COMPARED:]:
                    if not self._ordered(*other, *access):
                        _fail(*other, *access)
                earlier.append(access)

    def _ordered(self, first: Record, i: int, second: Record, j: int) -> bool:
        kinds = {first.access.kind, second.access.kind}
        strong = all(r.access.strong or r.access.kind == "atomic" for r in (first, second))
        if "read" in kinds and len(kinds) == 1:
            return True
        a, b = int(first.lanes.index[i]), int(second.lanes.index[j])
        one, two = first.group, second.group
        if first.threads[i] == second.threads[j] or strong:
            return True
        if kinds == {"write"} and first.values is not None and second.values is not None:
            same = first.values[i].tobytes() == second.values[j].tobytes()
            if same and first.offsets[i] == second.offsets[j]:
                return True
        if one is two and one.clusters.cluster[a] == one.clusters.cluster[b]:
            seen = one.clusters.limits[second.acquired[b], one.block_row[a]]
            if first.arrivals[a] < seen:
                return True
        if one is two and one.block_row[a] == two.block_row[b]:
            if one.warp[a] == two.warp[b]:
                return bool(first.warp_epoch[one.warp[a]] != second.warp_epoch[two.warp[b]])
            row = one.block_row[a]
            return bool(first.block_epoch[row] != second.block_epoch[row])
        published = [t for t in self.fences.get(int(one.block_number[a]), []) if t > first.time]
        if not published:
            return False
        atomics = self.atomics.get(int(two.block_number[b]), [])
        return any(published[0] < t <= second.time for t in atomics)


def _unit(records: list[Record]) -> int:
    return min(record.access.total for record in records)


def _expand(record: Record, unit: int) -> tuple[Array, Array]:
    """Units that a record touches, and the position of the lane that touches each."""
    per_lane = record.access.total // unit
    units = record.offsets // unit
    positions = np.arange(units.size)
    if per_lane == 1:
        return units, positions
    return (units[:, None] + np.arange(per_lane)).reshape(-1), np.repeat(positions, per_lane)


def _suspect_units(records: list[Record]) -> Array:
    """Units that a thread wrote and another touched, ordered or not: none in most kernels."""
    unit = _unit(records)
    size = 1 + max(int(r.offsets.max()) // unit + r.access.total // unit for r in records)
    owner = np.full(size, NOBODY, np.int64)
    suspects = []
    # Plain writes come first, whatever their time: an owner is any thread that writes plainly.
    for record in sorted(records, key=lambda r: ("write", "atomic", "read").index(r.access.kind)):
        units, positions = _expand(record, unit)
        threads = record.threads[positions]
        before = owner[units]
        foreign = (before != NOBODY) & (before != threads)
        if record.access.kind == "write":
            owner[units] = threads
            foreign |= owner[units] != threads
        elif record.access.kind == "atomic":
            foreign &= before != ATOMIC
            owner[units] = np.where(before == NOBODY, ATOMIC, before)
        elif record.access.strong:
            foreign &= before != ATOMIC
        suspects.append(units[foreign])
    return np.unique(np.concatenate(suspects))


def _fail(first: Record, i: int, second: Record, j: int) -> None:
    other = first.group
    there, who = other.instruction(first.pc).source, other.describe(int(first.lanes.index[i]))
    message = (
        f"global memory race: {second.access.kind}, and {first.access.kind} by {who} at {there}"
    )
    second.group.fail(f"{message} with no order between", second.lanes, j, pc=second.pc)
