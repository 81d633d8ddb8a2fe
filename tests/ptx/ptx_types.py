"""PTX types, and how a register's bits become numpy values and come back.

A register is stored as an unsigned integer of its width, one element per thread. `decode` shows
these bits as the values of a type, `encode` turns values into bits again. Packed pairs gain a
second axis of length 2.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .errors import ParseError
from .floats import bfloat16_to_float32, to_bfloat16_bits

Array = np.ndarray
UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
SIGNED = {1: np.int8, 2: np.int16, 4: np.int32, 8: np.int64}
FLOAT = {2: np.float16, 4: np.float32, 8: np.float64}


@dataclass(frozen=True)
class PtxType:
    """A PTX type such as `.f32`.

    Attributes:
        name: as written in PTX, without the dot.
        size: bytes.
        kind: one of predicate, bits, unsigned, signed, float, bfloat.
        packed: whether it is a pair of 16-bit floats.
    """

    name: str
    size: int
    kind: str
    packed: bool = False

    @property
    def is_float(self) -> bool:
        return self.kind in ("float", "bfloat")

    @property
    def storage(self) -> np.dtype:
        """Type of the numpy array that holds a register of this type."""
        return np.dtype(bool) if self.kind == "predicate" else np.dtype(UNSIGNED[self.size])

    @property
    def dtype(self) -> np.dtype:
        """Type of the decoded values (bfloat16 is computed on as float32)."""
        if self.kind == "predicate":
            return np.dtype(bool)
        if self.kind == "bfloat":
            return np.dtype(np.float32)
        if self.kind == "float":
            return np.dtype(FLOAT[2 if self.packed else self.size])
        return np.dtype(SIGNED[self.size] if self.kind == "signed" else UNSIGNED[self.size])

    def decode(self, bits: Array) -> Array:
        """Shows register bits (a contiguous array) as values."""
        if self.kind == "bfloat":
            halves = bits.view(np.uint16)
            return bfloat16_to_float32(halves.reshape(-1, 2) if self.packed else halves)
        values = bits if bits.dtype == self.dtype else bits.view(self.dtype)
        return values.reshape(-1, 2) if self.packed else values

    def encode(self, values: Array) -> Array:
        """Turns values into register bits; a bfloat type rounds here, once, to nearest even."""
        if self.kind == "bfloat":
            values = to_bfloat16_bits(values)
        elif values.dtype != self.dtype:
            raise TypeError(f"internal error: {values.dtype} values for a .{self.name} register")
        if self.packed:
            values = np.ascontiguousarray(values).reshape(-1)
        return values if values.dtype == self.storage else values.view(self.storage)

    def constant(self, text: str) -> Array:
        """Bits of an immediate operand, as an array of one element."""
        if text[:2] in ("0f", "0F", "0d", "0D"):
            width = 4 if text[1] in "fF" else 8
            if width != self.size:
                raise ParseError(f"immediate {text} for a .{self.name} operand")
            return np.array([int(text[2:], 16)], UNSIGNED[width])
        if self.kind == "predicate":
            return np.array([int(text, 0) != 0])
        digits = text.rstrip("U")
        # PTX octal: a leading zero.
        base = 8 if digits.lstrip("-").isdigit() and digits.lstrip("-")[0] == "0" else 0
        value = int(digits, base) & ((1 << 8 * self.size) - 1)
        return np.array([value], UNSIGNED[self.size])


def _all_types() -> dict[str, PtxType]:
    table = [PtxType("pred", 1, "predicate"), PtxType("b128", 16, "bits")]
    for size in (1, 2, 4, 8):
        for letter, kind in (("b", "bits"), ("u", "unsigned"), ("s", "signed")):
            table.append(PtxType(f"{letter}{8 * size}", size, kind))
    table += [PtxType(f"f{8 * size}", size, "float") for size in (2, 4, 8)]
    table += [PtxType("bf16", 2, "bfloat"), PtxType("f16x2", 4, "float", packed=True)]
    table += [PtxType("bf16x2", 4, "bfloat", packed=True)]
    return {ptx_type.name: ptx_type for ptx_type in table}


TYPES = _all_types()


def ptx_type(name: str) -> PtxType:
    """Looks a type up by its PTX name, without the dot."""
    if name not in TYPES:
        raise ParseError(f"unknown type .{name}")
    return TYPES[name]
