"""`python -m bench compare`: what noise does is silent, what moved is named, and nobody else."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from bench import compare as program
from bench.moves import broken, compare, memory_changes
from bench.summary import Row, Summary
from tests.bench_runs import MACHINE, row, summary, written

SECONDS = {"eager": 20e-3, "compile": 12e-3, "regops": 1e-3, "copy": 0.9e-3}
FACTORS = {"eager": 1.0, "compile": 1.0, "regops": 1.0, "copy": 1.0}
ROWS = 200


def noisy(
    seed: int,
    sigma: float,
    rounds: int = 40,
    times: dict[str, float] | None = None,
    moment: float = 0.0,
) -> Summary:
    """A run whose rounds vary by `sigma`, and each row's moment as a whole by `moment`."""
    random = np.random.default_rng(seed)
    rows = []
    for index in range(ROWS):
        common = np.exp(moment * random.standard_normal())
        durations = {
            name: seconds
            * (times or {}).get(name, 1.0)
            * common
            * np.exp(sigma * random.standard_normal(rounds))
            for name, seconds in SECONDS.items()
        }
        rows.append(row("dropout", "forward", "float32", str(index), durations))
    return summary(*rows)


def exact(
    times: dict[str, float] | None = None, seconds: dict[str, float] = SECONDS, **more: object
) -> Row:
    """A row without noise."""
    durations = {name: each * (times or {}).get(name, 1.0) for name, each in seconds.items()}
    return row("dropout", "forward", "float32", "16M", durations, **more)


def verdicts(a: Summary, b: Summary) -> dict[str, str]:
    """Of runs of one row, by provider."""
    return {each.provider: each.verdict for each in compare(a, b)}


# ---- the rule ----


@pytest.mark.parametrize("rounds", [3, 7, 40])
@pytest.mark.parametrize("sigma", [0.01, 0.05, 0.3])
def test_noise_does_not_move_anything(sigma: float, rounds: int) -> None:
    a, b = noisy(1, sigma, rounds), noisy(2, sigma, rounds)
    counts = Counter(each.verdict for each in compare(a, b))
    assert sum(counts.values()) == ROWS * len(SECONDS)
    # Of three rounds no more is asked than that false alarms are rare.
    assert counts["slower"] + counts["faster"] <= (8 if rounds == 3 else 0)


def test_a_moment_of_the_machine_that_meets_all_alike_is_noise() -> None:
    a, b = noisy(1, 0.05, moment=0.5), noisy(2, 0.05, moment=0.5)
    assert {each.verdict for each in compare(a, b)} == {"same"}


@pytest.mark.parametrize(("factor", "verdict"), [(1.3, "slower"), (1 / 1.3, "faster")])
def test_a_factor_of_1_3_is_found_in_noise_of_a_twentieth(factor: float, verdict: str) -> None:
    a, b = noisy(1, 0.05), noisy(2, 0.05, times={"regops": factor}, moment=0.02)
    found = list(compare(a, b))
    ours = [each for each in found if each.provider == "regops"]
    assert sum(each.verdict == verdict for each in ours) > 0.98 * ROWS
    assert {each.verdict for each in found if each.provider != "regops"} == {"same"}
    moved = np.median([each.moved for each in ours])
    assert moved == pytest.approx(factor, rel=0.05)


@pytest.mark.parametrize("name", SECONDS)
def test_only_who_moved_is_named(name: str) -> None:
    moved = verdicts(summary(exact()), summary(exact({name: 0.5})))
    assert moved == {provider: "faster" if provider == name else "same" for provider in SECONDS}


def test_less_than_the_floor_is_noise_however_steady_the_rounds_are() -> None:
    for factor, verdict in ((1.04, "same"), (1.06, "slower")):
        moved = verdicts(summary(exact()), summary(exact({"regops": factor})))
        assert moved["regops"] == verdict


@pytest.mark.parametrize(
    ("machine", "other", "moved"),
    [
        (MACHINE, "eager", 2.0),  # by the clock and against the ceiling
        (MACHINE, "copy", 2.0),
        ({**MACHINE, "cores": 9}, "eager", 2.0 / 1.5),
        ({**MACHINE, "cores": 9}, "copy", 2.0 / 1.5),
    ],
)
def test_it_moved_by_as_much_as_two_measures_say(
    machine: dict[str, object], other: str, moved: float
) -> None:
    a, b = summary(exact()), summary(exact({"regops": 2.0, other: 1.5}), machine=machine)
    (ours,) = (each for each in compare(a, b) if each.provider == "regops")
    assert ours.moved == pytest.approx(moved)


def test_the_clock_is_of_one_machine() -> None:
    faster = summary(exact(dict.fromkeys(SECONDS, 0.5)), machine=MACHINE | {"processor": "Other"})
    # Neither eager nor the ceiling has more than the other to be compared with.
    assert verdicts(summary(exact()), faster) == {
        "eager": "not judged",
        "copy": "not judged",
        "compile": "same",
        "regops": "same",
    }
    slower = summary(exact({"regops": 2.0}), machine=faster.machine)
    assert verdicts(summary(exact()), slower)["regops"] == "slower"


@pytest.mark.parametrize(
    ("facts", "reason"),
    [({"others": 0.3}, "others used the processor"), ({"slowdown": 2.0}, "the processor was slow")],
)
@pytest.mark.parametrize("first", [True, False])
def test_a_marked_row_is_not_judged(facts: dict[str, float], reason: str, first: bool) -> None:
    marked, other = summary(exact(**facts)), summary(exact({"regops": 9.0}))
    found = list(compare(*((marked, other) if first else (other, marked))))
    assert {each.unjudged for each in found} == {reason}
    assert {each.moved for each in found} == {1.0}


def test_one_measure_is_not_enough() -> None:
    alone = {"regops": 1e-3}
    a, b = summary(exact(seconds=alone)), summary(exact({"regops": 9.0}, alone))
    assert verdicts(a, b) == {"regops": "not judged"}


def test_rows_of_other_settings_are_not_compared() -> None:
    usual = exact()
    other = dataclasses.replace(usual, threads=1, group=usual.group + "-1-threads")
    assert list(compare(summary(usual), summary(other))) == []


def test_the_ceiling_is_the_one_that_both_runs_have() -> None:
    seconds = SECONDS | {"linear": 0.8e-3}
    (ours,) = (
        each
        for each in compare(summary(exact()), summary(exact({"copy": 2.0}, seconds)))
        if each.provider == "regops"
    )
    assert ours.changes["ceiling"].log == pytest.approx(-np.log(2.0))


def test_memory_is_exact() -> None:
    a, b = summary(exact(peak={"regops": 16, "eager": 8})), summary(exact(peak={"regops": 17}))
    (change,) = memory_changes(a, b)
    assert (change.provider, change.kind, change.before, change.after) == ("regops", "peak", 16, 17)
    assert list(memory_changes(a, a)) == []


def test_who_is_wrong_in_one_run_is_named() -> None:
    right, wrong = summary(exact()), summary(exact(wrong={"regops": "scale"}))
    assert [(each.provider, each.reason) for each in broken(right, wrong)] == [
        ("regops", "wrong: scale")
    ]
    assert list(broken(wrong, wrong)) == list(broken(wrong, right)) == []
    # Of a row that the first run does not have, too; but who fails there may never have run.
    assert len(list(broken(summary(), wrong))) == 1
    failed = summary(exact(failed={"regops": "no room"}))
    assert len(list(broken(right, failed))) == 1
    assert list(broken(summary(), failed)) == []


# ---- the program ----


def run(tmp_path: Path, a: Summary, b: Summary, *options: str) -> int:
    paths = [written(tmp_path / f"{name}.json", each) for name, each in (("a", a), ("b", b))]
    return program.main([*paths, *options])


@pytest.mark.parametrize(
    ("later", "status"),
    [
        (exact(), 0),
        (exact({"regops": 0.5}), 0),
        (exact({"regops": 2.0}), 1),
        (exact({"eager": 2.0}), 0),  # of which regops is not the cause
        (exact(wrong={"regops": "scale"}), 1),
        (exact(wrong={"compile": "scale"}), 0),
        (exact(others=0.5), 2),
        (row("dropout", "backward", "float32", "16M", SECONDS), 2),
    ],
)
def test_the_status_says_whether_regops_is_worse(tmp_path: Path, later: Row, status: int) -> None:
    assert run(tmp_path, summary(exact()), summary(later)) == status


def test_what_moved_is_printed_most_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = {"small": 1.5, "large": 3.0, "still": 1.0}
    a, b = (
        summary(
            *(
                row("dropout", "forward", "float32", size, SECONDS | {"regops": 1e-3 * each})
                for size, each in factors.items()
            )
        )
        for factors in (dict.fromkeys(sizes, 1.0), sizes)
    )
    assert run(tmp_path, a, b) == 1
    printed = capsys.readouterr().out
    assert printed.index("dropout-forward-float32-large") < printed.index("float32-small")
    assert "3.00x" in printed
    assert "float32-still" not in printed
    assert "regops: 2 slower, 0 faster, 1 the same, 0 not judged" in printed
    assert "1.05x would show in half of these" in printed
    run(tmp_path, a, b, "--all")
    assert "float32-still" in capsys.readouterr().out


def test_what_else_differs_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    limits = [row("machine", "move", "float32", "9MiB", {"copy": each}) for each in (1.0, 1.5)]
    a = summary(
        exact(peak={"regops": 1000}),
        row("dropout", "full", "float32", "16M", SECONDS),
        ceilings=limits[:1],
    )
    less = {name: each for name, each in SECONDS.items() if name != "compile"}
    b = summary(
        exact(seconds=less, peak={"regops": 3000}),
        ceilings=limits[1:],
        commit="fedcba9876543210-dirty",
        machine=MACHINE | {"processor": "Another CPU", "torch": "2.14.0"},
    )
    run(tmp_path, a, b)
    printed = capsys.readouterr().out
    for must in (
        "A CPU, 2 threads, avx512, torch 2.13.0, regops 0.1.0, commit 0123456, profile default, "
        "2026-01-02 03:04 UTC",
        "commit fedcba9 with changes",
        "the machines differ, so the clock says nothing: processor A CPU and Another CPU",
        "what others run on differs: torch 2.13.0 and 2.14.0",
        "the machine itself, 9MiB, B's time over A's: copy 1.50x",
        "1,000",
        "+2,000",
        "rows in A alone (1): dropout-full-float32-16M-cpu",
        "compile in A alone (1): dropout-forward-float32-16M-cpu",
    ):
        assert must in printed


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "No such file"),
        ("{", "not JSON"),
        ("[]", "not of a run"),
        ('{"benchmarks": []}', "not of a run"),
        ('{"format": 1}', "expected format"),
    ],
)
def test_bad_input_is_refused_in_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, says: str
) -> None:
    path = tmp_path / "b.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SystemExit) as refused:
        program.main([written(tmp_path / "a.json", summary(exact())), str(path)])
    assert refused.value.code == 2
    error = capsys.readouterr().err
    assert says in error
    assert str(path) in error
