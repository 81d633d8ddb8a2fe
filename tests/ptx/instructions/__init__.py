"""The instructions that the interpreter knows; importing this package registers them all."""

from . import (
    atomics,
    bits,
    cluster,
    compare,
    control,
    convert,
    floating,
    integer,
    mma,
    transfer,
    warp,
)

__all__ = [
    "atomics",
    "bits",
    "cluster",
    "compare",
    "control",
    "convert",
    "floating",
    "integer",
    "mma",
    "transfer",
    "warp",
]
