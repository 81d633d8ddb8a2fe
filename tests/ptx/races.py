"""Races on shared memory: two threads touch the same bytes, one writes, no barrier between.

Threads of one warp are ordered by `__syncwarp` and by block barriers, threads of one block by block
barriers. Both are counted as epochs: accesses in the same epoch are not ordered. Cluster barriers
order the threads of a cluster; see clusters.py.

What each block of a cluster does to a unit of memory is noted in a slot of its own: slot 0 is for
the block that the unit belongs to, slot d for the block whose rank is d further on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .lanes import Lanes

if TYPE_CHECKING:
    from .machine import Group
    from .regions import Access, Piece

Array = np.ndarray
# Zero, as pages of zeros that are never touched take no memory; a thread is 1 + its position.
NOBODY, SEVERAL_WARPS = 0, -1
# A reader up to this is a whole warp: FIRST_WARP - warp number.
FIRST_WARP = -2


def _smallest_access(group: Group) -> int:
    """Bytes of a kernel's narrowest access to shared memory, at most 4: the unit of tracking."""
    from .ptx_types import TYPES

    smallest = 4
    for instruction in group.program.kernel.instructions:
        others = {"global", "param", "local", "const"} & set(instruction.modifiers)
        if instruction.opcode in ("ld", "st", "atom", "red") and not others:
            ptx_type = TYPES.get(instruction.modifiers[-1])
            smallest = min(smallest, ptx_type.size if ptx_type else 4)
    return smallest


@dataclass
class Touch:
    """An access, with an element for each unit that each lane touches."""

    lanes: Lanes
    piece: Piece
    access: Access
    values: Array | None
    per_lane: int
    units: Array
    # Rows of the group that the memory belongs to.
    rows: Array
    slots: Array
    index: Array
    warp: Array
    block_epoch: Array
    warp_epoch: Array

    def changes(self) -> Array:
        """False for writes of the value that is there already: harmless, as when all set a flag."""
        if self.access.kind != "write" or self.values is None:
            return np.ones(self.units.size, bool)
        elements, head = self.piece.region.view(self.access.total)
        old = elements[(self.piece.offsets - head) // self.access.total]
        positions = self.piece.positions
        new = self.values if positions is None else self.values[positions]
        width = old.dtype.itemsize
        old, new = (np.ascontiguousarray(x).view(np.uint8).reshape(-1, width) for x in (old, new))
        return np.repeat((old != new).any(axis=1), self.per_lane)


class SharedRaces:
    """Last writer and readers of every unit of a group's shared memory."""

    def __init__(self, group: Group) -> None:
        self.group = group
        self.unit = _smallest_access(group)
        self.units = group.shared.data.size // self.unit
        self.written = np.zeros(self.units, bool)
        # Units that a block other than their own has touched.
        self.foreign = np.zeros(self.units, bool)
        slots = self.units * group.clusters.size
        self.writer = np.zeros(slots, np.int64)
        self.writer_atomic = np.zeros(slots, bool)
        self.reader = np.zeros(slots, np.int64)
        self.write_block_epoch = np.zeros(slots, np.int64)
        self.write_warp_epoch = np.zeros(slots, np.int64)
        self.write_pc = np.zeros(slots, np.int64)
        self.read_block_epoch = np.zeros(slots, np.int64)
        self.read_warp_epoch = np.zeros(slots, np.int64)
        self.read_pc = np.zeros(slots, np.int64)
        # 1 + stamp of the latest access of each kind, kept where the kernel has cluster barriers.
        self.stamps = {kind: np.zeros(slots, np.int64) for kind in ("read", "write", "atomic")}

    def check(
        self, lanes: Lanes, piece: Piece, access: Access, values: Array | None, rows: Array
    ) -> None:
        """Checks one access of some lanes to the memory of some rows, and takes note of it."""
        touch = self._touch(lanes, piece, access, values, rows)
        if access.kind != "write":
            self._check_initialised(touch)
        if self.group.clusters.size > 1:
            self._check_other_blocks(touch)
        self._check_writer(touch)
        if access.kind == "read":
            self._note_read(touch)
        else:
            self._check_readers(touch)
            self._note_write(touch)
        if self.group.clusters.used:
            self._note_stamps(touch)

    def _touch(
        self, lanes: Lanes, piece: Piece, access: Access, values: Array | None, rows: Array
    ) -> Touch:
        group, index = self.group, lanes.index
        per_lane = max(1, access.total // self.unit)
        units = piece.offsets // self.unit
        if per_lane > 1:
            units = (units[:, None] + np.arange(per_lane)).reshape(-1)
            index, rows = np.repeat(index, per_lane), np.repeat(rows, per_lane)
        warp, own, slots = group.warp[index], group.block_row[index], units
        if group.clusters.size > 1:
            slots = units + (own - rows) % group.clusters.size * self.units
        epochs = group.block_epoch[own], group.warp_epoch[warp]
        return Touch(
            lanes, piece, access, values, per_lane, units, rows, slots, index, warp, *epochs
        )

    def _check_initialised(self, touch: Touch) -> None:
        missing = ~self.written[touch.units]
        if missing.any():
            which = int(missing.argmax()) // touch.per_lane
            self.group.fail("read of uninitialised shared memory", touch.lanes, which)

    def _check_other_blocks(self, touch: Touch) -> None:
        """Compares with what other blocks of the cluster did to the same units."""
        clusters, size = self.group.clusters, self.group.clusters.size
        self.foreign[touch.units[touch.rows != self.group.block_row[touch.index]]] = True
        if not self.foreign[touch.units].any():
            return
        acquired = clusters.acquired[touch.index]
        conflicts = {"read": ("write", "atomic"), "atomic": ("read", "write")}
        for distance in range(size):
            slots = touch.units + distance * self.units
            rank = clusters.rank[touch.rows]
            other = touch.rows - rank + (rank + distance) % size
            foreign = other != self.group.block_row[touch.index]
            seen = clusters.limits[acquired, other]
            for kind in conflicts.get(touch.access.kind, ("read", "write", "atomic")):
                clash = foreign & (self.stamps[kind][slots] > seen)
                if kind != "read" and clash.any():
                    clash &= touch.changes()
                if clash.any():
                    which = int(clash.argmax())
                    place = (self.read_pc if kind == "read" else self.write_pc)[slots[which]]
                    who = self.group.describe_block(int(other[which]))
                    self._fail(touch, which, who, int(place), "cluster barrier")

    def _in_order(self, touch: Touch, kinds: tuple[str, ...]) -> Array:
        """Where a cluster barrier lies behind what a thread's own block did to its units."""
        clusters = self.group.clusters
        if not clusters.used:
            return np.zeros(touch.slots.size, bool)
        latest = np.maximum.reduce([self.stamps[kind][touch.slots] for kind in kinds])
        own = self.group.block_row[touch.index]
        return latest <= clusters.limits[clusters.acquired[touch.index], own]

    def _check_writer(self, touch: Touch) -> None:
        writer = self.writer[touch.slots] - 1
        clash = (writer >= 0) & (writer != touch.index)
        if not clash.any():
            return
        clash &= np.where(
            self.group.warp[writer] == touch.warp,
            self.write_warp_epoch[touch.slots] == touch.warp_epoch,
            self.write_block_epoch[touch.slots] == touch.block_epoch,
        )
        if touch.access.kind == "atomic":
            clash &= ~self.writer_atomic[touch.slots]
        if clash.any():
            clash &= ~self._in_order(touch, ("write", "atomic")) & touch.changes()
        if clash.any():
            which = int(clash.argmax())
            place = int(self.write_pc[touch.slots[which]])
            self._fail(touch, which, self._name(int(writer[which])), place)

    def check_same_value(self, lanes: Lanes, piece: Piece, stored: Array, values: Array) -> None:
        """After a write: lanes that wrote the same bytes at once must agree on the value."""
        mine = values if piece.positions is None else values[piece.positions]
        width = mine.dtype.itemsize
        stored, mine = (
            np.ascontiguousarray(x).view(np.uint8).reshape(-1, width) for x in (stored, mine)
        )
        lost = (stored != mine).any(axis=1)
        if lost.any():
            which = int(lost.argmax())
            position = which if piece.positions is None else int(piece.positions[which])
            self.group.fail(
                "shared memory race: lanes write different values to one place in one instruction",
                lanes,
                position,
            )

    def _reader_warp(self, reader: Array) -> Array:
        return np.where(reader > 0, self.group.warp[np.maximum(reader - 1, 0)], FIRST_WARP - reader)

    def _note_read(self, touch: Touch) -> None:
        slots, warp, me = touch.slots, touch.warp, touch.index + 1
        old = self.reader[slots]
        stale = (old == NOBODY) | (self.read_block_epoch[slots] != touch.block_epoch)
        same_warp = (old != SEVERAL_WARPS) & (self._reader_warp(old) == warp)
        joined = np.where(same_warp, FIRST_WARP - warp, SEVERAL_WARPS)
        mine = np.where(stale | (old == me), me, joined)
        self.reader[slots] = mine
        # Lanes that read the same unit in this instruction overwrote one another.
        last = self.reader[slots]
        lost = last != mine
        if lost.any():
            several = (last == SEVERAL_WARPS) | (mine == SEVERAL_WARPS)
            several |= self._reader_warp(last) != warp
            self.reader[slots[lost]] = FIRST_WARP - warp[lost]
            self.reader[slots[lost & several]] = SEVERAL_WARPS
        self.read_block_epoch[slots] = touch.block_epoch
        self.read_warp_epoch[slots] = touch.warp_epoch
        self.read_pc[slots] = self.group.current

    def _note_write(self, touch: Touch) -> None:
        slots = touch.slots
        self.written[touch.units] = True
        self.writer[slots] = touch.index + 1
        self.writer_atomic[slots] = touch.access.kind == "atomic"
        self.write_block_epoch[slots] = touch.block_epoch
        self.write_warp_epoch[slots] = touch.warp_epoch
        self.write_pc[slots] = self.group.current

    def _note_stamps(self, touch: Touch) -> None:
        clusters = self.group.clusters
        clusters.unpublished[touch.index] = True
        np.maximum.at(
            self.stamps[touch.access.kind], touch.slots, clusters.arrivals[touch.index] + 1
        )

    def _check_readers(self, touch: Touch) -> None:
        reader = self.reader[touch.slots]
        clash = (reader != NOBODY) & (reader != touch.index + 1)
        if not clash.any():
            return
        same_warp = (reader != SEVERAL_WARPS) & (self._reader_warp(reader) == touch.warp)
        clash &= np.where(
            same_warp,
            self.read_warp_epoch[touch.slots] == touch.warp_epoch,
            self.read_block_epoch[touch.slots] == touch.block_epoch,
        )
        if clash.any():
            clash &= ~self._in_order(touch, ("read",))
        if clash.any():
            which = int(clash.argmax())
            place = int(self.read_pc[touch.slots[which]])
            self._fail(touch, which, self._name(int(reader[which]) - 1), place)

    def _name(self, position: int) -> str:
        return f"thread {int(self.group.thread[position])}" if position >= 0 else "other threads"

    def _fail(
        self, touch: Touch, which: int, who: str, place: int, barrier: str = "barrier"
    ) -> None:
        there = self.group.instruction(place)
        verbs = {"st": "write", "atom": "access", "red": "access"}
        verb = verbs.get(there.opcode, "read")
        message = f"shared memory race: {touch.access.kind}, and {verb} by {who} at {there.source}"
        message += f" with no {barrier} between"
        self.group.fail(message, touch.lanes, which // touch.per_lane)
