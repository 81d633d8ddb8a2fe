"""Waiting: block barriers, and instructions that need every lane of a member mask at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .lanes import (
    AT_BARRIER,
    AT_CLUSTER_BARRIER,
    AT_WARP_SYNC,
    EXITED,
    RESCHEDULE,
    RUNNING,
    Lanes,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from .machine import Group

Array = np.ndarray
_BITS = np.uint32(1) << np.arange(32, dtype=np.uint32)
ALL_LANES = np.uint32(0xFFFFFFFF)


class Barriers:
    """Who waits where in a group of blocks."""

    def __init__(self, group: Group) -> None:
        self.group = group
        self.barrier_id = np.zeros(group.count, np.int64)
        # Threads that the barrier waits for; 0 means the whole block.
        self.expected = np.zeros(group.count, np.int64)
        # Operand of a reducing barrier.
        self.value = np.zeros(group.count, bool)
        # Member mask of the warp-wide instruction that a thread came to last.
        self.mask = np.zeros(group.count, np.uint32)
        self.exit_epoch = np.full(group.count, -1, np.int64)
        self.on_release: dict[int, Callable[[Lanes], None]] = {}
        self._reachable: dict[int, set[int]] = {}

    def note_exit(self, lanes: Lanes) -> None:
        """Remembers when lanes ended; those that wait for them in a member mask look again."""
        group = self.group
        self.exit_epoch[lanes.index] = group.block_epoch[group.block_row[lanes.index]]
        group.state[group.state == AT_WARP_SYNC] = RUNNING

    def arrive(self, lanes: Lanes, barrier_id: Array, expected: Array) -> int:
        """Makes lanes wait at a block barrier."""
        group = self.group
        self.barrier_id[lanes.index] = barrier_id
        self.expected[lanes.index] = expected
        group.state[lanes.index] = AT_BARRIER
        group.pc[lanes.index] = group.current
        group.trail[lanes.index] = group.current
        return RESCHEDULE

    def release(self) -> bool:
        """Called when no thread can run: opens every barrier that is complete.

        Returns:
            False when all threads have ended.

        Raises:
            DeviceError: threads wait for others that will not come.
        """
        group = self.group
        waiting = np.flatnonzero(group.state == AT_BARRIER)
        parked = np.flatnonzero(group.state == AT_WARP_SYNC)
        clustered = (group.state == AT_CLUSTER_BARRIER).any()
        if waiting.size == 0 and parked.size == 0 and not clustered:
            return False
        if waiting.size == group.count and self._is_plain():
            self._release_all()
            return True
        opened = False
        key = group.block_row[waiting] * 16 + self.barrier_id[waiting]
        order = np.argsort(key, kind="stable")
        starts = np.flatnonzero(np.diff(key[order], prepend=-1))
        for members in np.split(waiting[order], starts[1:]) if waiting.size else []:
            opened |= self._release_one(members)
        opened |= group.clusters.release()
        if not opened:
            stuck = parked if parked.size else waiting
            if stuck.size == 0:
                group.clusters.fail_stuck()
            self._fail_stuck(stuck)
        return True

    def _is_plain(self) -> bool:
        """Whether all threads of all blocks wait at one and the same `bar.sync 0`."""
        pc = int(self.group.pc[0])
        same = (self.group.pc == pc).all() and not self.barrier_id.any() and not self.expected.any()
        return bool(same) and pc not in self.on_release

    def _release_all(self) -> None:
        """The common case of `release`, without a step per block."""
        group = self.group
        group.pc += 1
        group.state[:] = RUNNING
        group.block_epoch = group.block_epoch + 1
        group.warp_epoch = group.warp_epoch + 1
        group.clusters.join_blocks()

    def _release_one(self, members: Array) -> bool:
        """Opens the barrier that some threads of one block wait at, if it is complete."""
        group = self.group
        row = int(group.block_row[members[0]])
        whole = slice(row * group.threads, (row + 1) * group.threads)
        pcs, expected = group.pc[members], self.expected[members]
        if (pcs != pcs[0]).any() or (expected != expected[0]).any():
            other = int(members[pcs != pcs[0]][0]) if (pcs != pcs[0]).any() else int(members[0])
            group.fail(
                "divergent barrier: threads of one block wait at different barriers, one at "
                f"{group.instruction(int(group.pc[other])).source}",
                Lanes(members, False),
                pc=int(pcs.min()),
            )
        living = group.threads - int(np.count_nonzero(group.state[whole] == EXITED))
        wanted = int(expected[0]) or living
        if members.size < wanted:
            return False
        if members.size > wanted:
            group.fail(
                f"{members.size} threads at a barrier for {wanted}",
                Lanes(members, False),
                pc=int(pcs[0]),
            )
        self._check_exits(row, int(pcs[0]), members)
        lanes = Lanes(members, members.size == group.count)
        if int(pcs[0]) in self.on_release:
            self.on_release[int(pcs[0])](lanes)
        group.pc[members] += 1
        group.state[members] = RUNNING
        # A named barrier of some warps counts as one of the block: a race with the others goes
        # unseen, but no race is reported where there is none.
        if members.size > 32 or members.size == living:
            # Epochs are replaced, not changed: the log of global accesses holds on to the old ones.
            group.block_epoch = group.block_epoch.copy()
            group.block_epoch[row] += 1
        group.warp_epoch = group.warp_epoch.copy()
        group.warp_epoch[np.unique(group.warp[members])] += 1
        group.clusters.join_blocks(members)
        return True

    def _check_exits(self, row: int, pc: int, members: Array) -> None:
        """A thread may end early, but may not step around a barrier and then run on behind it."""
        group = self.group
        whole = np.arange(row * group.threads, (row + 1) * group.threads)
        gone = (group.state[whole] == EXITED) & (self.exit_epoch[whole] == group.block_epoch[row])
        if self.any_behind(pc, group.trail[whole[gone]]):
            count = np.count_nonzero(gone)
            group.fail(
                f"divergent barrier: {count} threads of the block went around it",
                Lanes(members, False),
                pc=pc,
            )

    def any_behind(self, pc: int, places: Array) -> bool:
        """Whether any of some instructions can follow the one at `pc`."""
        return any(int(place) in self._behind(pc) for place in np.unique(places))

    def _behind(self, pc: int) -> set[int]:
        """Instructions that can follow the one at `pc`."""
        if pc not in self._reachable:
            kernel, seen, front = self.group.program.kernel, set(), [pc + 1]
            while front:
                at = front.pop()
                if at in seen or at >= len(kernel.instructions):
                    continue
                seen.add(at)
                instruction = kernel.instructions[at]
                if instruction.opcode == "bra":
                    front.append(kernel.labels[instruction.operands[0]])
                elif instruction.opcode == "brx":
                    front.extend(
                        kernel.labels[x] for x in kernel.branch_tables[instruction.operands[1]]
                    )
                ends = instruction.opcode in ("bra", "brx", "ret", "exit", "trap")
                if not ends or instruction.guard:
                    front.append(at + 1)
            self._reachable[pc] = seen
        return self._reachable[pc]

    def gather(
        self, lanes: Lanes, mask: Array, exited_may_miss: bool
    ) -> tuple[Lanes, Array] | None:
        """Brings together the lanes of the member masks of a warp-wide instruction.

        Returns:
            The lanes whose members are all here, and their masks; None when all of them must wait.
        """
        group = self.group
        if lanes.full and group.whole_warps and (mask == ALL_LANES).all():
            return lanes, mask
        parked = np.flatnonzero((group.state == AT_WARP_SYNC) & (group.pc == group.current))
        self.mask[lanes.index] = mask
        if parked.size:
            lanes = Lanes(np.union1d(lanes.index, parked), False)
            mask = self.mask[lanes.index]
        warp = group.warp[lanes.index]
        if ((mask >> group.lane_id[lanes.index].astype(np.uint32)) & np.uint32(1) == 0).any():
            group.fail("a lane is not in its own member mask", lanes)
        missing = mask & ~self.members(lanes.index)[warp]
        if missing.any():
            alive = self.members(np.flatnonzero(group.state != EXITED))[warp]
            gone = missing & ~alive
            if gone.any():
                if not exited_may_miss:
                    which = int(np.flatnonzero(gone)[0])
                    names = _lane_names(gone[which])
                    message = f"lanes {names} of the member mask have exited or do not exist"
                    group.fail(message, lanes, which)
                missing = missing & alive
        complete = missing == 0
        if not complete.all():
            waiting = lanes.index[~complete]
            group.state[waiting] = AT_WARP_SYNC
            group.pc[waiting] = group.current
            group.trail[waiting] = group.current
        elif not parked.size:
            self._check_equal_masks(lanes, mask)
            return lanes, mask
        ready = Lanes(lanes.index[complete], False)
        group.state[ready.index] = RUNNING
        self._check_equal_masks(ready, mask[complete])
        return (ready, mask[complete]) if ready.count else None

    def _check_equal_masks(self, lanes: Lanes, mask: Array) -> None:
        group = self.group
        table = np.zeros((group.warp_epoch.size, 32), np.uint32)
        table.reshape(-1)[group.warp_slot[lanes.index]] = mask
        named = (mask[:, None] & _BITS) != 0
        others = table[group.warp[lanes.index]]
        bad = (named & (others != mask[:, None]) & (others != 0)).any(axis=1)
        if bad.any():
            group.fail("lanes name different member masks", lanes, int(bad.argmax()))

    def members(self, index: Array) -> Array:
        """For every warp, the bits of the lanes among `index`."""
        group = self.group
        present = np.zeros(group.warp_epoch.size * 32, bool)
        present[group.warp_slot[index]] = True
        return np.packbits(present.reshape(-1, 32), axis=1, bitorder="little").view(np.uint32)[:, 0]

    def _fail_stuck(self, stuck: Array) -> None:
        group = self.group
        pc = int(group.pc[stuck].min())
        here = stuck[group.pc[stuck] == pc]
        row = group.block_row[here[0]]
        elsewhere = (group.block_row == row) & (group.pc != pc) & (group.state != EXITED)
        places = {str(group.instruction(int(at)).source) for at in np.unique(group.pc[elsewhere])}
        where = (
            f"others wait at {', '.join(sorted(places))}" if places else "the others have exited"
        )
        what = "block" if group.state[here[0]] == AT_BARRIER else "member mask"
        name = group.instruction(pc).opcode
        message = f"divergent {name}: not every thread of its {what} comes here; {where}"
        group.fail(message, Lanes(here, False), pc=pc)


def _lane_names(mask: int) -> str:
    names = [str(i) for i in range(32) if int(mask) >> i & 1]
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
