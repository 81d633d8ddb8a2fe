"""Instructions that lanes of a warp execute together: shfl, vote, match, redux, bar.warp.sync."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from ..decode import Decoder, Reader, opcode
from ..lanes import RESCHEDULE, Lanes
from ..ptx_types import ptx_type

if TYPE_CHECKING:
    from ..machine import Execute, Group

Array = np.ndarray
_U32, _PREDICATE = ptx_type("u32"), ptx_type("pred")
_LANE_BITS = np.uint32(1) << np.arange(32, dtype=np.uint32)


def together(
    mask: Reader, body: Callable[[Group, Lanes, Array], None], exited_may_miss: bool = False
) -> Execute:
    """Runs `body` once all lanes of each member mask have come; until then lanes wait."""

    def execute(group: Group, lanes: Lanes) -> int | None:
        masks = np.broadcast_to(mask(group, lanes), lanes.count)
        gathered = group.barriers.gather(lanes, masks, exited_may_miss)
        if gathered is None:
            return RESCHEDULE
        ready, masks = gathered
        body(group, ready, masks)
        if ready is lanes:
            return None
        group.pc[ready.index] = group.current + 1
        group.trail[ready.index] = group.current
        return RESCHEDULE

    return execute


def _table(group: Group, lanes: Lanes, values: Array) -> Array:
    """Values by warp and lane; absent lanes hold zero."""
    table = np.zeros((group.warp_epoch.size, 32), values.dtype)
    table.reshape(-1)[group.warp_slot[lanes.index]] = values
    return table


@opcode("shfl")
def decode_shuffle(decoder: Decoder) -> Execute:
    decoder.need("sync")
    mode = decoder.need("up", "down", "bfly", "idx")
    if decoder.type().name != "b32":
        raise decoder.error("unknown type in")
    target, _, flag = decoder.operands[0].partition("|")
    write = decoder.write(target, _U32)
    write_flag = decoder.write(flag, _PREDICATE) if flag else None
    value, step, clamp, mask = (decoder.read(i, _U32) for i in (1, 2, 3, 4))

    def body(group: Group, lanes: Lanes, masks: Array) -> None:
        lane = group.lane_id[lanes.index]
        b = step(group, lanes).astype(np.int64) & 31
        c = clamp(group, lanes).astype(np.int64)
        segment, limit = (c >> 8) & 31, c & 31
        highest = (lane & segment) | (limit & ~segment)
        if mode == "up":
            source = lane - b
            inside = source >= highest
        else:
            base = {"down": lane + b, "bfly": lane ^ b, "idx": (lane & segment) | (b & ~segment)}
            source = base[mode]
            inside = source <= highest
        source = np.where(inside, source, lane)
        absent = (masks >> source.astype(np.uint32)) & np.uint32(1) == 0
        if absent.any():
            which = int(absent.argmax())
            group.fail(
                f"reads lane {int(source[which])}, which is not in the member mask", lanes, which
            )
        table = _table(group, lanes, value(group, lanes))
        write(group, lanes, table[group.warp[lanes.index], source])
        if write_flag:
            write_flag(group, lanes, inside)

    return together(mask, body)


@opcode("vote")
def decode_vote(decoder: Decoder) -> Execute:
    decoder.need("sync")
    mode = decoder.need("all", "any", "uni", "ballot")
    kind = decoder.type()
    write, source = decoder.write(0, kind), decoder.read_predicate(decoder.operands[1])
    mask = decoder.read(2, _U32)

    def body(group: Group, lanes: Lanes, masks: Array) -> None:
        chosen = lanes.index[np.broadcast_to(source(group, lanes), lanes.count)]
        votes = group.barriers.members(chosen)[group.warp[lanes.index]] & masks
        if mode == "ballot":
            write(group, lanes, votes)
        else:
            every, some = votes == masks, votes != 0
            result = {"all": every, "any": some, "uni": every | ~some}[mode]
            write(group, lanes, result)

    return together(mask, body)


@opcode("match")
def decode_match(decoder: Decoder) -> Execute:
    mode = decoder.need("any", "all")
    decoder.need("sync")
    kind = decoder.type()
    target, _, flag = decoder.operands[0].partition("|")
    write = decoder.write(target, _U32)
    write_flag = decoder.write(flag, _PREDICATE) if flag else None
    source, mask = decoder.read(1, kind), decoder.read(2, _U32)

    def body(group: Group, lanes: Lanes, masks: Array) -> None:
        values = np.broadcast_to(source(group, lanes), lanes.count)
        table = _table(group, lanes, values)[group.warp[lanes.index]]
        equal = ((table == values[:, None]) * _LANE_BITS).sum(axis=1, dtype=np.uint32) & masks
        everyone = equal == masks
        write(group, lanes, equal if mode == "any" else np.where(everyone, masks, np.uint32(0)))
        if write_flag:
            write_flag(group, lanes, everyone)

    return together(mask, body)


_REDUCTIONS = {
    "add": np.add,
    "min": np.minimum,
    "max": np.maximum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
}


@opcode("redux")
def decode_redux(decoder: Decoder) -> Execute:
    decoder.need("sync")
    reduce = _REDUCTIONS[decoder.need(*_REDUCTIONS)]
    kind = decoder.type()
    if kind.is_float:
        raise decoder.error("unknown type in")
    write, source, mask = decoder.write(0, kind), decoder.read(1, kind), decoder.read(2, _U32)

    def body(group: Group, lanes: Lanes, masks: Array) -> None:
        table = _table(group, lanes, source(group, lanes))[group.warp[lanes.index]]
        member = (masks[:, None] & _LANE_BITS) != 0
        # A lane's own value stands in for absent ones where it cannot change the result.
        own = table[np.arange(lanes.count), group.lane_id[lanes.index]][:, None]
        neutral = own if reduce not in (np.add, np.bitwise_xor) else kind.dtype.type(0)
        write(
            group, lanes, reduce.reduce(np.where(member, table, neutral), axis=1, dtype=kind.dtype)
        )

    return together(mask, body)


@opcode("activemask")
def decode_active_mask(decoder: Decoder) -> Execute:
    decoder.type()
    write = decoder.write(0, _U32)

    def execute(group: Group, lanes: Lanes) -> None:
        write(group, lanes, group.barriers.members(lanes.index)[group.warp[lanes.index]])

    return execute


def decode_warp_barrier(decoder: Decoder) -> Execute:
    """bar.warp.sync, called by the decoder of `bar`; lanes that have exited need not come."""

    def body(group: Group, lanes: Lanes, masks: Array) -> None:
        # Epochs are replaced, not changed: the log of global accesses holds on to the old ones.
        group.warp_epoch = group.warp_epoch.copy()
        group.warp_epoch[np.unique(group.warp[lanes.index])] += 1

    return together(decoder.read(0, _U32), body, exited_may_miss=True)
