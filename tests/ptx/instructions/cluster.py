"""Clusters of blocks: mapa, getctarank, barrier.cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..barriers import ALL_LANES
from ..clusters import RANK_STEP, rank_field
from ..decode import Decoder, opcode
from ..lanes import RESCHEDULE
from ..ptx_types import ptx_type
from ..regions import WINDOW_SIZE, WINDOWS

if TYPE_CHECKING:
    from ..lanes import Lanes
    from ..machine import Execute, Group

Array = np.ndarray
_U32 = ptx_type("u32")
# A rank that no cluster has: a mapa of a rank too large may be computed as long as nobody uses it.
_NO_RANK = 254


def _shared_offsets(group: Group, lanes: Lanes, addresses: Array, window: int) -> Array:
    """Addresses within the shared window of addresses that must lie there."""
    offsets = addresses.astype(np.int64) - window
    outside = (offsets < 0) | (offsets >= WINDOW_SIZE)
    if outside.any():
        group.fail("an address that is not one of shared memory", lanes, int(outside.argmax()))
    return offsets


def _window(decoder: Decoder) -> int:
    return 0 if decoder.take("shared::cluster") else WINDOWS["shared"]


@opcode("mapa")
def decode_map_address(decoder: Decoder) -> Execute:
    kind = decoder.type()
    window = _window(decoder)
    if kind.name not in ("u32", "u64") or (window and kind.name == "u32"):
        raise decoder.error("unknown type in")
    write, read, rank = decoder.write(0, kind), decoder.read(1, kind), decoder.read(2, _U32)

    def execute(group: Group, lanes: Lanes) -> None:
        addresses = np.broadcast_to(read(group, lanes), lanes.count)
        offsets = _shared_offsets(group, lanes, addresses, window)
        offsets = offsets - rank_field(offsets) * RANK_STEP
        field = np.minimum(rank(group, lanes).astype(np.int64), _NO_RANK) + 1
        write(group, lanes, (window + offsets + field * RANK_STEP).astype(kind.dtype))

    return execute


@opcode("getctarank")
def decode_rank(decoder: Decoder) -> Execute:
    kind = decoder.type()
    window = _window(decoder)
    write, read = decoder.write(0, _U32), decoder.read(1, kind)

    def execute(group: Group, lanes: Lanes) -> None:
        addresses = np.broadcast_to(read(group, lanes), lanes.count)
        field = rank_field(_shared_offsets(group, lanes, addresses, window))
        own = group.clusters.rank[group.block_row[lanes.index]]
        write(group, lanes, np.where(field == 0, own, field - 1).astype(np.uint32))

    return execute


def decode_cluster_barrier(decoder: Decoder) -> Execute:
    """barrier.cluster, called by the decoder of `barrier`."""
    arrives = decoder.need("arrive", "wait") == "arrive"
    relaxed = False
    if arrives:
        relaxed = decoder.take("release", "relaxed") == "relaxed"
    else:
        decoder.take("acquire")
    aligned = decoder.take("aligned") is not None

    def execute(group: Group, lanes: Lanes) -> int | None:
        together = lanes
        if aligned:
            # All lanes of a warp that still live execute it as one.
            gathered = group.barriers.gather(lanes, np.full(lanes.count, ALL_LANES), True)
            if gathered is None:
                return RESCHEDULE
            together = gathered[0]
        if not arrives:
            return group.clusters.wait(together)
        group.clusters.arrive(together, relaxed)
        if together is lanes:
            return None
        return group.jump(together, np.full(together.count, group.current + 1))

    return execute
