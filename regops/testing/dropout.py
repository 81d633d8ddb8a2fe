"""Cases of dropout."""

import torch

import regops.functional
import regops.reference
from regops.testing import BenchCase, Case, Direction, OpSpec, Tolerance

_ONE_ROUNDING = (
    "exact: the reference makes the same mask, the same float scale and the same single rounding"
)


def _bytes_moved(case: BenchCase, itemsize: int, direction: Direction) -> int:
    one_pass = 2 * case.numel * itemsize
    return 2 * one_pass if direction == "full" else one_pass


spec = OpSpec(
    name="dropout",
    functional=regops.functional.dropout,
    reference=regops.reference.dropout,
    eager=torch.nn.functional.dropout,
    schemas=("dropout", "dropout_"),
    keyed=True,
    dtypes=(torch.float64, torch.float32, torch.bfloat16, torch.float16),
    cases=(
        Case("zero-dim", (), {"p": 0.5}),
        Case("empty", (3, 0, 2), {"p": 0.5}),
        Case("one", (1,), {"p": 0.5}),
        Case("below-a-block", (7,), {"p": 0.3}),
        Case("odd", (3, 5, 7), {"p": 0.1}),
        Case("threads", (5, 65537), {"p": 0.1}),
        Case("all-dropped", (1000,), {"p": 1.0}),
        Case("rare", (70001,), {"p": 3e-6}),
        Case("rarely-kept", (70001,), {"p": 1 - 3e-6}),
        Case("misaligned", (3, 1001), {"p": 0.2}, "misaligned"),
        Case("channels-last-small", (1, 3, 4, 5), {"p": 0.25}, "channels_last"),
        Case("channels-last", (3, 19, 8, 10), {"p": 0.25}, "channels_last"),
        Case("channels-last-odd", (2, 65, 7, 7), {"p": 0.25}, "channels_last"),
        Case("channels-last-rgb", (2, 3, 33, 35), {"p": 0.25}, "channels_last"),
        Case("transposed-small", (7, 9), {"p": 0.4}, "transposed"),
        Case("transposed", (100, 77), {"p": 0.4}, "transposed"),
        Case("transposed-wide", (9000, 3), {"p": 0.4}, "transposed"),
        Case("transposed-batch", (2, 3, 41, 64), {"p": 0.4}, "transposed"),
        Case("swapped-outer", (9, 5, 67), {"p": 0.4}, "swapped_outer"),
        Case("swapped-outer-short", (50, 20, 4), {"p": 0.4}, "swapped_outer"),
        Case("reversed-phase", (5, 8, 64), {"p": 0.4}, "reversed"),
        # More dimensions than kernels walk: none merges with another.
        Case("reversed-many", (2, 3, 2, 3, 2, 3, 2, 3), {"p": 0.4}, "reversed"),
        Case("strided", (9, 50), {"p": 0.4}, "strided"),
        Case("expanded", (6, 40), {"p": 0.4}, "expanded"),
    ),
    bench_cases=(
        BenchCase("64", (64,), {"p": 0.1}, in_cache=True),
        BenchCase("4k", (1 << 12,), {"p": 0.1}, in_cache=True),
        BenchCase("64k", (1 << 16,), {"p": 0.1}, in_cache=True),
        BenchCase("1M", (1 << 20,), {"p": 0.1}, in_cache=True),
        BenchCase("16M", (1 << 24,), {"p": 0.1}, scaling=True),
        BenchCase("64M", (1 << 26,), {"p": 0.1}),
        BenchCase("256M", (1 << 28,), {"p": 0.1}),
    ),
    tolerance={
        torch.float64: Tolerance(0.0, 0.0, _ONE_ROUNDING),
        torch.float32: Tolerance(0.0, 0.0, _ONE_ROUNDING),
        torch.bfloat16: Tolerance(0.0, 0.0, _ONE_ROUNDING),
        torch.float16: Tolerance(0.0, 0.0, _ONE_ROUNDING),
    },
    bytes_moved=_bytes_moved,
    bytes_formula="read input once, write output once: 2 x elements x bytes an element each way",
    elementwise=True,
)
