"""The benchmarks' own laws: wrong providers are caught, figures arrive as measured."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bench import check, providers, report, timing
from bench.bench_dropout import law, spec
from bench.measure import Outcome, measure
from bench.memory import forward_memory
from bench.neighbours import OthersShare
from bench.profiles import PROFILES, Profile
from bench.providers import Peer, Point
from bench.summary import Summary, read, summarize, write
from bench.verify import verify, verify_copy
from regops.testing import BenchCase

QUICK = Profile("quick", (torch.float32,), 1, {"cpu": 1 << 20}, 0.01, 3, 1)
POINT = Point(spec, BenchCase("16k", (1 << 14,), {"p": 0.1}), torch.float32, "cpu")


# ---- what is timed is right ----


def outcome_of(monkeypatch: pytest.MonkeyPatch, call: Callable[[Tensor], Tensor]) -> Outcome:
    peers = {"dropout": {"other": Peer("torch", ("cpu",), lambda point: call)}}
    monkeypatch.setattr(providers, "PEERS", peers)
    return measure(POINT, ["other"], QUICK, law)["other"]


def gradient_of_all(x: Tensor) -> Tensor:
    """The right output, and a gradient that forgets the mask."""
    return torch.nn.functional.dropout(x, 0.1).detach() + (x - x.detach()) / 0.9


WRONG: dict[str, Callable[[Tensor], Tensor]] = {
    "scale": lambda x: 1.001 * torch.nn.functional.dropout(x, 0.1),
    "no scale": lambda x: torch.nn.functional.dropout(x, 0.1) * 0.9,
    "rate": lambda x: torch.nn.functional.dropout(x, 0.12) * (0.88 / 0.9),
    "nothing dropped": lambda x: x / 0.9,
    "gradient": gradient_of_all,
}


@pytest.mark.parametrize("fault", WRONG)
def test_a_wrong_provider_is_not_timed(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    outcome = outcome_of(monkeypatch, WRONG[fault])
    assert outcome.recorded == {}
    assert "other was not timed: AssertionError" in str(outcome.error)


def test_a_right_provider_is_timed_in_every_direction(monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = outcome_of(monkeypatch, lambda x: torch.nn.functional.dropout(x, 0.1))
    assert outcome.error is None
    assert set(outcome.recorded) == {"forward", "backward", "full"}
    assert all(recorded.median > 0 for recorded in outcome.recorded.values())


def test_a_wrong_provider_does_not_stop_the_others() -> None:
    broken = dataclasses.replace(spec, functional=lambda x, p: 1.001 * spec.functional(x, p))
    outcomes = measure(
        Point(broken, POINT.case, POINT.dtype, "cpu"), ["regops", "eager", "copy"], QUICK, law
    )
    assert "output differs from the reference" in str(outcomes["regops"].error)
    assert len(outcomes["eager"].recorded) == len(outcomes["copy"].recorded) == 3


def test_regops_must_use_the_key_that_it_drew() -> None:
    x = torch.randn(1 << 12, requires_grad=True)
    other_key = torch.tensor([1, 2])

    def keyed(x: Tensor) -> Tensor:
        return spec.functional(x, 0.1, key=other_key)

    verify("regops", lambda x: spec.functional(x, 0.1), POINT, x, torch.ones_like(x), None)
    with pytest.raises(AssertionError, match="differs from the reference"):
        verify("regops", keyed, POINT, x, torch.ones_like(x), None)


def test_an_op_with_random_numbers_needs_a_law() -> None:
    outcomes = measure(POINT, ["eager"], QUICK, None)
    assert "no law" in str(outcomes["eager"].error)


@pytest.mark.parametrize("wrong", [torch.zeros_like, lambda source: source])
def test_a_copy_that_is_none_is_caught(wrong: Callable[[Tensor], Tensor]) -> None:
    source = torch.randn(1000)
    verify_copy(providers.copier("cpu"), source)
    with pytest.raises(AssertionError, match="copy"):
        verify_copy(wrong, source)


@pytest.mark.parametrize("direction", providers.DIRECTIONS)
def test_the_copy_moves_as_many_bytes_as_the_op(direction: Any) -> None:
    sources = providers.copy_sources(POINT)[direction]
    assert sum(2 * source.nbytes for source in sources) == POINT.bytes_moved(direction)


def test_a_peer_that_is_not_installed_says_so() -> None:
    assert not Peer("no_such_library", ("cpu",), lambda point: torch.clone).importable


# ---- time and memory ----


def test_replayed_durations_become_the_statistics(request: pytest.FixtureRequest) -> None:
    durations = [0.5, 0.1 + 0.2, 1.0]
    request.node.add_marker(pytest.mark.benchmark(timer=timing.replay_timer(durations)))
    benchmark = request.getfixturevalue("benchmark")
    benchmark.pedantic(lambda: None, rounds=3, iterations=4)
    assert benchmark.stats.stats.data == [duration / 4 for duration in durations]
    assert benchmark.stats.stats.median == 0.5 / 4


def test_providers_take_turns() -> None:
    turns: list[str] = []
    runs = {name: lambda name=name: turns.append(name) for name in "abc"}

    def clock(run: timing.Run, repeats: int) -> float:
        run()
        return timing.TURN_S

    recorded = timing.interleave(runs, clock, budget_s=0, min_rounds=4, max_rounds=9)
    timed = "".join(turns[-12:])
    assert timed == "abcbcacababc"
    assert {name: len(r.durations) for name, r in recorded.items()} == {"a": 4, "b": 4, "c": 4}


def test_a_slow_provider_takes_part_in_fewer_rounds_but_enough() -> None:
    seconds = {"fast": timing.TURN_S, "slow": 100 * timing.TURN_S}
    current: list[str] = []
    runs = {name: lambda name=name: current.append(name) for name in seconds}

    def clock(run: timing.Run, repeats: int) -> float:
        run()
        return seconds[current[-1]]

    recorded = timing.interleave(runs, clock, budget_s=0, min_rounds=3, max_rounds=9)
    assert len(recorded["slow"].durations) == 3
    assert len(recorded["fast"].durations) == 3 * timing.MAX_STRIDE


def test_a_fast_call_is_repeated_to_fill_its_turn() -> None:
    def clock(run: timing.Run, repeats: int) -> float:
        return 1e-6 * repeats

    recorded = timing.interleave(
        {"fast": lambda: None}, clock, budget_s=0, min_rounds=3, max_rounds=3
    )
    assert recorded["fast"].repeats * 1e-6 >= timing.TURN_S / 2
    assert recorded["fast"].median == pytest.approx(1e-6)


@pytest.mark.parametrize(
    ("call", "state", "peak"),
    [
        (lambda x: x.sin(), 0, 4000),  # keeps its input, which was there before
        (lambda x: x.exp().sin(), 4000, 8000),  # keeps what exp returned
        (lambda x: x.neg().neg(), 0, 8000),  # holds the first sum, and lets it go
        (lambda x: spec.functional(x, 0.1), 16, 4016),  # keeps the key
    ],
)
def test_memory_is_what_the_allocator_gave(
    call: Callable[[Tensor], Tensor], state: int, peak: int
) -> None:
    x = torch.randn(1000, requires_grad=True)
    call(x)
    memory = forward_memory(call, x)
    assert (memory.state, memory.peak) == (state, peak)


def test_own_work_is_not_the_neighbours() -> None:
    share = OthersShare()
    end = time.perf_counter() + 0.3
    while time.perf_counter() < end:
        pass
    own = share()
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    time.sleep(0.3)
    share = OthersShare()
    time.sleep(1.0)
    others = share()
    busy.kill()
    busy.wait()
    if own is None or others is None:
        pytest.skip("/proc/stat is Linux's")
    # One core's worth, less what a busy machine keeps from the child.
    assert others >= 0.4 / (os.cpu_count() or 1)
    assert own < others


@pytest.mark.parametrize("profile", PROFILES.values(), ids=str)
def test_profiles_measure_something_of_every_op(profile: Profile) -> None:
    assert list(profile.points(spec, "cpu"))


# ---- the report program and the gate ----

MEDIANS = {"eager": 20.0, "compile": 12.0, "regops": 1.0, "copy": 0.9}


def entry(direction: str, size: str, numel: int, provider: str, seconds: float) -> dict[str, Any]:
    """One benchmark as pytest-benchmark writes it."""
    return {
        "group": f"dropout-{direction}-float32-{size}-cpu",
        "stats": {"median": seconds, "iqr": seconds / 50, "rounds": 9},
        "extra_info": {
            "op": "dropout",
            "direction": direction,
            "dtype": "float32",
            "size": size,
            "device": "cpu",
            "provider": provider,
            "numel": numel,
            "in_cache": numel < 1 << 22,
            "bytes_moved": 8 * numel,
            "bytes_formula": "read once, write once",
            "others_cpu_share": 0.2 if size == "64k" else 0.01,
            "forward_peak_bytes": None if provider == "copy" else 4 * numel + 16,
            "forward_to_backward_bytes": None if provider == "copy" else 16,
        },
    }


def benchmark_json(medians: dict[str, float] = MEDIANS) -> dict[str, Any]:
    return {
        "datetime": "2026-01-01T00:00:00",
        "commit_info": {"id": "abc", "dirty": True},
        "machine_info": {"system": "Linux", "machine": "x86_64"},
        "regops": {
            "profile": "default",
            "load_average": 0.0,
            "info": {"regops": "1", "torch": "2", "processor": "A CPU", "threads": 2},
            "not_timed": {"test[dropout-x]": "other: other_library is not importable"},
        },
        "benchmarks": [
            entry(direction, size, numel, provider, seconds * numel * 1e-9)
            for direction in ("forward", "backward")
            for size, numel in (("64k", 1 << 16), ("16M", 1 << 24))
            for provider, seconds in medians.items()
        ],
    }


END_TO_END = {
    "name": "digits",
    "steps": 200,
    "runs": {"torch": {"seconds": 9.0, "accuracy": 0.97}},
}


@pytest.fixture
def summary() -> Summary:
    return summarize(benchmark_json(), END_TO_END)


def test_the_summary_holds_the_medians_and_comes_back_from_its_file(
    summary: Summary, tmp_path: Path
) -> None:
    row = summary.rows[1]
    assert row.group == "dropout-forward-float32-16M-cpu"
    assert row.median["regops"] == pytest.approx((1 << 24) * 1e-9, rel=1e-3)
    assert row.speedup("eager") == pytest.approx(20, rel=1e-3)
    assert row.over_copy() == pytest.approx(1 / 0.9, rel=1e-3)
    assert row.state == {"eager": 16, "compile": 16, "regops": 16}
    assert [row.disturbed for row in summary.rows] == [True, False, True, False]
    assert summary.commit == "abc-dirty"
    write(summary, tmp_path / "summary.json")
    assert read(tmp_path / "summary.json") == summary


def test_a_summary_of_another_format_is_refused(summary: Summary, tmp_path: Path) -> None:
    summary.format = 0
    write(summary, tmp_path / "summary.json")
    with pytest.raises(ValueError, match="format"):
        read(tmp_path / "summary.json")


def test_a_provider_that_was_not_timed_leaves_a_dash() -> None:
    row = summarize(benchmark_json({"regops": 1.0, "eager": 20.0}), None).rows[0]
    cells = dict(zip(report.HEADINGS, report.cells(row), strict=True))
    assert (cells["vs eager"], cells["vs compile"], cells["vs copy"]) == ("20x", "-", "-")


def test_the_report_is_one_page_that_loads_nothing(summary: Summary) -> None:
    page = report.html(summary)
    for must in (
        "20x",
        "in cache",
        "(!) others used more than 10%",
        "other_library is not importable",
        "97.0%",
        "A CPU",
    ):
        assert must in page
    assert page.count("<svg") == 4
    for fetches in ("<script", "<link", "src=", "url(http", "@import", "<image"):
        assert fetches not in page


def test_the_report_program_writes_its_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "benchmark.json").write_text(json.dumps(benchmark_json()))
    (tmp_path / "digits.json").write_text(json.dumps(END_TO_END))
    page = report.main([str(tmp_path / "benchmark.json")])
    assert page.exists()
    assert "| dropout | cpu | forward | float32 | 16M |" in (tmp_path / "summary.md").read_text()
    assert read(tmp_path / "summary.json").end_to_end == END_TO_END
    printed = capsys.readouterr().out
    assert "20x" in printed
    assert str(page) in printed.replace("\n", "")


def run_gate(tmp_path: Path, results: dict[str, Any]) -> int:
    path = tmp_path / "benchmark.json"
    path.write_text(json.dumps(results))
    return check.main([str(path)])


def test_the_gate_passes_what_is_fast(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_gate(tmp_path, benchmark_json()) == 0
    printed = capsys.readouterr().out
    assert "MISS" not in printed
    assert printed.count("pass") == 5
    assert "no row in this run" in printed


@pytest.mark.parametrize(
    "slow", [{"copy": 0.86}, {"eager": 14.9}, {"compile": 9.9}], ids=lambda slow: next(iter(slow))
)
def test_the_gate_reports_a_miss(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], slow: dict[str, float]
) -> None:
    assert run_gate(tmp_path, benchmark_json(MEDIANS | slow)) == 1
    assert "MISS" in capsys.readouterr().out


def test_the_gate_fails_if_regops_was_not_timed(tmp_path: Path) -> None:
    results = benchmark_json()
    results["regops"]["not_timed"] = {"test_dropout[dropout-forward-regops]": "wrong"}
    assert run_gate(tmp_path, results) == 1


def test_the_gate_does_not_pass_on_nothing(tmp_path: Path) -> None:
    assert run_gate(tmp_path, benchmark_json({"copy": 1.0})) == 2
    assert check.main([str(tmp_path / "absent.json")]) == 2
