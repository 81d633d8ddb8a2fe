"""The instructions that a thread runs on a kernel's main path."""

from __future__ import annotations

from .disassembly import Instruction


def straight_path(instructions: list[Instruction]) -> list[Instruction]:
    """All up to the kernel's end, of a kernel that only leaves early and never branches.

    Raises:
        ValueError: it branches.
    """
    for place, each in enumerate(instructions):
        if each.name == "EXIT" and not each.guard:
            return instructions[: place + 1]
        if each.name in ("BRA", "BRX", "CALL", "RET", "BSYNC"):
            raise ValueError(f"a branch at {each.address:#x}: {each.opcode} {each.operands}")
    raise ValueError("no end")


def loops(instructions: list[Instruction]) -> list[list[Instruction]]:
    """The bodies of loops: what stands between a branch backwards and its target."""
    return [
        [each for each in instructions if branch.target <= each.address <= branch.address]
        for branch in instructions
        if branch.target is not None and branch.target < branch.address
    ]
