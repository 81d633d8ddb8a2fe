"""Cross-entropy of shards of the classes beside that of all of them, in one process."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import regops.reference
from tests.cross_entropy_problems import ROUNDOFF, SMALLEST, labels, logits, weights

SHARDS = (1, 2, 3, 4, 7)
# Every option, alone and with those that share a term of the formula with it.
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "sum": {"reduction": "sum"},
    "none": {"reduction": "none", "label_smoothing": 0.1},
    "smoothed": {"label_smoothing": 0.1},
    "others": {"label_smoothing": 0.3, "smoothing": "others"},
    "all-smoothed": {"label_smoothing": 1.0},
    "weight": {"weight": True},
    "weight-smoothed": {"weight": True, "label_smoothing": 0.2, "ignored": True},
    "weight-others": {"weight": True, "label_smoothing": 0.2, "smoothing": "others"},
    "ignored": {"ignored": True},
    "ignored-class": {"ignored": True, "ignore_index": 2, "label_smoothing": 0.1},
    "z-loss": {"z_loss": 0.1, "label_smoothing": 0.1},
    "num-items": {"num_items": 17.0, "ignored": True},
    "lse": {"return_lse": True, "ignored": True, "reduction": "none"},
    "everything": {
        "weight": True,
        "label_smoothing": 0.2,
        "ignored": True,
        "z_loss": 0.1,
        "return_lse": True,
    },
}


@dataclass
class ShardedProblem:
    """Logits (N, C) of one process, and the options of a loss.

    Attributes:
        options: keyword arguments of `regops.functional.cross_entropy`, tensors included.
        upstream: of the loss, 0-d or by row.
        upstream_lse: by row, where lse is asked for.
        missing: how many classes of all are in no shard.
    """

    input: Tensor
    target: Tensor
    options: dict[str, Any] = field(default_factory=dict)
    upstream: Tensor = field(default_factory=lambda: torch.ones(()))
    upstream_lse: Tensor | None = None
    missing: int = 0

    @property
    def real(self) -> torch.dtype:
        """Of losses and sums."""
        return torch.promote_types(self.input.dtype, torch.float32)


@dataclass
class ShardedResults:
    """Loss and lse, and the gradient of all classes."""

    loss: Tensor
    lse: Tensor | None
    gradient: Tensor


def problem_of(x: Tensor, **options: Any) -> ShardedProblem:
    """Fills in tensors for a row of OPTIONS. Labels are the first class, the last, and others."""
    options = dict(options)
    target = labels(x)
    real = torch.promote_types(x.dtype, torch.float32)
    if options.pop("ignored", False):
        target[1::3] = options.get("ignore_index", -100)
    if options.pop("weight", False):
        options["weight"] = weights(x)
    if "num_items" in options:
        options["num_items"] = torch.tensor(options["num_items"], dtype=real)
    by_row = options.get("reduction") == "none"
    upstream = torch.randn(x.shape[:1] if by_row else (), dtype=real)
    of_lse = torch.randn(x.shape[0], dtype=real) if options.get("return_lse") else None
    return ShardedProblem(x, target, options, upstream, of_lse)


def small_problem(name: str, dtype: torch.dtype, classes: int = 101) -> ShardedProblem:
    """Eight rows of a row of OPTIONS."""
    return problem_of(logits((8, classes), dtype), **OPTIONS[name])


def arguments_of(problem: ShardedProblem, input: Tensor) -> tuple[Any, ...]:
    """Those that all ops of shards take, for a shard of the logits."""
    o = {
        "weight": None,
        "num_items": None,
        "ignore_index": -100,
        "reduction": "mean",
        "label_smoothing": 0.0,
        "smoothing": "uniform",
        "z_loss": 0.0,
        "return_lse": False,
    } | problem.options
    numbers = (o["ignore_index"], o["reduction"], o["label_smoothing"], o["smoothing"], o["z_loss"])
    tensors = (input, problem.target, o["weight"], None, None, o["num_items"])
    return *tensors, *numbers, 0.0, o["return_lse"], False


def starts(classes: int, shards: int) -> list[tuple[int, int]]:
    """First class and number of classes of each shard, as DTensor splits them."""
    size = -(-classes // shards)
    return [(min(k * size, classes), max(0, min(size, classes - k * size))) for k in range(shards)]


def run(problem: ShardedProblem, shards: int) -> ShardedResults:
    """By the ops, all processes' parts one after the other."""
    x, op = problem.input, torch.ops.regops
    classes = x.shape[1]
    places = starts(classes, shards)
    parts = [x.narrow(1, first, size) for first, size in places]
    given = [
        op.cross_entropy_shard_statistics(*arguments_of(problem, part), classes, first)
        for part, (first, _) in zip(parts, places, strict=True)
    ]
    gathered = torch.stack([statistics for statistics, _ in given])
    totals = given[0][1]
    loss, lse, normalizers = op.cross_entropy_shard_losses(
        *arguments_of(problem, parts[0]), classes, gathered, totals
    )
    if problem.options.get("reduction") != "none":
        loss = loss.sum() / totals[0]
    gradients = [
        op.cross_entropy_shard_backward(
            *arguments_of(problem, part),
            classes,
            first,
            normalizers,
            totals,
            problem.upstream,
            problem.upstream_lse,
        )
        for part, (first, _) in zip(parts, places, strict=True)
    ]
    for part, gradient in zip(parts, gradients, strict=True):
        assert gradient.dtype == part.dtype
        assert gradient.shape == part.shape
    wants_lse = problem.options.get("return_lse", False)
    return ShardedResults(loss, lse if wants_lse else None, torch.cat(gradients, 1))


def results_of(function: Any, problem: ShardedProblem, dtype: torch.dtype) -> ShardedResults:
    """By a function of whole logits, converted to `dtype`."""
    x = problem.input.detach().to(dtype).requires_grad_()
    real = torch.promote_types(dtype, torch.float32)
    options = {
        name: value.to(real) if isinstance(value, Tensor) else value
        for name, value in problem.options.items()
    }
    result = function(x, problem.target, **options)
    loss, lse = result if isinstance(result, tuple) else (result, None)
    weighted = (loss * problem.upstream.to(real)).sum()
    if problem.upstream_lse is not None and lse is not None:
        weighted = weighted + (lse * problem.upstream_lse.to(real)).sum()
    (gradient,) = torch.autograd.grad(weighted, [x])
    return ShardedResults(loss.detach(), None if lse is None else lse.detach(), gradient)


def expected(problem: ShardedProblem) -> ShardedResults:
    """By the oracle, in float64."""
    return results_of(regops.reference.cross_entropy, problem, torch.float64)


def check(problem: ShardedProblem, got: ShardedResults, want: ShardedResults) -> None:
    """Compares with the oracle.

    A sum over a row is a chain of at most 64 additions in a block or thread and a few between them,
    of terms good to some u: 100 u, u the roundoff, of the sum of its terms' sizes stand for all.
    The terms of a loss are at most max |lp_c| w_c, those of a gradient at most 2 w_c and what
    z-loss adds; a gradient is rounded once more, to its own type.
    """
    unit = 100 * ROUNDOFF[problem.real]
    lp = problem.input.double().log_softmax(1)
    worst = torch.where(lp.isfinite(), lp, 0.0).abs().amax(1) if lp.numel() else lp.sum(1)
    weight = problem.options.get("weight")
    omega = 1.0 if weight is None else max(1.0, weight.abs().max().item())
    lse = problem.input.double().logsumexp(1)
    lse = torch.where(lse.isfinite(), lse, 0.0).abs()
    z = problem.options.get("z_loss", 0.0)
    of_rows = 2 * omega * (1 + worst + z * (1 + lse) ** 2)
    divisor = _divisor(problem)
    if problem.options.get("reduction") == "none":
        _close(got.loss, want.loss, unit * of_rows, "loss")
    else:
        _close(got.loss, want.loss, unit * of_rows.sum() / divisor, "loss")
    if want.lse is not None:
        assert got.lse is not None
        _close(got.lse, want.lse, unit * (1 + lse), "lse")
    bound = problem.upstream.double().abs() / divisor * omega * (2 + 2 * z * lse)
    if problem.upstream_lse is not None:
        bound = bound + problem.upstream_lse.double().abs()
    bound = (unit * bound).reshape(-1, 1)
    u = ROUNDOFF[got.gradient.dtype]
    bound = bound * (1 + u) + u * want.gradient.abs() + SMALLEST.get(got.gradient.dtype, 0.0)
    _close(got.gradient, want.gradient, bound, "gradient")


def _divisor(problem: ShardedProblem) -> float:
    if problem.options.get("reduction", "mean") != "mean":
        return 1.0
    if "num_items" in problem.options:
        return float(problem.options["num_items"])
    weight = problem.options.get("weight")
    ignored = problem.target == problem.options.get("ignore_index", -100)
    of_rows = torch.ones(ignored.shape) if weight is None else weight[problem.target.clamp(min=0)]
    return float(of_rows[~ignored].sum()) or math.nan


def _close(got: Tensor, want: Tensor, bound: Tensor, what: str) -> None:
    got, want = got.double(), want.double()
    same = (got == want) | (got.isnan() & want.isnan())
    off = (got - want).abs()
    bad = ~(same | (off <= bound))
    assert not bad.any(), f"{what}: {got[bad]} for {want[bad]}, off by {off[bad]}"
