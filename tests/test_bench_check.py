"""The ratio gate, on figures made up for the purpose: what it judges, and by which bound."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench import check
from bench.check import judge
from bench.summary import Row, Summary
from bench.thresholds import THRESHOLDS
from tests.bench_runs import MACHINE, row, summary, written

MEDIANS = {"eager": 20.0, "compile": 12.0, "regops": 1.0, "copy": 0.9}


def dropout(medians: dict[str, float], **more: Any) -> Summary:
    """Of the goals at 16M and 64k in float32: five."""
    return summary(
        *(
            row("dropout", direction, "float32", size, medians, **more)
            for direction in ("forward", "backward")
            for size in ("64k", "16M")
        )
    )


def loss(memory: float) -> Summary:
    """Regops's peak of memory being so many times eager's: two goals, of one row."""
    return summary(
        *(
            row("linear_cross_entropy", direction, "float32", size, MEDIANS, full_peak=peak)
            for direction in ("full", "inference")
            for size, peak in (
                ("1024x64x1000", {}),
                ("4096x512x32768", {"eager": 1600, "regops": round(1600 * memory)}),
            )
        )
    )


def dropconnect(rivals: dict[str, float], extra: int) -> Summary:
    """Five goals; one row of the two has a linear layer as its ceiling."""
    sample = {"eager": 10.0, "regops": 1.0, "copy": 0.1, **rivals}
    batch = {"linear": 0.9, **sample}
    sample.pop("linear", None)
    return summary(
        *(
            row("dropconnect_linear", "full", "float32", size, medians, extra={"regops": extra})
            for size, medians in (("256x4096-4096", batch), ("64x1024-1024-sample", sample))
        )
    )


def step(fused: float, stream: float) -> Summary:
    """Three goals."""
    medians = {"eager": 9.0, "foreach": 7.0, "fused": fused, "regops": 1.0, "stream": stream}
    return summary(
        *(row("adamw", "step", "float32", size, medians) for size in ("16M", "16M-clip"))
    )


def verdicts(run: Summary) -> list[bool]:
    return [verdict.met for verdict in judge(run)]


# ---- what is judged, and how ----


def test_the_gate_passes_what_is_fast() -> None:
    assert verdicts(dropout(MEDIANS)) == [True] * 5


@pytest.mark.parametrize(
    ("slow", "missed"),
    [
        ({"copy": 0.86}, 2),
        ({"eager": 14.9}, 2),
        ({"eager": 19.9}, 1),
        ({"compile": 9.9}, 1),
    ],
)
def test_the_gate_reports_a_miss(slow: dict[str, float], missed: int) -> None:
    assert verdicts(dropout(MEDIANS | slow)).count(False) == missed


@pytest.mark.parametrize(("memory", "missed"), [(0.25, 0), (0.26, 1)])
def test_the_gate_bounds_memory(memory: float, missed: int) -> None:
    met = verdicts(loss(memory))
    assert (len(met), met.count(False)) == (2, missed)


@pytest.mark.parametrize(
    ("rivals", "extra", "missed"),
    [
        ({}, 4_000_000, 0),
        ({}, 4_000_001, 2),  # in either mode
        ({"linear": 0.83}, 0, 1),
        ({"eager": 9.9}, 0, 1),
        ({"eager": 2.9}, 0, 2),
    ],
)
def test_the_gate_judges_dropconnect(rivals: dict[str, float], extra: int, missed: int) -> None:
    met = verdicts(dropconnect(rivals, extra))
    assert (len(met), met.count(False)) == (5, missed)


@pytest.mark.parametrize(
    ("fused", "stream", "missed"),
    [
        (1.21, 0.95, 0),
        (0.96, 0.95, 2),  # of the step alone, and with clipping
        (1.1, 0.95, 1),  # with clipping
        (1.21, 0.89, 1),
    ],
)
def test_the_gate_judges_steps(fused: float, stream: float, missed: int) -> None:
    met = verdicts(step(fused, stream))
    assert (len(met), met.count(False)) == (3, missed)


@pytest.mark.parametrize("other", [{"threads": 1}, {"launch": "graph"}])
def test_only_rows_as_users_run_them_are_judged(other: dict[str, Any]) -> None:
    assert verdicts(dropout(MEDIANS, **other)) == []


def test_a_row_is_usual_by_its_own_machine() -> None:
    run = dropout(MEDIANS, threads=1)
    run.machine = MACHINE | {"threads": 1}
    assert len(verdicts(run)) == 5


def test_every_goal_says_where_it_comes_from_and_holds_for_something() -> None:
    for goal in THRESHOLDS:
        assert goal.source
        assert goal.limit > 0
        assert goal.directions
        assert goal.dtypes
        assert goal.sizes
        assert goal.wording.endswith(goal.rival or "output and gradients")


# ---- the program ----


def gate(tmp_path: Path, run: Summary) -> int:
    return check.main([written(tmp_path / "summary.json", run)])


def test_a_pass_is_printed_with_its_goal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gate(tmp_path, dropout(MEDIANS)) == 0
    printed = capsys.readouterr().out
    assert "A CPU, 2 threads" in printed
    assert "MISS" not in printed
    assert printed.count("x  pass") == 5
    assert "5 of 5 met" in printed
    assert "at least 15x as fast as eager" in printed
    assert "[1] an AVX-512 loop of Philox" in printed
    assert "no row" in printed
    assert "not judged, for the run has no row of theirs: dropout on cuda, cross_entropy" in printed


def test_a_miss_is_printed_and_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gate(tmp_path, dropconnect({}, 4_000_001)) == 1
    printed = capsys.readouterr().out
    assert printed.count("MISS") == 2
    assert "3 of 5 met" in printed
    assert "at most 4 MB of memory beyond output and gradients" in printed
    assert "4 MB" in printed


@pytest.mark.parametrize("mark", [{"others": 0.3}, {"slowdown": 2.0}])
def test_a_doubtful_row_is_marked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], mark: dict[str, float]
) -> None:
    assert gate(tmp_path, dropout(MEDIANS, **mark)) == 0
    printed = capsys.readouterr().out
    assert printed.count("x (!)") == 5
    assert "5 of 5 met; 5 of them judged on rows marked (!)" in printed


@pytest.mark.parametrize("why", ["wrong", "failed"])
def test_the_gate_fails_if_regops_was_not_timed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], why: str
) -> None:
    run = dropout(MEDIANS)
    broken: Row = row("cross_entropy", "full", "float32", "7x7", {"eager": 1.0})
    setattr(broken, why, {"compile": "scale"})
    run.rows.append(broken)
    assert gate(tmp_path, run) == 0
    setattr(broken, why, {"regops": "scale"})
    assert gate(tmp_path, run) == 1
    assert "regops is wrong or failed in 1 rows" in capsys.readouterr().out


def test_the_gate_does_not_pass_on_nothing(tmp_path: Path) -> None:
    assert gate(tmp_path, dropout({"copy": 1.0})) == 2
    with pytest.raises(SystemExit) as refused:
        check.main([str(tmp_path / "absent.json")])
    assert refused.value.code == 2
