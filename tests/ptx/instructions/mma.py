"""Products of small matrices by the lanes of a warp together: mma.sync, of one shape.

D = A B + C with A of 16 x 16, B of 16 x 8, C and D of 16 x 8. Lane 4 g + t holds parts of rows g
and g + 8 of A, C and D, and of column g of B; PTX ISA, "Matrix Fragments for mma.m16n8k16 with
floating point type".

Products are exact. Their sum with C is taken in float64 and rounded to float32 once, to nearest:
what the hardware does is not specified (it aligns the products of an instruction to the largest and
truncates), so tests of kernels need tolerances that allow for float32 sums in any order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..decode import Decoder, Reader, opcode
from ..ptx_types import PtxType, ptx_type
from .warp import together

if TYPE_CHECKING:
    from ..lanes import Lanes
    from ..machine import Execute, Group

Array = np.ndarray
_B32, _F32 = ptx_type("b32"), ptx_type("f32")


def _matrix_a(registers: Array) -> Array:
    """(warps, 32 lanes, 4 registers, 2 halves) to (warps, 16, 16)."""
    parts = registers.reshape(-1, 8, 4, 2, 2, 2)  # g, t, half of k, half of the rows, k
    return parts.transpose(0, 4, 1, 3, 2, 5).reshape(-1, 16, 16)


def _matrix_b(registers: Array) -> Array:
    """(warps, 32 lanes, 2 registers, 2 halves) to (warps, 16, 8)."""
    parts = registers.reshape(-1, 8, 4, 2, 2)  # g, t, half of k, k
    return parts.transpose(0, 3, 2, 4, 1).reshape(-1, 16, 8)


def _matrix_c(registers: Array) -> Array:
    """(warps, 32 lanes, 4 registers) to (warps, 16, 8)."""
    parts = registers.reshape(-1, 8, 4, 2, 2)  # g, t, half of the rows, column
    return parts.transpose(0, 3, 1, 2, 4).reshape(-1, 16, 8)


def _fragment_of(matrix: Array) -> Array:
    """(warps, 16, 8) to (lanes of all warps, 4 registers)."""
    return matrix.reshape(-1, 2, 8, 4, 2).transpose(0, 2, 3, 1, 4).reshape(-1, 4)


@opcode("mma")
def decode_matrix_multiply(decoder: Decoder) -> Execute:
    for modifier in ("sync", "aligned", "m16n8k16", "row", "col"):
        decoder.need(modifier)
    c, b, a, d = (decoder.type() for _ in "cbad")
    if (d.name, c.name) != ("f32", "f32") or a != b or a.name not in ("bf16", "f16"):
        raise decoder.error("unknown types of matrices in")
    pair = ptx_type(f"{a.name}x2")

    def readers(operand: int, count: int, kind: PtxType) -> list[Reader]:
        names = decoder.vector(operand)
        if len(names) != count:
            raise decoder.error(f"expected {count} registers in operand {operand} of")
        return [decoder.read(name, kind) for name in names]

    read_a, read_b = readers(1, 4, pair), readers(2, 2, pair)
    read_c = readers(3, 4, _F32)
    targets = decoder.vector(0)
    if len(targets) != 4:
        raise decoder.error("expected 4 registers in operand 0 of")
    write = [decoder.write(name, _F32) for name in targets]

    def fragment(group: Group, lanes: Lanes, read: list[Reader]) -> Array:
        return np.stack([each(group, lanes).astype(np.float64) for each in read], axis=1)

    def body(group: Group, lanes: Lanes, masks: Array) -> None:
        # All 32 lanes of a warp are here, and stand in their order.
        product = _matrix_a(fragment(group, lanes, read_a)) @ _matrix_b(
            fragment(group, lanes, read_b)
        )
        total = product + _matrix_c(fragment(group, lanes, read_c))
        values = _fragment_of(total.astype(np.float32))
        for register, each in enumerate(write):
            each(group, lanes, np.ascontiguousarray(values[:, register]))

    everyone = _B32.decode(_B32.constant("0xffffffff"))
    return together(lambda group, lanes: everyone, body)
