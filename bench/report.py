"""The report program: tables, a page and figures from what a run recorded. It never times anything.

`python -m bench.report bench/out/benchmark.json` writes beside it `summary.json`, `summary.md`,
`report.html`, and `figures/`: a `summary` and one of each op and device, as `.svg` and `.png`. It
prints the tables. Given a `summary.json` it makes the rest from that.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from bench.headlines import headlines
from bench.markdown import end_to_end_lines, markdown
from bench.overview import save_overview
from bench.page import html
from bench.plots import save_op
from bench.rows import anchor, grouped, usual
from bench.run_files import run_file
from bench.summary import Summary, write
from bench.tables import tables
from bench.wording import warnings


def save_figures(summary: Summary, folder: Path) -> None:
    """Writes what a README can show."""
    folder.mkdir(parents=True, exist_ok=True)
    save_overview(headlines(summary), folder / "summary.svg")
    for rows in grouped(usual(summary), "op", "device"):
        if any(row.median for row in rows):
            save_op(rows, folder / f"{anchor(rows[0])}.svg")


def main(arguments: Sequence[str] | None = None) -> Path:
    """Writes the report and prints the tables.

    Returns:
        Path of the page.
    """
    parser = argparse.ArgumentParser(prog="python -m bench.report", description=__doc__)
    parser.add_argument("json", type=run_file, nargs="?", default="bench/out/benchmark.json")
    parser.add_argument("--out", type=Path, help="folder to write to; default: the JSON's")
    options = parser.parse_args(arguments)
    out = options.out or options.json.path.parent
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"{out}: {error.strerror}")
    summary = options.json.summary
    write(summary, out / "summary.json")
    (out / "summary.md").write_text(markdown(summary), encoding="utf-8")
    page = out / "report.html"
    page.write_text(html(summary), encoding="utf-8")
    save_figures(summary, out / "figures")
    console = Console()
    # Redirected output has no width to fit; a table cut to 80 columns would lose its figures.
    wide = console if console.is_terminal else Console(width=120)
    for table in tables(summary):
        wide.print(table)
    for line in end_to_end_lines(summary) + warnings(summary):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print(f"report: {page}", highlight=False, soft_wrap=True)
    return page


if __name__ == "__main__":
    main()
