"""Executes a kernel over a group of blocks: a register is an array with an element per thread.

Threads that stand at the same instruction execute it together. The group that stands at the lowest
instruction goes first, which lets divergent threads meet again where their paths join.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

import numpy as np

from .barriers import Barriers
from .clusters import Clusters
from .errors import DeviceError
from .global_races import GlobalAccessLog
from .lanes import EXITED, RESCHEDULE, RUNNING, Lanes
from .memory import Memory
from .parser import Instruction, Kernel
from .races import SharedRaces
from .special import special_registers, split

Array = np.ndarray
Dimensions = tuple[int, int, int]

_NEVER = np.iinfo(np.int64).max
# Instructions that a group of blocks may execute; about a minute, so more is a loop without end.
MAX_STEPS = 2_000_000


Execute = Callable[["Group", Lanes], "int | None"]


@dataclass
class Program:
    """A kernel made executable: one function per instruction."""

    kernel: Kernel
    steps: list[Execute]
    register_dtypes: list[np.dtype]
    register_names: list[str]


@dataclass(frozen=True)
class Launch:
    """One kernel launch."""

    program: Program
    grid: Dimensions
    block: Dimensions
    parameters: Array
    dynamic_shared: int
    cluster: Dimensions = (1, 1, 1)
    explicit_cluster: bool = False

    @property
    def threads(self) -> int:
        return self.block[0] * self.block[1] * self.block[2]

    @property
    def cluster_size(self) -> int:
        return self.cluster[0] * self.cluster[1] * self.cluster[2]

    def in_clusters(self, clusters: Array) -> Array:
        """Linear numbers of the blocks of some clusters, cluster after cluster, by rank."""
        counts = [g // c for g, c in zip(self.grid, self.cluster, strict=True)]
        ranks = np.arange(self.cluster_size)
        at = [
            first[:, None] * extent + inner
            for first, inner, extent in zip(
                split(clusters, counts), split(ranks, self.cluster), self.cluster, strict=True
            )
        ]
        return (at[0] + self.grid[0] * (at[1] + self.grid[1] * at[2])).reshape(-1)


class Group:
    """Blocks that run in lockstep, with their registers, program counters and barriers."""

    def __init__(
        self,
        launch: Launch,
        memory: Memory,
        blocks: Array,
        log: GlobalAccessLog,
        storage: list[Array],
    ) -> None:
        """Prepares blocks, given by their linear numbers, for their first instruction.

        The blocks of a cluster stand side by side, by rank.

        `storage` holds the registers' arrays; it is passed on from group to group of a launch to
        save time.
        """
        self.launch, self.program, self.memory, self.log = launch, launch.program, memory, log
        threads, count = launch.threads, blocks.size * launch.threads
        self.count, self.threads, self.blocks = count, threads, blocks
        position = np.arange(count)
        self.thread = (position % threads).astype(np.uint32)
        self.block_row = position // threads
        self.block_number = blocks[self.block_row].astype(np.uint32)
        self.lane_id = (self.thread & 31).astype(np.int64)
        self.warps_per_block = -(-threads // 32)
        self.warp = self.block_row * self.warps_per_block + (self.thread >> 5)
        # A place of its own for every lane of every warp, also where a block ends inside a warp.
        self.warp_slot = self.warp * 32 + self.lane_id
        self.whole_warps = threads % 32 == 0

        if not storage:
            storage.extend(np.empty(count, dtype) for dtype in self.program.register_dtypes)
        self.registers = [array[:count] for array in storage]
        registers = len(self.registers)
        self.complete = [False] * registers
        self.defined: list[Array | None] = [None] * registers
        self.last_writer: list[Lanes | None] = [None] * registers

        self.pc = np.zeros(count, np.int64)
        self.state = np.zeros(count, np.int8)
        self.carry = np.zeros(count, bool)
        # Last instruction of a thread before its latest jump or wait; tells how an exited thread
        # left.
        self.trail = np.full(count, -1, np.int64)
        self.block_epoch = np.zeros(blocks.size, np.int64)
        self.warp_epoch = np.zeros(blocks.size * self.warps_per_block, np.int64)
        self.everyone = Lanes(position, True)
        self.scheduled = self.everyone
        self.current = 0
        self.previous = -1
        self.executed = 0
        self.shared, self.local = memory.group_regions(self)
        self.clusters = Clusters(self)
        self.shared_races = SharedRaces(self)
        self.barriers = Barriers(self)
        self.special = special_registers(self)

    def run(self) -> None:
        """Runs every thread to its end."""
        with np.errstate(all="ignore"):
            while True:
                scheduled = self._schedule()
                if scheduled is None:
                    if not self.barriers.release():
                        self.clusters.check_lifetimes()
                        return
                    continue
                self._run_stretch(*scheduled)

    def _schedule(self) -> tuple[Lanes, int, int] | None:
        """Picks the lanes at the lowest instruction; also returns it and the next higher one."""
        running = self.state == RUNNING
        if running.all():
            pc = self.pc
            index = self.everyone.index
        else:
            index = np.flatnonzero(running)
            if index.size == 0:
                return None
            pc = self.pc[index]
        lowest = int(pc.min())
        here = pc == lowest
        if here.all():
            others = _NEVER
        else:
            others = int(pc[~here].min())
            index = index[here]
        if index.size == self.count:
            return self.everyone, lowest, others
        # The same object for the same lanes spares checks that registers are initialised.
        if not np.array_equal(self.scheduled.index, index):
            self.scheduled = Lanes(index, False)
        return self.scheduled, lowest, others

    def _run_stretch(self, lanes: Lanes, pc: int, others: int) -> None:
        """Runs lanes until they diverge, wait, end or meet lanes that stand further on."""
        steps = self.program.steps
        self.previous = -1
        while pc < others:
            self.current = pc
            self.executed += 1
            if self.executed > MAX_STEPS:
                self.fail(f"still running after {MAX_STEPS} instructions", lanes)
            target = steps[pc](self, lanes)
            if target == RESCHEDULE:
                return
            self.previous = pc
            pc = pc + 1 if target is None else target
        self.pc[lanes.index] = pc
        self.trail[lanes.index] = self.previous

    def branch(self, lanes: Lanes, taken: Array, target: int) -> int | None:
        """Sends the lanes with `taken` to a target, the others to the next instruction."""
        if taken.all():
            return target
        if not taken.any():
            return None
        self.pc[lanes.index] = np.where(taken, target, self.current + 1)
        self.trail[lanes.index] = self.current
        return RESCHEDULE

    def jump(self, lanes: Lanes, targets: Array) -> int:
        """Sends each lane to a target of its own."""
        self.pc[lanes.index] = targets
        self.trail[lanes.index] = self.current
        return RESCHEDULE

    def exit(self, lanes: Lanes, leaving: Lanes) -> int:
        """Ends some of the lanes; the others go on."""
        self.pc[lanes.index] = self.current + 1
        self.state[leaving.index] = EXITED
        if self.previous >= 0:
            self.trail[leaving.index] = self.previous
        self.barriers.note_exit(leaving)
        return RESCHEDULE

    def check_defined(self, register: int, lanes: Lanes) -> None:
        """Raises unless every lane has written a register."""
        defined = self.defined[register]
        bad = np.ones(lanes.count, bool) if defined is None else ~defined[lanes.index]
        if bad.any():
            name = self.program.register_names[register]
            self.fail(f"read of uninitialised register {name}", lanes, int(bad.argmax()))

    def mark_defined(self, register: int, lanes: Lanes) -> None:
        """Notes that some of the lanes have written a register."""
        defined = self.defined[register]
        if defined is None:
            defined = self.defined[register] = np.zeros(self.count, bool)
        defined[lanes.index] = True
        self.last_writer[register] = lanes

    def instruction(self, pc: int | None = None) -> Instruction:
        """The instruction at a program counter, by default the one that is executing."""
        return self.program.kernel.instructions[self.current if pc is None else pc]

    def describe(self, position: int) -> str:
        """Names a thread by its block and its index in the block."""
        thread = _three(int(self.thread[position]), self.launch.block)
        return f"{self.describe_block(int(self.block_row[position]))} thread {thread}"

    def describe_block(self, row: int) -> str:
        """Names a block of the group."""
        return f"block {_three(int(self.blocks[row]), self.launch.grid)}"

    def finish(self) -> None:
        """Drops what the log of global accesses, which outlives the group, does not need."""
        self.special = {}
        self.registers = []
        del self.shared, self.local, self.shared_races, self.barriers

    def fail(self, message: str, lanes: Lanes, which: int = 0, pc: int | None = None) -> NoReturn:
        """Raises DeviceError about one of the lanes."""
        instruction = self.instruction(pc)
        who = self.describe(int(lanes.index[which])) if lanes.count else "no thread"
        raise DeviceError(
            f"{message}\n  kernel {self.program.kernel.name}, {who}\n"
            f"  at {instruction.source}: {instruction.text}"
        )


def _three(number: int, extent: Dimensions) -> Dimensions:
    """Three-dimensional index of a linear one."""
    x, y, z = split(number, extent)
    return x, y, z
