"""DropConnect under autograd's checks and torch's transforms: vmap, grad, jvp, checkpointing."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

import regops.functional as RF
import regops.random
import regops.reference
from tests.dropconnect_problems import GAUSSIAN, KEY, MODES, OPTIONS, keyed_call, random_layer

by_mode = pytest.mark.parametrize("mask", MODES)
EVERY = pytest.mark.parametrize("options", [*OPTIONS, GAUSSIAN], ids=str)


# ---- derivatives ---------------------------------------------------------------------------------


@pytest.mark.parametrize("learned", list(product([False, True], repeat=3))[1:])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_gradcheck_of_each_subset(options: dict[str, Any], learned: tuple[bool, ...]) -> None:
    layer = [t.detach().requires_grad_(w) for t, w in zip(random_layer(), learned, strict=True)]

    def call(*tensors: Tensor) -> Tensor:
        return keyed_call(*tensors, **options)

    assert torch.autograd.gradcheck(call, layer, check_forward_ad=True, fast_mode=True)
    # The output is linear in each argument: of one alone the gradient is a constant.
    if sum(learned[:2]) > 1:
        assert torch.autograd.gradgradcheck(call, layer, fast_mode=True)


@pytest.mark.parametrize("p", [0.0, 1.0])
@by_mode
def test_gradgradcheck_where_nothing_is_random(mask: str, p: float) -> None:
    def call(*tensors: Tensor) -> Tensor:
        output: Tensor = torch.ops.regops.dropconnect_linear(*tensors, p, KEY, mask, True)
        return output

    assert torch.autograd.gradcheck(call, random_layer())
    assert torch.autograd.gradgradcheck(call, random_layer())


@pytest.mark.parametrize(
    "wanted", [(True, False, False), (False, True, False), (False, False, True), (True, True, True)]
)
@by_mode
def test_each_gradient_of_the_backward_op_is_differentiable(
    mask: str, wanted: tuple[bool, ...]
) -> None:
    x, weight, _ = random_layer()
    upstream = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)

    def call(*tensors: Tensor) -> tuple[Tensor, ...]:
        found = torch.ops.regops.dropconnect_linear_backward(
            *tensors, 0.5, KEY, mask, True, list(wanted)
        )
        return tuple(one for one, asked in zip(found, wanted, strict=True) if asked)

    assert torch.autograd.gradcheck(call, (upstream, x, weight), fast_mode=True)
    assert torch.autograd.gradgradcheck(call, (upstream, x, weight), fast_mode=True)


@by_mode
def test_third_derivative(mask: str) -> None:
    def second(*tensors: Tensor) -> tuple[Tensor, ...]:
        output = keyed_call(*tensors, mask=mask, drop_bias=True)
        first = torch.autograd.grad(output.pow(3).sum(), tensors, create_graph=True)
        total = sum(one.square().sum() for one in first)
        return torch.autograd.grad(total, tensors, create_graph=True)

    assert torch.autograd.gradcheck(second, random_layer((2,)), fast_mode=True)


# ---- torch.func ----------------------------------------------------------------------------------


def _oracle(x: Tensor, weight: Tensor, bias: Tensor, **options: Any) -> Tensor:
    return regops.reference.dropconnect_linear(x, weight, bias, key=KEY, **options)


@EVERY
def test_functional_derivatives(options: dict[str, Any]) -> None:
    """Those of the oracle, and its values."""
    layer = tuple(tensor.detach() for tensor in random_layer())
    tangents = tuple(torch.ones_like(tensor) for tensor in layer)
    # The oracle's normal numbers are of float64, the op's of float32.
    near = {"rtol": 1e-6, "atol": 1e-6}
    found, expected = [], []
    for one, function in ((found, keyed_call), (expected, _oracle)):

        def call(*tensors: Tensor, function: Any = function) -> Tensor:
            output: Tensor = function(*tensors, **options)
            return output

        def total(*tensors: Tensor, call: Any = call) -> Tensor:
            return call(*tensors).square().sum()

        one.append(torch.func.jvp(call, layer, tangents))
        one.append(torch.func.vjp(call, *layer)[1](call(*layer)))
        for transform in (torch.func.jacrev, torch.func.jacfwd):
            one.append(transform(call, (0, 1, 2))(*layer))
        one.append(torch.func.grad(total, (0, 1, 2))(*layer))
        one.append(torch.func.hessian(total, 1)(*layer))
    for got, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(got, wanted, **near)


@EVERY
def test_forward_mode(options: dict[str, Any]) -> None:
    layer = tuple(tensor.detach() for tensor in random_layer())
    tangents = tuple(torch.ones_like(tensor) for tensor in layer)
    expected = torch.func.jvp(lambda *t: keyed_call(*t, **options), layer, tangents)
    with forward_ad.dual_level():
        duals = map(forward_ad.make_dual, layer, tangents)
        output = forward_ad.unpack_dual(keyed_call(*duals, **options))
    torch.testing.assert_close((output.primal, output.tangent), expected)


@pytest.mark.parametrize("dims", [(0, None, None), (1, 0, None), (None, 2, 1), (0, 1, 0)], ids=str)
@pytest.mark.parametrize("keys", [False, True])
@EVERY
def test_vmap_equals_a_loop(
    options: dict[str, Any], keys: bool, dims: tuple[int | None, ...]
) -> None:
    """Over any of input, weight and bias, with a key for all or each call's own."""
    layer = (*(tensor.detach() for tensor in random_layer()), KEY)
    dims = (*dims, 0 if keys else None)
    many = [
        one if dim is None else torch.stack([one, one * 2, one * 3], dim)
        for one, dim in zip(layer, dims, strict=True)
    ]

    def call(x: Tensor, weight: Tensor, bias: Tensor, key: Tensor) -> Tensor:
        return RF.dropconnect_linear(x, weight, bias, key=key, **options)

    looped = [
        call(*(one if d is None else one.select(d, i) for one, d in zip(many, dims, strict=True)))
        for i in range(3)
    ]
    torch.testing.assert_close(torch.vmap(call, in_dims=dims)(*many), torch.stack(looped))


@pytest.mark.parametrize("shared", [False, True])
@EVERY
def test_vmap_randomness(options: dict[str, Any], shared: bool) -> None:
    """As torch's: also of a layer that no mapped tensor reaches."""
    x, weight, bias = (tensor.detach() for tensor in random_layer(ins=50, outs=9))

    def call(row: Tensor) -> Tensor:
        return RF.dropconnect_linear(x if shared else row, weight, bias, **options) + row.sum() * 0

    many = x.expand(4, *x.shape)
    with pytest.raises(RuntimeError, match="randomness error mode"):
        torch.vmap(call)(many)
    for randomness, count in (("same", 1), ("different", 4)):
        output = torch.vmap(call, randomness=randomness)(many)
        # Products of a batch may sum in another order than each one's.
        assert len({tuple(one.flatten().tolist()) for one in output.float()}) == count


@by_mode
def test_per_example_gradients(mask: str) -> None:
    x, weight, bias = (tensor.detach() for tensor in random_layer((5,)))

    def loss(weight: Tensor, row: Tensor) -> Tensor:
        return keyed_call(row, weight, bias, mask=mask).square().sum()

    mapped = torch.vmap(torch.func.grad(loss), in_dims=(None, 0))(weight, x)
    looped = torch.stack([torch.func.grad(loss)(weight, row) for row in x])
    torch.testing.assert_close(mapped, looped)


def test_vmap_over_no_examples() -> None:
    x, weight, bias = (tensor.detach() for tensor in random_layer())
    for randomness in ("same", "different"):
        for options in (*OPTIONS, GAUSSIAN):
            output = torch.vmap(
                lambda x, options=options: RF.dropconnect_linear(x, weight, bias, **options),
                randomness=randomness,
            )(x.expand(0, *x.shape))
            assert output.shape[0] == 0
            assert output.shape[-2:] == (3, 2)


# ---- checkpointing -------------------------------------------------------------------------------


@pytest.mark.parametrize("use_reentrant", [False, True])
@by_mode
def test_checkpoint_redraws_the_same_mask(mask: str, use_reentrant: bool) -> None:
    layer = random_layer((5,), 20, 10)

    def block(*tensors: Tensor) -> Tensor:
        return RF.dropconnect_linear(*tensors, mask=mask, drop_bias=True).tanh()

    torch.manual_seed(3)
    expected = block(*layer)
    gradients = torch.autograd.grad(expected.sum(), layer)
    torch.manual_seed(3)
    output = checkpoint(block, *layer, use_reentrant=use_reentrant)
    torch.rand(7)  # the world goes on between forward and backward
    output.sum().backward()
    assert torch.equal(output, expected)
    for tensor, gradient in zip(layer, gradients, strict=True):
        assert torch.equal(tensor.grad, gradient)


# ---- autocast ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("options", [*OPTIONS, {"training": False}, {"p": 0.0}], ids=str)
def test_autocast(options: dict[str, Any], dtype: torch.dtype) -> None:
    """Outputs as torch's layer has them, gradients of the parameters' type, values of the op's."""
    layer = random_layer((5,), 20, 10, torch.float32)
    with torch.autocast("cpu", dtype):
        assert F.linear(*layer).dtype == dtype
        output = keyed_call(*layer, **options)
    expected = keyed_call(*(tensor.to(dtype) for tensor in layer), **options)
    assert torch.equal(output, expected)
    assert output.dtype == dtype
    upstream = torch.ones_like(output)
    found = torch.autograd.grad(output, layer, upstream)
    for got, wanted in zip(found, torch.autograd.grad(expected, layer, upstream), strict=True):
        assert got.dtype == torch.float32
        assert torch.equal(got, wanted)


def test_autocast_of_mixed_types_and_of_inference() -> None:
    x, weight, bias = random_layer((5,), 20, 10, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = keyed_call(x.bfloat16(), weight, bias)
        plain = keyed_call(x, weight, bias)
        drawn = keyed_call(x, weight, bias, **GAUSSIAN)
        mean, variance = RF.dropconnect_moments(x, weight, bias)
    assert torch.equal(mixed, plain)
    assert [one.dtype for one in (drawn, mean, variance)] == [*[torch.bfloat16] * 2, torch.float32]
