"""The report program, on figures made up for the purpose."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench import report
from bench.summary import CEILINGS, Summary, read, summarize, write

MEDIANS = {"eager": 20.0, "compile": 12.0, "regops": 1.0, "copy": 0.9}
FULL_PEAK = {"eager": 16, "compile": 12, "regops": 4}  # bytes an element


def entry(
    direction: str, size: str, numel: int, provider: str, seconds: float, op: str = "dropout"
) -> dict[str, Any]:
    """One benchmark as pytest-benchmark writes it."""
    return {
        "group": f"{op}-{direction}-float32-{size}-cpu",
        "stats": {"median": seconds, "iqr": seconds / 50, "rounds": 9},
        "extra_info": {
            "op": op,
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
            "forward_peak_bytes": None if provider in CEILINGS else 4 * numel + 16,
            "forward_to_backward_bytes": None if provider in CEILINGS else 16,
            "extra_bytes": None if provider in CEILINGS else 0,
            "full_peak_bytes": None if provider in CEILINGS else FULL_PEAK.get(provider, 0) * numel,
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


def loss_json(memory: float = 0.25) -> dict[str, Any]:
    """Of an op whose sizes are shapes, regops's peak of memory being so many times eager's."""
    sizes = {"1024x64x1000": 1 << 16, "4096x512x32768": 1 << 21}
    medians = MEDIANS | {"eager": 1.0}
    benchmarks = [
        entry(direction, size, numel, provider, seconds, "linear_cross_entropy")
        for direction in ("full", "inference")
        for size, numel in sizes.items()
        for provider, seconds in medians.items()
    ]
    for each in benchmarks:
        facts = each["extra_info"]
        if facts["provider"] == "regops":
            facts["full_peak_bytes"] = int(memory * 16 * facts["numel"])
    return benchmark_json() | {"benchmarks": benchmarks}


def dropconnect_json(
    rivals: dict[str, float] | None = None, extra: int = 4_000_000
) -> dict[str, Any]:
    """Of an op with a ceiling of its own, but not in every row; regops takes a second."""
    medians = {"eager": 10.0, "regops": 1.0, "copy": 0.1, "linear": 0.9} | (rivals or {})
    benchmarks = [
        entry("full", size, 1 << 20, provider, seconds, "dropconnect_linear")
        for size in ("256x4096-4096", "64x1024-1024-sample")
        for provider, seconds in medians.items()
        if provider != "linear" or size == "256x4096-4096"
    ]
    for each in benchmarks:
        if each["extra_info"]["provider"] == "regops":
            each["extra_info"]["extra_bytes"] = extra
    return benchmark_json() | {"benchmarks": benchmarks}


def step_json(fused: float = 1.0, stream: float = 1.0) -> dict[str, Any]:
    """Of an optimizer's step; regops takes a nanosecond an element."""
    medians = {"eager": 9.0, "foreach": 7.0, "fused": fused, "regops": 1.0, "stream": stream}
    benchmarks = [
        entry("step", size, 1 << 24, provider, seconds * 1e-9 * (1 << 24), "adamw")
        for size in ("16M", "16M-clip")
        for provider, seconds in medians.items()
    ]
    for each in benchmarks:
        facts = each["extra_info"]
        if facts["provider"] not in CEILINGS:
            facts["forward_peak_bytes"] = 64 << 20 if facts["provider"] == "foreach" else 0
    return benchmark_json() | {"benchmarks": benchmarks}


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
    assert row.over_ceiling() == pytest.approx(1 / 0.9, rel=1e-3)
    assert row.state == {"eager": 16, "compile": 16, "regops": 16}
    assert row.memory_ratio("eager") == 0.25
    assert row.memory_ratio("copy") is None
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
    cells = dict(zip(report.headings(row), report.cells(row), strict=True))
    assert (cells["vs eager"], cells["vs compile"], cells["vs copy"]) == ("20x", "-", "-")


def test_the_report_is_one_page_that_loads_nothing(summary: Summary) -> None:
    page = report.html(summary)
    for must in (
        "20x",
        "in cache",
        "(!) others used more than 10%",
        "other_library is not importable",
        "97.0%",
        "at the peak of forward",
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


def test_a_size_may_be_a_shape() -> None:
    summary = summarize(loss_json(), None)
    page = report.html(summary)
    assert page.count("<svg") == 4
    assert page.count(">4096x512x32768</text>") == 4
    (line,) = report.memory_lines(summary)
    assert "linear_cross_entropy 4096x512x32768 float32" in line
    assert "eager 8 MiB at the peak of forward, 16 B kept for backward, 32 MiB" in line
    assert "regops 8 MiB at the peak of forward, 16 B kept for backward, 8 MiB" in line


def test_a_ceiling_of_the_op_itself_goes_before_the_copy() -> None:
    summary = summarize(dropconnect_json(), None)
    batch, sample = summary.rows
    assert (batch.ceiling, sample.ceiling) == ("linear", "copy")
    for row, against in (
        (batch, ("vs linear", "1.11x (90%)")),
        (sample, ("vs copy", "10.00x (10%)")),
    ):
        shown = dict(zip(report.headings(row), report.cells(row), strict=True))
        assert shown[against[0]] == against[1]
        # No rival whom regops would have to beat.
        assert set(report.rivals(row)) == {"eager", "compile"}
    assert [table.title for table in report.tables(summary)] == ["dropconnect_linear, cpu"] * 2
    page = report.html(summary)
    assert "share of the linear's speed" in page.replace("&#x27;", "'")
    assert "share of the copy's bandwidth" in page.replace("&#x27;", "'")
    assert "(3.81 MiB beyond results)" in report.memory_lines(summary)[0]


def test_a_step_has_its_own_rivals_and_ceiling() -> None:
    summary = summarize(step_json(fused=1.5, stream=0.95), None)
    row = summary.rows[0]
    assert row.over_ceiling() == pytest.approx(1 / 0.95, rel=1e-3)
    shown = dict(zip(report.headings(row), report.cells(row), strict=True))
    assert shown["vs foreach"] == "7x"
    assert shown["vs fused"] == "1.5x"
    assert shown["vs compile"] == "-"
    assert shown["vs stream"] == "1.05x (95%)"
    assert shown["peak, foreach → regops"] == "64 MiB → 0 B"
    page = report.html(summary)
    assert "share of the stream&#x27;s bandwidth" in page or "share of the stream's" in page
    (line,) = report.memory_lines(summary)
    assert "foreach 64 MiB at the peak of a step; regops 0 B" in line


def test_ops_and_steps_have_a_table_each() -> None:
    both = benchmark_json()
    both["benchmarks"] = both["benchmarks"] + step_json()["benchmarks"]
    text = report.markdown(summarize(both, None))
    heads = [line for line in text.splitlines() if line.startswith("| op |")]
    assert ["vs copy" in head for head in heads] == [True, False]
    assert ["vs stream" in head for head in heads] == [False, True]
    assert "| adamw | cpu | step | float32 | 16M-clip |" in text
