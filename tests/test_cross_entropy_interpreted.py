"""Every CUDA kernel of cross-entropy, and every way to launch it, executed without a GPU."""

from __future__ import annotations

import ctypes
import math

import pytest
import torch
from torch import Tensor

from tests.cross_entropy_call import DTYPE_CODES, Problem, run
from tests.cross_entropy_problems import (
    DTYPES,
    OPTIONS,
    channels_last,
    check,
    everything,
    labels,
    logits,
    probabilities,
    problem_of,
    weights,
    with_one_ignored,
)
from tests.cuda_library import call, interpreted
from tests.ptx import A100

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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_rows_of_the_largest_cluster(dtype: torch.dtype) -> None:
    """8 blocks, which float32 takes for 128256 classes."""
    x = logits((1, 4 * 512 * 8 * 8 + 11), dtype)
    results = check(Problem(x, labels(x), label_smoothing=0.1, gradient="inplace"))
    assert any("on_chip" in name for name in results.launched)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_rows_longer_than_a_cluster(dtype: torch.dtype) -> None:
    classes = 8 * 65536 // dtype.itemsize + 64
    x = logits((1, classes), dtype)
    results = check(Problem(x, labels(x), label_smoothing=0.1, gradient="inplace"))
    assert any("streamed" in name for name in results.launched)


def test_long_rows_without_clusters() -> None:
    """Code for compute capability 8.0 streams what does not fit into a block."""
    device = interpreted(A100)
    for classes, kernel in ((32000, "on_chip"), (33003, "streamed")):
        x = logits((1, classes), torch.bfloat16)
        results = check(Problem(x, labels(x), label_smoothing=0.1, gradient="inplace"), device)
        assert any(kernel in name for name in results.launched)


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
