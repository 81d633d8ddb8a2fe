"""A run of the benchmarks: what is chosen by name, what is kept, and how the machine is watched."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import __main__ as bench_main
from bench import ceilings, measure, throttle
from bench.bench_dropout import law, spec
from bench.bench_machine import spec as machine
from bench.ceilings import CeilingPoint
from bench.conftest import refuse_unknown, selection_of
from bench.journal import Journal
from bench.memory import Memory
from bench.neighbours import Patience
from bench.profiles import PROFILES, Selection
from bench.progress import Estimate, expected_seconds
from bench.providers import Point
from bench.setting import USUAL, Setting
from bench.steps import StepPoint
from bench.summary import read
from bench.timing import Recorded
from regops.testing import BenchCase, specs, step_specs
from tests.bench_profile import QUICK

ROOT = Path(__file__).parent.parent
POINT = Point(spec, BenchCase("4k", (1 << 12,), {"p": 0.1}, in_cache=True), torch.float32, "cpu")
EVERY = {**specs(), **step_specs()}


# pytest-benchmark times nothing in a process that pytest-xdist started, as it may have this one.
ENVIRONMENT = {name: value for name, value in os.environ.items() if "XDIST" not in name}


def bench(out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`python -m bench` of one small size."""
    return subprocess.run(
        [sys.executable, "-m", "bench", "--profile=smoke", f"--out={out}", *arguments],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )


# ---- what is timed ----


def test_what_is_asked_for_by_name_is_timed_beyond_the_profile(tmp_path: Path) -> None:
    arguments = ("--op", "dropout", "--size", "64", "--dtype", "float64", "bfloat16")
    done = bench(tmp_path, *arguments, "--provider", "regops", "eager", "copy")
    assert done.returncode == 0, done.stdout + done.stderr
    summary = read(tmp_path / "summary.json")
    assert {row.dtype for row in summary.rows} == {"float64", "bfloat16"}
    assert {row.size for row in summary.rows} == {"64"}
    assert all(set(row.median) == {"regops", "eager", "copy"} for row in summary.rows)
    # The machine's ceilings belong to every run.
    assert [set(row.median) for row in summary.ceilings] == [{"copy"}]
    assert summary.end_to_end == []
    assert " ".join(arguments) in " ".join(summary.arguments)


def test_a_part_does_not_replace_a_whole_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(bench_main, "OUT", tmp_path)
    monkeypatch.setattr(bench_main.pytest, "main", lambda *_, **__: pytest.ExitCode.USAGE_ERROR)
    for arguments, name in (
        ([], "."),
        (["--profile=smoke"], "smoke"),
        (["--op=dropout"], "part"),
        (["--profile=full", "--dtype=float32"], "part"),
    ):
        bench_main.main(arguments)
        assert (tmp_path / name).is_dir()
    assert {path.name for path in tmp_path.iterdir()} == {"smoke", "part"}


def test_a_folder_that_cannot_be_made_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    taken = tmp_path / "taken"
    taken.write_text("")
    for out in (taken, taken / "below"):
        with pytest.raises(SystemExit):
            bench_main.main([f"--out={out}"])
        assert f"error: {out}: " in capsys.readouterr().err


def test_a_name_that_nothing_has_is_refused(tmp_path: Path) -> None:
    done = bench(tmp_path, "--op", "dropuot")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert done.stderr.startswith("ERROR: no benchmark has the op dropuot; there are: adamw, cross")


def test_every_kind_of_name_is_checked() -> None:
    offered = {"sizes": {"1M", "16M"}, "providers": {"eager"}}
    refuse_unknown(Selection(sizes=("1M",), providers=("eager",)), offered)
    with pytest.raises(pytest.UsageError, match="the size 17M; there are: 16M, 1M"):
        refuse_unknown(Selection(sizes=("1M", "17M")), offered)
    with pytest.raises(pytest.UsageError, match="the provider egaer"):
        refuse_unknown(Selection(providers=("egaer",)), offered)


@pytest.mark.parametrize(
    ("option", "name"),
    [
        ("dtype", "float31"),
        ("dtype", "Tensor"),
        ("device", "cuda:99"),
        ("device", "gpu"),
        ("device", "cpu:x"),
    ],
)
def test_a_type_or_device_that_is_not_there_is_refused(option: str, name: str) -> None:
    given = {f"--bench-{option}": [name]}
    config = types.SimpleNamespace(getoption=lambda option: given.get(option, []))
    with pytest.raises(pytest.UsageError, match=f"no {option} {name}"):
        selection_of(config)


@pytest.mark.parametrize("op", EVERY)
def test_some_size_of_every_op_is_timed_on_fewer_threads(
    monkeypatch: pytest.MonkeyPatch, op: str
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 6)
    points = list(PROFILES["default"].points(EVERY[op], Selection()))
    threads = [point.setting.threads for point in points if point.setting != USUAL]
    assert threads
    assert set(threads) == {1, 2, 4}
    groups = [point.group(direction) for point in points for direction in point.directions]
    assert len(groups) == len(set(groups))


def test_small_sizes_are_replayed_as_graphs_on_a_gpu() -> None:
    points = list(PROFILES["default"].points(spec, Selection(devices=("cuda",))))
    graphs = {point.case.name for point in points if point.setting.graph}
    assert graphs == {case.name for case in spec.bench_cases if case.in_cache}


def test_a_point_is_timed_on_its_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def interleave(*arguments: Any, **options: Any) -> dict[str, Recorded]:
        seen.append(torch.get_num_threads())
        return {}

    monkeypatch.setattr(measure, "interleave", interleave)
    usual = torch.get_num_threads()
    other = dataclasses.replace(POINT, setting=Setting(threads=usual + 1))
    measure.measure(other, ["regops"], QUICK, law, Patience(0))
    assert set(seen) == {usual + 1}
    assert torch.get_num_threads() == usual


def test_what_has_no_room_is_not_tried() -> None:
    huge = BenchCase("1T", (1 << 40,), {"p": 0.1})
    assert "GiB needed" in str(Point(spec, huge, torch.float32, "cpu").too_large)
    assert POINT.too_large is None


# ---- the machine ----


def small(direction: str, count: int, dtype: torch.dtype = torch.float32) -> CeilingPoint:
    return CeilingPoint(direction, str(count), count, dtype, "cpu")


@pytest.mark.parametrize(
    "point", [small("move", 7 << 10), small("multiply", 64), small("multiply", 48, torch.bfloat16)]
)
def test_ceilings_are_verified_and_timed(point: CeilingPoint) -> None:
    outcomes = measure.measure(point, point.providers, QUICK, None, Patience(0))
    assert all(outcome.right for outcome in outcomes.values()), outcomes
    assert all(len(outcome.recorded[point.direction].durations) for outcome in outcomes.values())


@pytest.mark.parametrize("wrong", [lambda a, b, out: out.zero_(), lambda a, b, out: a.T @ b])
def test_a_product_that_is_none_is_caught(monkeypatch: pytest.MonkeyPatch, wrong: Any) -> None:
    monkeypatch.setattr(torch, "mm", wrong)
    outcomes = measure.measure(small("multiply", 32), ["matmul"], QUICK, None, Patience(0))
    assert outcomes["matmul"].wrong


def test_a_linear_layers_products_are_caught_if_they_are_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x, weight = torch.randn(2048, 8), torch.randn(50, 8)
    ceilings.linear_products(x, weight)()
    right = torch.mm

    def forgets(first: torch.Tensor, second: torch.Tensor, *, out: torch.Tensor) -> torch.Tensor:
        return right(first, second, out=out).mul_(1.01)

    monkeypatch.setattr(torch, "mm", forgets)
    with pytest.raises(AssertionError):
        ceilings.linear_products(x, weight)


def test_every_profile_times_the_machine() -> None:
    for profile in PROFILES.values():
        directions = [point.direction for point in profile.points(machine, Selection())]
        products = [dtype for dtype in profile.dtypes if dtype != torch.float16]
        assert directions == ["move", *["multiply"] * len(products)]


def test_a_slower_processor_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    probes = [1.0, 1.01, 1.02, 1.03, 0.7, 1.01, 1.4]
    full_speed = throttle.at_full_speed(probes)
    assert [probe / full_speed > throttle.THROTTLED for probe in probes] == [False] * 6 + [True]
    assert 0 < throttle.SpeedProbe(torch.device("cpu"))() < 1


# ---- what is kept ----


OUTCOMES = {
    "regops": measure.Outcome(
        recorded={"forward": Recorded(3, [0.25, 0.5])},
        others={"forward": None},
        probes={"forward": 1e-5},
        memory=Memory(1, 2, 3, 4),
    ),
    "eager": measure.Outcome(wrong="2 is not 3"),
}


def test_a_journal_gives_back_what_it_was_given(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    Journal(path, "smoke", resume=False).add("a", OUTCOMES)
    resumed = Journal(path, "smoke", resume=True)
    assert resumed.find("a", ["eager", "regops"]) == OUTCOMES
    assert resumed.find("b", ["eager", "regops"]) is None
    # They took turns with other providers then.
    assert resumed.find("a", ["regops"]) is None
    assert Journal(path, "full", resume=True).find("a", ["eager", "regops"]) is None
    assert Journal(path, "smoke", resume=False).find("a", ["eager", "regops"]) is None


def test_a_journal_of_another_build_is_not_taken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "journal"
    Journal(path, "smoke", resume=False).add("a", OUTCOMES)
    monkeypatch.setattr(torch, "__version__", "0.1")
    assert Journal(path, "smoke", resume=True).find("a", ["eager", "regops"]) is None


def test_a_journal_that_broke_off_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = Journal(path, "smoke", resume=False)
    journal.add("a", OUTCOMES)
    journal.add("b", OUTCOMES)
    path.write_text(path.read_text()[:-20])
    resumed = Journal(path, "smoke", resume=True)
    assert resumed.find("a", ["eager", "regops"])
    assert resumed.find("b", ["eager", "regops"]) is None
    resumed.add("b", OUTCOMES)
    assert Journal(path, "smoke", resume=True).find("b", ["eager", "regops"]) == OUTCOMES


def test_an_interrupted_run_reports_and_goes_on(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench", "--profile=smoke", "--op", "dropout"]
    command += ["--size", "64", "4k", "64k", "--provider", "regops", "copy", f"--out={tmp_path}"]
    run = subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
    journal = tmp_path / "journal.jsonl"
    # With the second point's line, the first one has reached pytest-benchmark.
    while run.poll() is None and (not journal.exists() or journal.read_text().count("\n") < 2):
        time.sleep(0.02)
    run.send_signal(signal.SIGINT)
    said, _ = run.communicate()
    measured = journal.read_text().splitlines()
    first = read(tmp_path / "summary.json")
    assert "interrupted" in said
    assert f"--out={tmp_path} --resume" in said
    assert len(first.rows) + len(first.ceilings) >= 1

    done = bench(tmp_path, *command[4:], "--resume")
    assert done.returncode == 0, done
    assert journal.read_text().splitlines()[: len(measured)] == measured
    second = read(tmp_path / "summary.json")
    assert {row.size for row in second.rows} == {"64", "4k", "64k"}
    before = {row.group: row.median for row in first.rows + first.ceilings}
    after = {row.group: row.median for row in second.rows + second.ceilings}
    points = {json.loads(line)[1] for line in measured}
    kept = [group for group in before if group in points]
    assert kept, points
    assert {group: after[group] for group in kept} == {group: before[group] for group in kept}


# ---- how long it takes ----


def test_the_estimate_follows_what_points_took() -> None:
    estimate = Estimate([1.0] * 10)
    assert estimate.remaining == 10
    for _ in range(4):
        estimate.done(1.0, 3.0)
    assert estimate.remaining == pytest.approx(18)
    estimate.skip(1.0)  # a journal had it
    assert estimate.remaining == pytest.approx(15)


def test_larger_points_are_expected_to_take_longer() -> None:
    large = dataclasses.replace(POINT, case=BenchCase("16M", (1 << 24,), {"p": 0.1}))
    assert expected_seconds(large, 1.0) > expected_seconds(POINT, 1.0) > 3.0
    steps = step_specs()["adamw_step_"]
    assert expected_seconds(StepPoint(steps, steps.bench_cases[0], "cpu"), 1.0) > 1.0
