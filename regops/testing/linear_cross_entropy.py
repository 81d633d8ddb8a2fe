"""Cases of the linear layer and cross-entropy in one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

import regops.functional
import regops.reference
from regops.testing import BenchCase, Case, Direction, OpSpec, Tolerance, make_input
from regops.testing.cross_entropy import loss_arguments


def _eager(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    **options: Any,
) -> Tensor:
    logits = functional.linear(input, linear_weight, linear_bias)
    return functional.cross_entropy(logits, target, **options)


def _arguments(
    case: Case | BenchCase, dtype: torch.dtype, device: torch.device | str
) -> dict[str, Any]:
    """As of cross-entropy, and "classes": how many; "bias": whether there is one."""
    options = dict(case.kwargs)
    classes, bias = options.pop("classes"), options.pop("bias", False)
    features = case.shape[-1]
    # So that logits are of variance 1.
    weight = make_input((classes, features), torch.float32, seed=6) / features**0.5
    arguments = {"linear_weight": weight.to(dtype).to(device).requires_grad_()}
    if bias:
        arguments["linear_bias"] = make_input((classes,), dtype, device, seed=7).requires_grad_()
    return arguments | loss_arguments(options, (*case.shape[:-1], classes), dtype, device)


_SMOOTHED = {"classes": 7, "bias": True, "label_smoothing": 0.1, "weight": True, "ignored": 0.3}
_EXTRAS = {**_SMOOTHED, "z_loss": 0.01, "entropy_weight": 0.2}
_PROBABILITIES = {"classes": 7, "target": "probabilities", "label_smoothing": 0.1}

_PRODUCTS = (
    "as of cross-entropy, whose gradient the products sum over rows or classes with an error that "
    "grows as the root of their number; 32 more units"
)
_LOGITS = (
    "logits of magnitude up to 8 are rounded to the type: 4 half units of 1 each way before exp; "
    "their gradient and the products, once more each"
)
_EAGER = f"{_LOGITS}; log-probabilities of magnitude up to 16 too: 8 half units before exp"


def _tolerances(half_units: int, reason: str) -> dict[torch.dtype, Tolerance]:
    tolerance = {}
    for dtype in (torch.float64, torch.float32):
        bound = 64 * torch.finfo(dtype).eps
        tolerance[dtype] = Tolerance(2 * bound, 2 * bound, _PRODUCTS)
    for dtype in (torch.bfloat16, torch.float16):
        unit = torch.finfo(dtype).eps / 2
        of_gradient = (half_units * unit, 4 * unit)
        tolerance[dtype] = Tolerance(4 * unit, 0.0, reason, gradient=of_gradient)
    return tolerance


def _bytes_moved(case: BenchCase, itemsize: int, direction: Direction) -> int:
    classes: int = case.kwargs["classes"]
    return 2 * (case.numel + classes * case.shape[-1]) * itemsize


def _flops(case: BenchCase, direction: Direction) -> int:
    """Of three products: the logits, the input's gradient and the weight's."""
    classes: int = case.kwargs["classes"]
    return 3 * 2 * case.numel * classes


spec = OpSpec(
    name="linear_cross_entropy",
    functional=regops.functional.linear_cross_entropy,
    reference=regops.reference.linear_cross_entropy,
    eager=_eager,
    schemas=(),
    keyed=False,
    dtypes=(torch.float64, torch.float32, torch.bfloat16, torch.float16),
    cases=(
        Case("smoothed", (5, 3), _SMOOTHED),
        Case("plain", (5, 3), {"classes": 7}),
        Case("none", (5, 3), {**_SMOOTHED, "reduction": "none"}),
        Case("sum", (5, 3), {**_SMOOTHED, "reduction": "sum"}),
        Case("one-row", (5,), {"classes": 7, "label_smoothing": 0.1}),
        Case("one-class", (5, 3), {"classes": 1, "z_loss": 0.5}),
        Case("no-row", (0, 5), {**_SMOOTHED, "reduction": "sum"}),
        Case("odd", (9, 5), {**_EXTRAS, "classes": 37}),
        Case("many-rows", (1003, 3), {**_SMOOTHED, "classes": 19}),
        Case("many-rows-none", (1003, 3), {**_EXTRAS, "classes": 19, "reduction": "none"}),
        Case("many-classes", (3, 8), {**_EXTRAS, "classes": 5003}),
        Case("extras", (5, 3), _EXTRAS),
        Case("others", (5, 3), {**_SMOOTHED, "smoothing": "others"}),
        Case("pair", (5, 3), {**_SMOOTHED, "pair": 0.3}),
        Case("pair-rows", (5, 3), {**_EXTRAS, "pair": "rows"}),
        Case("num-items", (5, 3), {**_SMOOTHED, "num_items": 7}),
        Case("num-items-tensor", (5, 3), {**_SMOOTHED, "num_items": "tensor"}),
        Case("lse", (5, 3), {**_EXTRAS, "return_lse": True}),
        Case("ignored-class", (40, 5), {**_SMOOTHED, "classes": 3, "ignore_index": 2}),
        Case("all-ignored", (5, 3), {**_EXTRAS, "ignored": 1.0, "reduction": "sum"}),
        Case("all-ignored-mean", (5, 3), {**_SMOOTHED, "ignored": 1.0}),
        Case("probabilities", (5, 3), {**_PROBABILITIES, "weight": True}),
        Case("learned", (5, 3), {**_PROBABILITIES, "target": "learned"}),
        Case("transposed", (5, 3), _SMOOTHED, "transposed"),
        Case("expanded", (5, 3), _SMOOTHED, "expanded"),
        Case("misaligned", (5, 3), _SMOOTHED, "misaligned"),
    ),
    bench_cases=(
        BenchCase(
            "1024x64x1000",
            (1024, 64),
            {"classes": 1000, "bias": True, "label_smoothing": 0.1},
            in_cache=True,
            ceiling="matmul",
            scaling=True,
        ),
        BenchCase(
            "4096x512x32768",
            (4096, 512),
            {"classes": 32768, "label_smoothing": 0.1},
            ceiling="matmul",
        ),
        # As of language models, and where other libraries have neither bias nor smoothing.
        BenchCase(
            "1024x64x1000-plain", (1024, 64), {"classes": 1000}, in_cache=True, ceiling="matmul"
        ),
        BenchCase("4096x512x32768-plain", (4096, 512), {"classes": 32768}, ceiling="matmul"),
    ),
    tolerance=_tolerances(8, _LOGITS),
    bytes_moved=_bytes_moved,
    bytes_formula="read input and weight, write their gradients: 2 x (rows + classes) x features x "
    "bytes an element; the products take longer than any copy",
    arguments=_arguments,
    reproducible=False,  # BLAS may split a sum over threads
    layout_shape=(24, 16),
    rival_tolerance=_tolerances(16, _EAGER),
    directions=("full",),
    flops=_flops,
)
