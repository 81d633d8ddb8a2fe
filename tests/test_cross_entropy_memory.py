"""What cross-entropy takes from the allocator: one gradient, none in place, a chunk of logits."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import regops.functional as RF
from bench.memory import peak_of

ROWS, CLASSES = 256, 4096
SLACK = ROWS * 64  # losses, targets and totals: some tens of bytes a row


def step(logits: Tensor, target: Tensor, **options: object) -> None:
    loss = RF.cross_entropy(logits, target, label_smoothing=0.1, **options)
    torch.autograd.grad(loss, logits, torch.ones_like(loss))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("shape", [(ROWS, CLASSES), (4, CLASSES, 64)], ids=["rows", "columns"])
def test_peak_is_one_gradient(
    dtype: torch.dtype, reduction: str, shape: tuple[int, ...], device: str
) -> None:
    leaf = torch.randn(shape, device=device).to(dtype).requires_grad_()
    target = torch.zeros(shape[:1] + shape[2:], dtype=torch.int64, device=device)
    gradient = leaf.numel() * dtype.itemsize
    peak, _ = peak_of(lambda: step(leaf, target, reduction=reduction), leaf.device)
    assert gradient <= peak <= gradient + SLACK
    logits = leaf * 1
    options = {"reduction": reduction, "inplace_backward": True}
    peak, _ = peak_of(lambda: step(logits, target, **options), leaf.device)
    assert peak <= SLACK


def test_the_meter_sees_what_eager_takes(device: str) -> None:
    logits = torch.randn(ROWS, CLASSES, device=device, requires_grad=True)
    target = torch.zeros(ROWS, dtype=torch.int64, device=device)

    def eager() -> None:
        torch.autograd.grad(F.cross_entropy(logits, target, label_smoothing=0.1), logits)

    peak, _ = peak_of(eager, logits.device)
    assert peak >= 2 * logits.nbytes


def test_linear_makes_chunks_unasked(device: str) -> None:
    hidden = torch.randn(1024, 2, device=device)
    weight = torch.randn(1 << 17, 2, device=device, requires_grad=True)
    target = torch.zeros(1024, dtype=torch.int64, device=device)
    logits = 1024 * weight.shape[0] * 4  # 512 MiB

    def chunked() -> None:
        torch.autograd.grad(RF.linear_cross_entropy(hidden, weight, target), weight)

    peak, _ = peak_of(chunked, hidden.device)
    assert peak <= logits // 2 + weight.nbytes + SLACK


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_linear_takes_its_gradients_and_a_chunk(reduction: str, device: str) -> None:
    class Options:
        batch_chunk_size = 32

    hidden = torch.randn(ROWS, 16, device=device, requires_grad=True)
    weight = torch.randn(CLASSES, 16, device=device, requires_grad=True)
    target = torch.zeros(ROWS, dtype=torch.int64, device=device)

    def chunked() -> None:
        loss = RF.linear_cross_entropy(
            hidden, weight, target, reduction=reduction, options=Options()
        )
        torch.autograd.grad(loss, (hidden, weight), torch.ones_like(loss))

    peak, _ = peak_of(chunked, hidden.device)
    chunk = 32 * CLASSES * 4
    assert peak <= hidden.nbytes + weight.nbytes + chunk + SLACK
