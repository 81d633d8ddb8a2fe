"""Stretches of memory, and what an access takes of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Array = np.ndarray
# Generic addresses of the small memories lie far above those of host memory, which global addresses
# are.
WINDOW_SIZE = 1 << 32
WINDOWS = {"shared": 1 << 60, "local": 1 << 61, "param": 3 << 60}
CARRIER = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64, 16: "V16", 32: "V32"}


class Region:
    """A stretch of bytes that starts at an address, and typed views of it."""

    def __init__(self, data: Array, start: int, writable: bool, name: str) -> None:
        self.data, self.start, self.writable, self.name = data, start, writable, name
        self.end = start + data.size
        self._views: dict[int, Array] = {}

    def view(self, size: int) -> tuple[Array, int]:
        """Elements of `size` bytes, and the offset of the first: the first aligned address."""
        head = -self.start % size
        if size not in self._views:
            whole = (self.data.size - head) // size * size
            self._views[size] = self.data[head : head + max(whole, 0)].view(CARRIER[size])
        return self._views[size], head


@dataclass
class Piece:
    """The part of an access that falls into one region; `positions` None means all of it."""

    region: Region
    offsets: Array
    positions: Array | None
    space: str


@dataclass(frozen=True)
class Access:
    """What an instruction does to memory: `count` elements of `size` bytes per lane."""

    space: str
    size: int
    count: int = 1
    kind: str = "read"
    strong: bool = False

    @property
    def total(self) -> int:
        return self.size * self.count
