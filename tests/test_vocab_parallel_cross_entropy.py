"""Cross-entropy of logits whose classes are split over processes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.testing import assert_close

if not dist.is_available():
    pytest.skip("torch without distributed", allow_module_level=True)

import regops.functional as RF
from regops import _C
from tests import vocab_parallel_runs
from tests.cross_entropy_problems import DTYPES, labels, logits, weights
from tests.processes import start
from tests.vocab_parallel_problems import (
    OPTIONS,
    SHARDS,
    ShardedProblem,
    arguments_of,
    check,
    expected,
    problem_of,
    results_of,
    run,
    small_problem,
    starts,
)

# ---- the ops, of one process's logits in parts ---------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", OPTIONS)
def test_shards_are_as_the_whole(options: str, dtype: torch.dtype) -> None:
    problem = small_problem(options, dtype)
    want = expected(problem)
    if dtype == problem.real:  # else its gradient is rounded before the upstream one scales it
        check(problem, results_of(RF.cross_entropy, problem, dtype), want)
    for shards in SHARDS:
        check(problem, run(problem, shards), want)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("classes", "shards"), [(1, 1), (5, 2), (3, 4), (5, 7), (3001, 2)])
def test_uneven_and_empty_shards(
    classes: int, shards: int, dtype: torch.dtype, cpu_capability: str
) -> None:
    assert _C.build_info()["cpu_capability"] == cpu_capability
    for options in ("plain", "ignored", "everything"):
        problem = small_problem(options, dtype, classes)
        check(problem, run(problem, shards), expected(problem))


def test_rows_over_threads(threads: int) -> None:
    assert torch.get_num_threads() == threads
    problem = problem_of(logits((300, 700), torch.float32), **OPTIONS["everything"])
    results = run(problem, 3)
    check(problem, results, expected(problem))
    torch.set_num_threads(1)
    alone = run(problem, 3)
    assert torch.equal(results.loss, alone.loss)
    assert torch.equal(results.gradient, alone.gradient)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_large_gradients_are_stored_past_the_cache(dtype: torch.dtype) -> None:
    x = logits(((16 << 20) // (24007 * dtype.itemsize) + 1, 24007), dtype)  # rows are misaligned
    problem = ShardedProblem(x, labels(x), {"label_smoothing": 0.1})
    check(problem, run(problem, 1), expected(problem))


@pytest.mark.parametrize("value", [1e4, -1e4])
def test_logits_far_from_zero(value: float) -> None:
    x = logits((6, 50), torch.float32)
    x[:, :20] += value
    for options in ("plain", "weight-smoothed"):
        problem = problem_of(x, **OPTIONS[options])
        for shards in SHARDS:
            check(problem, run(problem, shards), expected(problem))


@pytest.mark.parametrize("options", ["plain", "lse", "smoothed", "weight-smoothed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_infinite_logits(options: str, dtype: torch.dtype) -> None:
    """Some -inf, a shard of them, a row of them; +inf; nan."""
    x = logits((8, 40), dtype)
    x[0, 3] = x[1, :20] = x[2, 20:] = x[3] = -math.inf
    x[4, 5] = math.inf
    x[5, 30] = math.nan
    problem = problem_of(x, **OPTIONS[options])
    problem.target = torch.tensor([1, 25, 4, 1, 2, 2, 3, 39])
    if options == "plain":
        problem.options["reduction"] = "none"
    want = results_of(RF.cross_entropy, problem, dtype)
    for shards in (1, 2, 4):
        got = run(problem, shards)
        # What is not finite is as of one process, and the rest as precise as ever.
        assert_close(got.loss, want.loss, rtol=2e-6, atol=2e-6, equal_nan=True)
        assert_close(got.gradient, want.gradient, rtol=2e-3, atol=2e-6, equal_nan=True)
        if want.lse is not None:
            assert_close(got.lse, want.lse, rtol=2e-6, atol=2e-6, equal_nan=True)


def test_ignored_rows_are_not_read() -> None:
    x = logits((4, 20), torch.float32)
    x[1] = math.nan
    problem = problem_of(x, ignored=True, label_smoothing=0.1)
    got = run(problem, 2)
    assert got.loss.isfinite()
    assert not got.gradient[1].any()


@pytest.mark.parametrize("layout", ["columns", "gaps", "broadcast"])
def test_strided_logits(layout: str) -> None:
    x = logits((6, 30), torch.float32)
    if layout == "columns":
        x = x.t().contiguous().t()
    elif layout == "gaps":
        x = torch.cat((x, x), 1)[:, :30]
    else:
        x = x[:1].expand(6, 30)
    problem = problem_of(x, **OPTIONS["weight-smoothed"])
    for shards in (1, 3):
        check(problem, run(problem, shards), expected(problem))


def test_no_rows() -> None:
    x = torch.empty(0, 10)
    problem = ShardedProblem(x, torch.empty(0, dtype=torch.int64))
    got = run(problem, 2)
    assert got.loss.isnan()
    assert got.gradient.shape == (0, 10)
    problem.options["reduction"] = "sum"
    assert run(problem, 2).loss == 0


def test_labels_of_bytes() -> None:
    problem = small_problem("smoothed", torch.float32)
    want = expected(problem)
    problem.target = problem.target.to(torch.uint8)
    check(problem, run(problem, 3), want)


# ---- as ops --------------------------------------------------------------------------------------


def _calls(problem: ShardedProblem) -> list[tuple[Any, tuple[Any, ...]]]:
    """Every op, on the second of two shards."""
    op, classes = torch.ops.regops, problem.input.shape[1]
    first, size = starts(classes, 2)[1]
    part = problem.input.narrow(1, first, size)
    arguments = arguments_of(problem, part)
    statistics, totals = op.cross_entropy_shard_statistics(*arguments, classes, first)
    whole = arguments_of(problem, problem.input)
    gathered = op.cross_entropy_shard_statistics(*whole, classes, 0)[0].unsqueeze(0)
    losses = (*arguments, classes, gathered, totals)
    normalizers = op.cross_entropy_shard_losses(*losses)[2]
    upstream = (problem.upstream, problem.upstream_lse)
    assert statistics.shape == gathered.shape[1:]
    return [
        (op.cross_entropy_shard_statistics, (*arguments, classes, first)),
        (op.cross_entropy_shard_losses, losses),
        (
            op.cross_entropy_shard_backward,
            (*arguments, classes, first, normalizers, totals, *upstream),
        ),
    ]


@pytest.mark.parametrize("options", ["plain", "none", "everything"])
def test_opcheck(options: str) -> None:
    for op, arguments in _calls(small_problem(options, torch.bfloat16)):
        torch.library.opcheck(op.default, arguments)


@pytest.mark.parametrize("options", ["plain", "lse", "everything"])
def test_shapes_on_meta(options: str) -> None:
    for op, arguments in _calls(small_problem(options, torch.float16)):
        on_meta = [x.to("meta") if isinstance(x, Tensor) else x for x in arguments]
        real, meta = op(*arguments), op(*on_meta)
        if isinstance(real, Tensor):
            real, meta = (real,), (meta,)
        for a, b in zip(real, meta, strict=True):
            assert a.shape == b.shape
            assert a.dtype == b.dtype
            assert a.stride() == b.stride()


def _message(problem: ShardedProblem, first: int = 0) -> tuple[type[BaseException], str]:
    with pytest.raises(Exception, match=r"^regops\.cross_entropy: ") as raised:
        torch.ops.regops.cross_entropy_shard_statistics(
            *arguments_of(problem, problem.input), 20, first
        )
    return raised.type, str(raised.value)


def test_errors() -> None:
    x = logits((3, 10), torch.float32)
    good = ShardedProblem(x, torch.tensor([1, 12, 19]))
    kind, message = _message(good, 11)
    assert kind is ValueError
    assert "a shard of 20 classes, got those in [11, 21)" in message
    kind, message = _message(ShardedProblem(x, torch.tensor([1, 20, 19])))
    assert kind is IndexError
    assert "target in [0, 20), got 20 at row 1" in message
    _, message = _message(ShardedProblem(x, good.target, {"weight": torch.ones(10)}))
    assert "weight of shape [20]" in message
    kind, message = _message(ShardedProblem(x[0], good.target))
    assert kind is ValueError
    assert "of shape [N, C], got [10]" in message
    kind, message = _message(ShardedProblem(x, torch.rand(3, 20)))
    assert "class indices as target" in message


def test_shards_that_do_not_add_up() -> None:
    x = logits((3, 10), torch.float32)
    problem = ShardedProblem(x, labels(x))
    arguments = arguments_of(problem, x)
    op = torch.ops.regops
    statistics, totals = op.cross_entropy_shard_statistics(*arguments, 20, 0)
    gathered = torch.stack((statistics, statistics, statistics))
    with pytest.raises(ValueError, match="expected shards of 20 classes in all, got 30"):
        op.cross_entropy_shard_losses(*arguments, 20, gathered, totals)
    with pytest.raises(ValueError, match="statistics of all shards of 3 rows of 6 numbers"):
        op.cross_entropy_shard_losses(*arguments, 20, gathered[:, 1:], totals)


def test_weight_is_of_all_classes() -> None:
    x = logits((4, 12), torch.float32)
    weight = weights(x)
    weight[:6] = 0.0
    problem = ShardedProblem(x, labels(x), {"weight": weight, "label_smoothing": 0.3})
    check(problem, run(problem, 2), expected(problem))


# ---- processes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [2, 4])
def test_distributed_logits_are_as_those_of_one_process(size: int, tmp_path: Path) -> None:
    start(vocab_parallel_runs.process, size, tmp_path / "store", 240.0)


def test_process_with_another_number_of_rows_ends_all(tmp_path: Path) -> None:
    """By an error of the backend: gloo ends the process that gets too much."""
    with pytest.raises((mp.ProcessExitedException, mp.ProcessRaisedException)):
        start(vocab_parallel_runs.disagrees, 2, tmp_path / "store", 60.0)
