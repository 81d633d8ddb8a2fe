"""CUDA kernels of cross-entropy where logits are no numbers and labels no classes."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from tests.cross_entropy_call import Problem, rows_of, run
from tests.cross_entropy_problems import check, labels, logits, with_one_ignored

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
    """Their mean is 0 / 0; their gradient is 0, or that of lse alone."""
    shape, dtype = SPECIAL[layout]
    x = logits(shape, dtype)
    target = torch.full_like(labels(x), -100)
    results = check(Problem(x, target, label_smoothing=0.1))
    assert math.isnan(results.total)
    assert results.gradient is not None
    assert (results.gradient == 0).all()
    upstream_lse = torch.randn(target.numel(), dtype=results.loss.dtype)
    check(Problem(x, target, label_smoothing=0.1, upstream_lse=upstream_lse))


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
