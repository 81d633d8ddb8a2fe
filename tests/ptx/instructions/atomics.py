"""Atomic read-modify-write instructions: atom and red."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from ..decode import Decoder, opcode
from ..floats import canonical_nan
from ..ptx_types import PtxType
from ..regions import Access
from .transfer import take_space

if TYPE_CHECKING:
    from ..lanes import Lanes
    from ..machine import Execute, Group

Array = np.ndarray
Operation = Callable[[Array, Array, "Array | None"], Array]


def _increment(old: Array, limit: Array, _: Array | None) -> Array:
    return np.where(old >= limit, old.dtype.type(0), old + old.dtype.type(1))


def _decrement(old: Array, limit: Array, _: Array | None) -> Array:
    return np.where((old == 0) | (old > limit), limit, old - old.dtype.type(1))


_OPERATIONS: dict[str, Operation] = {
    "add": lambda old, new, _: old + new,
    "min": lambda old, new, _: np.minimum(old, new),
    "max": lambda old, new, _: np.maximum(old, new),
    "and": lambda old, new, _: old & new,
    "or": lambda old, new, _: old | new,
    "xor": lambda old, new, _: old ^ new,
    "exch": lambda old, new, _: new,
    "cas": lambda old, compare, new: np.where(old == compare, new, old),
    "inc": _increment,
    "dec": _decrement,
}


@opcode("atom", "red")
def decode_atomic(decoder: Decoder) -> Execute:
    kind = decoder.type()
    name = decoder.need(*_OPERATIONS)
    order = decoder.take("relaxed", "acquire", "release", "acq_rel")
    scope = decoder.take("cta", "cluster", "gpu", "sys")
    space = take_space(decoder)
    if decoder.take("noftz") is None and kind.size == 2 and kind.is_float:
        raise decoder.error("expected .noftz in")
    if kind.is_float and name not in ("add", "exch"):
        raise decoder.error("unknown operation on floats in")
    if kind.size == 16:
        raise decoder.error("128-bit atomics are not supported in")
    releases = order in ("release", "acq_rel") and scope in ("gpu", "sys")
    returns = decoder.instruction.opcode == "atom"
    at = 1 if returns else 0
    write = decoder.write(0, kind) if returns else None
    address = decoder.address(at, space)
    operands = [decoder.read(i, kind) for i in range(at + 1, len(decoder.operands))]
    access = Access(space, kind.size, 1, "atomic")
    operation = _OPERATIONS[name]

    def execute(group: Group, lanes: Lanes) -> None:
        if releases:
            group.log.fence(group, lanes)
        values = [_per_lane(read(group, lanes), lanes.count) for read in operands]
        addresses = address(group, lanes)
        old = np.empty(lanes.count, kind.storage)
        for piece in group.memory.resolve(group, lanes, addresses, access):
            elements, head = piece.region.view(kind.size)
            where = np.arange(lanes.count) if piece.positions is None else piece.positions
            index = (piece.offsets - head) // kind.size
            chosen = [value[where] for value in values]
            old[where] = _apply(kind, operation, elements, index, chosen)
        if write is not None:
            write(group, lanes, kind.decode(old))

    return execute


def _per_lane(values: Array, count: int) -> Array:
    return values if values.shape[0] == count else np.repeat(values, count, axis=0)


def _apply(
    kind: PtxType, operation: Operation, elements: Array, index: Array, values: list[Array]
) -> Array:
    """Applies an operation at each place, lane after lane; returns the old bits.

    Round k serves the k-th lane of every place, so lanes with places of their own take one round
    together.
    """
    order = np.argsort(index, kind="stable")
    sorted_index = index[order]
    first = np.flatnonzero(np.diff(sorted_index, prepend=sorted_index[0] - 1))
    rank = np.arange(index.size) - np.repeat(first, np.diff(first, append=index.size))
    old_bits = np.empty(index.size, kind.storage)
    by_rank = order[np.argsort(rank, kind="stable")]
    ends = np.cumsum(np.bincount(rank))
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        turn = by_rank[start:end]
        bits = elements[index[turn]]
        old_bits[turn] = bits
        arguments = [value[turn] for value in values]
        third = arguments[1] if len(arguments) > 1 else None
        result = operation(kind.decode(bits), arguments[0], third)
        result = canonical_nan(result) if kind.kind == "float" else result
        elements[index[turn]] = kind.encode(result.astype(kind.dtype))
    return old_bits
