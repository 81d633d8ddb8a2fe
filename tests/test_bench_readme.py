"""The README's figures: made of runs alone, and those of the committed ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import readme
from bench.readme import BEGIN, END, figures, with_figures
from bench.summary import Summary
from tests.bench_runs import MACHINE, row, summary, written

MEDIANS = {"eager": 31e-3, "compile": 12.34e-3, "regops": 1e-3, "copy": 0.8e-3}
STEP = {"foreach": 64 << 20, "fused": 12, "regops": 8}


def run() -> Summary:
    """Two of three ops have a row that the README shows; one goal of four is missed."""
    steps = {"fused": 1.1, "foreach": 4.0, "regops": 1.0, "stream": 0.95}
    return summary(
        row(
            "dropout",
            "forward",
            "float32",
            "16M",
            MEDIANS,
            state={"eager": 64 << 20, "regops": 16},
        ),
        row("dropout", "forward", "float32", "64k", MEDIANS, cache="hot"),
        row("dropout", "forward", "float32", "16M", MEDIANS | {"regops": 9.0}, threads=1),
        row("adamw", "step", "float32", "16M", steps, peak=STEP, others=0.4),
        row("sgdw", "step", "float32", "16M", steps, slowdown=1.1),
        row("other", "full", "float32", "16M", MEDIANS),
    )


def test_an_overview_that_is_there_is_shown() -> None:
    assert "](results/cpu.svg)" in figures(run(), "results/cpu.json", drawn=True)
    assert "svg" not in figures(run(), "results/cpu.json")


def test_the_committed_figures_are_of_the_committed_results() -> None:
    assert readme.main(["--check"]) == 0, "python -m bench readme"


def test_a_row_has_its_ratios_and_memory() -> None:
    block = figures(run(), "results/cpu.json")
    lines = block.splitlines()
    assert lines[0] == "### A CPU"
    assert "commit 0123456, profile default, 2026-01-02 03:04 UTC" in lines[2]
    assert "[results/cpu.json](results/cpu.json)" in lines[2]
    for line in (
        "| 16M float32 | 1 ms | 31x | 12x | 1.25x copy | 64 MiB → 16 B |",
        "| 64k float32 (in cache) | 1 ms | 31x | 12x | 1.25x copy |  |",
        "| 16M float32 (!) | 1 s | 1.1x | 4.0x | 1.05x stream | 12 B → 8 B |",
        "| sgdw 16M float32 | 1 s | 1.1x | 4.0x | 1.05x stream |  |",
    ):
        assert line in lines
    assert "(!) Others used the processor meanwhile, or it ran slowly." in lines
    # Neither an op that the README does not show nor a row of fewer threads.
    assert "other" not in block
    assert "9 s" not in block


def test_every_line_of_a_table_has_as_many_cells() -> None:
    tables = [part for part in figures(run(), "x").split("\n\n") if part.startswith("|")]
    assert len(tables) == 2
    for table in tables:
        assert len({line.count("|") for line in table.splitlines()}) == 1


def test_misses_are_named() -> None:
    block = figures(run(), "x")
    # Of 16M forward: copy, eager, compile; of 64k: eager; of the step: fused, stream.
    assert "5 of the 6 goals of `make bench-check` are met; those missed:" in block
    assert "- dropout at most 1.15x the time of copy: forward float32 16M 1.25x" in block
    fine = summary(row("dropout", "forward", "float32", "64k", MEDIANS))
    assert figures(fine, "x").endswith("1 of the 1 goals of `make bench-check` are met.")


def test_what_regops_did_not_time_is_no_row() -> None:
    missing = {name: each for name, each in MEDIANS.items() if name != "regops"}
    assert "| 16M" not in figures(summary(row("dropout", "forward", "float32", "16M", missing)), "")


def test_of_a_machine_with_a_gpu_the_rows_are_the_gpus() -> None:
    machine = MACHINE | {"gpu": "A GPU"}
    both = summary(
        row("dropout", "full", "float32", "64", MEDIANS),
        row("dropout", "full", "float32", "64", MEDIANS | {"regops": 2e-3}, "cuda"),
        machine=machine,
    )
    block = figures(both, "x")
    assert block.startswith("### A GPU\n")
    assert "| 64 float32 | 2 ms |" in block
    assert "| 64 float32 | 1 ms |" not in block


def test_only_what_is_between_the_comments_changes() -> None:
    text = f"before {BEGIN} old {END} after"
    assert with_figures(text, "new") == f"before {BEGIN}\n\nnew\n\n{END} after"


@pytest.mark.parametrize("text", ["", BEGIN, END, END + BEGIN, 2 * (BEGIN + END), BEGIN + 2 * END])
def test_a_readme_without_its_comments_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="once each"):
        with_figures(text, "new")


def test_the_program_writes_and_compares(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "README.md"
    page.write_text(f"before\n{BEGIN}\n{END}\nafter\n")
    (tmp_path / "results").mkdir()
    first = written(tmp_path / "results" / "cpu.json", run())
    other = summary(row("dropout", "full", "float32", "64", MEDIANS))
    second = written(tmp_path / "results" / "gpu.json", other)
    assert readme.main([first, second, "--readme", str(page), "--check"]) == 1
    assert "has other figures" in capsys.readouterr().out
    assert readme.main([first, second, "--readme", str(page)]) == 0
    assert readme.main([first, second, "--readme", str(page), "--check"]) == 0
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert text.index("(results/cpu.json)") < text.index("(results/gpu.json)")
    assert readme.main([second, "--readme", str(page), "--check"]) == 1


@pytest.mark.parametrize("content", [None, "no comments"])
def test_what_cannot_be_read_is_refused(tmp_path: Path, content: str | None) -> None:
    page = tmp_path / "README.md"
    if content is not None:
        page.write_text(content)
    with pytest.raises(SystemExit) as refused:
        readme.main([written(tmp_path / "cpu.json", run()), "--readme", str(page)])
    assert refused.value.code == 2
