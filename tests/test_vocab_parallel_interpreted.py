"""The CUDA kernels of cross-entropy over split classes, executed without a GPU."""

from __future__ import annotations

import ctypes
import math

import pytest
import torch

from tests.cross_entropy_call import UNWRITTEN
from tests.cross_entropy_problems import DTYPES, labels, logits
from tests.cuda_library import interpreted
from tests.vocab_parallel_call import run_interpreted
from tests.vocab_parallel_problems import (
    OPTIONS,
    ShardedProblem,
    check,
    expected,
    problem_of,
    small_problem,
)


@pytest.mark.parametrize("options", OPTIONS)
def test_options(options: str) -> None:
    problem = small_problem(options, torch.float32, 53)
    check(problem, run_interpreted(problem, 3), expected(problem))


# Rows of a shard by a warp, 128 threads and 256.
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vectors", [1, 40, 300, 2100])
def test_rows(vectors: int, dtype: torch.dtype) -> None:
    classes = 2 * vectors * (16 // dtype.itemsize) + 3
    problem = problem_of(logits((2, classes), dtype), **OPTIONS["everything"])
    check(problem, run_interpreted(problem, 2), expected(problem))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("row_stride", "skip"), [(0, 1), (5, 0), (8, 3)])
def test_rows_of_any_alignment(row_stride: int, skip: int, dtype: torch.dtype) -> None:
    x = logits((9, 103), dtype, 103 + row_stride, skip)
    problem = problem_of(x, **OPTIONS["weight-smoothed"])
    for gradient_like in (x, torch.empty((9, 103), dtype=dtype)):
        got = run_interpreted(problem, 2, gradient_like=gradient_like)
        check(problem, got, expected(problem))
        whole = torch.tensor([], dtype=dtype).set_(got.gradient.untyped_storage())
        touched = torch.zeros_like(whole, dtype=torch.bool)
        touched.as_strided(
            got.gradient.shape, got.gradient.stride(), got.gradient.storage_offset()
        ).fill_(True)
        assert (whole[~touched] == UNWRITTEN).all()


@pytest.mark.parametrize(("classes", "shards"), [(1, 1), (3, 4), (5, 7)])
def test_uneven_and_empty_shards(classes: int, shards: int) -> None:
    for options in ("plain", "everything"):
        problem = small_problem(options, torch.bfloat16, classes)
        check(problem, run_interpreted(problem, shards), expected(problem))


def test_many_rows() -> None:
    problem = problem_of(logits((300, 5), torch.float32), label_smoothing=0.1)
    check(problem, run_interpreted(problem, 2), expected(problem))


def test_infinite_logits() -> None:
    x = logits((6, 40), torch.float32)
    x[0, 3] = x[1, :20] = x[2, 20:] = x[3] = -math.inf
    x[4, 5] = math.inf
    x[5, 30] = math.nan
    problem = ShardedProblem(
        x, torch.tensor([1, 25, 4, 1, 2, 2]), {"reduction": "none", "return_lse": True}
    )
    got = run_interpreted(problem, 2)
    assert got.lse is not None
    torch.testing.assert_close(got.lse, x.logsumexp(1), equal_nan=True)
    # As of one process: 0 at an infinitely small logit, nan where no logit is finite.
    assert got.loss[:3].isfinite().all()
    assert got.loss[3:].isnan().all()
    assert got.gradient[0, 3] == 0
    assert not got.gradient[1, :20].any()
    assert got.gradient[:3].isfinite().all()
    assert got.gradient[3:].isnan().all()


def test_target_out_of_range_reads_nothing_and_is_nan() -> None:
    x = logits((4, 20), torch.float32)
    for bad in (20, -1, 2**62, -(2**63)):
        target = labels(x)
        target[2] = bad
        problem = ShardedProblem(x, target, {"reduction": "sum", "label_smoothing": 0.1})
        got = run_interpreted(problem, 2)
        assert got.loss.isnan()
        assert got.gradient[2].isnan().all()
        assert got.gradient[[0, 1, 3]].isfinite().all()


def test_shards_that_do_not_add_up_are_nan() -> None:
    problem = small_problem("plain", torch.float32, 20)
    problem.options["reduction"] = "none"
    good = run_interpreted(problem, 2)
    assert good.loss.isfinite().all()
    problem.missing = 1
    got = run_interpreted(problem, 2)
    assert got.loss.isnan().all()
    assert got.gradient.isnan().all()


def test_no_rows_launch_nothing() -> None:
    for launcher in ("statistics", "losses", "gradient"):
        device = interpreted()
        empty = ctypes.create_string_buffer(1024)
        assert device.call(f"regops_vocab_parallel_{launcher}_cuda", empty, None) == 0
        assert not device.launched
