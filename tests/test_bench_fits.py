"""Costs that are read off a fit, on times that are made of known costs."""

from __future__ import annotations

import pytest

from bench.fits import fits
from bench.scaling import costs
from tests.bench_report_runs import SIZES, dropout, loss, steps


def test_a_fit_finds_the_costs_that_times_are_made_of() -> None:
    (fit,) = (
        fit
        for fit in fits(dropout())
        if (fit.provider, fit.first.direction, fit.first.dtype) == ("regops", "full", "float32")
    )
    assert fit.call == pytest.approx(2e-6)
    assert fit.hot == pytest.approx(5e-10)
    assert fit.cold == pytest.approx(5e-10)
    assert fit.part is None
    assert fit.sizes == tuple(SIZES)
    assert fit.misfit == pytest.approx(0, abs=1e-6)


def test_a_fit_tells_tensors_from_elements_and_leaves_options_out() -> None:
    found = {fit.provider: fit for fit in fits(steps())}
    assert found["regops"].part == pytest.approx(1e-7)
    assert found["regops"].call == pytest.approx(1e-6)
    assert found["eager"].part == pytest.approx(2e-5)
    assert "16M-clip" not in found["regops"].sizes
    # Of lists alone no one can tell which is which.
    assert not fits([each for each in steps() if each.tensors > 1 or "x" in each.size])


def test_a_fit_has_no_negative_costs_and_says_how_far_it_is_off() -> None:
    rows = dropout()[:5]
    for each in rows:
        each.median = {"regops": 1e-3 / each.numel}  # the larger, the faster
    (fit,) = fits(rows)
    assert min(fit.call, fit.hot or 0.0, fit.cold or 0.0) >= 0
    assert fit.misfit > 0.5
    table = costs("dropout", [fit])
    assert table is not None
    assert "poor fit" in str(table.rows)


def test_nothing_is_fitted_to_as_many_sizes_as_there_are_costs() -> None:
    rows = [each for each in dropout() if each.size in ("64", "4k", "16M")]
    assert fits(rows) == []
    assert fits([loss()]) == []
