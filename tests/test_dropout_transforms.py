"""Dropout under torch's transforms: vmap, grad, jvp, checkpointing, autocast, torch.compile."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import regops.functional as RF
import regops.nn
import regops.random

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def test_vmap_refuses_randomness_by_default() -> None:
    with pytest.raises(RuntimeError, match="randomness error mode"):
        torch.vmap(RF.dropout)(torch.ones(3, 10))


@pytest.mark.parametrize("in_dim", [0, 1])
def test_vmap_same_and_different(in_dim: int) -> None:
    input = torch.ones(4, 100).movedim(0, in_dim)
    same = torch.vmap(RF.dropout, in_dims=in_dim, randomness="same")(input)
    different = torch.vmap(RF.dropout, in_dims=in_dim, randomness="different")(input)
    assert same.shape == different.shape == (4, 100)
    assert all(torch.equal(same[0], row) for row in same[1:])
    assert len({tuple(row.tolist()) for row in different}) == 4


def test_vmap_over_a_shared_input() -> None:
    weight = torch.ones(100)

    def call(x: Tensor) -> Tensor:
        return x + RF.dropout(weight)

    with pytest.raises(RuntimeError, match="randomness error mode"):
        torch.vmap(call)(torch.zeros(3))
    same = torch.vmap(call, randomness="same")(torch.zeros(3))
    different = torch.vmap(call, randomness="different")(torch.zeros(3))
    assert all(torch.equal(same[0], row) for row in same[1:])
    assert len({tuple(row.tolist()) for row in different}) == 3


def test_vmap_inside_vmap() -> None:
    def both(outer: str, inner: str) -> Tensor:
        inside = torch.vmap(RF.dropout, randomness=inner)
        return torch.vmap(inside, randomness=outer)(torch.ones(2, 3, 50)).flatten(0, 1)

    def distinct(masks: Tensor) -> int:
        return len({tuple(mask.tolist()) for mask in masks})

    assert distinct(both("same", "same")) == 1
    assert distinct(both("same", "different")) == 3
    assert distinct(both("different", "same")) == 2
    assert distinct(both("different", "different")) == 6


def test_compiled_vmap() -> None:
    torch._dynamo.reset()
    for randomness, count in (("same", 1), ("different", 3)):

        def call(x: Tensor, randomness: str = randomness) -> Tensor:
            return torch.vmap(RF.dropout, randomness=randomness)(x)

        masks = torch.compile(call, fullgraph=True)(torch.ones(3, 50))
        assert len({tuple(mask.tolist()) for mask in masks}) == count


def test_compiled_grad_raises_rather_than_lose_the_gradient() -> None:
    torch._dynamo.reset()
    gradient = torch.func.grad(lambda x: RF.dropout(x, key=regops.random.key(1)).sum())
    with pytest.raises(RuntimeError, match="functorch transforms"):
        torch.compile(gradient, fullgraph=True)(torch.ones(50))


def test_vmap_over_keys_equals_a_loop() -> None:
    input = torch.randn(3, 50)
    keys = torch.stack([regops.random.key(seed) for seed in range(3)])
    mapped = torch.vmap(lambda x, k: RF.dropout(x, 0.3, key=k))(input, keys)
    looped = [RF.dropout(x, 0.3, key=k) for x, k in zip(input, keys, strict=True)]
    assert torch.equal(mapped, torch.stack(looped))


def test_vmap_of_grad_and_jvp() -> None:
    input, key = torch.randn(3, 20), regops.random.key(1)
    gradients = torch.vmap(torch.func.grad(lambda x: RF.dropout(x, 0.3, key=key).sum()))(input)
    mask = RF.dropout(torch.ones(20), 0.3, key=key)
    assert torch.equal(gradients, mask.expand(3, 20))
    tangent = torch.randn(20)
    _, moved = torch.func.jvp(lambda x: RF.dropout(x, 0.3, key=key), (input[0],), (tangent,))
    assert torch.equal(moved, RF.dropout(tangent, 0.3, key=key))


@pytest.mark.parametrize(("randomness", "count"), [("same", 1), ("different", 3)])
def test_vmap_of_transforms_that_draw(randomness: str, count: int) -> None:
    """Per-example gradients and Jacobians: the keys are drawn inside grad inside vmap."""

    def total(x: Tensor) -> Tensor:
        return RF.dropout(x).sum()

    input = torch.ones(3, 50)
    gradients = torch.vmap(torch.func.grad(total), randomness=randomness)(input)
    jacobians = torch.vmap(torch.func.jacrev(RF.dropout), randomness=randomness)(input)
    diagonals = jacobians.diagonal(dim1=1, dim2=2)
    for masks in (gradients, diagonals):
        assert set(masks.unique().tolist()) == {0.0, 2.0}
        assert len({tuple(mask.tolist()) for mask in masks}) == count


def test_jacfwd_of_a_drawn_mask() -> None:
    jacobian = torch.func.jacfwd(RF.dropout, randomness="same")(torch.ones(50))
    assert torch.equal(jacobian, jacobian.diagonal().diag())
    assert set(jacobian.diagonal().tolist()) == {0.0, 2.0}


def test_vmap_over_no_examples() -> None:
    for randomness in ("same", "different"):
        output = torch.vmap(RF.dropout, randomness=randomness)(torch.ones(0, 3))
        assert output.shape == (0, 3)


def test_vmap_of_in_place() -> None:
    input = torch.ones(3, 20)
    output = torch.vmap(lambda x: RF.dropout(x * 1, 0.5, inplace=True), randomness="same")(input)
    assert set(output.unique().tolist()) <= {0.0, 2.0}


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("preserve_rng_state", [False, True])
def test_checkpoint_redraws_the_same_mask(use_reentrant: bool, preserve_rng_state: bool) -> None:
    """With preserve_rng_state=False that is only promised of a key from outside."""
    key = None if preserve_rng_state else regops.random.key(6)

    def block(x: Tensor) -> Tensor:
        return RF.dropout(x * x, 0.5, key=key)

    input = torch.randn(1000, requires_grad=True)
    torch.manual_seed(3)
    expected = block(input)
    (expected_gradient,) = torch.autograd.grad(expected.sum(), input)
    torch.manual_seed(3)
    output = checkpoint(
        block, input, use_reentrant=use_reentrant, preserve_rng_state=preserve_rng_state
    )
    torch.rand(7)  # the world goes on between forward and backward
    output.sum().backward()
    assert torch.equal(output, expected)
    assert torch.equal(input.grad, expected_gradient)


@pytest.mark.gpu
def test_replays_of_a_cuda_graph_have_masks_of_their_own() -> None:
    input = torch.ones(4096, device="cuda", requires_grad=True)
    torch.autograd.grad(RF.dropout(input).sum(), input)  # allocates outside the capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = RF.dropout(input)
        (gradient,) = torch.autograd.grad(output.sum(), input)
    masks = set()
    for _ in range(3):
        graph.replay()
        assert torch.equal(output, gradient)
        masks.add(tuple(output.tolist()))
    assert len(masks) == 3


@pytest.mark.parametrize("dtype", DTYPES)
def test_autocast_keeps_the_dtype(dtype: torch.dtype) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert RF.dropout(torch.ones(4, dtype=dtype)).dtype == dtype


@pytest.mark.parametrize("inplace", [False, True])
def test_compiled_module_has_the_eager_mask(inplace: bool) -> None:
    torch._dynamo.reset()
    model = torch.nn.Sequential(torch.nn.Linear(16, 32), regops.nn.Dropout(0.3, inplace))
    compiled = torch.compile(model, fullgraph=True)
    input = torch.randn(8, 16)
    for _ in range(2):
        torch.manual_seed(2)
        expected = model(input)
        torch.manual_seed(2)
        output = compiled(input)
        torch.testing.assert_close(output, expected)
        assert torch.equal(output == 0, expected == 0)
    compiled.eval()
    torch.testing.assert_close(compiled(input), model[0](input))


@pytest.mark.parametrize("budget", [0.0, 0.5, 1.0])
def test_recomputation_by_the_compilers_partitioner_keeps_the_mask(budget: float) -> None:
    """Below a memory budget of 1 backward recomputes what it can, which a key from outside allows.

    It redraws what was drawn inside, torch's own dropout too (pytorch#190717): docs/randomness.md.
    """
    torch._dynamo.reset()

    def block(x: Tensor, key: Tensor) -> Tensor:
        for layer in range(3):
            x = RF.dropout(x.sin() @ weight, 0.5, key=regops.random.fold_in(key, layer)).cos()
        return x.sum()

    weight = torch.randn(64, 64) / 64
    input, key = torch.randn(64, 64, requires_grad=True), regops.random.key(1)
    (expected,) = torch.autograd.grad(block(input, key), input)
    with torch._functorch.config.patch(activation_memory_budget=budget):
        compiled = torch.compile(block, fullgraph=True)
        (gradient,) = torch.autograd.grad(compiled(input, key), input)
    torch.testing.assert_close(gradient, expected)
