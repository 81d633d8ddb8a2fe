"""Cases of cross-entropy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

import torch
from torch import Tensor

import regops.functional
import regops.reference
from regops.testing import (
    BenchCase,
    Case,
    Direction,
    Layout,
    OpSpec,
    Tolerance,
    lay_out,
    make_input,
)


def loss_arguments(
    options: Mapping[str, Any],
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device | str,
) -> dict[str, Any]:
    """Keyword arguments of a cross-entropy of logits of some shape.

    Args:
        options: Keyword arguments as they stand, and plain data in place of tensors. "target":
            "labels" (the default), "bytes" (labels of uint8), "probabilities" or "learned"
            (probabilities that require grad). "target_layout": of what `target` is. "ignored":
            share of labels that are `ignore_index`. "weight": whether classes have weights.
            "pair": each row's share of its first label of two: a number for all, or "rows".
            "num_items": a number, or "tensor".
        shape: Of the logits: (C), (N, C) or (N, C, d1, ...).
        dtype: Of the logits.
        device: Of the results.
    """
    arguments = dict(options)
    classes = shape[0] if len(shape) == 1 else shape[1]
    rows = shape[:1] * (len(shape) > 1) + shape[2:]
    kind = arguments.pop("target", "labels")
    layout: Layout = arguments.pop("target_layout", "contiguous")
    ignored = arguments.pop("ignored", 0.0)
    ignore_index = arguments.get("ignore_index", -100)

    def labels(seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randint(classes, rows, generator=generator)
        drawn.masked_fill_(torch.rand(rows, generator=generator) < ignored, ignore_index)
        return lay_out(drawn.to(torch.uint8 if kind == "bytes" else torch.int64), layout).to(device)

    if kind in ("probabilities", "learned"):
        drawn = make_input(shape, torch.float32, seed=2).softmax(0 if len(shape) == 1 else 1)
        arguments["target"] = lay_out(drawn.to(dtype).to(device), layout)
        arguments["target"].requires_grad_(kind == "learned")
    else:
        arguments["target"] = labels(2)
    if arguments.pop("weight", False):
        weight = make_input((classes,), torch.float32, seed=3).abs() + 0.25
        arguments["weight"] = weight.to(dtype).to(device)
    pair = arguments.pop("pair", None)
    if pair is not None:
        arguments["target_b"] = labels(4)
        of_each = make_input(rows[:1], torch.float32, device, seed=5).sigmoid()
        real = torch.promote_types(dtype, torch.float32)
        arguments["lam"] = of_each.to(real) if pair == "rows" else pair
    if arguments.get("num_items") == "tensor":
        arguments["num_items"] = torch.tensor(7, device=device)
    return arguments


def _arguments(
    case: Case | BenchCase, dtype: torch.dtype, device: torch.device | str
) -> dict[str, Any]:
    return loss_arguments(case.kwargs, case.shape, dtype, device)


def _grid() -> Iterator[Case]:
    """Every combination of the options that meet in one formula, on every kind of layout."""
    layouts: tuple[tuple[str, tuple[int, ...], Layout], ...] = (
        ("class-only", (19,), "contiguous"),
        ("rows", (5, 19), "contiguous"),
        ("columns", (2, 19, 6), "contiguous"),
        ("channels-last", (2, 19, 3, 2), "channels_last"),
        ("transposed", (6, 19), "transposed"),
        ("strided", (5, 19), "strided"),
        ("misaligned", (5, 19), "misaligned"),
        ("expanded", (5, 19), "expanded"),
    )
    smoothings: tuple[dict[str, Any], ...] = (
        {},
        {"label_smoothing": 0.1},
        {"label_smoothing": 0.1, "smoothing": "others"},
    )
    pairs: tuple[dict[str, Any], ...] = ({}, {"pair": 0.3}, {"pair": "rows"})
    for (name, shape, layout), reduction, ignored, weight, smoothing, pair in product(
        layouts, ("none", "mean", "sum"), (0.0, 0.3), (False, True), smoothings, pairs
    ):
        options = {"reduction": reduction, "ignored": ignored, "weight": weight}
        options |= smoothing | pair
        words = "-".join(str(value) for value in options.values())
        yield Case(f"{name}-{words}", shape, options, layout)


_SMOOTHED = {"label_smoothing": 0.1, "weight": True, "ignored": 0.3}
_EXTRAS = {**_SMOOTHED, "z_loss": 0.01, "entropy_weight": 0.2}
_PROBABILITIES = {"target": "probabilities", "label_smoothing": 0.1, "weight": True}
_LEARNED = {**_PROBABILITIES, "target": "learned"}

_CASES = (
    Case("smoothed", (4, 37), _SMOOTHED),
    Case("plain", (4, 37)),
    Case("none", (4, 37), {**_SMOOTHED, "reduction": "none"}),
    Case("sum", (4, 37), {**_SMOOTHED, "reduction": "sum"}),
    Case("class-only", (37,), {"label_smoothing": 0.1}),
    Case("class-only-none", (37,), {"label_smoothing": 0.1, "reduction": "none"}),
    # Layouts: the class dimension in the middle, last, and nowhere of stride 1.
    Case("columns", (2, 19, 3), _SMOOTHED),
    Case("columns-wide", (2, 19, 131), {**_SMOOTHED, "reduction": "none"}),
    Case("images", (2, 19, 5, 7), _SMOOTHED),
    Case("channels-last", (2, 19, 5, 7), _SMOOTHED, "channels_last"),
    Case("channels-last-none", (2, 3, 9, 11), {**_SMOOTHED, "reduction": "none"}, "channels_last"),
    Case("transposed", (4, 37), _SMOOTHED, "transposed"),
    Case("transposed-tall", (700, 33), {**_SMOOTHED, "reduction": "none"}, "transposed"),
    Case("swapped-outer", (9, 5, 67), _SMOOTHED, "swapped_outer"),
    Case("reversed", (3, 19, 5, 7), _SMOOTHED, "reversed"),
    Case("strided", (4, 37), _SMOOTHED, "strided"),
    Case("strided-images", (2, 19, 5, 7), _SMOOTHED, "strided"),
    Case("expanded", (6, 40), _SMOOTHED, "expanded"),
    Case("misaligned", (3, 1001), _SMOOTHED, "misaligned"),
    Case("labels-strided", (4, 19, 5), {**_SMOOTHED, "target_layout": "strided"}),
    # Sizes.
    Case("one", (1, 1)),
    Case("one-class", (9, 1)),
    # The gradient of z_loss is what remains: all else cancels.
    Case("one-class-extras", (9, 1), {**_EXTRAS, "z_loss": 0.5}),
    Case("one-class-others", (9, 1), {"label_smoothing": 0.1, "smoothing": "others"}),
    Case("two-classes", (5, 2), _SMOOTHED),
    Case("no-row-sum", (0, 5), {**_SMOOTHED, "reduction": "sum"}),
    Case("no-row-none", (0, 5), {**_SMOOTHED, "reduction": "none"}),
    Case("no-row-mean", (0, 5), _SMOOTHED),
    Case("no-column", (2, 5, 0), {**_SMOOTHED, "reduction": "sum"}),
    Case("odd", (7, 1003), _EXTRAS),
    Case("blocks", (2, 5003), _EXTRAS),
    Case("one-long-row", (1, 70001), {"label_smoothing": 0.1, "weight": True}),
    Case("long-columns", (2, 1500, 3), _EXTRAS),
    Case("short-rows", (300, 10), _SMOOTHED),
    Case("short-rows-none", (1003, 3), {**_EXTRAS, "reduction": "none"}),
    # Options.
    Case("all-smooth", (4, 37), {"label_smoothing": 1.0, "weight": True}),
    Case("others", (4, 37), {**_SMOOTHED, "smoothing": "others"}),
    Case("z-loss", (4, 37), {"z_loss": 0.01}),
    Case("entropy", (4, 37), {"entropy_weight": 0.2}),
    Case("extras", (4, 37), _EXTRAS),
    Case("extras-columns", (2, 19, 3), _EXTRAS),
    Case("extras-none", (4, 37), {**_EXTRAS, "reduction": "none"}),
    Case("pair", (4, 37), {**_SMOOTHED, "pair": 0.3}),
    Case("pair-rows", (4, 37), {**_EXTRAS, "pair": "rows"}),
    Case("pair-columns", (2, 19, 3), {**_EXTRAS, "pair": "rows"}),
    Case("num-items", (4, 37), {**_SMOOTHED, "num_items": 7}),
    Case("num-items-tensor", (4, 37), {**_SMOOTHED, "num_items": "tensor"}),
    Case("lse", (4, 37), {**_EXTRAS, "return_lse": True}),
    Case("lse-columns", (2, 19, 3), {**_EXTRAS, "return_lse": True, "reduction": "none"}),
    Case("ignored-class", (40, 3), {**_SMOOTHED, "ignore_index": 2}),
    Case("bytes", (4, 37), {"label_smoothing": 0.1, "target": "bytes"}),
    Case("all-ignored", (4, 37), {**_EXTRAS, "ignored": 1.0, "reduction": "sum"}),
    Case("all-ignored-none", (4, 37), {**_EXTRAS, "ignored": 1.0, "reduction": "none"}),
    Case("all-ignored-mean", (4, 37), {**_SMOOTHED, "ignored": 1.0}),
    # Probabilities.
    Case("probabilities", (4, 37), _PROBABILITIES),
    Case("probabilities-plain", (4, 37), {"target": "probabilities", "reduction": "none"}),
    Case("probabilities-extras", (7, 1003), {**_PROBABILITIES, "z_loss": 0.1}),
    Case("probabilities-class-only", (37,), _PROBABILITIES),
    Case("probabilities-columns", (2, 19, 3), {**_PROBABILITIES, "entropy_weight": 0.2}),
    Case("probabilities-images", (2, 19, 5, 7), _PROBABILITIES, "channels_last"),
    Case("probabilities-across", (4, 37), {**_PROBABILITIES, "target_layout": "transposed"}),
    Case("learned", (4, 37), _LEARNED),
    Case("learned-none", (4, 37), {**_LEARNED, "reduction": "none", "z_loss": 0.01}),
    Case("learned-columns", (2, 19, 3), {**_LEARNED, "entropy_weight": 0.2}),
    Case("learned-others", (4, 37), {**_LEARNED, "smoothing": "others"}, "transposed"),
    Case("learned-across", (4, 37), {**_LEARNED, "target_layout": "strided"}, "transposed"),
)

_SUMS = (
    "a term is right to 4 units in the last place (exp to 2, x - m and a product to half of one "
    "each), and the lanes of a block carry sums of up to some hundred terms, whose roundings grow "
    "as the square root: 16 more; x - lse, of magnitude up to 16, is rounded before exp, 8 more"
)
_ROUNDED = (
    "losses are float32, as exact as float32's; a gradient is rounded to the type when it is made "
    "and, where backward scales it, once more: half a unit each"
)
_EAGER = (
    "rounds log-probabilities of magnitude up to 16 to the type before exp: an absolute error of 8 "
    "half units of 1; the mean of the losses is a value of the type too"
)


def _tolerances() -> dict[torch.dtype, Tolerance]:
    units = 32
    single, double = (units * torch.finfo(t).eps for t in (torch.float32, torch.float64))
    tolerance = {
        torch.float64: Tolerance(2 * double, 2 * double, f"{_SUMS}; and the reference's as much"),
        torch.float32: Tolerance(single, single, _SUMS),
    }
    for dtype in (torch.bfloat16, torch.float16):
        of_gradient = (torch.finfo(dtype).eps + single, single)
        tolerance[dtype] = Tolerance(single, single, _ROUNDED, gradient=of_gradient)
    return tolerance


def _rival_tolerances() -> dict[torch.dtype, Tolerance]:
    tolerance = _tolerances()
    for dtype in (torch.bfloat16, torch.float16):
        eps = torch.finfo(dtype).eps
        tolerance[dtype] = Tolerance(2 * eps, 0.0, _EAGER, gradient=(8 * eps, 2 * eps))
    return tolerance


def _bytes_moved(case: BenchCase, itemsize: int, direction: Direction) -> int:
    logits = case.numel * itemsize
    return logits if direction == "inference" else 2 * logits


_BENCHED = {"label_smoothing": 0.1}

spec = OpSpec(
    name="cross_entropy",
    functional=regops.functional.cross_entropy,
    reference=regops.reference.cross_entropy,
    eager=torch.nn.functional.cross_entropy,
    schemas=(),
    keyed=False,
    dtypes=(torch.float64, torch.float32, torch.bfloat16, torch.float16),
    cases=_CASES,
    bench_cases=(
        BenchCase("1x10", (1, 10), _BENCHED, in_cache=True),
        BenchCase("8192x10", (8192, 10), _BENCHED, in_cache=True),
        BenchCase("4096x1000", (4096, 1000), _BENCHED, in_cache=True),
        BenchCase("64x128256", (64, 128256), _BENCHED),
        BenchCase("512x32768", (512, 32768), _BENCHED, scaling=True),
        # As of language models, and where other libraries have no smoothing.
        BenchCase("512x32768-plain", (512, 32768)),
    ),
    tolerance=_tolerances(),
    bytes_moved=_bytes_moved,
    bytes_formula="full reads the logits once and writes their gradient once, inference reads them "
    "once: rows x classes x bytes a logit each",
    arguments=_arguments,
    grid=tuple(_grid()),
    rival_tolerance=_rival_tolerances(),
    # Which of forward and backward makes the gradient is for each to choose: only their sum can be
    # compared.
    directions=("full", "inference"),
)
