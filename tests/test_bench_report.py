"""The report program, on figures made up for the purpose."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from rich.console import Console

from bench import report
from bench.cells import comparisons, memories
from bench.headlines import headlines
from bench.markdown import markdown
from bench.page import html
from bench.plots import SHARE, TIME, panels
from bench.rows import best_way, standing, torch_ways, usual
from bench.scaling import settings
from bench.summary import Row, Summary, read, write
from bench.tables import tables
from bench.wording import command, memory, percent, seconds, times, warnings
from tests.bench_report_runs import dropout, loss, sample, steps
from tests.bench_runs import row, summary


@pytest.fixture(scope="module")
def run() -> Summary:
    return sample()


def named(rows: list[Row], group: str) -> Row:
    (found,) = (each for each in rows if each.group == group)
    return found


def cells_of(table: Any, size: str, direction: str = "") -> dict[str, Any]:
    """The row of a table with a size, by heading."""
    headings = [column.heading for column in table.columns]
    found = [dict(zip(headings, cells, strict=True)) for cells in table.rows]
    (only,) = (
        cells
        for cells in found
        if cells["size"].text == size
        and (not direction or cells["direction"].text == direction)
        and cells.get("dtype", cells["size"]).text in ("float32", size)
    )
    return only


@pytest.mark.parametrize(
    ("write_as", "value", "expected"),
    [
        (seconds, 1.2345, "1.23 s"),
        (seconds, 0.01, "10 ms"),
        (seconds, 999.7e-6, "1000 µs"),
        (seconds, 4.2e-10, "0.42 ns"),
        (times, 12.345, "12.3×"),
        (times, 1234.5, "1234×"),
        (times, None, "–"),
        (percent, 0.123, "12%"),
        (percent, 0.0123, "1.2%"),
        (memory, 1023, "1023 B"),
        (memory, 1023 << 10, "1023 KiB"),
        (memory, 3 << 29, "1.5 GiB"),
    ],
)
def test_figures_are_written_to_three_digits(write_as: Any, value: Any, expected: str) -> None:
    assert write_as(value) == expected


def test_the_headline_is_of_the_largest_size_that_no_cache_holds(run: Summary) -> None:
    lines = {(line.row.op, line.row.device): line for line in headlines(run)}
    line = lines["dropout", "cpu"]
    assert line.row.group == "dropout-full-float32-16M-cpu"
    assert (line.best, line.usual) == ("compile", "eager")
    assert line.memory == (
        "33% less",
        "128 MiB at the peak, eager 192 MiB, compile 144 MiB; 16 B kept for backward, eager 48 MiB",
    )
    assert line.share == "80%"
    assert lines["linear_cross_entropy", "cpu"].memory[0] == "92% less"
    assert (lines["adamw", "cpu"].best, lines["adamw", "cpu"].peer) == ("fused", "optimi")
    assert lines["adamw", "cpu"].memory[0] == "none"


def test_without_a_size_beyond_the_cache_the_headline_is_of_the_largest() -> None:
    rows = [each for each in dropout() if each.in_cache]
    (line,) = headlines(summary(*rows))
    assert line.row.size == "1M"


def test_where_regops_is_slower_it_is_said() -> None:
    run = summary(*steps())
    (line,) = headlines(run)
    assert line.counts == ("faster in 7 of 8", "slower in 1")
    page = html(run)
    assert "regops is slower than torch's fastest way in 1 of 8 comparisons" in page
    assert "16M-clip, cpu: 0.715× as fast as fused" in page


def test_ranges_that_overlap_are_no_difference() -> None:
    rows = {"regops": (1.0, 1.1, 1.2), "eager": (1.1, 1.2, 1.3)}
    assert standing(row("dropout", "full", "float32", "64", rows), "eager") == "even"
    rows["eager"] = (1.25, 1.3, 1.35)
    assert standing(row("dropout", "full", "float32", "64", rows), "eager") == "faster"


def test_torchs_own_among_the_peers_is_one_of_torchs_ways() -> None:
    timed = row("linear_cross_entropy", "full", "float32", "1x2x3", {"eager": 2.0, "chunked": 1.0})
    run = summary(timed, peers=[{"name": "chunked", "package": "torch"}])
    assert torch_ways(run, timed) == ["eager", "chunked"]
    assert best_way(run, timed) == "chunked"
    assert best_way(summary(timed), timed) == "eager"


def test_rows_of_fewer_threads_and_of_graphs_are_not_judged(run: Summary) -> None:
    groups = [each.group for each in usual(run)]
    assert not [group for group in groups if group.endswith(("threads", "graph"))]
    assert len(groups) < len(run.rows)


def test_a_row_shows_times_ranges_ceiling_and_its_command(run: Summary) -> None:
    rows = [each for each in usual(run) if (each.op, each.device) == ("dropout", "cpu")]
    shown = cells_of(comparisons(run, "dropout", rows), "16M", "forward and backward")
    assert shown["size"].below == "(!) others 23%"
    assert shown["buffers"].text == "from memory"
    assert (shown["regops"].text, shown["regops"].below) == ("8.39 ms", "8.19–8.59 ms")
    assert (shown["vs eager"].text, shown["vs eager"].below) == ("16×", "134 ms (131–137 ms)")
    assert (shown["ceiling"].text, shown["ceiling"].below) == ("copy", "20 GB/s")
    assert shown["share of it"].text == "80%"
    assert (
        shown["measure again"].code
        == "python -m bench --op dropout --size 16M --dtype float32 --device cpu"
    )
    assert command(rows[0], "full").endswith("--device cpu --profile full")


def test_the_ceiling_of_products_is_counted_in_operations() -> None:
    shown = cells_of(comparisons(summary(loss()), "", [loss()]), "4096x512x32768")
    assert (shown["ceiling"].text, shown["ceiling"].below) == ("matmul", "111 GFLOP/s")
    assert shown["share of it"].text == "90%"


def test_what_was_not_timed_has_a_reason_and_no_time(run: Summary) -> None:
    rows = [each for each in usual(run) if (each.op, each.device) == ("dropout", "cpu")]
    wrong = named(rows, "dropout-forward-bfloat16-1M-cpu")
    shown = comparisons(run, "", [wrong]).rows[0]
    (cell,) = (cell for cell in shown if cell.tone == "bad")
    assert cell.text == "wrong"
    assert cell.below == "31 of 1048576 elements <differ> & more"
    assert cell.sort is None
    failed = [each for each in run.rows if each.failed]
    (cell,) = (cell for cell in comparisons(run, "", failed).rows[0] if cell.tone == "bad")
    assert (cell.text, cell.below) == ("not timed", "RuntimeError: no compiler")


def test_a_wrong_regops_has_no_speed_up() -> None:
    timed = row("dropout", "full", "float32", "64", {"eager": 2.0, "copy": 1.0})
    timed.wrong["regops"] = "all of it"
    run = summary(timed)
    shown = cells_of(comparisons(run, "", [timed]), "64")
    assert (shown["regops"].text, shown["vs eager"].text) == ("wrong", "–")
    assert "regops was not timed: all of it" in html(run)
    assert headlines(run)[0].counts[0] == "–"


def test_memory_is_shown_for_every_provider(run: Summary) -> None:
    table = memories("", dropout())
    assert table is not None
    shown = cells_of(table, "16M")
    assert (shown["eager"].text, shown["eager"].below) == ("96 MiB", "keeps 48 MiB, both 192 MiB")
    assert (shown["regops"].text, shown["regops"].below) == ("64 MiB", "keeps 16 B, both 128 MiB")
    assert memories("", [row("dropout", "full", "float32", "64", {"regops": 1.0})]) is None


def test_fewer_threads_and_graphs_stand_beside_the_usual_rows(run: Summary) -> None:
    cpu = [each for each in run.rows if (each.op, each.device) == ("dropout", "cpu")]
    (threads,) = settings(run, "dropout", cpu)
    assert [[cell.text for cell in cells[:2]] for cells in threads.rows] == [
        ["16M", "1"],
        ["16M", "2"],
    ]
    cuda = [each for each in run.rows if (each.op, each.device) == ("dropout", "cuda")]
    (graphs,) = settings(run, "dropout", cuda)
    index = [column.heading for column in graphs.columns].index("launch")
    assert [cells[index].text for cells in graphs.rows[:2]] == ["calls", "graph"]


def test_sizes_on_a_scale_are_apart_from_lists_of_tensors_and_options() -> None:
    found = {panel.axis: [each.size for each in panel.rows] for panel in panels(steps())}
    assert found == {
        "tensors": ["1x4096", "16x4096", "128x4096", "1000x4096"],
        "elements": ["64", "1M", "16M"],
        "shapes": ["16M-clip"],
    }
    (only,) = panels(dropout()[:1])
    assert only.axis == "shapes"  # no scale comes of one size
    by_ceiling = panels([loss(), *dropout()[:5]])
    assert [(panel.axis, panel.rows[0].ceiling) for panel in by_ceiling] == [
        ("shapes", "matmul"),
        ("elements", "copy"),
    ]


def test_a_share_is_of_the_ceilings_time() -> None:
    timed = dropout()[0]
    low, middle, high = SHARE.of(timed, "eager") or (0, 0, 0)
    assert middle == pytest.approx(timed.median["copy"] / timed.median["eager"])
    assert low < middle < high
    assert TIME.of(timed, "absent") is None


def test_warnings_name_what_is_wrong_failed_disturbed_and_throttled(run: Summary) -> None:
    lines = warnings(run)
    assert "wrong: compile of dropout-forward-bfloat16-1M-cpu: 31 of 1048576" in lines[0]
    assert (
        lines[1] == "not timed: deepspeed of adamw-step-float32-16M-cpu: RuntimeError: no compiler"
    )
    assert "others used more than 10%" in lines[2]
    assert "dropout-full-float32-16M-cpu" in lines[2]
    assert "more than 1.3 times as slow" in lines[3]
    assert warnings(summary(*steps())) == []


def test_the_page_has_everything_and_loads_nothing(run: Summary) -> None:
    page = html(run)
    for must in (
        "torch-optimi",
        "no: needs CUDA",
        "0.0799",
        "97.10%",
        "4-read-3-write",
        "175 GFLOP/s",
        "31 of 1048576 elements &lt;differ&gt; &amp; more",
        "python -m bench --op linear_cross_entropy --size 4096x512x32768",
        "A CPU",
        "Before you believe it",
    ):
        assert must in page
    assert not re.search(r"<(link|img|iframe|image)\b|src=|url\(\s*['\"]?http|@import", page)
    assert len(page) < 1.5e6
    # One of time and one of share, for each direction, dtype and kind of size; and of legends.
    assert page.count('role="img"') == 2 * len(
        [panel for group in (dropout(), dropout(), steps(), [loss()]) for panel in panels(group)]
    )


def test_the_page_of_an_empty_run_says_so() -> None:
    page = html(summary())
    assert "No example was trained in this run" in page
    assert "None was looked for in this run" in page


@pytest.mark.parametrize("provider", ["regops", "eager", "copy", "optimi", "nobody"])
def test_a_run_of_one_provider_is_reported(provider: str, tmp_path: Path) -> None:
    rows = [dropout()[0], *steps(), loss()]
    for each in rows:
        for kind in (each.median, each.low, each.high, each.peak, each.state, each.full_peak):
            for name in kind.keys() - {provider}:
                del kind[name]
    run = summary(*rows)
    assert "nothing to compare with" in html(run)
    assert markdown(run).count("## ") >= 3
    assert tables(run)
    report.save_figures(run, tmp_path)


def test_the_terminals_tables_fit_100_columns(run: Summary) -> None:
    console = Console(width=100, file=io.StringIO())
    for table in tables(run):
        console.print(table)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert max(map(len, lines)) <= 100
    text = "\n".join(lines)
    assert "…" not in text
    assert "wrong" in text
    assert "costs of a call and of elements" in text
    assert "regops, in times of torch's speed" in text


def test_markdown_has_a_table_of_equal_rows_for_all(run: Summary) -> None:
    blocks = re.findall(r"(?:^\|.*\|\n)+", markdown(run), flags=re.M)
    assert len(blocks) > 10
    for block in blocks:
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(widths) == 1
    assert "| dropout, cpu | forward and backward, float32, 16M (!) others 23% |" in blocks[0]
    assert "digits, regops: 6.0 s for 200 steps, held-out loss 0.0799" in markdown(run)


def test_the_report_program_writes_its_files(
    run: Summary, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [each for each in run.rows if each.op != "dropout"]
    write(summary(*rows), tmp_path / "in.json")
    page = report.main([str(tmp_path / "in.json"), "--out", str(tmp_path / "out")])
    assert page == tmp_path / "out" / "report.html"
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert "## adamw, cpu" in (page.parent / "summary.md").read_text(encoding="utf-8")
    assert read(page.parent / "summary.json").rows == rows
    figures = sorted(path.name for path in (page.parent / "figures").iterdir())
    names = ("adamw-cpu", "linear_cross_entropy-cpu", "summary")
    assert figures == [f"{name}.{kind}" for name in names for kind in ("png", "svg")]
    assert str(page) in capsys.readouterr().out.replace("\n", "")
    svg = (page.parent / "figures" / "summary.svg").read_text(encoding="utf-8")
    root = ElementTree.fromstring(svg)
    assert "prefers-color-scheme: dark" in svg
    assert any("1.14× fused" in (text or "") for text in root.itertext())
