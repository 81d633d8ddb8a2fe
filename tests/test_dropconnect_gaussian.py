"""DropConnect's moments and the inference that draws from them: values, shapes, derivatives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import regops.functional as RF
import regops.nn
import regops.random
import regops.reference
from regops.testing import Layout, lay_out, make_input
from tests.dropconnect_problems import DTYPES, KEY

GAUSSIAN: dict[str, Any] = {"training": False, "inference": "gaussian"}
# mean and variance sum float32 in another order than the oracle does float64
TOLERANCE = {torch.float64: 1e-13, torch.float32: 2e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}


def _layer(
    rows: tuple[int, ...], ins: int, outs: int, dtype: torch.dtype, layout: Layout = "contiguous"
) -> tuple[Tensor, Tensor, Tensor]:
    x = make_input((*rows, ins), dtype, layout=layout if rows else "contiguous", seed=1)
    weight = lay_out(make_input((outs, ins), dtype, seed=2) / 4, layout)
    bias = make_input((outs,), dtype, seed=3)
    return x.requires_grad_(), weight.requires_grad_(), bias.requires_grad_()


def _double(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(tensor.detach().double().requires_grad_() for tensor in tensors)


def _assert_near(got: Tensor, wanted: Tensor, tolerance: float) -> None:
    largest = wanted.abs().max().item() if wanted.numel() else 0.0
    torch.testing.assert_close(
        got.to(wanted.dtype), wanted, rtol=tolerance, atol=tolerance * largest
    )


# ---- moments -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("drop_bias", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("p", [0.0, 3e-6, 0.3, 0.5, 0.99])
def test_moments_match_reference(
    p: float, with_bias: bool, drop_bias: bool, dtype: torch.dtype
) -> None:
    layer = _layer((5,), 33, 17, dtype)[: 2 + with_bias]
    exact = _double(layer)
    actual = RF.dropconnect_moments(*layer, p=p, drop_bias=drop_bias)
    expected = regops.reference.dropconnect_moments(*exact, p=p, drop_bias=drop_bias)
    assert [moment.dtype for moment in actual] == [dtype, torch.promote_types(dtype, torch.float32)]
    upstream = [make_input((5, 17), torch.float64, seed=seed) for seed in (4, 5)]
    for got, wanted in zip(actual, expected, strict=True):
        _assert_near(got, wanted, TOLERANCE[got.dtype])
    found = torch.autograd.grad(
        actual, layer, [g.to(m.dtype) for g, m in zip(upstream, actual, strict=True)]
    )
    for got, wanted in zip(found, torch.autograd.grad(expected, exact, upstream), strict=True):
        assert got.dtype == dtype
        # Of float16's and bfloat16's two terms each is rounded, and so is the upstream gradient.
        _assert_near(got, wanted, 4 * TOLERANCE[dtype])


@pytest.mark.parametrize("rows", [(), (0,), (1,), (65,), (2, 3)])
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "strided", "misaligned"])
def test_moments_of_any_shape_and_layout(rows: tuple[int, ...], layout: Layout) -> None:
    layer = _layer(rows, 20, 12, torch.float32, layout)
    actual = RF.dropconnect_moments(*layer, 0.3, drop_bias=True)
    expected = regops.reference.dropconnect_moments(*_double(layer), 0.3, drop_bias=True)
    for got, wanted in zip(actual, expected, strict=True):
        assert got.shape == (*rows, 12)
        _assert_near(got, wanted, 2e-6)


def test_moments_of_several_panels() -> None:
    layer = _layer((3,), 1100, 1030, torch.float32)
    for got, wanted in zip(
        RF.dropconnect_moments(*layer, 0.3, drop_bias=True),
        regops.reference.dropconnect_moments(*_double(layer), 0.3, drop_bias=True),
        strict=True,
    ):
        _assert_near(got, wanted, 4e-6)


@pytest.mark.parametrize("shape", [(3, 0, 5), (3, 5, 0), (0, 5, 5)])
def test_moments_of_empty_layers(shape: tuple[int, int, int]) -> None:
    rows, ins, outs = shape
    layer = _layer((rows,), ins, outs, torch.float32)
    mean, variance = RF.dropconnect_moments(*layer, 0.5, drop_bias=True)
    assert torch.equal(mean, layer[2].expand(rows, outs))
    assert torch.equal(variance, layer[2].square().expand(rows, outs))


def test_variance_holds_squares_that_float16_does_not() -> None:
    x, weight = torch.full((1, 4), 300.0).half(), torch.full((1, 4), 2.0).half()
    mean, variance = RF.dropconnect_moments(x, weight)
    assert mean.item() == 2400
    assert variance.item() == 4 * 600.0**2


def test_the_mean_is_torchs_layer_and_p_of_zero_has_no_variance() -> None:
    layer = _layer((5,), 33, 17, torch.float32)
    mean, variance = RF.dropconnect_moments(*layer, 0.0, drop_bias=True)
    _assert_near(mean, F.linear(*layer), 2e-6)
    assert (variance == 0).all()


@pytest.mark.parametrize("drop_bias", [False, True])
def test_moments_gradcheck(drop_bias: bool) -> None:
    layer = _layer((3,), 4, 2, torch.float64)

    def call(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        return RF.dropconnect_moments(*tensors, p=0.3, drop_bias=drop_bias)

    assert torch.autograd.gradcheck(call, layer, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(call, layer)


# ---- inference -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("cpu_capability")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [(), (5,), (2, 3), (0,)])
@pytest.mark.parametrize("drop_bias", [False, True])
def test_numbers_and_gradients_match_reference(
    drop_bias: bool, rows: tuple[int, ...], dtype: torch.dtype
) -> None:
    layer = _layer(rows, 33, 17, dtype)
    exact = _double(layer)
    options = {**GAUSSIAN, "p": 0.3, "drop_bias": drop_bias, "samples": 4, "key": KEY}
    actual = RF.dropconnect_linear(*layer, **options)
    expected = regops.reference.dropconnect_linear(*exact, **options)
    assert actual.shape == (4, *rows, 17)
    assert actual.dtype == dtype
    _assert_near(actual, expected, 2 * TOLERANCE[dtype] if dtype != torch.float64 else 1e-6)
    upstream = make_input(tuple(actual.shape), torch.float64, seed=6)
    found = torch.autograd.grad(actual, layer, upstream.to(dtype))
    for got, wanted in zip(found, torch.autograd.grad(expected, exact, upstream), strict=True):
        _assert_near(got, wanted, 8 * TOLERANCE[dtype] if dtype != torch.float64 else 4e-6)


def test_a_number_is_that_of_its_index() -> None:
    """As many numbers as outputs: sample s of n outputs begins where sample s - 1 ends."""
    layer = _layer((6,), 9, 7, torch.float32)
    options = {**GAUSSIAN, "key": KEY}
    several = RF.dropconnect_linear(*layer, **options, samples=5)
    assert torch.equal(RF.dropconnect_linear(*layer, **options, samples=2), several[:2])
    mean, variance = RF.dropconnect_moments(*layer)
    normal = torch.ops.regops.normal_like(torch.empty(5, 6, 7), KEY)
    torch.testing.assert_close(several, mean + variance.sqrt() * normal)


@pytest.mark.parametrize("p", [0.0, 0.5])
def test_an_example_of_zeros_has_no_variance_and_a_gradient_without_nan(p: float) -> None:
    x, weight, bias = _layer((3,), 4, 2, torch.float32)
    with torch.no_grad():
        x[1] = 0
    output = RF.dropconnect_linear(x, weight, bias, p, **GAUSSIAN, samples=3, key=KEY)
    assert torch.equal(output[:, 1], bias.expand(3, 2))
    output.sum().backward()
    for tensor in (x, weight, bias):
        assert tensor.grad.isfinite().all()


def test_inference_gradcheck() -> None:
    layer = _layer((3,), 4, 2, torch.float64)
    options = {**GAUSSIAN, "p": 0.3, "drop_bias": True, "samples": 2, "key": KEY}

    def call(*tensors: Tensor) -> Tensor:
        return RF.dropconnect_linear(*tensors, **options)

    assert torch.autograd.gradcheck(call, layer, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(call, layer)


def test_only_evaluation_infers() -> None:
    layer = _layer((3,), 4, 2, torch.float32)
    training = RF.dropconnect_linear(*layer, inference="gaussian", samples=5, key=KEY)
    assert torch.equal(training, RF.dropconnect_linear(*layer, key=KEY))


def test_the_module_infers_by_its_options() -> None:
    module = regops.nn.DropConnectLinear(4, 2, p=0.3, inference="gaussian", samples=3).eval()
    x = torch.randn(5, 4)
    torch.manual_seed(1)
    output = module(x)
    torch.manual_seed(1)
    key = regops.random.new_key()
    assert output.shape == (3, 5, 2)
    expected = RF.dropconnect_linear(
        x, module.weight, module.bias, 0.3, **GAUSSIAN, samples=3, key=key
    )
    assert torch.equal(output, expected)


# ---- normal_like ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (7,), (3, 1001)])
def test_normal_like(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    like = torch.empty(shape, dtype=dtype)
    numbers = torch.ops.regops.normal_like(like, KEY)
    assert (numbers.shape, numbers.dtype) == (like.shape, dtype)
    expected = regops.reference.normal.normals(KEY, like.numel()).reshape(shape)
    _assert_near(numbers, expected, max(TOLERANCE[dtype], 1e-6))
    assert torch.equal(torch.ops.regops.normal_like(like.expand(2, *shape)[1:], KEY)[0], numbers)


def test_normal_like_refuses() -> None:
    with pytest.raises(RuntimeError, match=r"normal_like: expected like of dtype .*, got int64"):
        torch.ops.regops.normal_like(torch.ones(3).long(), KEY)
    with pytest.raises(ValueError, match=r"normal_like: expected key of shape \(2,\), got \[3\]"):
        torch.ops.regops.normal_like(torch.ones(3), torch.ones(3).long())
