"""Branches, exits and barriers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..decode import Decoder, opcode
from ..lanes import Lanes
from ..ptx_types import ptx_type
from .cluster import decode_cluster_barrier
from .warp import decode_warp_barrier

if TYPE_CHECKING:
    from ..machine import Execute, Group

Array = np.ndarray
_U32 = ptx_type("u32")
_MOST_BARRIERS = 16


@opcode("bra")
def decode_branch(decoder: Decoder) -> Execute:
    # `.uni` promises that a warp does not diverge; what it does follows from the guard all the
    # same.
    decoder.take("uni")
    label = decoder.operands[0]
    if label not in decoder.kernel.labels:
        raise decoder.error("unknown label in")
    target = decoder.kernel.labels[label]
    predicate = decoder.guard()
    if predicate is None:
        return lambda group, lanes: target
    return lambda group, lanes: group.branch(lanes, predicate(group, lanes), target)


@opcode("brx")
def decode_indexed_branch(decoder: Decoder) -> Execute:
    decoder.need("idx")
    decoder.take("uni")
    read = decoder.read(0, _U32)
    kernel = decoder.kernel
    targets = np.array([kernel.labels[x] for x in kernel.branch_tables[decoder.operands[1]]])

    def execute(group: Group, lanes: Lanes) -> int:
        chosen = np.broadcast_to(read(group, lanes), lanes.count)
        if (chosen >= targets.size).any():
            group.fail("branch index out of range", lanes, int((chosen >= targets.size).argmax()))
        return group.jump(lanes, targets[chosen])

    return execute


@opcode("ret", "exit")
def decode_return(decoder: Decoder) -> Execute:
    decoder.take("uni")
    predicate = decoder.guard()

    def execute(group: Group, lanes: Lanes) -> int | None:
        leaving = lanes if predicate is None else lanes.where(predicate(group, lanes))
        return group.exit(lanes, leaving) if leaving.count else None

    return execute


@opcode("trap", "brkpt")
def decode_trap(decoder: Decoder) -> Execute:
    def execute(group: Group, lanes: Lanes) -> None:
        group.fail("trap (a failed assertion, or __trap)", lanes)

    return execute


@opcode("call")
def decode_call(decoder: Decoder) -> Execute:
    raise decoder.error("a call of a function that is not inlined is not supported:")


@opcode("bar", "barrier")
def decode_barrier(decoder: Decoder) -> Execute:
    if decoder.take("warp"):
        decoder.need("sync")
        return decode_warp_barrier(decoder)
    if decoder.take("cluster"):
        return decode_cluster_barrier(decoder)
    decoder.take("cta")
    reduction = decoder.take("red")
    if reduction is None:
        decoder.need("sync")
    decoder.take("aligned")
    if reduction:
        return _decode_reducing_barrier(decoder)
    identity = decoder.read(0, _U32)
    count = decoder.read(1, _U32) if len(decoder.operands) > 1 else None

    def execute(group: Group, lanes: Lanes) -> int:
        expected = count(group, lanes) if count else np.zeros(1, np.uint32)
        return _arrive(group, lanes, identity(group, lanes), expected)

    return execute


def _arrive(group: Group, lanes: Lanes, identity: Array, expected: Array) -> int:
    if (identity >= _MOST_BARRIERS).any():
        group.fail("barrier number out of range", lanes)
    if (expected % 32 != 0).any():
        group.fail("a barrier's thread count is not a multiple of 32", lanes)
    return group.barriers.arrive(lanes, identity.astype(np.int64), expected.astype(np.int64))


def _decode_reducing_barrier(decoder: Decoder) -> Execute:
    """__syncthreads_count, _and, _or: the result is made when the barrier opens."""
    name = decoder.need("popc", "and", "or")
    kind = decoder.type()
    identity, source = decoder.read(1, _U32), decoder.read_predicate(decoder.operands[-1])
    if len(decoder.operands) > 3:
        raise decoder.error("a thread count is not supported in")
    write = decoder.write(0, kind)

    def finish(group: Group, lanes: Lanes) -> None:
        votes = group.barriers.value[lanes.index]
        result = {"popc": votes.sum(), "and": votes.all(), "or": votes.any()}[name]
        write(group, lanes, np.full(lanes.count, result, kind.dtype))

    def execute(group: Group, lanes: Lanes) -> int:
        group.barriers.value[lanes.index] = source(group, lanes)
        group.barriers.on_release[group.current] = lambda members: finish(group, members)
        return _arrive(group, lanes, identity(group, lanes), np.zeros(1, np.uint32))

    return execute
