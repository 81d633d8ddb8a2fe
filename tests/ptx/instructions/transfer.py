"""Loads, stores, prefetches and fences."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..decode import Decoder, opcode
from ..ptx_types import ptx_type
from ..regions import Access

if TYPE_CHECKING:
    from ..lanes import Lanes
    from ..machine import Execute, Group

Array = np.ndarray
_SPACES = ("global", "shared", "shared::cta", "shared::cluster", "local", "param", "const")
# Hints about caches change where data waits, not what it is.
_CACHE_HINTS = ("ca", "cg", "cs", "lu", "cv", "wb", "wt", "nc")
_EVICTION = (
    "L1::evict_normal",
    "L1::evict_unchanged",
    "L1::evict_first",
    "L1::evict_last",
    "L1::no_allocate",
    "L2::evict_normal",
    "L2::evict_first",
    "L2::evict_last",
    "L2::64B",
    "L2::128B",
    "L2::256B",
)
_SCOPES = ("cta", "gpu", "sys", "cluster")


def take_space(decoder: Decoder) -> str:
    """The state space of an access; none means a generic address."""
    return (decoder.take(*_SPACES) or "generic").removesuffix("::cta")


def _take_access(decoder: Decoder, kind: str) -> Access:
    ptx = decoder.type()
    strong = False
    if decoder.take("volatile"):
        strong = True
    elif decoder.take("relaxed", "acquire", "release"):
        strong = True
        decoder.need(*_SCOPES)
    else:
        decoder.take("weak")
    space = take_space(decoder)
    # Repeated: an access may carry a cache operator and eviction priorities.
    while decoder.take(*_CACHE_HINTS, *_EVICTION):
        pass
    count = int((decoder.take("v2", "v4", "v8") or "v1")[1:])
    if ptx.size == 16:
        raise decoder.error("128-bit elements are not supported in")
    return Access(space, ptx.size, count, kind, strong)


@opcode("ld", "ldu")
def decode_load(decoder: Decoder) -> Execute:
    kind = ptx_type(decoder.instruction.modifiers[-1])
    access = _take_access(decoder, "read")
    names = decoder.vector(0)
    if len(names) != access.count:
        raise decoder.error("wrong number of elements in")
    # Values are moved as bits; only a signed type changes what a wider register gets.
    moved = kind if kind.kind == "signed" else ptx_type(f"b{8 * kind.size}")
    writes = [decoder.write(name, moved) for name in names]
    address = decoder.address(1, access.space)

    def execute(group: Group, lanes: Lanes) -> None:
        bits = group.memory.load(group, lanes, address(group, lanes), access)
        for column, write in enumerate(writes):
            write(group, lanes, bits[:, column].astype(moved.dtype))

    return execute


@opcode("st")
def decode_store(decoder: Decoder) -> Execute:
    access = _take_access(decoder, "write")
    moved = ptx_type(f"b{8 * access.size}")
    if access.space == "param":
        raise decoder.error("a call of a function that is not inlined is not supported:")
    names = decoder.vector(1)
    if len(names) != access.count:
        raise decoder.error("wrong number of elements in")
    address = decoder.address(0, access.space)
    reads = [decoder.read(name, moved) for name in names]

    def execute(group: Group, lanes: Lanes) -> None:
        bits = np.empty((lanes.count, access.count), moved.storage)
        for column, read in enumerate(reads):
            bits[:, column] = read(group, lanes)
        group.memory.store(group, lanes, address(group, lanes), bits, access)

    return execute


@opcode("prefetch", "prefetchu")
def decode_prefetch(decoder: Decoder) -> Execute:
    """Has no effect that a program can see, and no check: prefetching past the end is legal."""
    take_space(decoder)
    decoder.need("L1", "L2")
    decoder.take(*_EVICTION)
    return lambda group, lanes: None


@opcode("membar")
def decode_membar(decoder: Decoder) -> Execute:
    scope = decoder.need("cta", "gl", "sys")
    return _fence(scope)


@opcode("fence")
def decode_fence(decoder: Decoder) -> Execute:
    decoder.take("sc", "acq_rel", "acquire", "release")
    return _fence(decoder.need(*_SCOPES))


def _fence(scope: str) -> Execute:
    def execute(group: Group, lanes: Lanes) -> None:
        if scope != "cta":
            group.clusters.note_fence(lanes)
        if scope not in ("cta", "cluster"):
            group.log.fence(group, lanes)

    return execute
