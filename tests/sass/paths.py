"""The instructions that a thread runs on a kernel's main path."""

from __future__ import annotations

from collections.abc import Sequence

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


# Multipliers of Philox4x32's rounds, as nvdisasm writes them. They stand in no other product.
_MULTIPLIERS = ("-0x2daee0ad", "-0x326172a9")


def philox_products(path: Sequence[Instruction]) -> int:
    """Multiplications of Philox rounds."""
    return sum(
        each.name == "IMAD" and any(word in each.operands for word in _MULTIPLIERS) for each in path
    )


def random_path(instructions: list[Instruction]) -> list[Instruction]:
    """Where a kernel makes its random numbers: the loop with the most products, or all of it."""
    inside = max(loops(instructions), key=philox_products, default=[])
    return inside if philox_products(inside) else straight_path(instructions)
