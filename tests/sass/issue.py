"""How fast a device can issue given instructions: a bound by counting, not a measurement."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from tests.ptx import Properties

from .disassembly import Instruction

# Of compute capability 9.0, in instructions of threads a clock and multiprocessor: four schedulers
# issue one for a warp each. "Throughput of Native Arithmetic Instructions" in the CUDA C++
# Programming Guide has 64 for integer additions, comparisons, shifts, bitwise operations and
# multiplications. That multiplications have a pipe of their own, and that products of 64 bits take
# it twice as long, is not in the guide: assumed, and to be measured.
ISSUED = 128
PIPE_WIDTH = 64
# fmt: off
PIPES = {
    "logic": {
        "F2FP", "FMNMX", "FSEL", "FSETP", "IADD3", "ISETP", "LEA", "LOP3", "P2R", "PLOP3", "PRMT",
        "R2P", "SEL", "SHF",
    },
    "multiply": {"IDP", "IMAD"},
}
# fmt: on
_TWICE = ("IMAD.WIDE", "IMAD.HI")


def _clocks(instructions: Iterable[Instruction]) -> dict[str, float]:
    """Clocks of a multiprocessor that one thread's instructions take of each resource."""
    used: Counter[str] = Counter()
    for each in instructions:
        used["issue"] += 1
        for pipe, names in PIPES.items():
            if each.name in names:
                used[pipe] += 2 if each.opcode.startswith(_TWICE) else 1
    widths = {"issue": ISSUED} | dict.fromkeys(PIPES, PIPE_WIDTH)
    return {resource: used[resource] / width for resource, width in widths.items()}


def bytes_per_second(
    instructions: Iterable[Instruction], moved: int, device: Properties
) -> dict[str, float]:
    """To what each resource bounds a device, if a thread's instructions move `moved` bytes."""
    a_second = device.processors * device.clock_khz * 1000
    return {name: moved / time * a_second for name, time in _clocks(instructions).items()}
