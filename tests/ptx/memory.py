"""The device's memories (buffers, shared, local, parameters) and the checks of every access."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .clusters import RANK_STEP
from .lanes import Lanes
from .parser import Variable
from .regions import CARRIER, WINDOWS, Access, Piece, Region
from .shared_layout import static_shared_size

if TYPE_CHECKING:
    from .machine import Group

Array = np.ndarray


class Memory:
    """Global memory of a device and the layout of the small memories."""

    def __init__(self) -> None:
        self.regions: list[Region] = []
        self.variables: dict[str, Region] = {}
        self._starts = np.zeros(0, np.int64)
        self._ends = np.zeros(0, np.int64)

    def register(self, array: Array, writable: bool, name: str) -> Region:
        """Makes the bytes of a numpy array accessible to kernels at their own address."""
        if not array.flags.c_contiguous:
            raise ValueError(f"{name}: only a contiguous array can be device memory")
        if writable and not array.flags.writeable:
            raise ValueError(f"{name}: the array is read-only; register it with writable=False")
        start = array.ctypes.data
        region = Region(array.reshape(-1).view(np.uint8), start, writable, name)
        if region.start == region.end:
            return region
        for other in self.regions:
            if (other.start, other.end, other.writable) == (region.start, region.end, writable):
                return other
            if other.start < region.end and region.start < other.end:
                raise ValueError(f"{name} overlaps {other.name}, which is registered differently")
        self.regions = sorted([*self.regions, region], key=lambda r: r.start)
        self._starts = np.array([r.start for r in self.regions])
        self._ends = np.array([r.end for r in self.regions])
        return region

    def add_variable(self, variable: Variable) -> None:
        """Allocates a module variable, which starts as zeros unless it has an initial value."""
        room = np.zeros(variable.size + variable.alignment, np.uint8)
        shift = -room.ctypes.data % variable.alignment
        data = room[shift : shift + variable.size]
        if variable.initial is not None:
            data[:] = np.frombuffer(variable.initial, np.uint8)
        writable = variable.space == "global"
        self.variables[variable.name] = self.register(data, writable, variable.name)

    def group_regions(self, group: Group) -> tuple[Region, Region]:
        """Shared memory for each block and local memory for each thread of a group.

        The bytes start as 0xff, NaN as a float, should a check ever miss an uninitialised read.
        """
        kernel = group.program.kernel
        self.shared_size = static_shared_size(kernel) + group.launch.dynamic_shared
        self.shared_stride = -(-self.shared_size // 32) * 32
        self.local_size = max((v.offset + v.size for v in kernel.local.values()), default=0)
        self.local_stride = -(-self.local_size // 32) * 32
        shared = np.full(group.blocks.size * self.shared_stride, 0xFF, np.uint8)
        local = np.full(group.count * self.local_stride, 0xFF, np.uint8)
        self.local_written = np.zeros(local.size, bool)
        self.parameters = Region(group.launch.parameters, 0, False, "kernel parameters")
        return Region(shared, 0, True, "shared memory"), Region(local, 0, True, "local memory")

    def load(self, group: Group, lanes: Lanes, addresses: Array, access: Access) -> Array:
        """Reads; returns bits of shape (lanes, elements)."""
        out = None
        for piece in self.resolve(group, lanes, addresses, access):
            elements, head = piece.region.view(access.total)
            bits = elements[(piece.offsets - head) // access.total]
            if piece.positions is None:
                out = bits
            else:
                out = np.empty(lanes.count, elements.dtype) if out is None else out
                out[piece.positions] = bits
        return out.view(CARRIER[access.size]).reshape(lanes.count, access.count)

    def store(
        self, group: Group, lanes: Lanes, addresses: Array, bits: Array, access: Access
    ) -> None:
        """Writes bits of shape (lanes, elements)."""
        values = np.ascontiguousarray(bits).view(CARRIER[access.total]).reshape(-1)
        for piece in self.resolve(group, lanes, addresses, access, values):
            elements, head = piece.region.view(access.total)
            index = (piece.offsets - head) // access.total
            elements[index] = values if piece.positions is None else values[piece.positions]
            if piece.space == "shared":
                group.shared_races.check_same_value(lanes, piece, elements[index], values)

    def resolve(
        self,
        group: Group,
        lanes: Lanes,
        addresses: Array,
        access: Access,
        values: Array | None = None,
    ) -> list[Piece]:
        """Finds and checks the bytes that an access touches."""
        total = access.total
        misaligned = addresses & (total - 1)
        if misaligned.any():
            message = f"misaligned {total}-byte access at {{address:#x}}"
            self._fail(group, lanes, addresses, misaligned != 0, message)
        if access.space != "generic":
            return self._resolve_space(group, lanes, addresses, access, None, values)
        if int(addresses.max()) < WINDOWS["shared"]:
            return self._resolve_space(group, lanes, addresses, access, None, values, "global")
        pieces = []
        window = addresses >> 60
        for number in np.unique(window):
            chosen = np.flatnonzero(window == number)
            space = next((s for s, w in WINDOWS.items() if w >> 60 == number), "global")
            part = addresses[chosen] - WINDOWS.get(space, 0)
            pieces += self._resolve_space(group, lanes, part, access, chosen, values, space)
        return pieces

    def _resolve_space(
        self,
        group: Group,
        lanes: Lanes,
        addresses: Array,
        access: Access,
        positions: Array | None,
        values: Array | None,
        space: str | None = None,
    ) -> list[Piece]:
        space = space or access.space
        index = lanes.index if positions is None else lanes.index[positions]
        chosen = lanes if positions is None else Lanes(index, False)
        if space in ("global", "const"):
            return self._resolve_global(group, chosen, addresses, access, positions, values)
        if space in ("shared", "shared::cluster"):
            reaches = space != access.space or space == "shared::cluster"
            return self._resolve_shared(
                group, chosen, addresses, access, positions, values, reaches
            )
        if space == "local":
            self._check_bounds(group, chosen, addresses, access, self.local_size, "local memory")
            offsets = addresses + index * self.local_stride
            self._check_local(group, chosen, offsets, access)
            return [Piece(group.local, offsets, positions, space)]
        self._check_bounds(
            group, chosen, addresses, access, self.parameters.data.size, "kernel parameters"
        )
        if access.kind != "read":
            group.fail("write to kernel parameters", chosen)
        return [Piece(self.parameters, addresses, positions, space)]

    def _resolve_shared(
        self,
        group: Group,
        lanes: Lanes,
        addresses: Array,
        access: Access,
        positions: Array | None,
        values: Array | None,
        reaches: bool,
    ) -> list[Piece]:
        """`reaches`: whether addresses may name shared memory of other blocks of the cluster."""
        rows = group.block_row[lanes.index]
        if reaches and int(addresses.max()) >= RANK_STEP // 2:
            rows, addresses = group.clusters.locate(lanes, addresses, access.kind)
            group.clusters.note_remote(lanes, rows)
        self._check_bounds(group, lanes, addresses, access, self.shared_size, "shared memory")
        piece = Piece(group.shared, addresses + rows * self.shared_stride, positions, "shared")
        group.shared_races.check(lanes, piece, access, values, rows)
        return [piece]

    def _resolve_global(
        self,
        group: Group,
        lanes: Lanes,
        addresses: Array,
        access: Access,
        positions: Array | None,
        values: Array | None,
    ) -> list[Piece]:
        low, high = int(addresses.min()), int(addresses.max()) + access.total
        number = int(np.searchsorted(self._starts, low, "right")) - 1
        if number >= 0 and high <= self.regions[number].end:
            return [
                self._global_piece(group, lanes, number, addresses, access, positions, None, values)
            ]
        numbers = np.searchsorted(self._starts, addresses, "right") - 1
        ends = self._ends[numbers] if self.regions else np.zeros_like(addresses)
        outside = (numbers < 0) | (addresses + access.total > ends)
        if outside.any():
            which = int(addresses[outside.argmax()])
            message = f"out of bounds: {access.kind} of {access.total} bytes at {which:#x}"
            self._fail(group, lanes, addresses, outside, message + self._nearest(which))
        pieces = []
        for number in np.unique(numbers):
            part = np.flatnonzero(numbers == number)
            where = part if positions is None else positions[part]
            pieces.append(
                self._global_piece(
                    group, lanes, int(number), addresses[part], access, where, part, values
                )
            )
        return pieces

    def _global_piece(
        self,
        group: Group,
        lanes: Lanes,
        number: int,
        addresses: Array,
        access: Access,
        positions: Array | None,
        part: Array | None,
        values: Array | None,
    ) -> Piece:
        region = self.regions[number]
        chosen = lanes if part is None else Lanes(lanes.index[part], False)
        if access.kind != "read" and not region.writable:
            group.fail(f"write to read-only {region.name}", chosen)
        offsets = addresses - region.start
        if region.writable:
            written = values if values is None or positions is None else values[positions]
            # Counted from an aligned address, so that an access of n bytes starts at a multiple of
            # n.
            group.log.add(group, chosen, number, offsets + region.start % 32, access, written)
        return Piece(region, offsets, positions, "global")

    def _nearest(self, address: int) -> str:
        distances = [(max(r.start - address, address - r.end), r) for r in self.regions]
        if not distances:
            return ", and no buffer is registered"
        region = min(distances, key=lambda pair: pair[0])[1]
        return f", byte {address - region.start} of {region.name} of {region.data.size} bytes"

    def _check_bounds(
        self, group: Group, lanes: Lanes, addresses: Array, access: Access, size: int, name: str
    ) -> None:
        outside = (addresses < 0) | (addresses + access.total > size)
        if outside.any():
            message = f"out of bounds: {access.kind} at byte {{address}} of {size} bytes of {name}"
            self._fail(group, lanes, addresses, outside, message)

    def _check_local(self, group: Group, lanes: Lanes, offsets: Array, access: Access) -> None:
        touched = offsets[:, None] + np.arange(access.total)
        if access.kind == "read":
            missing = ~self.local_written[touched].all(axis=1)
            if missing.any():
                group.fail("read of uninitialised local memory", lanes, int(missing.argmax()))
        else:
            self.local_written[touched] = True

    @staticmethod
    def _fail(group: Group, lanes: Lanes, addresses: Array, bad: Array, message: str) -> None:
        which = int(bad.argmax())
        group.fail(message.format(address=int(addresses[which])), lanes, which)
