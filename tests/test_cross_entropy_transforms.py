"""Cross-entropy under torch's transforms: vmap, grad, jvp, checkpointing, autocast, compile."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

import regops.functional as RF
from tests.test_cross_entropy import labels

X = torch.randn(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = labels((6, 5))
W = torch.randn(9, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
Z = labels((6, 9))


def ours(x: Tensor, w: Tensor) -> Tensor:
    return RF.cross_entropy(x, Y, label_smoothing=0.1) + RF.linear_cross_entropy(
        x, w, Z, label_smoothing=0.1
    )


def torchs(x: Tensor, w: Tensor) -> Tensor:
    return F.cross_entropy(x, Y, label_smoothing=0.1) + F.cross_entropy(
        x @ w.T, Z, label_smoothing=0.1
    )


def test_functional_gradients() -> None:
    for transform in (torch.func.grad, torch.func.jacrev, torch.func.jacfwd, torch.func.hessian):
        torch.testing.assert_close(transform(ours, (0, 1))(X, W), transform(torchs, (0, 1))(X, W))


def test_jvp() -> None:
    tangents = (torch.ones_like(X), torch.ones_like(W))
    torch.testing.assert_close(
        torch.func.jvp(ours, (X, W), tangents), torch.func.jvp(torchs, (X, W), tangents)
    )


@pytest.mark.parametrize("dim", [0, 1])
def test_vmap(dim: int) -> None:
    x = torch.randn(3, 6, 5).movedim(0, dim)
    y = torch.stack([labels((6, 5), 0.3, seed) for seed in range(3)])
    per_example = torch.vmap(RF.cross_entropy, in_dims=(dim, 0))(x, y)
    expected = torch.stack([F.cross_entropy(a, b) for a, b in zip(x.unbind(dim), y, strict=True)])
    torch.testing.assert_close(per_example, expected)


def test_per_example_gradients() -> None:
    found = torch.vmap(torch.func.grad(RF.cross_entropy))(X, Y)
    expected = torch.vmap(torch.func.grad(F.cross_entropy))(X, Y)
    torch.testing.assert_close(found, expected)


def test_arguments_are_checked_under_transforms() -> None:
    with pytest.raises(ValueError, match='got "avg"'):
        torch.func.grad(lambda x: RF.cross_entropy(x, Y, reduction="avg"))(X)
    with pytest.raises(RuntimeError, match="expected equal input and linear_weight"):
        torch.func.grad(lambda x: RF.linear_cross_entropy(x, W[:, 1:], Z))(X)


def test_a_target_out_of_range_is_nan_under_transforms() -> None:
    bad = torch.tensor([0, 9, 1, 2, 3, 4])
    losses = torch.vmap(lambda x, y: RF.cross_entropy(x, y, reduction="none"))(X, bad)
    assert losses.isnan().tolist() == [False, True, False, False, False, False]


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoint(reentrant: bool) -> None:
    def step(x: Tensor, w: Tensor) -> Tensor:
        return checkpoint(ours, x, w, use_reentrant=reentrant)

    inputs = [X.clone().requires_grad_(), W.clone().requires_grad_()]
    expected = torch.autograd.grad(torchs(*inputs), inputs)
    step(*inputs).backward()
    torch.testing.assert_close([tensor.grad for tensor in inputs], list(expected))


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled(reduction: str, dynamic: bool) -> None:
    torch._dynamo.reset()

    def step(x: Tensor, w: Tensor, y: Tensor, lam: Tensor) -> Tensor:
        options = {"reduction": reduction, "label_smoothing": 0.1, "z_loss": 1e-3}
        pair = {"target_b": y.flip(0), "lam": lam}
        logits = x @ w.T
        loss = RF.cross_entropy(logits * 2, y, **options, **pair, inplace_backward=True)
        chunked, lse = RF.linear_cross_entropy(
            x, w, y, **options, lam=0.3, target_b=y, return_lse=True
        )
        return (loss * 3 + chunked).sum() + lse.sum()

    compiled = torch.compile(step, fullgraph=True, dynamic=dynamic)
    for rows in (6, 11):
        for dtype in (torch.float32, torch.bfloat16):
            x = torch.randn(rows, 8).to(dtype).requires_grad_()
            w = torch.randn(9, 8).to(dtype).requires_grad_()
            y, lam = labels((rows, 9), 0.3), torch.rand(rows)
            results = []
            for function in (step, compiled):
                loss = function(x, w, y, lam)
                results.append((loss, *torch.autograd.grad(loss, (x, w))))
            # Inductor may keep what eager rounds to bfloat16 between the ops.
            tolerance = 1e-5 if dtype == torch.float32 else 4e-2
            for eager, after in zip(*results, strict=True):
                torch.testing.assert_close(
                    after, eager, rtol=tolerance, atol=tolerance * float(eager.abs().max())
                )


def test_compiled_once_for_all_sizes_and_shares() -> None:
    """New sizes, and lam as mixup draws it for each batch, are no constants of the graph."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")

    def step(x: Tensor, w: Tensor, y: Tensor, lam: float) -> Tensor:
        pair = {"target_b": y.flip(0), "lam": lam}
        return RF.cross_entropy(x @ w.T, y, **pair) + RF.linear_cross_entropy(x, w, y, **pair)

    compiled = torch.compile(step, backend=counter, fullgraph=True, dynamic=True)
    for rows, classes, features in ((6, 9, 4), (7, 10, 5), (11, 17, 3), (30, 12, 8)):
        x = torch.randn(rows, features, requires_grad=True)
        w = torch.randn(classes, features, requires_grad=True)
        arguments = (x, w, torch.randint(classes, (rows,)), 1 / rows)
        results = []
        for function in (step, compiled):
            loss = function(*arguments)
            results.append((loss, *torch.autograd.grad(loss, (x, w))))
        torch.testing.assert_close(*results)
    assert counter.frame_count <= 2  # a float argument becomes dynamic at its second value


def test_compiled_gradients_to_probabilities() -> None:
    torch._dynamo.reset()

    def step(x: Tensor, w: Tensor, q: Tensor) -> Tensor:
        return RF.cross_entropy(x @ w.T, q.expand(6, 9)) + RF.linear_cross_entropy(
            x, w, q.expand(6, 9), linear_bias=q
        )

    inputs = [tensor.clone().requires_grad_() for tensor in (X, W, torch.rand(9).double())]
    compiled = torch.compile(step, fullgraph=True)
    found = torch.autograd.grad(compiled(*inputs), inputs)
    torch.testing.assert_close(found, torch.autograd.grad(step(*inputs), inputs))


def test_compiled_code_cannot_wait() -> None:
    torch._dynamo.reset()
    for function in (
        lambda: RF.cross_entropy(X, Y, check="sync"),
        lambda: RF.linear_cross_entropy(X, W, Z, check="sync"),
    ):
        with pytest.raises(Exception, match="leave it out there"):
            torch.compile(function, fullgraph=True)()


def test_an_error_in_compiled_code_names_the_row() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(lambda x, y: RF.cross_entropy(x * 2, y), fullgraph=True)
    with pytest.raises(IndexError, match=r"got 9 at row 1"):
        compiled(X, torch.tensor([0, 9, 1, 2, 3, 4]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype: torch.dtype) -> None:
    x, w = X.float().requires_grad_(), W.float().requires_grad_()
    weight, bias = torch.rand(9), torch.rand(9)
    with torch.autocast("cpu", dtype=dtype):
        logits = F.linear(x, w, bias)
        losses = (
            RF.cross_entropy(logits, Z, weight, label_smoothing=0.1),
            RF.linear_cross_entropy(x, w, Z, linear_bias=bias, weight=weight, label_smoothing=0.1),
            F.cross_entropy(logits, Z, weight, label_smoothing=0.1),
        )
    assert logits.dtype == dtype
    for loss in losses[:2]:
        assert loss.dtype == losses[2].dtype == torch.float32
        torch.testing.assert_close(loss, losses[2])
        found = torch.autograd.grad(loss, (x, w), retain_graph=True)
        expected = torch.autograd.grad(losses[2], (x, w), retain_graph=True)
        for a, b in zip(found, expected, strict=True):
            eps = torch.finfo(dtype).eps
            torch.testing.assert_close(a, b, rtol=4 * eps, atol=4 * eps * float(b.abs().max()))


def test_gradient_scaler() -> None:
    model = torch.nn.Linear(5, 9)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**15)
    with torch.autocast("cpu", dtype=torch.float16):
        loss = RF.cross_entropy(model(X.float()), Z)
    (expected,) = torch.autograd.grad(
        F.cross_entropy(model(X.float()), Z), [model.weight], retain_graph=True
    )
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    torch.testing.assert_close(model.weight.grad, expected, rtol=1e-2, atol=1e-3)
    scaler.step(optimizer)


@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck(requires_grad: bool) -> None:
    weight, lam, items = torch.rand(5), torch.rand(6), torch.tensor(4.0)
    x, w = X.float().requires_grad_(requires_grad), W.float().requires_grad_(requires_grad)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    if not requires_grad:  # the rest differentiates, which ops of which this is one do for it
        tests += ("test_aot_dispatch_dynamic",)
    for reduction in ("none", "mean"):
        for return_lse in (False, True):
            numbers = (-100, reduction, 0.1, "uniform", 0.1, 0.1, return_lse, False)
            pair = (weight, Y.flip(0), lam, None if reduction == "none" else items)
            torch.library.opcheck(
                torch.ops.regops.cross_entropy, (x, Y, *pair, *numbers), test_utils=tests
            )
            torch.library.opcheck(
                torch.ops.regops.linear_cross_entropy,
                (x, Z, None, *pair[1:], *numbers, w, torch.rand(9), 2),
                test_utils=tests,
            )
    loss = torch.tensor(1.0)
    torch.library.opcheck(
        torch.ops.regops.cross_entropy_with_gradient,
        (X.float(), Y, *pair, *numbers),
        test_utils=("test_schema", "test_faketensor"),
    )
    torch.library.opcheck(
        torch.ops.regops.cross_entropy_backward,
        (X.float(), Y, *pair, *numbers, loss, torch.rand(6), False),
        test_utils=("test_schema", "test_faketensor"),
    )


def test_export() -> None:
    class Head(torch.nn.Module):
        def forward(self, x: Tensor, w: Tensor) -> Tensor:
            return ours(x, w)

    exported = torch.export.export(Head(), (X, W))
    torch.testing.assert_close(exported.module()(X, W), ours(X, W))
