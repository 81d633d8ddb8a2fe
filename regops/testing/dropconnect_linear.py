"""Cases of DropConnect."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

import regops.functional
import regops.reference
from regops.testing import BenchCase, Case, Direction, Layout, OpSpec, Tolerance, make_input


def _eager(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    p: float = 0.5,
    *,
    mask: str = "batch",
) -> Tensor:
    """What users write without a library."""
    if mask == "batch":
        return functional.linear(input, functional.dropout(weight, p), bias)
    masked = functional.dropout(weight.expand(len(input), *weight.shape), p)
    output = torch.einsum("ik,ink->in", input, masked)
    return output if bias is None else output + bias


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None, **options: Any) -> Tensor:
    """The layer without its masks."""
    return functional.linear(input, weight, bias)


def _arguments(
    case: Case | BenchCase, dtype: torch.dtype, device: torch.device | str
) -> dict[str, Any]:
    """As in the case, but "out" (how many), "bias" (whether) and "weight" (its layout)."""
    options = dict(case.kwargs)
    out, bias, layout = options.pop("out"), options.pop("bias", False), options.pop("weight", None)
    features = case.shape[-1]
    # So that outputs are of variance 1 or so.
    weight = make_input((out, features), torch.float32, layout=layout or "contiguous", seed=6)
    weight = (weight / max(features, 1) ** 0.5).to(dtype).to(device)
    arguments: dict[str, Any] = {"weight": weight.requires_grad_()}
    if bias:
        arguments["bias"] = make_input((out,), dtype, device, seed=7).requires_grad_()
    return arguments | options


def _opcheck(name: str, input: Tensor, arguments: Mapping[str, Any]) -> tuple[Any, ...]:
    weight, bias, p, key = (
        arguments["weight"],
        arguments.get("bias"),
        arguments["p"],
        arguments["key"],
    )
    drop_bias = arguments.get("drop_bias", False)
    options = (arguments.get("mask", "batch"), drop_bias)
    if name == "normal_like":
        return input, key
    if name == "dropconnect_moments":
        return input, weight, bias, min(p, 0.5), drop_bias  # p = 1 has no variance
    if name == "dropconnect_linear":
        return input, weight, bias, p, key, *options
    shape = (*input.shape[:-1], len(weight))
    upstream = make_input(shape, input.dtype, input.device, seed=8)
    upstream.requires_grad_(input.requires_grad)
    return upstream, input, weight, p, key, *options, [True, input.requires_grad, bias is not None]


_SUMS = (
    "the same masks; sums of up to 2000 products of which the largest result is some 4 standard "
    "deviations, in another order"
)
_ROUNDED = (
    "the same masks; sums in float32, rounded once to the type, and a dropped bias, scaled, once"
    " more"
)

_BATCH = {"out": 7, "p": 0.5, "bias": True}
_SAMPLE = {**_BATCH, "mask": "sample"}
_SHAPES: tuple[tuple[str, tuple[int, ...], dict[str, Any], Layout], ...] = (
    ("plain", (5, 12), {"out": 7, "p": 0.5}, "contiguous"),
    ("bias", (5, 12), _BATCH, "contiguous"),
    ("drop-bias", (5, 12), {**_BATCH, "p": 0.3, "drop_bias": True}, "contiguous"),
    ("one-example", (12,), _BATCH, "contiguous"),
    ("three-dims", (2, 3, 16), {**_BATCH, "p": 0.25}, "contiguous"),
    ("one-weight", (3, 1), {**_BATCH, "out": 1}, "contiguous"),
    ("odd", (9, 37), {**_BATCH, "out": 29, "p": 0.1, "drop_bias": True}, "contiguous"),
    ("none-dropped", (5, 12), {**_BATCH, "p": 0.0, "drop_bias": True}, "contiguous"),
    ("all-dropped", (5, 12), {**_BATCH, "p": 1.0}, "contiguous"),
    ("all-dropped-bias", (5, 12), {**_BATCH, "p": 1.0, "drop_bias": True}, "contiguous"),
    ("rare", (5, 300), {**_BATCH, "out": 70, "p": 3e-6, "drop_bias": True}, "contiguous"),
    ("rarely-kept", (5, 300), {**_BATCH, "out": 70, "p": 0.99}, "contiguous"),
    ("no-example", (0, 5), _BATCH, "contiguous"),
    ("no-input", (3, 0), _BATCH, "contiguous"),
    ("no-input-drop-bias", (3, 0), {**_BATCH, "drop_bias": True}, "contiguous"),
    ("no-output", (3, 5), {**_BATCH, "out": 0}, "contiguous"),
    ("transposed", (24, 16), _BATCH, "transposed"),
    ("expanded", (6, 40), _BATCH, "expanded"),
    ("misaligned", (3, 101), _BATCH, "misaligned"),
    ("strided", (3, 50), _BATCH, "strided"),
    ("weight-transposed", (5, 33), {**_BATCH, "weight": "transposed"}, "contiguous"),
    ("weight-strided", (5, 33), {**_BATCH, "weight": "strided"}, "contiguous"),
    ("weight-misaligned", (5, 33), {**_BATCH, "weight": "misaligned"}, "contiguous"),
)


def _tolerances() -> dict[torch.dtype, Tolerance]:
    tolerance = {}
    for dtype in (torch.float64, torch.float32):
        eps = torch.finfo(dtype).eps
        tolerance[dtype] = Tolerance(8 * eps, 8 * eps, _SUMS)
    for dtype in (torch.bfloat16, torch.float16):
        unit = torch.finfo(dtype).eps / 2
        tolerance[dtype] = Tolerance(1.01 * unit, 1.01 * unit, _ROUNDED)
    return tolerance


def _bytes_moved(case: BenchCase, itemsize: int, direction: Direction) -> int:
    out: int = case.kwargs["out"]
    weights = out * case.shape[-1]
    rows = math.prod(case.shape[:-1])
    ends = rows * (out + case.shape[-1])
    # Forward reads weights and input and writes output; backward reads all three and writes two.
    forward, backward = weights + ends, 2 * weights + 2 * rows * case.shape[-1] + rows * out
    return {"forward": forward, "backward": backward}.get(direction, forward + backward) * itemsize


# Elements of the smallest case of a smoke test.
_SMOKE = 1 << 16


def _batch_bench_case(
    rows: int, features: int, elements: int = 0, in_cache: bool = False
) -> BenchCase:
    """Of as many inputs as outputs."""
    return BenchCase(
        f"{rows}x{features}-{features}",
        (rows, features),
        {"out": features, "p": 0.5},
        in_cache=in_cache,
        ceiling="linear",
        elements=max(elements or features**2, _SMOKE),
        scaling=(rows, features) == (8, 4096),
    )


def _sample_bench_case(
    rows: int, features: int, directions: tuple[Direction, ...] = ()
) -> BenchCase:
    """A linear layer is no ceiling here: its weights meet all examples at once, these but one."""
    return BenchCase(
        f"{rows}x{features}-{features}-sample",
        (rows, features),
        {"out": features, "p": 0.5, "mask": "sample"},
        in_cache=True,
        # A decision takes a quarter of the time of an element that is read and written.
        elements=max(rows * features**2 // 4, _SMOKE),
        dtypes=(torch.float32,),
        directions=directions,
    )


def _flops(case: BenchCase, direction: Direction) -> int:
    """Of one product forward, and of two backward."""
    products = {"forward": 1, "inference": 1, "backward": 2, "full": 3}[direction]
    out: int = case.kwargs["out"]
    return products * 2 * case.numel * out


spec = OpSpec(
    name="dropconnect_linear",
    functional=regops.functional.dropconnect_linear,
    reference=regops.reference.dropconnect_linear,
    eager=_eager,
    schemas=(
        "dropconnect_linear",
        "dropconnect_linear_backward",
        "dropconnect_moments",
        "normal_like",
    ),
    keyed=True,
    dtypes=(torch.float64, torch.float32, torch.bfloat16, torch.float16),
    cases=(
        *(
            Case(f"{name}-{mask}", shape, {**options, "mask": mask}, layout)
            for mask in ("batch", "sample")
            for name, shape, options, layout in _SHAPES
        ),
        Case("threads-sample", (33, 260), {**_SAMPLE, "out": 70, "drop_bias": True}),
        # Chunks of rows that begin within a block of random bits; tiles of samples; short rows.
        Case("chunks-sample", (66, 1101), {**_SAMPLE, "out": 19}),
        Case("chunks-rare-sample", (3, 2050), {**_SAMPLE, "out": 7, "p": 3e-6}),
        Case("short-sample", (70, 10), {**_SAMPLE, "out": 501}),
    ),
    bench_cases=(
        _batch_bench_case(32, 64, in_cache=True),
        _batch_bench_case(8, 4096),
        _batch_bench_case(256, 4096),
        # Minutes on a CPU: beyond what profiles time there.
        _batch_bench_case(64, 4096, elements=1 << 31),
        _batch_bench_case(2048, 4096, elements=1 << 31),
        _sample_bench_case(32, 64),
        # One direction, for eager takes seconds a call.
        _sample_bench_case(64, 1024, ("full",)),
    ),
    tolerance=_tolerances(),
    bytes_moved=_bytes_moved,
    bytes_formula="forward reads weight and input and writes the output, backward reads all three "
    "and writes two gradients; masks take none",
    arguments=_arguments,
    reproducible=False,  # BLAS may split a sum over threads
    layout_shape=(24, 16),
    opcheck=_opcheck,
    # Each branch of the ops' contract and autograd once.
    opcheck_cases=(
        "bias-batch",
        "drop-bias-batch",
        "drop-bias-sample",
        "three-dims-sample",
        "none-dropped-batch",
        "all-dropped-bias-sample",
        "no-example-batch",
        "no-input-drop-bias-sample",
        "transposed-batch",
        "weight-transposed-sample",
    ),
    ceilings={"linear": _linear},
    flops=_flops,
)
