"""DropConnect's options at their ends: p, keys, what is differentiated, evaluation, inf and nan."""

from __future__ import annotations

import functools
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import regops.functional as RF
import regops.random
from regops.reference.dropout import threshold
from tests.dropconnect_problems import (
    DTYPES,
    KEY,
    MODES,
    bias_mask,
    call_of,
    integer_layer,
    weight_mask,
)

nan, inf = float("nan"), float("inf")
FINE_KEY = regops.random.key(2)  # has one weight in a million at both ends
by_mode = pytest.mark.parametrize("mask", MODES)


def _layer(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    tensors = (torch.randn(shape, generator=generator) for shape in ((6, 33), (17, 33), (17,)))
    x, weight, bias = (tensor.to(dtype).requires_grad_() for tensor in tensors)
    return x, weight, bias


# ---- p -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{"p": 0.0}, {"training": False}, {"p": 1.0, "training": False}]
)
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@by_mode
def test_nothing_dropped_is_torchs_layer(
    mask: str, dtype: torch.dtype, with_bias: bool, options: dict[str, Any]
) -> None:
    """To the bit, gradients too, and no random number is drawn."""
    x, weight, bias = _layer(dtype)
    tensors = (x, weight, bias) if with_bias else (x, weight)
    state = torch.get_rng_state()
    output = RF.dropconnect_linear(*tensors, **options, mask=mask, drop_bias=True)
    assert torch.equal(torch.get_rng_state(), state)
    expected = F.linear(*tensors)
    assert torch.equal(output, expected)
    upstream = torch.randn_like(output)
    for got, wanted in zip(
        torch.autograd.grad(output, tensors, upstream),
        torch.autograd.grad(expected, tensors, upstream),
        strict=True,
    ):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("drop_bias", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@by_mode
def test_p_of_one_leaves_the_bias_and_draws_nothing(
    mask: str, dtype: torch.dtype, drop_bias: bool
) -> None:
    input, tensors, upstream = integer_layer((4,), 5, 7, dtype)
    with torch.no_grad():
        tensors["weight"][0, 0], input[0, 0] = inf, nan
    state = torch.get_rng_state()
    output = RF.dropconnect_linear(input, **tensors, p=1.0, mask=mask, drop_bias=drop_bias)
    assert torch.equal(torch.get_rng_state(), state)
    bias = tensors["bias"].detach() * (not drop_bias)
    assert torch.equal(output, bias.expand(4, 7))
    of_input, of_weight, of_bias = torch.autograd.grad(output, (input, *tensors.values()), upstream)
    assert torch.equal(of_input, torch.zeros_like(input))
    assert torch.equal(of_weight, torch.zeros(7, 5, dtype=dtype))
    assert torch.equal(of_bias, upstream.sum(0) * (not drop_bias))


@functools.cache
def _fine_mask(p: float) -> Tensor:
    """Masks of two examples by the rule of 32 bits; the first has few exceptions, but has them."""
    assert threshold(p)[1] == 32
    return weight_mask((2, 512, 2048), p, key=FINE_KEY)


@pytest.mark.usefixtures("cpu_capability")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("p", [2.0**-20, 1 - 2.0**-20])
@by_mode
def test_one_weight_in_a_million(mask: str, p: float, dtype: torch.dtype) -> None:
    """Is dropped, or is kept and scaled by 2^20."""
    keep = _fine_mask(p)
    assert 0 < (keep[0] == (p > 0.5)).sum() < 20
    if mask == "batch":
        keep = keep[:1].expand_as(keep)
    x, weight = torch.ones(2, 2048, dtype=dtype), torch.ones(512, 2048, dtype=dtype)
    output = RF.dropconnect_linear(x, weight, p=p, mask=mask, key=FINE_KEY)
    assert torch.equal((output * (1 - p)).round().long(), keep.sum(-1))
    if p > 0.5:
        assert set(output.unique().tolist()) <= {0.0, 2.0**20}


# ---- inf and nan ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("cpu_capability")
@pytest.mark.parametrize("value", [inf, nan])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@by_mode
def test_nonfinite_weights_vanish_where_they_are_dropped(
    mask: str, dtype: torch.dtype, value: float
) -> None:
    """An output is finite iff it has dropped each of them, and then it is what zeros give."""
    input, tensors, upstream = integer_layer((9,), 21, 18, dtype)
    bad = torch.rand(18, 21, generator=torch.Generator().manual_seed(4)) < 0.05
    zeroed = tensors["weight"].detach().masked_fill(bad, 0)
    filled = tensors["weight"].detach().masked_fill(bad, value).requires_grad_()
    input = input.detach().abs().clamp(min=1).requires_grad_()  # 0 inf is nan
    keep = weight_mask((9, 18, 21) if mask == "sample" else (18, 21), 0.5)
    finite = ~(keep & bad).any(-1).expand(9, 18)
    assert finite.any()
    assert not finite.all()
    options = {"mask": mask, "key": KEY}
    output = RF.dropconnect_linear(input, filled, **options)
    assert torch.equal(output.isfinite(), finite)
    clean = RF.dropconnect_linear(input, zeroed, **options)
    assert torch.equal(output[finite], clean[finite])
    # So is the input's gradient, from units that have dropped theirs; the weight's has none in it.
    upstream = upstream * finite
    of_input, of_weight = torch.autograd.grad(output, (input, filled), upstream)
    clean = call_of(input, {"weight": zeroed.requires_grad_()}, upstream, mask=mask)
    assert torch.equal(of_weight, clean.gradients[1])
    kept = (keep & bad).any(-2).expand(9, 21)
    assert torch.equal(of_input.isfinite(), ~kept)
    assert torch.equal(of_input[~kept], clean.gradients[0][~kept])


@by_mode
def test_nonfinite_biases_vanish_where_they_are_dropped(mask: str) -> None:
    keep = bias_mask((9, 18) if mask == "sample" else (18,), 0.5).expand(9, 18)
    output = RF.dropconnect_linear(
        torch.ones(9, 3),
        torch.zeros(18, 3),
        torch.full((18,), nan),
        mask=mask,
        drop_bias=True,
        key=KEY,
    )
    assert torch.equal(output.isnan(), keep)
    assert (output[~keep] == 0).all()


# ---- what is differentiated ----------------------------------------------------------------------


@pytest.mark.parametrize("learned", list(product([False, True], repeat=3))[:-1])
@pytest.mark.parametrize("drop_bias", [False, True])
@by_mode
def test_each_gradient_comes_alone_too(
    mask: str, drop_bias: bool, learned: tuple[bool, ...]
) -> None:
    layer = integer_layer((5,), 21, 18)
    expected = call_of(*layer, mask=mask, drop_bias=drop_bias)
    input, tensors, upstream = layer
    every = [tensor.detach() for tensor in (input, *tensors.values())]
    for tensor, wanted in zip(every, learned, strict=True):
        tensor.requires_grad_(wanted)
    output = RF.dropconnect_linear(*every, mask=mask, drop_bias=drop_bias, key=KEY)
    assert torch.equal(output, expected.outputs[0])
    assert output.requires_grad == any(learned)
    if output.requires_grad:
        output.backward(upstream)
    for tensor, wanted, gradient in zip(every, learned, expected.gradients, strict=True):
        assert torch.equal(tensor.grad, gradient) if wanted else tensor.grad is None


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@by_mode
def test_without_a_graph(mask: str, mode: Any) -> None:
    x, weight, bias = _layer()
    expected = RF.dropconnect_linear(x, weight, bias, mask=mask, key=KEY)
    with mode():
        output = RF.dropconnect_linear(x, weight, bias, mask=mask, key=KEY)
    assert not output.requires_grad
    assert torch.equal(output, expected)


# ---- keys ----------------------------------------------------------------------------------------


@by_mode
def test_manual_seed_repeats_masks_and_calls_differ(mask: str) -> None:
    x, weight, bias = _layer()
    torch.manual_seed(3)
    first, second = (RF.dropconnect_linear(x, weight, bias, mask=mask) for _ in range(2))
    torch.manual_seed(3)
    keys = [regops.random.new_key() for _ in range(2)]
    for output, key in zip((first, second), keys, strict=True):
        assert torch.equal(RF.dropconnect_linear(x, weight, bias, mask=mask, key=key), output)
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    "options", [{}, {"mask": "sample"}, {"training": False, "inference": "gaussian"}]
)
def test_generator_is_used_instead_of_the_default_one(options: dict[str, Any]) -> None:
    x, weight, bias = _layer()
    state = torch.get_rng_state()
    outputs = [
        RF.dropconnect_linear(x, weight, bias, **options, generator=source)
        for source in (torch.Generator().manual_seed(9), torch.Generator().manual_seed(9))
    ]
    assert torch.equal(*outputs)
    assert torch.equal(torch.get_rng_state(), state)
    key = regops.random.new_key(generator=torch.Generator().manual_seed(9))
    assert torch.equal(RF.dropconnect_linear(x, weight, bias, **options, key=key), outputs[0])


def test_a_key_may_be_a_view() -> None:
    x, weight, bias = _layer()
    spread = torch.stack([KEY, KEY + 1], dim=1)[:, 0]
    for options in ({}, {"mask": "sample"}, {"training": False, "inference": "gaussian"}):
        expected = RF.dropconnect_linear(x, weight, bias, **options, key=KEY)
        assert torch.equal(RF.dropconnect_linear(x, weight, bias, **options, key=spread), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@by_mode
def test_masks_do_not_depend_on_dtype(mask: str, dtype: torch.dtype) -> None:
    def gradient(dtype: torch.dtype) -> Tensor:
        weight = torch.ones(17, 33, dtype=dtype, requires_grad=True)
        output = RF.dropconnect_linear(
            torch.ones(3, 33, dtype=dtype), weight, p=0.3, mask=mask, key=KEY
        )
        (found,) = torch.autograd.grad(output.sum(), weight)
        return found.double().mul(0.7).round()

    assert torch.equal(gradient(dtype), gradient(torch.float64))


@pytest.mark.parametrize("mask", MODES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("p", [0.1, 0.3, 0.99])
def test_a_dropped_bias_is_scaled_and_rounded_once(p: float, dtype: torch.dtype, mask: Any) -> None:
    # A scale rounded to the type first would be off alike for all, by 0.16 % at p = 0.1.
    bias = torch.rand(4000, generator=torch.Generator().manual_seed(1)).to(dtype) / 16384
    layer = torch.zeros(2, 1, dtype=dtype), torch.zeros(4000, 1, dtype=dtype), bias
    output = RF.dropconnect_linear(*layer, p, mask=mask, drop_bias=True, key=regops.random.key(5))
    drop_below, bits = threshold(p)
    scale = torch.tensor(2.0**bits / (2**bits - drop_below))
    kept = output != 0
    assert kept.any()
    assert torch.equal(output[kept], (bias.float() * scale).to(dtype).expand(2, -1)[kept])


@pytest.mark.parametrize("mask", MODES)
def test_a_scale_beyond_float16_drops_biases_to_zero(mask: Any) -> None:
    bias = torch.full((300,), 0.25, dtype=torch.float16)
    layer = torch.zeros(4, 8, dtype=torch.float16), torch.zeros(300, 8, dtype=torch.float16), bias
    options: dict[str, Any] = {"mask": mask, "drop_bias": True, "key": regops.random.key(5)}
    output = RF.dropconnect_linear(*layer, 1 - 2**-16, **options)
    assert not output.isnan().any()
    assert (output == 0).float().mean() > 0.99


def test_the_bare_op_refuses_forward_mode() -> None:
    x, weight = torch.ones(2, 3), torch.ones(4, 3)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(weight, weight)
        with pytest.raises(RuntimeError, match="jvp is not implemented"):
            torch.ops.regops.dropconnect_linear(
                x, dual, None, 0.5, regops.random.key(1), "batch", False
            )
        with pytest.raises(RuntimeError, match="jvp is not implemented"):
            torch.ops.regops.dropconnect_moments(x, dual, None, 0.5, False)
