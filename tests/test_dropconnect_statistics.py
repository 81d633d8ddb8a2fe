"""DropConnect's randomness, by tests of its distribution; seeds are fixed as in test_statistics.

One call with a mask for each of 10^5 equal examples draws 10^5 masks of one layer.
"""

from __future__ import annotations

import functools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import regops.functional as RF
import regops.random
from regops.reference.dropout import threshold

EXAMPLES, OUTS, INS = 100_000, 4, 9
PROBABILITIES = [0.1, 0.5, 0.9]


def _in_force(p: float) -> float:
    drop_below, bits = threshold(p)
    return drop_below / 2**bits


@functools.cache
def _masks(p: float) -> Tensor:
    """Centred masks (examples, out, in + 1) of weights and, last, of biases: 1 where kept, less q.

    Weights are powers of 2 and so is the bias: an output is a number whose digits are the mask.
    """
    powers = 2.0 ** torch.arange(INS, dtype=torch.float64)
    output = RF.dropconnect_linear(
        torch.ones(1, INS, dtype=torch.float64).expand(EXAMPLES, INS),
        powers.expand(OUTS, INS),
        torch.full((OUTS,), 2.0**INS, dtype=torch.float64),
        p,
        mask="sample",
        drop_bias=True,
        key=regops.random.key(21),
    )
    digits = (output * (1 - _in_force(p))).round().long()
    kept = (digits[..., None] >> torch.arange(INS + 1)) & 1
    return kept.double() - (1 - _in_force(p))


def _correlation(first: Tensor, second: Tensor, p: float) -> float:
    """In standard errors: a product of two independent masks has the product of their variances."""
    variance = _in_force(p) * (1 - _in_force(p))
    return (first * second).mean().item() / variance * math.sqrt((first * second).numel())


@pytest.mark.parametrize("p", PROBABILITIES)
def test_keep_rate_of_each_weight_and_bias(p: float) -> None:
    """Squares of 40 standardized counts: chi^2 of 40 degrees passes 100 with probability 4e-7."""
    variance = _in_force(p) * (1 - _in_force(p))
    standardized = _masks(p).sum(0) / math.sqrt(EXAMPLES * variance)
    assert standardized.numel() == 40
    assert 11 < standardized.square().sum() < 100  # nor too even: below 11 with 1e-6


@pytest.mark.parametrize("p", PROBABILITIES)
def test_keep_rate_of_each_example(p: float) -> None:
    """Squares of 10^5 standardized counts of 40, within 5 standard errors of their number.

    A square of a binomial's has variance 2 + (1 - 6 v) / (40 v), v = p (1 - p).
    """
    v = _in_force(p) * (1 - _in_force(p))
    squares = _masks(p).sum((1, 2)).square() / (40 * v)
    error = math.sqrt((2 + (1 - 6 * v) / (40 * v)) / EXAMPLES)
    assert abs(squares.mean().item() - 1) < 5 * error


@pytest.mark.parametrize("p", PROBABILITIES)
@pytest.mark.parametrize("lag", [1, 2, 3, 7, 8, 16, 64, 4096])
def test_examples_are_independent(lag: int, p: float) -> None:
    """Each weight with itself in another example, and with its neighbour there."""
    masks = _masks(p)
    assert abs(_correlation(masks[lag:], masks[:-lag], p)) < 5
    assert abs(_correlation(masks[lag:, :, 1:], masks[:-lag, :, :-1], p)) < 5


@pytest.mark.parametrize("p", PROBABILITIES)
def test_weights_of_a_unit_and_of_neighbouring_units_are_independent(p: float) -> None:
    masks = _masks(p)[..., :INS]
    for lag in range(1, INS):
        assert abs(_correlation(masks[..., lag:], masks[..., :-lag], p)) < 5
    for lag in range(1, OUTS):
        assert abs(_correlation(masks[:, lag:], masks[:, :-lag], p)) < 5


@pytest.mark.parametrize("p", PROBABILITIES)
def test_biases_are_independent_of_weights(p: float) -> None:
    masks = _masks(p)
    weights, biases = masks[..., :INS], masks[..., INS]
    assert abs(_correlation(weights, biases[..., None], p)) < 5
    flat = weights.reshape(EXAMPLES, -1)  # the index of a bias is also that of a weight, less 2^63
    assert abs(_correlation(flat[:, :OUTS], biases, p)) < 5
    assert abs(_correlation(biases[:, 1:], biases[:, :-1], p)) < 5


@pytest.mark.parametrize("p", PROBABILITIES)
def test_keep_rate_of_a_batchs_weights_over_keys(p: float) -> None:
    """What a model's weights see from step to step: 84 counts over 4000 calls, as above.

    chi^2 of 84 degrees is outside [35, 160] with probability 3e-6.
    """
    outs, ins, calls = 7, 11, 4000
    v = _in_force(p) * (1 - _in_force(p))
    weight = torch.ones(outs, ins, requires_grad=True)
    bias = torch.ones(outs, requires_grad=True)
    x = torch.ones(1, ins)
    torch.manual_seed(4)
    for _ in range(calls):
        RF.dropconnect_linear(x, weight, bias, p, drop_bias=True).sum().backward()
    counts = torch.cat([weight.grad.flatten(), bias.grad]).double() * (1 - _in_force(p))
    standardized = (counts - calls * (1 - _in_force(p))) / math.sqrt(calls * v)
    assert 35 < standardized.square().sum() < 160


def _layer() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    x, weight, bias = (
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in ((1, 12), (6, 12), (6,))
    )
    return x, weight, bias


@pytest.mark.parametrize("drop_bias", [False, True])
@pytest.mark.parametrize("p", [0.05, *PROBABILITIES])
def test_moments_are_those_of_the_masks(p: float, drop_bias: bool) -> None:
    """10^5 masks, by mean and variance; each within 5 standard errors, and E[y] = x W^T + b."""
    x, weight, bias = _layer()
    drawn = RF.dropconnect_linear(
        x.expand(EXAMPLES, -1),
        weight,
        bias,
        p,
        mask="sample",
        drop_bias=drop_bias,
        key=regops.random.key(22),
    )
    mean, variance = (
        moment[0] for moment in RF.dropconnect_moments(x, weight, bias, p, drop_bias=drop_bias)
    )
    torch.testing.assert_close(mean, F.linear(x, weight, bias)[0])
    error = (variance / EXAMPLES).sqrt()
    assert ((drawn.mean(0) - mean).abs() < 5 * error).all()
    squares = (drawn - mean).square()
    error = squares.std(0) / math.sqrt(EXAMPLES)
    assert ((squares.mean(0) - variance).abs() < 5 * error).all()
    # Fine enough to tell the variance with the bias from that without.
    other = RF.dropconnect_moments(x, weight, bias, p, drop_bias=not drop_bias)[1][0]
    assert ((squares.mean(0) - other).abs() > 5 * error).any()


@pytest.mark.parametrize("p", PROBABILITIES)
def test_batch_masks_have_the_moments_too(p: float) -> None:
    x, weight, bias = _layer()
    torch.manual_seed(6)
    calls = 4000
    drawn = torch.cat([RF.dropconnect_linear(x, weight, bias, p) for _ in range(calls)])
    mean, variance = (moment[0] for moment in RF.dropconnect_moments(x, weight, bias, p))
    assert ((drawn.mean(0) - mean).abs() < 5 * (variance / calls).sqrt()).all()
    squares = (drawn - mean).square()
    error = squares.std(0) / math.sqrt(calls)
    assert ((squares.mean(0) - variance).abs() < 5 * error).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inference_draws_from_the_normal_distribution(dtype: torch.dtype) -> None:
    """Of the moments: mean, variance and all of the distribution function; draws independent.

    Kolmogorov and Smirnov: the largest distance exceeds 2.6 / sqrt(n) with probability 3e-6.
    """
    x, weight, bias = (tensor.to(dtype) for tensor in _layer())
    drawn = RF.dropconnect_linear(
        x,
        weight,
        bias,
        0.3,
        training=False,
        inference="gaussian",
        samples=EXAMPLES,
        key=regops.random.key(23),
    )[:, 0].double()
    mean, variance = (moment[0].double() for moment in RF.dropconnect_moments(x, weight, bias, 0.3))
    z = (drawn - mean) / variance.sqrt()
    assert (z.mean(0).abs() < 5 / math.sqrt(EXAMPLES)).all()
    # Squares of standard normal numbers have variance 2.
    assert ((z.square().mean(0) - 1).abs() < 5 * math.sqrt(2 / EXAMPLES)).all()
    below = torch.special.ndtr(z.sort(0).values)
    rank = torch.arange(EXAMPLES, dtype=torch.float64)[:, None] / EXAMPLES
    distance = torch.maximum((below - rank).abs(), (below - rank - 1 / EXAMPLES).abs()).max()
    assert distance < 2.6 / math.sqrt(EXAMPLES)
    for first, second in (
        (z[:, 1:], z[:, :-1]),
        (z[1:], z[:-1]),
        (z[:, ::2].square() - 1, (z[:, 1::2].square() - 1) / 2),  # pairs share a radius
    ):
        product = first * second
        assert abs(product.mean().item()) < 5 / math.sqrt(product.numel())
