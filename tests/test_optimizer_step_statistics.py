"""Random numbers of optimizer steps, by tests of their distribution.

Seeds are fixed, so a test either always passes or always fails; each bound is one that a right
generator stays within with a probability that its comment names.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import regops.functional as RF
import regops.random
from regops.reference.normal import normals
from regops.reference.optimizer_step import GRADIENT_NOISE
from regops.reference.philox import fold_in
from regops.testing import make_input

SIZE = 1 << 20
KEY = (3, 4)
ETA, GAMMA = 0.7, 0.55


def _rounded_param(
    values: Tensor, dtype: torch.dtype, key: tuple[int, int] = KEY, step: int = 0, **options: Any
) -> Tensor:
    """`values` after a step that rounds them stochastically."""
    param = torch.zeros(values.shape, dtype=dtype)
    steps = [torch.tensor(float(step))]
    RF.sgdw_step_(
        [param],
        [-values],
        [],
        steps,
        lr=1.0,
        master="stochastic",
        key=regops.random.key(*key),
        **options,
    )
    return param


def _rounded_moments(values: Tensor, key: tuple[int, int] = KEY) -> tuple[Tensor, Tensor]:
    """`values` and their squares after a step that rounds them stochastically as moments."""
    param = torch.zeros(values.shape)
    m, v = torch.zeros(values.shape).bfloat16(), torch.zeros(values.shape).bfloat16()
    RF.adamw_step_(
        [param],
        [values],
        [m],
        [v],
        [],
        [torch.zeros(())],
        beta1=0.0,
        beta2=0.0,
        key=regops.random.key(*key),
    )
    return m, v


def _rounded_momentum(values: Tensor) -> Tensor:
    param, buffer = torch.zeros(values.shape), torch.zeros(values.shape).bfloat16()
    key = regops.random.key(*KEY)
    RF.sgdw_step_([param], [values], [buffer], [torch.zeros(())], momentum=0.9, key=key)
    return buffer


def _values(seed: int = 1) -> Tensor:
    return make_input((SIZE,), torch.float32, seed=seed)


def _centred(values: Tensor, rounded: Tensor) -> tuple[Tensor, Tensor]:
    """Of each element whether it was rounded away from zero, less the right probability of it.

    Returns:
        That, and the probability: the share of the gap of its type that lies below the value.
    """
    digits = 16 if rounded.dtype == torch.bfloat16 else 13
    bits = values.view(torch.int32)
    below = (bits >> digits << digits).view(torch.float32)
    share = (bits & (1 << digits) - 1).double() / 2**digits
    away = (rounded.float().abs() > below.abs()).double()
    gap = ((bits >> digits) + 1 << digits).view(torch.float32) - below
    assert ((rounded.float() - below).abs() <= gap.abs()).all()
    return away - share, share


ROUNDED = {
    "bfloat16-param": lambda values: (values, _rounded_param(values, torch.bfloat16)),
    "float16-param": lambda values: (values, _rounded_param(values, torch.float16)),
    "first-moment": lambda values: (values, _rounded_moments(values)[0]),
    "second-moment": lambda values: (values * values, _rounded_moments(values)[1]),
    "momentum": lambda values: (values, _rounded_momentum(values)),
}


@pytest.mark.usefixtures("cpu_capability")
@pytest.mark.parametrize("of", ROUNDED)
def test_rounding_is_unbiased(of: str) -> None:
    """Mean error within 5 standard errors, where that of rounding to zero would be hundreds."""
    values = _values()
    values = torch.where(values.abs() < 2**-13, 1.0, values)  # float16's subnormals have their own
    values, rounded = ROUNDED[of](values)
    error = rounded.double() - values.double()
    assert abs(error.mean()) < 5 * error.std() / math.sqrt(SIZE)
    # Relative to each gap, so that small values count as large ones do.
    centred, share = _centred(values, rounded)
    variance = share * (1 - share)
    assert abs(centred.sum()) < 5 * variance.sum().sqrt()
    # 64 stretches of the index: chi^2 exceeds 127 with probability 5e-6, is below 25 with 4e-6.
    stretches = centred.reshape(64, -1).sum(1) ** 2 / variance.reshape(64, -1).sum(1)
    assert 25 < stretches.sum() < 127
    # 64 classes of the probability: up as often as each asks for.
    of_class = (share * 64).long()
    by_class = torch.zeros(64, dtype=torch.float64).index_add(0, of_class, centred)
    expected = torch.zeros(64, dtype=torch.float64).index_add(0, of_class, variance)
    assert 25 < (by_class**2 / expected).sum() < 127


def test_rounding_to_subnormals_is_unbiased() -> None:
    """Of float16, whose gap is 2^-24 there. 5 standard errors."""
    values = make_input((SIZE,), torch.float32) * 2.0**-18
    error = _rounded_param(values, torch.float16).double() - values.double()
    assert error.abs().max() < 2.0**-24
    assert abs(error.mean()) < 5 * error.std() / math.sqrt(SIZE)


def test_values_of_the_type_are_kept() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        values = make_input((1000,), dtype)
        special = torch.tensor([0.0, 1.0, torch.inf, -torch.inf, torch.nan], dtype=dtype)
        for exact in (values, special):
            rounded = _rounded_param(exact.float(), dtype)
            assert torch.equal(rounded.nan_to_num(7.0, 8.0, 9.0), exact.nan_to_num(7.0, 8.0, 9.0))


def _independent(a: Tensor, b: Tensor, variance: float) -> bool:
    """Correlation within 5 standard errors."""
    return abs((a * b).mean().item()) < 5 * variance / math.sqrt(a.numel())


def test_rounding_depends_on_step_stream_use_and_key_alone() -> None:
    """Half-way values: up or down with 1/2."""
    values = torch.full((SIZE,), 1 + 2.0**-8)

    def centred(**options: Any) -> Tensor:
        return _centred(values, _rounded_param(values, torch.bfloat16, **options))[0]

    first = centred()
    assert torch.equal(first, centred())
    assert torch.equal(first, centred(streams=[0], first_indices=[0]))
    m = _rounded_moments(values)[0]
    uses = _centred(values, m)[0]
    others = {
        "step": centred(step=1),
        "stream": centred(streams=[1]),
        "key": centred(key=(3, 5)),
        "use": uses,
    }
    for name, other in others.items():
        assert _independent(first, other, 0.25), name
    # Where a parameter is part of a larger one, its numbers are those of the place.
    assert torch.equal(centred(first_indices=[5])[: SIZE - 5], first[5:])


def test_moments_are_rounded_by_the_same_bits() -> None:
    """Each unbiased, but if the one with the smaller share of its gap goes up, both do."""
    values = _values(2)
    m, v = _rounded_moments(values)
    of_m, share_m = _centred(values, m)
    of_v, share_v = _centred(values * values, v)
    up_m, up_v = (of_m + share_m) > 0.5, (of_v + share_v) > 0.5
    assert torch.equal(up_m & up_v, torch.where(share_m < share_v, up_m, up_v))
    again = _rounded_moments(values)
    assert torch.equal(m, again[0])
    assert torch.equal(v, again[1])


def test_parameters_of_one_call_are_independent() -> None:
    values = torch.full((SIZE // 2,), 1 + 2.0**-8)
    params = [torch.zeros(SIZE // 2).bfloat16() for _ in range(2)]
    RF.sgdw_step_(
        params,
        [-values, -values],
        [],
        [torch.zeros(()) for _ in range(2)],
        lr=1.0,
        master="stochastic",
        key=regops.random.key(*KEY),
    )
    first, second = (_centred(values, param)[0] for param in params)
    assert _independent(first, second, 0.25)


def _noise(step: int = 0, stream: int = 0, size: int = SIZE, gamma: float = GAMMA) -> Tensor:
    """What a step adds to a gradient of zeros."""
    param = torch.zeros(size)
    RF.sgdw_step_(
        [param],
        [torch.zeros(size)],
        [],
        [torch.tensor(float(step))],
        lr=1.0,
        gradient_noise=(ETA, gamma),
        key=regops.random.key(*KEY),
        streams=[stream],
    )
    return -param


@pytest.mark.usefixtures("cpu_capability")
@pytest.mark.parametrize("step", [0, 1, 9, 999])
def test_noise_has_its_moments(step: int) -> None:
    """Mean, variance eta / (1 + t)^gamma, skewness and kurtosis, each within 5 standard errors."""
    z = _noise(step).double() / math.sqrt(ETA / (1 + step) ** GAMMA)
    root = math.sqrt(SIZE)
    assert abs(z.mean()) < 5 / root
    assert abs((z**2).mean() - 1) < 5 * math.sqrt(2) / root
    assert abs((z**3).mean()) < 5 * math.sqrt(15) / root
    assert abs((z**4).mean() - 3) < 5 * math.sqrt(96) / root


def test_noise_is_normal() -> None:
    """64 classes of equal probability: chi^2 of 63 degrees exceeds 126 with probability 4e-6."""
    z = _noise().double() / math.sqrt(ETA)
    uniform = torch.special.ndtr(z)
    counts = (uniform * 64).long().clamp(0, 63).bincount(minlength=64).double()
    expected = SIZE / 64
    assert 24 < ((counts - expected) ** 2 / expected).sum() < 126


@pytest.mark.parametrize("lag", [1, 2, 3, 4, 7, 8, 16, 64, 512, 1024, 4096])
def test_noise_of_neighbours_is_uncorrelated(lag: int) -> None:
    """Of values and of their squares: pairs share a radius. 5 standard errors."""
    z = _noise().double() / math.sqrt(ETA)
    assert _independent(z[lag:], z[:-lag], 1)
    squares = z * z - 1
    assert _independent(squares[lag:], squares[:-lag], 2)


def test_noise_of_steps_and_streams_is_uncorrelated() -> None:
    first = _noise(gamma=0.0).double() / math.sqrt(ETA)
    for other in (_noise(1, gamma=0.0), _noise(stream=1, gamma=0.0), _noise(2, gamma=0.0)):
        assert _independent(first, other.double() / math.sqrt(ETA), 1)
    assert torch.equal(_noise(), _noise())


@pytest.mark.usefixtures("cpu_capability")
def test_noise_is_the_documented_one() -> None:
    """From the key by fold_in: step, stream, use; a few ulp of float32 from the reference."""
    size = 1 << 14
    key = fold_in(fold_in(fold_in(regops.random.key(*KEY), 6), 9), GRADIENT_NOISE)
    expected = normals(key, size) * math.sqrt(ETA / 6**GAMMA)
    torch.testing.assert_close(
        _noise(step=5, stream=9, size=size).double(), expected, rtol=1e-6, atol=5e-7
    )


def test_largest_second_moment_of_bfloat16_does_not_drift() -> None:
    """Rounded to nearest: of many stochastic roundings of one value the largest is the upper."""
    grad = make_input((1000,), torch.float32)
    zeros = [torch.zeros(1000).bfloat16() for _ in range(3)]
    param, step = torch.zeros(1000), torch.zeros(())
    for count in range(100):
        RF.adamw_step_(
            [param],
            [grad],
            [zeros[0]],
            [zeros[1]],
            [zeros[2]],
            [step],
            beta2=0.0,
            key=regops.random.key(count),
        )
    assert torch.equal(zeros[2], (grad * grad).bfloat16())


@pytest.mark.parametrize("state", [torch.float32, torch.bfloat16], ids=str)
def test_moments_of_many_steps_have_the_right_mean(state: torch.dtype) -> None:
    """Rounded to nearest a small 1 - beta2 leaves a bfloat16 second moment where it is."""
    size, beta2, steps = 4096, 0.999, 200
    v = torch.zeros(size).to(state)
    param, m, count = torch.zeros(size), torch.zeros(size).to(state), torch.zeros(())
    for step in range(steps):
        key = regops.random.key(step)
        RF.adamw_step_([param], [torch.ones(size)], [m], [v], [], [count], beta2=beta2, key=key)
    expected = 1 - beta2**steps
    # 5 standard errors, each element's being a few of its gaps of 2^-10.
    assert abs(v.double().mean() - expected) < 5 * v.double().std() / math.sqrt(size) + 1e-6
