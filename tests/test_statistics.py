"""Dropout's randomness, by tests of its distribution.

Seeds are fixed, so a test either always passes or always fails; each bound is one that a right
generator stays within with a probability that its comment names.
"""

from __future__ import annotations

import functools
import math

import pytest
import torch

import regops.functional as RF
import regops.random
from regops.reference.dropout import threshold
from regops.reference.philox import random_bits
from regops.testing import Layout, make_input

SIZE = 1 << 22
PROBABILITIES = [1e-4, 0.1, 0.5, 0.9, 0.999]


def _kept(p: float, seed: int, size: int = SIZE) -> torch.Tensor:
    return RF.dropout(torch.ones(size), p, key=regops.random.key(seed)) != 0


def _in_force(p: float) -> float:
    drop_below, bits = threshold(p)
    return drop_below / 2**bits


@pytest.mark.parametrize("p", PROBABILITIES)
def test_keep_rate_by_chi_square(p: float) -> None:
    """Drops counted in 64 stretches of the index: rate and evenness in one statistic.

    chi^2 with 64 degrees of freedom exceeds 127 with probability 5e-6.
    """
    kept = _kept(p, seed=1)
    p = _in_force(p)
    dropped = (~kept).reshape(64, -1).sum(1).double()
    expected = p * SIZE / 64
    chi_square = ((dropped - expected) ** 2 / (expected * (1 - p))).sum().item()
    assert chi_square < 127
    assert chi_square > 25  # nor too even: below with probability 4e-6


@pytest.mark.parametrize("p", PROBABILITIES)
def test_keep_rate_over_keys(p: float) -> None:
    """One element, many keys: what a model's weight sees from step to step. 5 standard errors."""
    size, keys = 64, 20000
    p_in_force = _in_force(p)
    dropped = sum(
        int((RF.dropout(torch.ones(size), p, key=regops.random.key(7, i)) == 0).sum())
        for i in range(keys)
    )
    error = math.sqrt(size * keys * p_in_force * (1 - p_in_force))
    assert abs(dropped - size * keys * p_in_force) < 5 * error


@pytest.mark.parametrize("p", PROBABILITIES)
@pytest.mark.parametrize("lag", [1, 2, 3, 7, 8, 9, 16, 64, 127, 128, 1024, 4096, 65536])
def test_no_correlation_at_a_lag(p: float, lag: int) -> None:
    """Between neighbours, half-words, blocks, vectors, threads' chunks. 5 standard errors."""
    p_in_force = _in_force(p)
    centred = _kept(p, seed=2).double() - (1 - p_in_force)
    variance = p_in_force * (1 - p_in_force)
    correlation = (centred[lag:] * centred[:-lag]).mean().item() / variance
    # The product of two independent centred variables has the product of their variances.
    assert abs(correlation) < 5 / math.sqrt(SIZE - lag)


@pytest.mark.parametrize(
    ("first", "second"), [((1, 0), (2, 0)), ((1, 0), (1, 1)), ((1, 5), (5, 1))]
)
def test_no_correlation_between_keys(first: tuple[int, int], second: tuple[int, int]) -> None:
    """Seeds and offsets one apart, and swapped. 5 standard errors."""
    masks = [
        (RF.dropout(torch.ones(SIZE), 0.5, key=regops.random.key(*key)) != 0).double() - 0.5
        for key in (first, second)
    ]
    correlation = (masks[0] * masks[1]).mean().item() * 4
    assert abs(correlation) < 5 / math.sqrt(SIZE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("p", [0.1, 0.3, 0.5, 0.9])
def test_mean_is_the_input(dtype: torch.dtype, p: float) -> None:
    """E[y] = x within 5 standard errors, where torch's bf16 scale is off by up to 0.16 %.

    Inputs are spread over a binade, so that rounding of the products averages out.
    """
    input = (1 + torch.rand(SIZE, generator=torch.Generator().manual_seed(3))).to(dtype)
    output = RF.dropout(input, p, key=regops.random.key(9))
    difference = output.double() - input.double()
    error = difference.std().item() / math.sqrt(SIZE)
    assert abs(difference.mean().item()) < 5 * error


def test_the_bias_of_torchs_bfloat16_scale_would_be_seen() -> None:
    """The test above has the power to fail: 0.16 % of bias is many standard errors, averaged."""
    keep = RF.dropout(torch.ones(SIZE), 0.1, key=regops.random.key(9)) != 0
    input = (1 + torch.rand(SIZE, generator=torch.Generator().manual_seed(3))).bfloat16()
    biased = input * keep * torch.tensor(1 / 0.9, dtype=torch.bfloat16)
    difference = biased.double() - input.double()
    assert abs(difference.mean().item()) > 5 * difference.std().item() / math.sqrt(SIZE)


@pytest.mark.parametrize("p", [3e-6, 1 - 3e-6])
def test_fine_rule_has_the_rate(p: float) -> None:
    """Where 16 bits would give 0 or 1. 5 standard errors."""
    size = 1 << 25
    kept = int(_kept(p, seed=4, size=size).sum())
    assert abs(kept - size * (1 - p)) < 5 * math.sqrt(size * p * (1 - p))


BOUNDARY_KEY = (1, 0)


@functools.cache
def fine_boundary() -> tuple[float, int]:
    """A p of the fine rule that is exactly one element's own random bits, and that element."""
    bits = random_bits(regops.random.key(*BOUNDARY_KEY), 1 << 17, 32)
    index = int(bits.argmin())
    p = int(bits[index]) / 2**32
    assert threshold(p) == (int(bits[index]), 32)
    return p, index


@pytest.mark.usefixtures("cpu_capability")
@pytest.mark.parametrize("layout", ["contiguous", "transposed"])
def test_fine_rule_keeps_at_its_threshold(layout: Layout) -> None:
    """Kept iff the bits are >= the threshold; one more, and the element goes."""
    p, index = fine_boundary()
    key = regops.random.key(*BOUNDARY_KEY)
    ones = make_input((1 << 7, 1 << 10), torch.float32, layout=layout).fill_(1)
    assert RF.dropout(ones, p, key=key).flatten()[index] != 0
    assert RF.dropout(ones, p + 2**-32, key=key).flatten()[index] == 0
