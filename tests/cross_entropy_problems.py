"""Problems for the CUDA kernels of cross-entropy, and the comparison with the oracle."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from tests.cross_entropy_call import (
    DTYPE_CODES,
    UNWRITTEN,
    Problem,
    Results,
    expected,
    rows_of,
    run,
)
from tests.ptx import Device

DTYPES = tuple(DTYPE_CODES)
# Unit roundoff: of a result's type, and of the type that it is computed in.
ROUNDOFF = {
    torch.float64: 2.0**-53,
    torch.float32: 2.0**-24,
    torch.bfloat16: 2.0**-8,
    torch.float16: 2.0**-11,
}
SMALLEST = {torch.bfloat16: 0.0, torch.float16: 2.0**-25}


def additions(problem: Problem) -> int:
    """The longest chain of additions behind a sum over a row: a bound for its roundings.

    A thread adds up all classes of a column, or 64 elements of a row on chip, or one in 32 or more
    of another row; then come at most 5 + 5 + 3 steps between threads.
    """
    _, classes, inner = rows_of(problem.input)
    return 13 + (classes if inner > 1 else max(64, classes // 32))


def check(problem: Problem, device: Device | None = None) -> Results:
    """Runs a problem and compares all that it gives with the oracle.

    With n additions, every sum over a row is off by n + 3 roundoffs u of the sum of its terms'
    sizes: n of the additions, 3 of a term. exp is good to 4 u of the largest term, all else to a
    few u; 16 u stand for them. A gradient is rounded once more, to its own type.
    """
    want = expected(problem)
    logits = problem.input.detach().clone()
    got = run(problem, device)
    u = ROUNDOFF[problem.real]
    unit = (additions(problem) + 16) * u
    outer, classes, inner = rows_of(logits)

    x = logits.double()
    lp = x.log_softmax(1).transpose(1, -1).reshape(-1, classes)
    finite = torch.where(lp.isfinite(), lp, 0.0)
    weights = torch.ones(classes) if problem.weight is None else problem.weight.double()
    # t is at most w: sum_c t_c |lp_c| is at most that of the label and the mean of all.
    worst = weights.abs().max().item() * (
        finite.abs().amax(1) + finite.abs().mean(1) * weights.numel() * _smoothing(problem)
    )
    lse = torch.where(want.lse.isfinite(), want.lse, 0.0).abs()
    penalty = problem.z_loss * lse.square() + problem.entropy_weight * (1 + math.log(classes))
    omega = max(1.0, weights.abs().max().item())
    _close(got.loss, want.loss, unit * (worst + omega * (1 + penalty)), "loss")
    if got.lse is not None:
        _close(got.lse, want.lse, unit * (1 + lse), "lse")
    _close(torch.tensor(got.divisor), torch.tensor(want.divisor), 4 * u * abs(want.divisor))
    if problem.target_b is None or want.divisor:
        slack = unit * (worst + omega * (1 + penalty)).sum() / (want.divisor or 1.0)
        slack = slack + 8 * u * abs(want.total)
        _close(torch.tensor(got.total), torch.tensor(want.total), slack, "total")

    upstream = 1.0 if problem.upstream is None else problem.upstream.double().abs()
    scale = upstream / (want.divisor or 1.0)
    # dl/dx_c = p_c (T + omega (2 z lse + beta (lp_c + H))) - t_c, each p_c and t_c at most 1.
    size = (
        scale
        * omega
        * (2 + 2 * problem.z_loss * lse + 2 * problem.entropy_weight * (1 + math.log(classes)))
    )
    if problem.target.is_floating_point():
        size = size * problem.target.double().abs().sum(1).max().clamp(min=1.0)
    if problem.upstream_lse is not None:
        size = size + problem.upstream_lse.double().abs()
    size = torch.as_tensor(size).expand(outer * inner).reshape(outer, 1, *logits.shape[2:])
    if got.gradient is not None:
        _close_rounded(got.gradient, want.gradient, unit * size, "gradient")
    if got.probability_gradient is not None:
        bound = (torch.as_tensor(scale).expand(outer * inner) * omega).reshape(size.shape)
        bound = bound * (1 + finite.abs().amax(1).reshape(size.shape) + lse.reshape(size.shape))
        _close_rounded(
            got.probability_gradient, want.probability_gradient, unit * bound, "of probability"
        )
    return got


def _smoothing(problem: Problem) -> float:
    return problem.label_smoothing * (2.0 if problem.smoothing == "others" else 1.0)


def _close(got: Tensor, want: Tensor, bound: Tensor | float, what: str = "") -> None:
    got, want = got.double(), want.double()
    same = (got == want) | (got.isnan() & want.isnan())
    off = torch.where(same, 0.0, (got - want).abs())
    bad = ~(same | (off <= bound))
    assert not bad.any(), f"{what}: {got[bad]} for {want[bad]}, off by {off[bad]}"


def _close_rounded(got: Tensor, want: Tensor, bound: Tensor, what: str) -> None:
    u = ROUNDOFF[got.dtype]
    bound = bound * (1 + u) + u * want.abs() + SMALLEST.get(got.dtype, 0.0)
    _close(got, want, bound.expand(want.shape), what)
    # Nothing between rows was touched.
    whole = torch.tensor([], dtype=got.dtype).set_(got.untyped_storage())
    gaps = torch.ones_like(whole, dtype=torch.bool)
    gaps.as_strided(got.shape, got.stride(), got.storage_offset()).fill_(False)
    assert (whole[gaps] == UNWRITTEN).all()


def logits(
    shape: tuple[int, ...], dtype: torch.dtype, row_stride: int | None = None, skip: int = 0
) -> Tensor:
    """Normal values of deviation 3, the first and last class of each row large.

    Rows lie `row_stride` apart and begin `skip` elements past an allocation; what is between them
    is UNWRITTEN.
    """
    classes, rest = shape[1], math.prod(shape[2:])
    row_stride = classes * rest if row_stride is None else row_stride
    storage = torch.full((skip + shape[0] * row_stride,), UNWRITTEN, dtype=dtype)
    tail = [1] * len(shape[2:])
    for axis in range(len(tail) - 1, 0, -1):
        tail[axis - 1] = tail[axis] * shape[2:][axis]
    x = storage.as_strided(shape, (row_stride, rest, *tail), skip)
    x.copy_(3 * torch.randn(shape))
    x[:, 0] += 6
    x[:, -1] += 7
    return x


def channels_last(x: Tensor) -> Tensor:
    """The same values with class stride 1."""
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def labels(x: Tensor) -> Tensor:
    """Classes for each row, the first and the last one among them."""
    outer, classes, inner = rows_of(x)
    target = torch.randint(classes, (outer * inner,))
    target[0] = classes - 1
    target[-1] = 0
    return target.reshape(outer, *x.shape[2:])


def weights(x: Tensor) -> Tensor:
    """Of classes."""
    return torch.rand(x.shape[1]).to(torch.promote_types(x.dtype, torch.float32)) + 0.5


def everything(x: Tensor) -> dict[str, Any]:
    """Options that reach every term of the formula."""
    outer, _, inner = rows_of(x)
    real = torch.promote_types(x.dtype, torch.float32)
    return {
        "weight": weights(x),
        "label_smoothing": 0.2,
        "z_loss": 1e-2,
        "entropy_weight": 0.3,
        "upstream": torch.randn(outer * inner, dtype=real),
        "upstream_lse": torch.randn(outer * inner, dtype=real),
    }


def with_one_ignored(target: Tensor, ignore_index: int = -100) -> Tensor:
    """The same but for the second row."""
    target = target.clone()
    target.view(-1)[1] = ignore_index
    return target


def probabilities(x: Tensor, dtype: torch.dtype, skip: int = 0) -> Tensor:
    """Rows that add up to 1, roughly, some of them with zeros."""
    q = torch.rand(x.shape).where(torch.rand(x.shape) < 0.7, torch.zeros(()))
    storage = torch.full((skip + q.numel(),), UNWRITTEN, dtype=dtype)
    into = storage[skip:].as_strided(q.shape, q.contiguous().stride(), skip)
    return into.copy_(q / q.sum(1, keepdim=True).clamp(min=1e-3))


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "others": {"label_smoothing": 0.3, "smoothing": "others"},
    "all-smoothed": {"label_smoothing": 1.0},
    "sum": {"mean": False},
    "num-items": {"num_items": 17.0},
    "no-gradient": {"gradient": "none"},
    "in-place": {"gradient": "inplace", "label_smoothing": 0.1},
    "z-loss": {"z_loss": 0.1},
    "entropy": {"entropy_weight": 0.5},
    "no-lse": {"wants_lse": False},
    "weight": {"weight": True},
    "weight-smoothed": {"weight": True, "label_smoothing": 0.1},
    "ignored": {"ignored": True, "label_smoothing": 0.1},
    "ignored-in-place": {"ignored": True, "gradient": "inplace"},
    "ignored-class": {"ignored": True, "ignore_index": 2},
    "ignored-unread": {"ignored": True, "wants_lse": False},
    "pair": {"pair": True, "lam": 1},
    "pair-smoothed": {"pair": True, "lam": 1, "label_smoothing": 0.1, "weight": True},
    "pair-of-rows": {"pair": True, "lam": "rows", "gradient": "inplace"},
    "pair-ignored": {"pair": True, "lam": "rows", "ignored": True, "label_smoothing": 0.1},
    "upstream": {"upstream": "scalar"},
    "upstream-of-rows": {"upstream": "rows", "ignored": True},
    "upstream-lse": {"upstream_lse": True, "ignored": True, "gradient": "inplace"},
}


def problem_of(x: Tensor, **options: Any) -> Problem:
    """Fills in tensors for a row of OPTIONS."""
    outer, _, inner = rows_of(x)
    real, rows = torch.promote_types(x.dtype, torch.float32), outer * inner
    target = labels(x)
    if options.pop("ignored", False):
        target = with_one_ignored(target, options.get("ignore_index", -100))
    if options.pop("pair", False):
        second = labels(x).flatten().flip(0)
        second[1] = second[3] = options.get("ignore_index", -100)  # with a label, and without
        options["target_b"] = second.reshape(target.shape)
        per_row = options["lam"] == "rows"
        options["lam"] = torch.rand(outer if per_row else 1, dtype=real)
    if options.get("weight"):
        options["weight"] = weights(x)
    if "upstream" in options:
        options["upstream"] = torch.randn(rows if options["upstream"] == "rows" else (), dtype=real)
    if "upstream_lse" in options:
        options["upstream_lse"] = torch.randn(rows, dtype=real)
    return Problem(x, target, **options)
