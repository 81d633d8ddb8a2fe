"""Every CUDA kernel of cross-entropy, and every way to launch it, executed without a GPU."""

from __future__ import annotations

import ctypes
import dataclasses
import math
from typing import Any

import pytest
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
from tests.cuda_library import call, interpreted

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


def check(problem: Problem, results: Results | None = None) -> Results:
    """Runs a problem and compares all that it gives with the oracle.

    With n additions, every sum over a row is off by n + 3 roundoffs u of the sum of its terms'
    sizes: n of the additions, 3 of a term. exp is good to 4 u of the largest term, all else to a
    few u; 16 u stand for them. A gradient is rounded once more, to its own type.
    """
    want = expected(problem)
    logits = problem.input.detach().clone()
    got = run(problem) if results is None else results
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


# On chip: up to 32 classes by 8 threads a row, then a warp, 128 and 512 threads, clusters of 2, 4
# and 8 blocks. float64 is streamed, by a warp, 128 or 256 threads.
CLASSES = (1, 3, 8, 10, 31, 32, 33, 1000, 1003, 2500, 8191, 32000, 50257, 128256)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", CLASSES)
def test_rows(classes: int, dtype: torch.dtype) -> None:
    if dtype == torch.float64 and classes > 8191:
        pytest.skip("the same kernel as for fewer classes")
    rows = 3 if classes < 10000 else 2
    x = logits((rows, classes), dtype)
    check(Problem(x, labels(x), label_smoothing=0.1))
    results = check(Problem(x, with_one_ignored(labels(x)), **everything(x)))
    names = [name for name in results.launched if "prepare" not in name and "losses" not in name]
    on_chip = dtype != torch.float64
    assert len(names) == 1
    assert ("on_chip" in names[0]) == on_chip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_rows_longer_than_a_cluster(dtype: torch.dtype) -> None:
    classes = 8 * 65536 // dtype.itemsize + 64
    x = logits((1, classes), dtype)
    results = check(Problem(x, labels(x), label_smoothing=0.1, gradient="inplace"))
    assert any("streamed" in name for name in results.launched)


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


LAYOUTS = {
    "short": ((5, 13), torch.bfloat16),
    "warp": ((5, 130), torch.float32),
    "block": ((5, 2100), torch.float16),
    "cluster": ((5, 16500), torch.float32),
    "streamed": ((5, 130), torch.float64),
    "streamed-block": ((5, 800), torch.float64),
    "columns": ((2, 21, 5), torch.float32),
}


# Long rows take the interpreter a second; what is left out takes the same lines as in a block.
IN_CLUSTER = (
    "in-place",
    "weight-smoothed",
    "ignored",
    "ignored-unread",
    "pair-ignored",
    "upstream-lse",
)


@pytest.mark.parametrize(
    ("layout", "options"),
    [(name, o) for name in LAYOUTS for o in (IN_CLUSTER if name == "cluster" else OPTIONS)],
)
def test_options(options: str, layout: str) -> None:
    shape, dtype = LAYOUTS[layout]
    check(problem_of(logits(shape, dtype), **OPTIONS[options]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 3), (2, 3, 7), (3, 21, 50), (1, 33, 5, 3)])
def test_columns(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = logits(shape, dtype)
    check(Problem(x, labels(x), label_smoothing=0.1))
    results = check(Problem(x, with_one_ignored(labels(x)), gradient="inplace", **everything(x)))
    assert any("columns" in name for name in results.launched)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", [13, 103, 2057])
@pytest.mark.parametrize(("row_stride", "skip"), [(0, 1), (5, 0), (8, 3)])
def test_rows_of_any_alignment(
    row_stride: int, skip: int, classes: int, dtype: torch.dtype
) -> None:
    """Every start of a row within 16 bytes; gradients in the same place, in step, and not."""
    x = logits((9, classes), dtype, classes + row_stride, skip)
    for gradient in ("new", "inplace"):
        check(Problem(x.clone() if gradient == "new" else x, labels(x), gradient=gradient))
    x = logits((9, classes), dtype, classes + row_stride, skip)
    dense = torch.empty((9, classes), dtype=dtype)
    check(Problem(x, labels(x), gradient_like=dense, label_smoothing=0.1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_inner_dimensions_before_the_classes(dtype: torch.dtype) -> None:
    x = channels_last(logits((3, 40, 6), dtype))
    results = check(Problem(x, labels(x), label_smoothing=0.1, gradient="inplace"))
    assert not any("columns" in name for name in results.launched)


def test_gradient_of_another_layout() -> None:
    x = logits((3, 40, 6), torch.float32)
    check(Problem(channels_last(x), labels(x), gradient_like=x))
    check(Problem(x, labels(x), gradient_like=channels_last(x)))


PROBABILITY_DTYPES = [
    (torch.float64, torch.float64),
    (torch.float32, torch.float32),
    (torch.bfloat16, torch.bfloat16),
    (torch.bfloat16, torch.float32),
    (torch.float16, torch.float16),
    (torch.float16, torch.float32),
]


def probabilities(x: Tensor, dtype: torch.dtype, skip: int = 0) -> Tensor:
    """Rows that add up to 1, roughly, some of them with zeros."""
    q = torch.rand(x.shape).where(torch.rand(x.shape) < 0.7, torch.zeros(()))
    storage = torch.full((skip + q.numel(),), UNWRITTEN, dtype=dtype)
    into = storage[skip:].as_strided(q.shape, q.contiguous().stride(), skip)
    return into.copy_(q / q.sum(1, keepdim=True).clamp(min=1e-3))


@pytest.mark.parametrize(("dtype", "probability_dtype"), PROBABILITY_DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(3, 10), (5, 103), (2, 3000), (2, 21, 7)])
def test_probabilities(
    shape: tuple[int, ...], dtype: torch.dtype, probability_dtype: torch.dtype
) -> None:
    x = logits(shape, dtype)
    check(Problem(x, probabilities(x, probability_dtype)))
    q = probabilities(x, probability_dtype)
    check(Problem(x, q, probability_gradient=True, gradient="inplace", **everything(x)))
    x = logits(shape, dtype)
    q = probabilities(x, probability_dtype, skip=1)
    check(Problem(x, q, probability_gradient=True, gradient="none"))


# ---- logits and labels that are no numbers, or no classes ---------------------------------------

SPECIAL = {
    "short": ((6, 9), torch.float32),
    "warp": ((6, 45), torch.bfloat16),
    "block": ((6, 1100), torch.float32),
    "cluster": ((6, 16500), torch.float32),
    "streamed": ((6, 45), torch.float64),
    "columns": ((2, 9, 3), torch.float32),
}
special = pytest.mark.parametrize("layout", SPECIAL)


def by_row(x: Tensor) -> Tensor:
    """(rows, classes), sharing memory."""
    return x if x.dim() == 2 else x.movedim(1, -1).flatten(0, 1)


def set_row(x: Tensor, row: int, value: float) -> None:
    outer, _, inner = rows_of(x)
    x.reshape(outer, x.shape[1], inner)[row // inner, :, row % inner] = value


@special
@pytest.mark.parametrize("entropy_weight", [0.0, 0.5])
def test_minus_infinity(layout: str, entropy_weight: float) -> None:
    shape, dtype = SPECIAL[layout]
    x = logits(shape, dtype)
    x[:, 1:5] = -math.inf
    target = labels(x)
    target.view(-1)[2] = 3  # an infinite loss
    set_row(x, 1, -math.inf)
    results = check(Problem(x, target, entropy_weight=entropy_weight, mean=False))
    assert results.loss[2] == math.inf
    assert results.loss[1].isnan()
    assert results.lse is not None
    assert results.lse[1] == -math.inf
    assert results.gradient is not None
    assert by_row(results.gradient)[1].isnan().all()


@special
def test_nan_and_infinity(layout: str) -> None:
    shape, dtype = SPECIAL[layout]
    x = logits(shape, dtype)
    rows = by_row(x).clone()
    rows[0, 4] = math.nan
    rows[1, 7] = math.inf
    rows[2, :] = math.nan
    x.copy_(rows.reshape(shape[0], *shape[2:], shape[1]).movedim(-1, 1))
    results = check(Problem(x, labels(x), mean=False))
    assert results.gradient is not None
    assert by_row(results.gradient)[:3].isnan().all()
    assert by_row(results.gradient)[3:].isfinite().all()


@special
@pytest.mark.parametrize("wants_lse", [False, True])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_ignored_rows_are_selected_to_zero(layout: str, value: float, wants_lse: bool) -> None:
    shape, dtype = SPECIAL[layout]
    x = logits(shape, dtype)
    set_row(x, 1, value)
    target = with_one_ignored(labels(x))
    for gradient in ("new", "inplace"):
        results = run(
            Problem(x.clone(), target, gradient=gradient, wants_lse=wants_lse, z_loss=0.1)
        )
        assert results.loss[1] == 0
        assert results.gradient is not None
        assert (by_row(results.gradient)[1] == 0).all()
        assert by_row(results.gradient)[2:].isfinite().all()


@special
def test_all_rows_ignored(layout: str) -> None:
    shape, dtype = SPECIAL[layout]
    x = logits(shape, dtype)
    results = run(Problem(x, torch.full_like(labels(x), -100), label_smoothing=0.1))
    assert results.divisor == 0
    assert math.isnan(results.total)
    assert results.gradient is not None
    assert (results.gradient == 0).all()


@special
@pytest.mark.parametrize("pair", [False, True])
def test_labels_out_of_range(layout: str, pair: bool) -> None:
    shape, dtype = SPECIAL[layout]
    x = logits(shape, dtype)
    good, bad = labels(x), labels(x)
    wrong = (-1, shape[1], 2**62)
    bad.view(-1)[:3] = torch.tensor(wrong)
    problem = Problem(x, good if pair else bad, mean=False, label_smoothing=0.1)
    if pair:
        lam = torch.tensor([0.3], dtype=problem.real)
        problem = dataclasses.replace(problem, target_b=bad, lam=lam)
    results = check(problem)
    assert results.loss[:3].isnan().all()
    assert results.loss[3:].isfinite().all()
    assert results.gradient is not None
    assert by_row(results.gradient)[:3].isnan().all()


@pytest.mark.parametrize("layout", [name for name in SPECIAL if name != "columns"])
def test_ignored_rows_are_not_read(layout: str) -> None:
    (rows, classes), dtype = SPECIAL[layout]
    x = logits((rows, classes), dtype)
    target = labels(x)
    target[2:] = -100
    check(Problem(x, target, wants_lse=False, hidden=(rows - 2) * classes))


# ---- sizes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_rows_far_apart(dtype: torch.dtype) -> None:
    """Offsets over 2^31 elements, of rows and of classes; the memory between is never touched."""
    far = 2**31 + 8
    storage = torch.empty(far + 64, dtype=dtype)
    rows = storage.as_strided((2, 40), (far, 1))
    columns = storage.as_strided((1, 2, 5), (0, far, 1))
    for x in (rows, columns):
        x.copy_(torch.randn(x.shape))
        check(Problem(x, labels(x), gradient_like=torch.empty(x.shape, dtype=dtype)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("mean", [False, True])
def test_totals_of_many_rows(dtype: torch.dtype, mean: bool) -> None:
    x = logits((1500, 3), dtype)
    target = labels(x)
    target[::7] = -100
    check(Problem(x, target, weight=weights(x), mean=mean, gradient="none"))


def test_weights_of_many_classes() -> None:
    x = logits((1, 3000), torch.float32)
    check(Problem(x, labels(x), weight=weights(x), label_smoothing=0.5))


def test_no_rows() -> None:
    x = torch.empty(0, 5)
    results = run(Problem(x, torch.empty(0, dtype=torch.int64)))
    assert results.divisor == 0
    assert math.isnan(results.total)


# ---- scaling of gradients -----------------------------------------------------------------------


def scale(values: Tensor, factor: float, registered: bool = True) -> None:
    """In place, by the kernel; `registered`: whether it may touch the values."""
    device = interpreted()
    real = torch.promote_types(values.dtype, torch.float32)
    factors = torch.tensor([factor], dtype=real).numpy()
    if registered:
        storage = torch.empty(0, dtype=values.dtype).set_(values.untyped_storage())
        device.register(storage.view(torch.uint8).numpy())
    call(
        device,
        "regops_cross_entropy_scale_cuda",
        DTYPE_CODES[values.dtype],
        ctypes.c_void_p(values.data_ptr()),
        ctypes.c_int64(values.numel()),
        device.register(factors, writable=False),
        None,
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("skip", [0, 1])
@pytest.mark.parametrize("size", [1, 5, 1003, 20000])
def test_scale(size: int, skip: int, dtype: torch.dtype) -> None:
    storage = torch.randn(skip + size + 3).to(dtype)
    before = storage.clone()
    scale(storage[skip : skip + size], -0.3)
    want = before.clone()
    real = torch.promote_types(dtype, torch.float32)
    factor = torch.tensor(-0.3, dtype=real)
    want[skip : skip + size] = (before[skip : skip + size].to(real) * factor).to(dtype)
    assert torch.equal(storage, want)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_scale_by_one_touches_nothing(dtype: torch.dtype) -> None:
    scale(torch.randn(5000).to(dtype), 1.0, registered=False)


def test_scale_of_nothing_launches_nothing() -> None:
    device = interpreted()
    nothing = [None, ctypes.c_int64(0), None, None]
    assert device.call("regops_cross_entropy_scale_cuda", 1, *nothing) == 0
    assert not device.launched
