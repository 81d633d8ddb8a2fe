"""Races on shared memory: two threads touch the same bytes, one writes, no barrier between.

Threads of one warp are ordered by `__syncwarp` and by block barriers, threads of one block by block
barriers. Both are counted as epochs: accesses in the same epoch are not ordered.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .lanes import Lanes

if TYPE_CHECKING:
    from .machine import Group
    from .memory import Access, Piece

Array = np.ndarray
NOBODY, SEVERAL_WARPS = -1, -2
# A reader below this is a whole warp: FIRST_WARP - warp number.
FIRST_WARP = -3


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


class SharedRaces:
    """Last writer and readers of every unit of a group's shared memory."""

    def __init__(self, group: Group) -> None:
        self.group = group
        self.unit = _smallest_access(group)
        units = group.shared.data.size // self.unit
        self.writer = np.full(units, NOBODY, np.int64)
        self.writer_atomic = np.zeros(units, bool)
        self.reader = np.full(units, NOBODY, np.int64)
        self.write_block_epoch = np.zeros(units, np.int64)
        self.write_warp_epoch = np.zeros(units, np.int64)
        self.write_pc = np.zeros(units, np.int64)
        self.read_block_epoch = np.zeros(units, np.int64)
        self.read_warp_epoch = np.zeros(units, np.int64)
        self.read_pc = np.zeros(units, np.int64)

    def check(self, lanes: Lanes, piece: Piece, access: Access, values: Array | None) -> None:
        """Checks one access of some lanes and takes note of it."""
        group = self.group
        per_lane = max(1, access.total // self.unit)
        units = piece.offsets // self.unit
        index, warp = lanes.index, group.warp[lanes.index]
        block_epoch = group.block_epoch[group.block_row[index]]
        warp_epoch = group.warp_epoch[warp]
        if per_lane > 1:
            units = (units[:, None] + np.arange(per_lane)).reshape(-1)
            index, warp, block_epoch, warp_epoch = (
                np.repeat(x, per_lane) for x in (index, warp, block_epoch, warp_epoch)
            )
        if access.kind != "write":
            self._check_initialised(lanes, units, per_lane)
        writer = self.writer[units]
        clash = (writer >= 0) & (writer != index)
        if clash.any():
            same_warp = group.warp[writer] == warp
            unordered = np.where(
                same_warp,
                self.write_warp_epoch[units] == warp_epoch,
                self.write_block_epoch[units] == block_epoch,
            )
            clash &= unordered
            if access.kind == "atomic":
                clash &= ~self.writer_atomic[units]
            if access.kind == "write" and clash.any():
                clash &= ~np.repeat(self._already_there(piece, access, values), per_lane)
            if clash.any():
                which = int(clash.argmax())
                self._fail(
                    lanes, which // per_lane, access, writer[which], self.write_pc[units[which]]
                )
        if access.kind == "read":
            self._note_read(units, index, warp, block_epoch, warp_epoch)
        else:
            self._check_readers(
                lanes, units, index, warp, block_epoch, warp_epoch, access, per_lane
            )
            self.writer[units] = index
            self.writer_atomic[units] = access.kind == "atomic"
            self.write_block_epoch[units] = block_epoch
            self.write_warp_epoch[units] = warp_epoch
            self.write_pc[units] = group.current

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

    def _check_initialised(self, lanes: Lanes, units: Array, per_lane: int) -> None:
        missing = self.writer[units] == NOBODY
        if missing.any():
            which = int(missing.argmax()) // per_lane
            self.group.fail("read of uninitialised shared memory", lanes, which)

    @staticmethod
    def _already_there(piece: Piece, access: Access, values: Array) -> Array:
        """Writes of the value that is there already: harmless, as when all threads set one flag."""
        elements, head = piece.region.view(access.total)
        old = np.ascontiguousarray(elements[(piece.offsets - head) // access.total])
        new = values if piece.positions is None else values[piece.positions]
        width = old.dtype.itemsize
        old, new = (np.ascontiguousarray(x).view(np.uint8).reshape(-1, width) for x in (old, new))
        return (old == new).all(axis=1)

    def _note_read(
        self, units: Array, index: Array, warp: Array, block_epoch: Array, warp_epoch: Array
    ) -> None:
        old = self.reader[units]
        stale = (old == NOBODY) | (self.read_block_epoch[units] != block_epoch)
        old_warp = np.where(old >= 0, self.group.warp[np.maximum(old, 0)], FIRST_WARP - old)
        joined = np.where(
            (old != SEVERAL_WARPS) & (old_warp == warp), FIRST_WARP - warp, SEVERAL_WARPS
        )
        mine = np.where(stale | (old == index), index, joined)
        self.reader[units] = mine
        # Lanes that read the same unit in this instruction overwrote one another.
        lost = self.reader[units] != mine
        if lost.any():
            last = self.reader[units]
            last_warp = np.where(last >= 0, self.group.warp[np.maximum(last, 0)], FIRST_WARP - last)
            several = (last == SEVERAL_WARPS) | (mine == SEVERAL_WARPS) | (last_warp != warp)
            self.reader[units[lost]] = FIRST_WARP - warp[lost]
            self.reader[units[lost & several]] = SEVERAL_WARPS
        self.read_block_epoch[units] = block_epoch
        self.read_warp_epoch[units] = warp_epoch
        self.read_pc[units] = self.group.current

    def _check_readers(
        self,
        lanes: Lanes,
        units: Array,
        index: Array,
        warp: Array,
        block_epoch: Array,
        warp_epoch: Array,
        access: Access,
        per_lane: int,
    ) -> None:
        reader = self.reader[units]
        clash = (reader != NOBODY) & (reader != index)
        if not clash.any():
            return
        reader_warp = np.where(
            reader >= 0, self.group.warp[np.maximum(reader, 0)], FIRST_WARP - reader
        )
        same_warp = (reader != SEVERAL_WARPS) & (reader_warp == warp)
        clash &= np.where(
            same_warp,
            self.read_warp_epoch[units] == warp_epoch,
            self.read_block_epoch[units] == block_epoch,
        )
        if clash.any():
            which = int(clash.argmax())
            other = int(reader[which])
            self._fail(lanes, which // per_lane, access, other, self.read_pc[units[which]])

    def _fail(self, lanes: Lanes, which: int, access: Access, other: int, pc: int) -> None:
        group = self.group
        who = f"thread {int(group.thread[other])}" if other >= 0 else "other threads"
        there = group.instruction(int(pc))
        verb = (
            "write"
            if there.opcode == "st"
            else "access"
            if there.opcode in ("atom", "red")
            else "read"
        )
        message = f"shared memory race: {access.kind}, and {verb} by {who} at {there.source}"
        group.fail(f"{message} with no barrier between", lanes, which)
