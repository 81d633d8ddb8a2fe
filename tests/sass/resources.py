"""What each kernel needs of a multiprocessor, and so how many of its threads one holds."""

from __future__ import annotations

import ctypes
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.ptx import MachineCode, compile_host_library

from .names import readable

# Shared memory of a multiprocessor in bytes: "Technical Specifications per Compute Capability",
# CUDA C++ Programming Guide. occupancy.cpp has what is alike in all three.
ARCHITECTURES = {"sm_80": 164 * 1024, "sm_90": 228 * 1024, "sm_100": 228 * 1024}
MOST_THREADS = 2048  # of a multiprocessor
MOST_BLOCK_THREADS = 1024

# What ptxas -v prints for each kernel.
_REPORT = re.compile(
    r"Compiling entry function '(?P<kernel>\w+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
    r"(?P<loads>\d+) bytes spill loads.*?Used (?P<registers>\d+) registers(?P<others>[^\n]*)",
    re.S,
)
_SHARED = re.compile(r"(\d+) bytes smem")
_BOUNDS = re.compile(r"\.entry (?P<kernel>\w+)\([^)]*\)\s*\.maxntid (?P<threads>\d+)")


@dataclass(frozen=True)
class Resources:
    """What a kernel needs on one architecture; memory in bytes.

    `threads` are those of the largest block that its launch bounds allow, and such blocks are what
    else is counted.
    """

    name: str
    architecture: str
    threads: int
    registers: int
    shared: int
    stack: int
    spill: int

    @property
    def blocks(self) -> int:
        """Blocks that a multiprocessor holds."""
        major, minor = divmod(int(self.architecture.removeprefix("sm_")), 10)
        shared = ARCHITECTURES[self.architecture]
        count: int = _calculator().resident_blocks(
            major, minor, shared, self.threads, self.registers, self.shared
        )
        if count < 0:
            raise ValueError(f"the occupancy calculator refuses {self}")
        return count

    @property
    def resident_threads(self) -> int:
        """Threads that a multiprocessor holds."""
        return self.blocks * self.threads

    @property
    def occupancy(self) -> float:
        """The same as a part of the most that any kernel can have."""
        return self.resident_threads / MOST_THREADS

    def __str__(self) -> str:
        numbers = f"{self.registers:4} registers {self.stack:5} stack {self.spill:5} spilled"
        return f"{self.architecture} {numbers}  {self.name}"


def read_resources(code: MachineCode) -> list[Resources]:
    """What the kernels of a source need."""
    bounds = _BOUNDS.finditer(code.ptx.read_text())
    threads = {match["kernel"]: int(match["threads"]) for match in bounds}
    found = list(_REPORT.finditer(code.report.read_text()))
    names = readable(match["kernel"] for match in found)

    def one(match: re.Match[str]) -> Resources:
        shared = _SHARED.search(match["others"])
        return Resources(
            names[match["kernel"]],
            code.architecture,
            threads.get(match["kernel"], MOST_BLOCK_THREADS),
            int(match["registers"]),
            int(shared[1]) if shared else 0,
            int(match["stack"]),
            int(match["stores"]) + int(match["loads"]),
        )

    return [one(match) for match in found]


@cache
def _calculator() -> ctypes.CDLL:
    return ctypes.CDLL(str(compile_host_library(Path(__file__).parent / "occupancy.cpp")))
