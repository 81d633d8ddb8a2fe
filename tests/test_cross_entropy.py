"""What is special to cross-entropy: torch's corner cases, the extras, gradients in every use.

Long because the corners are many; each section stands by itself.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import regops.functional as RF
import regops.nn
import regops.reference

SHAPES = {
    "unbatched": (5,),
    "batch": (7, 5),
    "one-class": (3, 1),
    "sequence": (4, 5, 3),
    "image": (2, 5, 3, 4),
    "no-rows": (0, 5),
    "no-positions": (2, 5, 0),
}
INF, NAN = float("inf"), float("nan")


def classes_of(shape: tuple[int, ...]) -> int:
    return shape[1] if len(shape) > 1 else shape[0]


def rows_of(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[:1] + shape[2:] if len(shape) > 1 else ()


def labels(shape: tuple[int, ...], ignored: float = 0.0, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(classes_of(shape), rows_of(shape), generator=generator)
    dropped = torch.rand(rows_of(shape), generator=generator) < ignored
    return torch.where(dropped, torch.full_like(target, -100), target)


def gradient(loss: Tensor, input: Tensor) -> Tensor:
    upstream = torch.linspace(0.5, 1.5, loss.numel(), dtype=loss.dtype).reshape(loss.shape)
    (result,) = torch.autograd.grad(loss, input, upstream)
    return result


def assert_same(actual: Tensor, expected: Tensor) -> None:
    """Of float64: sums of a few terms in another order."""
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-13, equal_nan=True)


# ---- torch's semantics --------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_is_torchs(shape: tuple[int, ...], reduction: str) -> None:
    for smoothing, weighted, ignored in itertools.product((0.0, 0.1, 1.0), (0, 1), (0.0, 0.4, 1.0)):
        input = torch.randn(shape, dtype=torch.float64, requires_grad=True)
        weight = torch.rand(classes_of(shape), dtype=torch.float64) if weighted else None
        target = labels(shape, ignored)
        results = []
        for function in (RF.cross_entropy, F.cross_entropy):
            loss = function(input, target, weight, reduction=reduction, label_smoothing=smoothing)
            results.append((loss, gradient(loss, input)))
        for ours, torchs in zip(*results, strict=True):
            assert_same(ours, torchs)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_probabilities_are_torchs(shape: tuple[int, ...], reduction: str) -> None:
    for smoothing, weighted in itertools.product((0.0, 0.1, 1.0), (0, 1)):
        input = torch.randn(shape, dtype=torch.float64, requires_grad=True)
        target = torch.rand(shape, dtype=torch.float64, requires_grad=True)
        weight = torch.rand(classes_of(shape), dtype=torch.float64) if weighted else None
        results = []
        for function in (RF.cross_entropy, F.cross_entropy):
            loss = function(input, target, weight, reduction=reduction, label_smoothing=smoothing)
            constant = function(
                input, target.detach(), weight, reduction=reduction, label_smoothing=smoothing
            )
            (of_target,) = torch.autograd.grad(function(input, target, weight), target)
            results.append((loss, gradient(loss, input), gradient(constant, input), of_target))
        for ours, torchs in zip(*results, strict=True):
            assert_same(ours, torchs)


@pytest.mark.parametrize("logits", [[0.0, -INF, 1.0], [-INF] * 3, [INF, 0.0, 1.0], [NAN, 0.0, 1.0]])
@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.usefixtures("cpu_capability")
def test_infinite_logits_are_torchs(
    logits: list[float], label: int, smoothing: float, columns: bool
) -> None:
    shape = (1, 3, 2) if columns else (1, 3)
    target = torch.full(rows_of(shape), label)
    for dtype in (torch.float64, torch.float32):
        results = []
        for function in (RF.cross_entropy, F.cross_entropy):
            input = torch.tensor(logits, dtype=dtype).reshape(1, 3, 1).expand(1, 3, 2)
            input = (input if columns else input[..., 0]).clone().requires_grad_()
            loss = function(input, target, label_smoothing=smoothing)
            results.append((loss, *torch.autograd.grad(loss, input)))
        for ours, torchs in zip(*results, strict=True):
            torch.testing.assert_close(ours, torchs, equal_nan=True)


def test_zero_times_infinity_of_a_probability_is_torchs_nan() -> None:
    input, target = torch.tensor([[0.0, -INF]]), torch.tensor([[1.0, 0.0]])
    assert RF.cross_entropy(input, target).isnan()
    assert F.cross_entropy(input, target).isnan()


def test_no_rows_and_no_counted_rows() -> None:
    for target in (torch.full((3,), -100), torch.empty(0, dtype=torch.int64)):
        input = torch.randn(len(target), 4, requires_grad=True)
        loss = RF.cross_entropy(input, target)
        assert loss.isnan()
        loss.backward()
        assert torch.equal(input.grad, torch.zeros_like(input))
        assert RF.cross_entropy(input, target, reduction="sum") == 0.0


def test_no_classes() -> None:
    input = torch.empty(3, 0)
    ignored = torch.full((3,), -100)
    assert torch.equal(RF.cross_entropy(input, ignored, reduction="none"), torch.zeros(3))
    assert torch.equal(RF.cross_entropy(input, input, reduction="none"), torch.zeros(3))
    _, lse = RF.cross_entropy(input, ignored, return_lse=True)
    assert torch.equal(lse, torch.full((3,), -INF))
    with pytest.raises(IndexError, match=r"expected target in \[0, 0\), got 2 at row 1"):
        RF.cross_entropy(input, torch.tensor([-100, 2, 0]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_losses_are_float32(dtype: torch.dtype) -> None:
    input = torch.randn(50, 30).to(dtype).requires_grad_()
    target = labels((50, 30))
    loss = RF.cross_entropy(input, target, label_smoothing=0.1)
    expected = F.cross_entropy(input.float(), target, label_smoothing=0.1)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected)
    assert torch.autograd.grad(loss, input)[0].dtype == dtype


def test_uint8_targets() -> None:
    input, target = torch.randn(6, 5), labels((6, 5))
    assert torch.equal(RF.cross_entropy(input, target.byte()), RF.cross_entropy(input, target))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_float32_weights_and_probabilities_of_half_logits(dtype: torch.dtype) -> None:
    input, target, weight = torch.randn(6, 5).to(dtype), torch.rand(6, 5), torch.rand(5)
    loss = RF.cross_entropy(input, target, weight)
    torch.testing.assert_close(loss, F.cross_entropy(input.float(), target, weight))


@pytest.mark.usefixtures("cpu_capability")
@pytest.mark.parametrize("shift", [-1000.0, 0.0, 1000.0, 1e30])
@pytest.mark.parametrize("shape", [(3, 7), (2, 70001), (2, 40, 33)])
def test_shifted_logits_lose_no_precision(shift: float, shape: tuple[int, ...]) -> None:
    """The loss depends on differences of logits, which are exact here before the op."""
    base = torch.randint(-8, 8, shape).float()
    input = (base + shift) if abs(shift) < 1e6 else torch.full(shape, shift)
    target = labels(shape)
    loss = RF.cross_entropy(input, target, label_smoothing=0.2, reduction="none")
    expected = regops.reference.cross_entropy(
        input.double(), target, label_smoothing=0.2, reduction="none"
    )
    torch.testing.assert_close(loss.double(), expected, rtol=2e-6, atol=0.0)


# ---- ignored rows and bad targets ---------------------------------------------------------------


@pytest.mark.usefixtures("cpu_capability")
@pytest.mark.parametrize("shape", [(4, 9), (4, 2000), (4, 9, 5), (4, 2000, 3)])
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_ignored_rows_have_zero_gradient_whatever_their_logits(
    shape: tuple[int, ...], value: float
) -> None:
    input = torch.randn(shape)
    input[1] = value
    input.requires_grad_()
    target = labels(shape)
    target[1] = -100
    for reduction in ("mean", "none"):
        loss = RF.cross_entropy(
            input, target, reduction=reduction, label_smoothing=0.1, entropy_weight=0.1, z_loss=0.1
        )
        assert loss.isfinite().all()
        (found,) = torch.autograd.grad(loss.sum(), input)
        assert torch.equal(found[1], torch.zeros_like(found[1]))
        assert found.isfinite().all()


def test_a_mean_over_many_rows_counts_each() -> None:
    """Weights are summed by chunks of rows."""
    input, target = torch.randn(20001, 3, dtype=torch.float64), labels((20001, 3), 0.3)
    weight = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    assert_same(RF.cross_entropy(input, target, weight), F.cross_entropy(input, target, weight))


def test_one_label_of_one_class_is_no_probability() -> None:
    assert RF.cross_entropy(torch.tensor([2.0]), torch.tensor([0])) == 0.0
    assert RF.cross_entropy(torch.tensor([2.0]), torch.tensor([-100]), reduction="sum") == 0.0
    assert RF.cross_entropy(torch.tensor([2.0]), torch.tensor([0.5]), z_loss=1.0) == 4.0


def test_an_ignore_index_that_is_a_class() -> None:
    input, target = torch.randn(6, 5), torch.tensor([0, 1, 2, 2, 1, 4])
    assert torch.equal(
        RF.cross_entropy(input, target, ignore_index=2),
        RF.cross_entropy(input[[0, 1, 4, 5]], target[[0, 1, 4, 5]]),
    )


@pytest.mark.parametrize("bad", [-1, 5, -(1 << 40), 1 << 40])
@pytest.mark.parametrize("row", [0, 3, 20000])
def test_bad_targets_are_named_before_anything_is_written(bad: int, row: int) -> None:
    leaf = torch.randn(20001, 5, requires_grad=True)
    target = labels((20001, 5))
    target[row] = bad
    message = rf"in \[0, 5\), got {bad} at row {row}"
    logits = leaf * 1
    before = logits.detach().clone()
    with pytest.raises(IndexError, match=f"regops.cross_entropy: expected target {message}"):
        RF.cross_entropy(logits, target, inplace_backward=True)
    assert torch.equal(logits, before)
    with pytest.raises(IndexError, match=f"regops.cross_entropy: expected target_b {message}"):
        RF.cross_entropy(leaf, labels((20001, 5)), target_b=target, lam=0.5)


# ---- the extras ---------------------------------------------------------------------------------


def test_smoothing_over_others() -> None:
    input, target = torch.randn(6, 5, dtype=torch.float64), labels((6, 5))
    loss = RF.cross_entropy(input, target, label_smoothing=0.2, smoothing="others")
    spread = torch.full((6, 5), 0.2 / 4, dtype=torch.float64)
    spread[torch.arange(6), target] = 0.8
    assert_same(loss, -(spread * input.log_softmax(1)).sum(1).mean())
    one_class = torch.randn(3, 1)
    zeros = torch.zeros(3, dtype=torch.int64)
    assert RF.cross_entropy(one_class, zeros, label_smoothing=0.2, smoothing="others") == 0.0


def test_z_loss_and_entropy_weight() -> None:
    input, target = torch.randn(6, 5, dtype=torch.float64), labels((6, 5))
    plain = F.cross_entropy(input, target)
    entropy = torch.distributions.Categorical(logits=input).entropy().mean()
    assert_same(
        RF.cross_entropy(input, target, z_loss=0.3),
        plain + 0.3 * input.logsumexp(1).square().mean(),
    )
    assert_same(RF.cross_entropy(input, target, entropy_weight=0.3), plain - 0.3 * entropy)


@pytest.mark.usefixtures("cpu_capability")
@pytest.mark.parametrize("shape", [(2, 4), (2, 3000), (2, 4, 3)])
def test_entropy_is_safe_where_a_probability_is_zero(shape: tuple[int, ...]) -> None:
    input = torch.randn(shape)
    input[:, 1] = -INF
    input[:, 2] = -200.0  # exp underflows
    input.requires_grad_()
    target = torch.zeros(rows_of(shape), dtype=torch.int64)
    loss = RF.cross_entropy(input, target, entropy_weight=0.5)
    (found,) = torch.autograd.grad(loss, input)
    kept = input.detach()[:, [c for c in range(shape[1]) if c not in (1, 2)]].requires_grad_()
    expected = RF.cross_entropy(kept, target, entropy_weight=0.5)
    torch.testing.assert_close(loss, expected)
    assert found.isfinite().all()
    assert not found[:, 1:3].any()


@pytest.mark.parametrize("shape", [(6, 5), (4, 5, 3)])
def test_pairs_are_the_mixup_recipe(shape: tuple[int, ...]) -> None:
    input = torch.randn(shape, dtype=torch.float64)
    a, b = labels(shape, 0.3), labels(shape, 0.3, seed=1)
    losses = [
        F.cross_entropy(input, target, reduction="none", label_smoothing=0.1) for target in (a, b)
    ]
    share = torch.rand(shape[0], dtype=torch.float64)
    by_row = share.reshape(-1, *(1,) * (a.dim() - 1))
    for lam, factor in (
        (0.3, 0.3),
        (torch.tensor(0.3), 0.3),
        (share, by_row),
        (by_row + 0 * a, by_row),
    ):
        if isinstance(lam, Tensor) and lam.dtype == torch.float32:
            factor = float(lam)
        loss = RF.cross_entropy(
            input, a, reduction="none", label_smoothing=0.1, target_b=b, lam=lam
        )
        assert_same(loss, factor * losses[0] + (1 - factor) * losses[1])
    same = RF.cross_entropy(input, a, target_b=a, lam=0.3)
    assert_same(same, F.cross_entropy(input, a))


@pytest.mark.parametrize("as_tensor", [False, True])
def test_num_items_accumulates_to_the_union_of_the_micro_batches(as_tensor: bool) -> None:
    input = torch.randn(12, 5, dtype=torch.float64, requires_grad=True)
    target = labels((12, 5), 0.4)
    items = int((target != -100).sum())
    whole = F.cross_entropy(input, target)
    parts = [
        RF.cross_entropy(x, y, num_items=torch.tensor(items) if as_tensor else items)
        for x, y in zip(input.split([3, 9]), target.split([3, 9]), strict=True)
    ]
    assert_same(sum(parts), whole)
    assert_same(torch.autograd.grad(sum(parts), input)[0], torch.autograd.grad(whole, input)[0])


@pytest.mark.parametrize("shape", [(5,), (6, 5), (4, 5, 3)])
def test_lse_is_returned_and_differentiable(shape: tuple[int, ...]) -> None:
    input = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    loss, lse = RF.cross_entropy(input, labels(shape, 0.4), return_lse=True)
    expected = input.logsumexp(0 if len(shape) == 1 else 1)
    assert_same(lse, expected)
    assert_same(gradient(lse, input), gradient(expected, input))
    loss, lse = RF.cross_entropy(input, labels(shape), return_lse=True)
    (both,) = torch.autograd.grad(loss + lse.square().mean(), input)
    (fused,) = torch.autograd.grad(RF.cross_entropy(input, labels(shape), z_loss=1.0), input)
    assert_same(both, fused)


# ---- gradients in every use ---------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("upstream", [1.0, 0.0, -2.5, 65536.0])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_any_upstream_gradient_twice(dtype: torch.dtype, upstream: float, reduction: str) -> None:
    input = torch.randn(40, 30).to(dtype).requires_grad_()
    target = labels((40, 30), 0.2)
    loss = RF.cross_entropy(input, target, reduction=reduction, label_smoothing=0.1)
    factor = torch.tensor(upstream, dtype=loss.dtype)
    (first,) = torch.autograd.grad(loss, input, factor, retain_graph=True)
    before = first.clone()
    first_again = first.zero_()  # a user's own: changes nothing for the next
    (second,) = torch.autograd.grad(loss, input, factor)
    assert first_again.data_ptr() != second.data_ptr()
    torch.testing.assert_close(second, before, rtol=0, atol=0, equal_nan=True)
    reference = input.detach().double().requires_grad_()
    expected_loss = F.cross_entropy(reference, target, reduction=reduction, label_smoothing=0.1)
    (expected,) = torch.autograd.grad(expected_loss, reference, factor.double())
    # Two roundings to the type where the finished gradient is scaled; float32 arithmetic before.
    tolerance = max(2 * torch.finfo(dtype).eps, 4e-6 if dtype != torch.float64 else 1e-12)
    torch.testing.assert_close(
        second.double(), expected, rtol=tolerance, atol=float(expected.abs().max()) * tolerance
    )
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, input, factor)


def test_float16_gradients_below_its_range_survive_a_loss_scale() -> None:
    """A gradient p / N of 2^-26 is no float16, but 2^16 times it is: forward may not round it."""
    input = torch.zeros(4096, 1 << 14, dtype=torch.float16, requires_grad=True)
    target = torch.zeros(4096, dtype=torch.int64)
    (RF.cross_entropy(input, target) * 65536.0).backward()
    assert input.grad[0, 1] == 2.0**-26 * 65536.0


def test_gradients_accumulate_and_are_not_shared() -> None:
    input, target = torch.randn(6, 5, requires_grad=True), labels((6, 5))
    loss = RF.cross_entropy(input, target)
    loss.backward(retain_graph=True)
    once = input.grad.clone()
    loss.backward()
    torch.testing.assert_close(input.grad, 2 * once)
    (alone,) = torch.autograd.grad(RF.cross_entropy(input, target), input)
    torch.testing.assert_close(alone, once)


def test_hooks_may_change_a_gradient_in_place() -> None:
    leaf, target = torch.randn(6, 5, requires_grad=True), labels((6, 5))
    logits = leaf * 1
    logits.register_hook(lambda g: g.mul_(2.0))
    loss = RF.cross_entropy(logits, target)
    loss.backward(retain_graph=True)
    loss.backward()
    (plain,) = torch.autograd.grad(F.cross_entropy(leaf, target), leaf)
    torch.testing.assert_close(leaf.grad, 4 * plain)


def test_input_is_never_written_by_default() -> None:
    for reduction in ("none", "mean"):
        input = torch.randn(6, 5, requires_grad=True)
        before = input.detach().clone()
        RF.cross_entropy(input, labels((6, 5)), reduction=reduction).sum().backward()
        assert torch.equal(input, before)
        assert input._version == 0


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_double_backward(reduction: str) -> None:
    input = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    probabilities = torch.rand(4, 5, dtype=torch.float64, requires_grad=True)
    target = labels((4, 5), 0.3)

    def indices(x: Tensor) -> tuple[Tensor, Tensor]:
        return RF.cross_entropy(
            x,
            target,
            torch.arange(1.0, 6.0, dtype=torch.float64),
            reduction=reduction,
            label_smoothing=0.1,
            z_loss=0.1,
            entropy_weight=0.2,
            return_lse=True,
        )

    def soft(x: Tensor, q: Tensor) -> Tensor:
        return RF.cross_entropy(x, q, reduction=reduction, label_smoothing=0.1, z_loss=0.1)

    for function, inputs in ((indices, (input,)), (soft, (input, probabilities))):
        assert torch.autograd.gradcheck(function, inputs, check_forward_ad=True)
        assert torch.autograd.gradgradcheck(function, inputs)


# ---- the gradient in the logits' memory ---------------------------------------------------------


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_inplace_backward(reduction: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    leaf = torch.randn(shape).to(dtype).requires_grad_()
    logits = leaf * 2
    view, memory = logits.view(-1), logits.data_ptr()
    got = []
    logits.register_hook(lambda g: got.append(g.data_ptr()))
    loss = RF.cross_entropy(logits, labels(shape), reduction=reduction, inplace_backward=True)
    loss.sum().backward()
    assert got == [memory]
    plain = leaf.detach().clone().requires_grad_()
    RF.cross_entropy(plain * 2, labels(shape), reduction=reduction).sum().backward()
    assert torch.equal(leaf.grad, plain.grad)
    for use in (logits.argmax, logits.sum, view.clone, lambda: logits + 1, lambda: str(logits)):
        with pytest.raises(RuntimeError, match="gave the memory of these logits to their gradient"):
            use()


def test_inplace_backward_fails_loudly_where_the_logits_are_needed() -> None:
    leaf, target = torch.randn(6, 5, requires_grad=True), labels((6, 5))
    saved = leaf.exp()  # its backward needs its result
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        RF.cross_entropy(saved, target, inplace_backward=True).backward()
    with pytest.raises(RuntimeError, match="no leaf"):
        RF.cross_entropy(leaf, target, inplace_backward=True)
    part = (leaf * 1)[:, :4]
    with pytest.raises(ValueError, match="fills its memory"):
        RF.cross_entropy(part, labels((6, 4)), inplace_backward=True)
    loss = RF.cross_entropy(leaf * 1, target, inplace_backward=True)
    with pytest.raises(RuntimeError, match="double backward needs the logits"):
        torch.autograd.grad(loss, leaf, create_graph=True)
    loss = RF.cross_entropy(leaf * 1, target, reduction="none", inplace_backward=True).sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match=r"gave the memory|modified by an inplace operation"):
        loss.backward()


def test_inplace_backward_keeps_the_graph_on_request() -> None:
    leaf, target = torch.randn(6, 5, requires_grad=True), labels((6, 5))
    loss = RF.cross_entropy(leaf * 1, target, inplace_backward=True)
    (first,) = torch.autograd.grad(loss, leaf, torch.tensor(3.0), retain_graph=True)
    (second,) = torch.autograd.grad(loss, leaf, torch.tensor(3.0))
    assert torch.equal(first, second)


def test_inplace_backward_without_a_gradient_keeps_the_logits() -> None:
    logits, target = torch.randn(6, 5), labels((6, 5))
    before = logits.clone()
    RF.cross_entropy(logits, target, inplace_backward=True)
    with torch.no_grad():
        RF.cross_entropy(logits.clone().requires_grad_(), target, inplace_backward=True)
    assert torch.equal(logits, before)


# ---- sizes over 32 bits -------------------------------------------------------------------------


def test_more_logits_than_32_bits_count() -> None:
    """Rows that share their memory, so that only the indices are large."""
    rows, classes = (1 << 17) + 1, 1 << 15
    row = torch.randn(classes)
    target = torch.arange(rows) % classes
    loss = RF.cross_entropy(row.expand(rows, classes), target, reduction="none")
    expected = row.double().logsumexp(0) - row.double()
    torch.testing.assert_close(loss.double(), expected[target], rtol=2e-6, atol=2e-6)


def test_one_row_of_more_classes_than_32_bits_count() -> None:
    classes = (1 << 31) + 8
    zeros = torch.from_numpy(np.zeros(classes, np.int16)).view(torch.bfloat16)  # no real pages
    loss = RF.cross_entropy(zeros, torch.tensor(classes - 1))
    assert math.isclose(loss.item(), math.log(classes), rel_tol=1e-6)


def test_rows_that_stand_more_than_32_bits_apart() -> None:
    apart = (1 << 31) + 64
    memory = torch.empty(apart + 8, dtype=torch.bfloat16)  # only the pages written are real
    input = memory.as_strided((2, 8), (apart, 1))
    input.copy_(torch.randn(2, 8))
    target = torch.tensor([3, 7])
    expected = F.cross_entropy(input.float(), target, reduction="none")
    torch.testing.assert_close(RF.cross_entropy(input, target, reduction="none"), expected)


# ---- errors -------------------------------------------------------------------------------------

X, Y = torch.randn(3, 5), torch.tensor([0, 1, 2])
ERRORS = {
    "0-d": (
        RuntimeError,
        r"shape \[C\] or \[N, C, \.\.\.\]",
        (torch.tensor(1.0), torch.tensor(0)),
        {},
    ),
    "batch": (ValueError, r"target of shape \[3\] .* got \[2\]", (X, Y[:2]), {}),
    "positions": (
        RuntimeError,
        r"target of shape \[2, 4\] .* got \[2, 5\]",
        (torch.randn(2, 3, 4), torch.zeros(2, 5, dtype=torch.int64)),
        {},
    ),
    "float-labels": (RuntimeError, "dtype int64 or uint8", (X, Y.float()), {}),
    "int32-labels": (RuntimeError, "dtype int64 or uint8", (X, Y.int()), {}),
    "int-probabilities": (RuntimeError, "floating-point dtype", (X, X.long()), {}),
    "double-probabilities": (RuntimeError, "got Double", (X, X.double()), {}),
    "int-input": (NotImplementedError, "float64, float32", (X.long(), Y), {}),
    "sparse": (NotImplementedError, "strided", (X.to_sparse(), Y), {}),
    "weight-shape": (RuntimeError, r"weight of shape \[5\]", (X, Y, torch.ones(4)), {}),
    "weight-dims": (RuntimeError, r"weight of shape \[5\]", (X, Y, torch.ones(1, 5)), {}),
    "weight-device": (RuntimeError, "expected weight on", (X, Y, torch.ones(5).to("meta")), {}),
    "weight-dtype": (RuntimeError, "got Double", (X, Y, torch.ones(5).double()), {}),
    "weight-grad": (
        RuntimeError,
        "weight is a constant",
        (X, Y, torch.ones(5, requires_grad=True)),
        {},
    ),
    "reduction": (ValueError, 'got "avg"', (X, Y), {"reduction": "avg"}),
    "smoothing-high": (RuntimeError, "got 1.5", (X, Y), {"label_smoothing": 1.5}),
    "smoothing-negative": (RuntimeError, "got -0.5", (X, Y), {"label_smoothing": -0.5}),
    "smoothing-nan": (RuntimeError, "got nan", (X, Y), {"label_smoothing": NAN}),
    "smoothing-name": (ValueError, 'got "other"', (X, Y), {"smoothing": "other"}),
    "ignored-probabilities": (RuntimeError, "ignore_index", (X, X), {"ignore_index": 1}),
    "lam-alone": (ValueError, "target_b and lam together", (X, Y), {"lam": 0.5}),
    "pair-alone": (ValueError, "target_b and lam together", (X, Y), {"target_b": Y}),
    "pair-shape": (ValueError, "target_b of shape", (X, Y), {"target_b": Y[:2], "lam": 0.5}),
    "pair-soft": (ValueError, "class indices", (X, X), {"target_b": Y, "lam": 0.5}),
    "lam-shape": (ValueError, "lam to be", (X, Y), {"target_b": Y, "lam": torch.rand(2)}),
    "lam-dtype": (TypeError, "lam", (X, Y), {"target_b": Y, "lam": torch.tensor(1)}),
    "pair-device": (
        RuntimeError,
        "expected target_b on",
        (X, Y),
        {"target_b": Y.to("meta"), "lam": 0.5},
    ),
    "lam-device": (
        RuntimeError,
        "expected lam on",
        (X, Y),
        {"target_b": Y, "lam": torch.rand(3).to("meta")},
    ),
    "lam-grad": (
        RuntimeError,
        "lam is a constant",
        (X, Y),
        {"target_b": Y, "lam": torch.rand(3, requires_grad=True)},
    ),
    "num-items-grad": (
        RuntimeError,
        "num_items is a constant",
        (X, Y),
        {"num_items": torch.ones((), requires_grad=True)},
    ),
    "num-items-device": (
        RuntimeError,
        "expected num_items on",
        (X, Y),
        {"num_items": torch.ones(()).to("meta")},
    ),
    "num-items-sum": (ValueError, 'reduction "mean"', (X, Y), {"num_items": 3, "reduction": "sum"}),
    "num-items-shape": (ValueError, "num_items", (X, Y), {"num_items": torch.ones(3)}),
    "lam-number": (ValueError, r"lam in \[0, 1\], got 2.0", (X, Y), {"target_b": Y, "lam": 2.0}),
    "lam-nan": (ValueError, r"lam in \[0, 1\], got nan", (X, Y), {"target_b": Y, "lam": NAN}),
    "lam-array": (TypeError, "lam to be", (X, Y), {"target_b": Y, "lam": np.ones(3)}),
    "num-items-negative": (ValueError, "num_items of at least 0", (X, Y), {"num_items": -1}),
    "num-items-bool": (TypeError, "num_items to be a number", (X, Y), {"num_items": True}),
    "z-loss": (ValueError, "finite z_loss, got nan", (X, Y), {"z_loss": NAN}),
    "entropy": (ValueError, "finite entropy_weight, got inf", (X, Y), {"entropy_weight": INF}),
    "size-average": (TypeError, "size_average", (X, Y, None, True), {}),
    "check": (ValueError, 'got "async"', (X, Y), {"check": "async"}),
    "device": (RuntimeError, "on the input's device", (X, Y.to("meta")), {}),
    "list": (TypeError, "cross_entropy: expected target: Tensor, got list$", (X, [0, 1, 2]), {}),
    "none": (
        TypeError,
        "expected label_smoothing: float, got NoneType$",
        (X, Y),
        {"label_smoothing": None},
    ),
    "input-list": (TypeError, "got .*list", ([0.0], Y), {"lam": 0.5}),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name: str) -> None:
    error, message, arguments, keywords = ERRORS[name]
    with pytest.raises(error, match=message):
        RF.cross_entropy(*arguments, **keywords)


def test_check_is_accepted_where_every_call_is_checked() -> None:
    assert torch.equal(RF.cross_entropy(X, Y, check="sync"), RF.cross_entropy(X, Y))
    with pytest.raises(IndexError, match="at row 1"):
        RF.cross_entropy(X, torch.tensor([0, 9, 1]), check="sync")


# ---- the module ---------------------------------------------------------------------------------


def test_module() -> None:
    weight = torch.rand(5)
    module = regops.nn.CrossEntropyLoss(weight, label_smoothing=0.1, smoothing="others", z_loss=0.1)
    assert isinstance(module, torch.nn.CrossEntropyLoss)
    expected = RF.cross_entropy(X, Y, weight, label_smoothing=0.1, smoothing="others", z_loss=0.1)
    assert torch.equal(module(X, Y), expected)
    assert module.extra_repr() == "label_smoothing=0.1, smoothing='others', z_loss=0.1"
    assert torch.equal(module.state_dict()["weight"], weight)
    pair = module(X, Y, target_b=Y.flip(0), lam=0.3, num_items=7)
    assert pair.isfinite()


@pytest.mark.parametrize(
    ("keywords", "error"),
    [
        ({"reduction": "avg"}, ValueError),
        ({"smoothing": "other"}, ValueError),
        ({"label_smoothing": 2.0}, RuntimeError),
        ({"ignore_index": True}, TypeError),
        ({"ignore_index": Y}, TypeError),
    ],
)
def test_module_refuses_what_the_function_would(
    keywords: dict[str, object], error: type[Exception]
) -> None:
    with pytest.raises(error, match=r"regops\.nn\.CrossEntropyLoss: expected"):
        regops.nn.CrossEntropyLoss(**keywords)
