"""Comparisons and selection: setp, set, selp, slct."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from ..decode import Decoder, opcode
from ..floats import flush_subnormals
from ..ptx_types import UNSIGNED, PtxType, ptx_type

if TYPE_CHECKING:
    from ..lanes import Lanes
    from ..machine import Execute, Group

Array = np.ndarray
_COMPARISONS = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}
_UNSIGNED_NAMES = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}
_COMBINE = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}


def comparison(name: str, kind: PtxType) -> Callable[[Array, Array], Array]:
    """The function behind `.lt`, `.num`, ...; a `u` at the end: true when an operand is NaN."""
    if name == "num":
        return lambda a, b: (a == a) & (b == b)
    if name == "nan":
        return lambda a, b: (a != a) | (b != b)
    base = _COMPARISONS[_UNSIGNED_NAMES.get(name, name[:2])]
    if not kind.is_float:
        return base
    if len(name) == 3:
        return lambda a, b: base(a, b) | (a != a) | (b != b)
    # Only != is true of NaN in numpy; PTX's ordered `ne` is not.
    return (lambda a, b: (a != b) & (a == a) & (b == b)) if name == "ne" else base


def _take_comparison(decoder: Decoder, kind: PtxType) -> Callable[[Array, Array], Array]:
    names = [*_COMPARISONS, *(() if kind.is_float else _UNSIGNED_NAMES)]
    if kind.is_float:
        names += ["equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan"]
    compare = comparison(decoder.need(*names), kind)
    if decoder.take("ftz"):
        return lambda a, b: compare(flush_subnormals(a), flush_subnormals(b))
    return compare


@opcode("setp")
def decode_set_predicate(decoder: Decoder) -> Execute:
    kind = decoder.type()
    compare = _take_comparison(decoder, kind)
    combine = decoder.take(*_COMBINE)
    predicate = ptx_type("pred")
    first, _, second = decoder.operands[0].partition("|")
    write = decoder.write(first, predicate)
    write_other = decoder.write(second, predicate) if second else None
    a, b = decoder.read(1, kind), decoder.read(2, kind)
    other = decoder.read_predicate(decoder.operands[3]) if combine else None

    def execute(group: Group, lanes: Lanes) -> None:
        result = compare(a(group, lanes), b(group, lanes))
        inverse = ~result
        if result.ndim == 2:
            # A packed comparison: the second predicate is that of the upper halves.
            result, inverse = result[:, 0], result[:, 1]
        if other is not None:
            extra = other(group, lanes)
            result, inverse = _COMBINE[combine](result, extra), _COMBINE[combine](inverse, extra)
        write(group, lanes, result)
        if write_other:
            write_other(group, lanes, inverse)

    return execute


@opcode("set")
def decode_set(decoder: Decoder) -> Execute:
    kind, target = decoder.type(), decoder.type()
    compare = _take_comparison(decoder, kind)
    combine = decoder.take(*_COMBINE)
    write, a, b = decoder.write(0, target), decoder.read(1, kind), decoder.read(2, kind)
    other = decoder.read_predicate(decoder.operands[3]) if combine else None
    yes = target.dtype.type(1) if target.is_float else np.array([-1]).astype(target.dtype)[0]

    def execute(group: Group, lanes: Lanes) -> None:
        result = compare(a(group, lanes), b(group, lanes))
        if other is not None:
            result = _COMBINE[combine](result, other(group, lanes))
        write(group, lanes, np.where(result, yes, target.dtype.type(0)))

    return execute


@opcode("selp")
def decode_select(decoder: Decoder) -> Execute:
    # Bits move as they are: a float type must not touch a NaN's payload.
    kind = decoder.type()
    bits = ptx_type(f"b{8 * kind.size}")
    write, a, b = decoder.write(0, bits), decoder.read(1, bits), decoder.read(2, bits)
    choose = decoder.read_predicate(decoder.operands[3])

    def execute(group: Group, lanes: Lanes) -> None:
        write(group, lanes, np.where(choose(group, lanes), a(group, lanes), b(group, lanes)))

    return execute


@opcode("slct")
def decode_select_by_sign(decoder: Decoder) -> Execute:
    sign, kind = decoder.type(), decoder.type()
    bits = ptx_type(f"b{8 * kind.size}")
    write, a, b = decoder.write(0, bits), decoder.read(1, bits), decoder.read(2, bits)
    c = decoder.read(3, sign)

    def execute(group: Group, lanes: Lanes) -> None:
        chosen = np.where(c(group, lanes) >= 0, a(group, lanes), b(group, lanes))
        write(group, lanes, chosen.astype(UNSIGNED[kind.size]))

    return execute
