"""What DropConnect takes from the allocator: outputs, gradients and one panel of weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import regops.functional as RF
from bench.memory import peak_of

MIB = 1 << 20
SLACK = MIB // 16  # keys, counters, a bias


def _layer(rows: int, ins: int, outs: int, dtype: torch.dtype, device: str) -> tuple[Tensor, ...]:
    shapes = ((rows, ins), (outs, ins), (outs,))
    return tuple(torch.randn(shape, device=device).to(dtype).requires_grad_() for shape in shapes)


def _extra(layer: tuple[Tensor, ...], **options: Any) -> int:
    """Bytes that forward and backward held beyond the output and the gradients."""
    upstream = torch.ones(len(layer[0]), len(layer[1]), dtype=layer[0].dtype).to(layer[0].device)

    def step() -> None:
        output = RF.dropconnect_linear(*layer, **options)
        torch.autograd.grad(output, layer, upstream)

    peak, _ = peak_of(step, layer[0].device)
    return peak - upstream.nbytes - sum(tensor.nbytes for tensor in layer)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_batch_takes_a_panel_of_4_mib(dtype: torch.dtype) -> None:
    layer = _layer(256, 4096, 4096, dtype, "cpu")
    # torch's product of bfloat16 takes some of its own.
    slack = SLACK if dtype == torch.float32 else MIB // 2
    assert _extra(layer, drop_bias=True) <= 4 * MIB + slack


@pytest.mark.parametrize("layout", ["contiguous", "transposed"])
def test_no_layout_of_the_weight_takes_more(layout: str) -> None:
    x, weight, bias = _layer(8, 2048, 4096, torch.float32, "cpu")
    if layout == "transposed":
        weight = weight.detach().t().contiguous().t().requires_grad_()
    assert _extra((x, weight, bias)) <= 4 * MIB + SLACK


def test_samples_take_no_mask(device: str) -> None:
    """64 x 1024 x 1024 of anything would be 64 MiB in bits' worth of bytes."""
    layer = _layer(64, 1024, 1024, torch.float32, device)
    rows_by_outs = 64 * 1024 * 4
    # A dropped bias of each example forward, and its gradient before the sum.
    extra = _extra(layer, mask="sample", drop_bias=True)
    assert extra <= (rows_by_outs if device == "cpu" else MIB) + SLACK
    if device == "cpu":
        assert _extra(layer, mask="sample") <= SLACK


def test_forward_keeps_the_key(device: str) -> None:
    layer = _layer(64, 512, 512, torch.float32, device)
    outputs: list[Tensor] = []
    for mask in ("batch", "sample"):
        _, held = peak_of(
            lambda mask=mask: outputs.append(RF.dropconnect_linear(*layer, mask=mask)),
            layer[0].device,
        )
        assert held <= outputs.pop().nbytes + 1024


def test_moments_take_one_panel_of_squares(device: str) -> None:
    layer = [tensor.detach() for tensor in _layer(32, 2048, 4096, torch.float32, device)]
    peak, _ = peak_of(lambda: RF.dropconnect_moments(*layer), layer[0].device)
    moments = 2 * 32 * 4096 * 4
    squared_input = layer[0].nbytes
    assert peak <= moments + squared_input + (2 if device == "cpu" else 16) * MIB + SLACK


def test_the_meter_sees_what_eager_takes(device: str) -> None:
    x, weight, _ = _layer(8, 1024, 1024, torch.float32, device)

    def eager() -> None:
        torch.autograd.grad(F.linear(x, F.dropout(weight)).sum(), (x, weight))

    peak, _ = peak_of(eager, x.device)
    assert peak >= 2 * weight.nbytes + x.nbytes
