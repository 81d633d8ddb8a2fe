"""What is special to linear_cross_entropy: chunks, products, memory, torch's own arguments."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

import regops.functional as RF
import regops.reference
from tests.test_cross_entropy import assert_same

BATCHES = {"unbatched": (), "batch": (8,), "no-rows": (0,)}


def problem(
    batch: tuple[int, ...], positions: tuple[int, ...], soft: bool, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Input, linear_weight, linear_bias and target; the first three require grad."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype).requires_grad_()

    classes = 6
    if soft:
        target = torch.rand(*batch, classes, *positions, generator=generator).to(dtype)
        target.requires_grad_()
    else:
        target = torch.randint(classes, (*batch, *positions), generator=generator)
    return normal(*batch, 4), normal(classes, *positions, 4), normal(classes, *positions), target


@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize("positions", [(), (3,), (2, 3)], ids=str)
@pytest.mark.parametrize("chunk", [None, 1, 3, 8])
def test_is_the_layer_then_the_loss(
    batch: tuple[int, ...], positions: tuple[int, ...], chunk: int | None
) -> None:
    if positions and not batch:
        pytest.skip("torch asks for a batch there")
    options = None if chunk is None else SimpleNamespace(batch_chunk_size=chunk)
    for reduction, soft, biased, paired in itertools.product(
        ("none", "sum", "mean"), (False, True), (False, True), (False, True)
    ):
        if soft and paired:
            continue
        input, weight, bias, target = problem(batch, positions, soft, torch.float64)
        arguments = {
            "linear_bias": bias if biased else None,
            "weight": torch.arange(1.0, 7.0, dtype=torch.float64),
            "reduction": reduction,
            "label_smoothing": 0.1,
            "z_loss": 0.01,
            "entropy_weight": 0.1,
            "return_lse": True,
        }
        if paired:
            lam = torch.rand(batch, dtype=torch.float64)
            arguments |= {"target_b": target.flip(0) if batch else target, "lam": lam}
        wanted = [input, weight, *([bias] if biased else []), *([target] if soft else [])]
        results = []
        for function in (RF.linear_cross_entropy, regops.reference.linear_cross_entropy):
            extra = {"options": options} if function is RF.linear_cross_entropy else {}
            loss, lse = function(input, weight, target, **arguments, **extra)
            upstream = torch.linspace(0.5, 1.5, loss.numel(), dtype=loss.dtype).view(loss.shape)
            alone = torch.autograd.grad(loss, wanted, upstream, retain_graph=True)
            again = torch.autograd.grad(loss, wanted, upstream, retain_graph=True)
            both = torch.autograd.grad((loss, lse), wanted, (upstream, torch.ones_like(lse)))
            results.append((loss, lse, *alone, *again, *both))
        for ours, expected in zip(*results, strict=True):
            assert_same(ours, expected)


@pytest.mark.parametrize("which", list(itertools.product([False, True], repeat=3)), ids=str)
def test_only_the_gradients_asked_for(which: tuple[bool, bool, bool]) -> None:
    input, weight, bias, target = problem((8,), (), False, torch.float64)
    tensors = [
        t.detach().requires_grad_(w) for t, w in zip((input, weight, bias), which, strict=True)
    ]
    for reduction in ("mean", "none"):
        loss = RF.linear_cross_entropy(
            tensors[0], tensors[1], target, linear_bias=tensors[2], reduction=reduction
        ).sum()
        assert loss.requires_grad == any(which)
        if not any(which):
            continue
        wanted = [t for t in tensors if t.requires_grad]
        expected = regops.reference.linear_cross_entropy(
            tensors[0], tensors[1], target, linear_bias=tensors[2], reduction=reduction
        ).sum()
        for ours, theirs in zip(
            torch.autograd.grad(loss, wanted), torch.autograd.grad(expected, wanted), strict=True
        ):
            assert_same(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("chunk", [8, 512])
def test_half_precision_gradients_do_not_lose_by_chunks(dtype: torch.dtype, chunk: int) -> None:
    """The products of 64 chunks add up in float32: one rounding, not 64."""
    generator = torch.Generator().manual_seed(0)
    input = torch.randn(512, 16, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(40, 16, generator=generator).to(dtype).requires_grad_()
    target = torch.randint(40, (512,), generator=generator)
    loss = RF.linear_cross_entropy(
        input, weight, target, options=SimpleNamespace(batch_chunk_size=chunk)
    )
    wide = [tensor.detach().double().requires_grad_() for tensor in (input, weight)]
    expected = regops.reference.linear_cross_entropy(*wide, target)
    # Logits of size 10 are rounded to the type, which shifts each by 10 eps / 2 at most.
    torch.testing.assert_close(loss.double(), expected, rtol=0, atol=5 * torch.finfo(dtype).eps)
    found = torch.autograd.grad(loss, (input, weight))
    for ours, theirs in zip(found, torch.autograd.grad(expected, wide), strict=True):
        assert ours.dtype == dtype
        bound = 8 * torch.finfo(dtype).eps * float(theirs.abs().max())
        torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=bound)


def test_double_backward() -> None:
    input, weight, bias, target = problem((4,), (), False, torch.float64)

    def call(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return RF.linear_cross_entropy(x, w, target, linear_bias=b, label_smoothing=0.1)

    assert torch.autograd.gradcheck(call, (input, weight, bias), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(call, (input, weight, bias))


def test_ignored_rows_and_bad_targets_count_over_all_chunks() -> None:
    input, weight, _, target = problem((8,), (), False, torch.float64)
    options = SimpleNamespace(batch_chunk_size=3)
    target[:3] = -100  # a whole chunk
    loss = RF.linear_cross_entropy(input, weight, target, options=options)
    assert_same(loss, regops.reference.linear_cross_entropy(input, weight, target))
    assert_same(
        RF.linear_cross_entropy(input, weight, target, options=options, num_items=50),
        RF.linear_cross_entropy(input, weight, target, reduction="sum") / 50,
    )
    target[6] = 6
    message = r"regops.linear_cross_entropy: expected target in \[0, 6\), got 6 at row 6"
    with pytest.raises(IndexError, match=message):
        RF.linear_cross_entropy(input, weight, target, options=options)


def test_no_features() -> None:
    input, weight = torch.empty(3, 0, requires_grad=True), torch.empty(4, 0, requires_grad=True)
    loss = RF.linear_cross_entropy(input, weight, torch.tensor([0, 1, 3]))
    torch.testing.assert_close(loss, torch.tensor(4.0).log())
    loss.backward()
    assert (input.grad.shape, weight.grad.shape) == (input.shape, weight.shape)


def test_non_contiguous_operands() -> None:
    input = torch.randn(5, 8, dtype=torch.float64).t().requires_grad_()
    weight = torch.randn(5, 6, dtype=torch.float64).t().requires_grad_()
    target = torch.randint(6, (8,))
    results = []
    for function in (RF.linear_cross_entropy, regops.reference.linear_cross_entropy):
        loss = function(input, weight, target)
        results.append((loss, *torch.autograd.grad(loss, (input, weight))))
    for ours, expected in zip(*results, strict=True):
        assert_same(ours, expected)


E23 = torch.randn(2, 3)
ERRORS = {
    "dtype": (RuntimeError, "of the input's dtype", (E23, E23.double(), torch.zeros(2).long()), {}),
    "bias": (
        RuntimeError,
        r"linear_bias shape \(2,\), got \(3,\)",
        (E23, E23, torch.zeros(2).long()),
        {"linear_bias": torch.ones(3)},
    ),
    "target": (ValueError, r"target of shape \[2\]", (E23, E23, torch.zeros(3).long()), {}),
    "device": (RuntimeError, "device cpu", (E23, E23.to("meta"), torch.zeros(2).long()), {}),
    "list": (TypeError, "got .*list", (E23, E23, [0, 1]), {}),
    "list-ignored": (TypeError, "got .*list", (E23, E23, [0, 1]), {"ignore_index": 1}),
    "check": (ValueError, "check", (E23, E23, torch.zeros(2).long()), {"check": "async"}),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name: str) -> None:
    error, message, arguments, keywords = ERRORS[name]
    with pytest.raises(error, match=message):
        RF.linear_cross_entropy(*arguments, **keywords)
