"""Gradients of cross-entropy in autograd's rarer uses, and where its inputs are not independent."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import regops.functional as RF
import regops.reference
from tests.test_cross_entropy import assert_same, labels

DOUBLE = torch.float64


def first_and_second(loss: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    """Gradients, the same made with create_graph=True, and their own gradients."""
    plain = torch.autograd.grad(loss, inputs, retain_graph=True)
    first = torch.autograd.grad(loss, inputs, create_graph=True)
    second = torch.autograd.grad(sum(one.square().sum() for one in first), inputs)
    return [*plain, *first, *second]


def test_double_backward_where_the_target_depends_on_the_input() -> None:
    """A gradient through the target is autograd's to add, not ours as well."""
    input = torch.rand(4, 5, dtype=DOUBLE, requires_grad=True)
    for target_of in (lambda x: x.softmax(1), lambda x: x):
        results = [
            first_and_second(function(input, target_of(input)), [input])
            for function in (RF.cross_entropy, F.cross_entropy)
        ]
        for ours, torchs in zip(*results, strict=True):
            assert_same(ours, torchs)


def test_double_backward_of_tied_weights() -> None:
    """As of a language model whose last layer is its embedding."""
    weight = torch.randn(6, 3, dtype=DOUBLE, requires_grad=True)
    bias = torch.randn(6, dtype=DOUBLE, requires_grad=True)
    target = labels((4, 6))
    results = [
        first_and_second(
            function(torch.tanh(weight[:4]) * bias[0], weight, target, linear_bias=bias),
            [weight, bias],
        )
        for function in (RF.linear_cross_entropy, regops.reference.linear_cross_entropy)
    ]
    for ours, expected in zip(*results, strict=True):
        assert_same(ours, expected)


def test_double_backward_keeps_the_type_beside_wide_num_items() -> None:
    input = torch.randn(4, 5, requires_grad=True)
    items = torch.tensor(3.0, dtype=DOUBLE)
    loss = RF.cross_entropy(input, labels((4, 5)), num_items=items)
    first, created, second = first_and_second(loss, [input])
    assert first.dtype == created.dtype == second.dtype == torch.float32
    torch.testing.assert_close(first, created)


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("shape", [(6, 5), (3, 5, 4)])
def test_gradients_to_probabilities_that_share_memory(
    reduction: str, shape: tuple[int, ...]
) -> None:
    """A stride of 0, and rows that overlap: the gradient has an element for each of theirs."""
    memory = torch.rand(200, dtype=DOUBLE, requires_grad=True)
    input = torch.randn(shape, dtype=DOUBLE, requires_grad=True)
    for strides in itertools.product((0, 1, 2), repeat=len(shape)):
        target = memory.as_strided(shape, strides)
        results = [
            torch.autograd.grad(function(input, target, reduction=reduction).sum(), (input, memory))
            for function in (RF.cross_entropy, F.cross_entropy)
        ]
        for ours, torchs in zip(*results, strict=True):
            assert_same(ours, torchs)


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("inplace_backward", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_many_upstream_gradients_at_once(
    reduction: str, inplace_backward: bool, dtype: torch.dtype
) -> None:
    leaf = torch.randn(6, 5).to(dtype).requires_grad_()
    weight = torch.randn(7, 5).to(dtype).requires_grad_()
    target = labels((6, 5))
    options = {"reduction": reduction, "inplace_backward": inplace_backward}
    for loss, expected, input in (
        (RF.cross_entropy(leaf * 1, target, **options), F.cross_entropy, leaf),
        (RF.linear_cross_entropy(leaf, weight, target, reduction=reduction), None, weight),
    ):
        upstream = torch.randn(3, *loss.shape)
        (found,) = torch.autograd.grad(
            loss, input, upstream, is_grads_batched=True, retain_graph=True
        )
        wide = leaf.detach().float().requires_grad_()
        layer = weight.detach().float().requires_grad_()
        logits = wide if expected else wide @ layer.T
        reference = F.cross_entropy(logits, target, reduction=reduction)
        for one, got in zip(upstream, found, strict=True):
            (wanted,) = torch.autograd.grad(
                reference, wide if expected else layer, one, retain_graph=True
            )
            tolerance = 16 * torch.finfo(dtype).eps
            torch.testing.assert_close(got.float(), wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("inplace_backward", [False, True])
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_hooks_of_saved_tensors(inplace_backward: bool, reduction: str) -> None:
    target = labels((6, 5))
    options = {"reduction": reduction, "inplace_backward": inplace_backward}
    leaf = torch.randn(6, 5, requires_grad=True)
    (expected,) = torch.autograd.grad(
        3 * F.cross_entropy(leaf, target, reduction=reduction).sum(), leaf
    )
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    for pack, unpack in (
        (keep, lambda tensor: tensor),
        (torch.clone, torch.clone),
        (lambda tensor: tensor.numpy(force=True).copy(), torch.from_numpy),
    ):
        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            loss = RF.cross_entropy(leaf * 1, target, **options).sum()
        leaf.grad = None
        (3 * loss).backward()
        torch.testing.assert_close(leaf.grad, expected)
        assert leaf.grad.data_ptr() not in [tensor.data_ptr() for tensor in kept[-1:]]


# ---- the gradient in the logits' memory ---------------------------------------------------------


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_inplace_backward_with_gradients_to_probabilities(reduction: str) -> None:
    leaf, target = (torch.rand(6, 5, dtype=DOUBLE, requires_grad=True) for _ in range(2))
    results = []
    for function, options in (
        (RF.cross_entropy, {"inplace_backward": True}),
        (F.cross_entropy, {}),
    ):
        loss = function(leaf * 1, target, reduction=reduction, **options).sum()
        results.append(torch.autograd.grad(loss, (leaf, target)))
    for ours, torchs in zip(*results, strict=True):
        assert_same(ours, torchs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_inplace_backward_with_gradients_through_lse(dtype: torch.dtype) -> None:
    leaf, target = torch.randn(6, 5).to(dtype).requires_grad_(), labels((6, 5))
    results = []
    for inplace_backward in (False, True):
        logits = leaf * 1
        loss, lse = RF.cross_entropy(
            logits, target, return_lse=True, inplace_backward=inplace_backward
        )
        results.append(torch.autograd.grad(loss + lse.square().mean(), leaf))
    assert torch.equal(results[0][0], results[1][0])
    with pytest.raises(RuntimeError, match="gave the memory"):
        logits.sum()


def test_inplace_backward_takes_no_memory_that_others_need() -> None:
    leaf, target = torch.randn(30, requires_grad=True), labels((6, 5))
    before = leaf.detach().clone()
    with pytest.raises(RuntimeError, match="no leaf, nor a view of one"):
        RF.cross_entropy(leaf.view(6, 5), target, inplace_backward=True)
    assert torch.equal(leaf, before)
    logits = (leaf * 1).view(6, 5)
    with pytest.raises(ValueError, match="memory of its own"):
        RF.cross_entropy(logits, logits.detach(), inplace_backward=True)
    array = logits.detach().numpy()
    with pytest.raises(ValueError, match="shared with NumPy"):
        RF.cross_entropy(logits, target, inplace_backward=True)
    assert array.tolist() == before.view(6, 5).tolist()


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_inplace_backward_of_logits_negated_lazily(reduction: str) -> None:
    leaf, target = torch.randn(6, 5, dtype=DOUBLE, requires_grad=True), labels((6, 5))
    logits = torch._neg_view(leaf * 1)
    loss = RF.cross_entropy(logits, target, reduction=reduction, inplace_backward=True).sum()
    expected = F.cross_entropy(-leaf, target, reduction=reduction).sum()
    assert_same(loss, expected)
    assert_same(*(torch.autograd.grad(one, leaf)[0] for one in (loss, expected)))
