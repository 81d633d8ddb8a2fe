"""Writes the README's figures: `python -m bench readme bench/results/cpu-avx512.json`.

What stands between two comments in README.md is made of the committed runs and of nothing else: for
each, what it ran on, a few rows of every op, and which goals of `bench.thresholds` it missed.
`--check` writes nothing and exits with 1 if README.md has other figures.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from bench.check import Verdict, judge
from bench.rows import usual
from bench.run_files import described, run_file
from bench.summary import Row, Summary

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
RESULTS = ROOT / "bench" / "results"

BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"

_F32, _BF16 = ("float32",), ("bfloat16",)
_BOTH = _F32 + _BF16


@dataclass(frozen=True)
class Pick:
    """Rows of a table, as far as the run has them; sizes by kind of device."""

    op: str
    directions: tuple[str, ...]
    dtypes: tuple[str, ...]
    sizes: Mapping[str, tuple[str, ...]]

    def rows(self, summary: Summary, device: str) -> Iterator[Row]:
        """Those of the run's that were timed as users run them."""
        timed = {
            (row.op, row.direction, row.dtype, row.size): row
            for row in usual(summary)
            if row.device.split(":")[0] == device and "regops" in row.median
        }
        for size, dtype, direction in product(
            self.sizes.get(device, ()), self.dtypes, self.directions
        ):
            row = timed.get((self.op, direction, dtype, size))
            if row:
                yield row


@dataclass(frozen=True)
class Section:
    """A table.

    Attributes:
        title: What is timed; its first op goes without saying in the rows.
        rivals: With whom regops is compared, as the heading names them.
        memory: A field of `Row` that says what memory counts, and the heading for it.
        beside: Whose memory stands beside regops's.
        picks: Its rows.
    """

    title: str
    rivals: Mapping[str, str]
    memory: tuple[str, str]
    beside: str
    picks: tuple[Pick, ...]


def _on_both(*sizes: str) -> dict[str, tuple[str, ...]]:
    return {"cpu": sizes, "cuda": sizes}


_TORCH = {"eager": "vs eager", "compile": "vs torch.compile"}
_FULL, _STEP = ("full",), ("step",)

SECTIONS = (
    Section(
        "dropout, p = 0.1",
        _TORCH,
        ("state", "kept for backward"),
        "eager",
        (
            Pick("dropout", ("forward", "backward"), _BOTH, {"cpu": ("16M",), "cuda": ("256M",)}),
            Pick("dropout", ("forward",), _F32, {"cpu": ("64k",), "cuda": ("1M",)}),
            Pick("dropout", _FULL, _F32, _on_both("64")),
        ),
    ),
    Section(
        "cross-entropy, smoothing 0.1, forward + backward",
        _TORCH,
        ("full_peak", "peak memory"),
        "eager",
        (
            Pick("cross_entropy", _FULL, _BOTH, _on_both("512x32768")),
            Pick("cross_entropy", _FULL, _F32, _on_both("4096x1000", "1x10")),
            Pick("linear_cross_entropy", _FULL, _BOTH, _on_both("4096x512x32768")),
        ),
    ),
    Section(
        "DropConnect, p = 0.5, forward + backward",
        _TORCH,
        ("extra", "memory beyond results"),
        "eager",
        (
            Pick(
                "dropconnect_linear",
                _FULL,
                _BOTH,
                {"cpu": ("256x4096-4096", "8x4096-4096"), "cuda": ("2048x4096-4096",)},
            ),
            Pick("dropconnect_linear", _FULL, _F32, {"cpu": ("64x1024-1024-sample", "32x64-64")}),
        ),
    ),
    Section(
        "a step of AdamW",
        {"fused": "vs torch's fused", "foreach": "vs its foreach"},
        ("peak", "memory"),
        "fused",
        (
            Pick(
                "adamw",
                _STEP,
                _F32,
                {
                    "cpu": ("16M", "16M-clip-zero-ema", "16M-bf16-states"),
                    "cuda": ("GPT1.3B", "GPT1.3B-clip"),
                },
            ),
            Pick("adamw", _STEP, _BF16, {"cpu": ("16M-bf16-masters",)}),
            Pick("adamw", _STEP, _F32, {"cpu": ("1000x4096", "1000x4096-clip-zero-ema", "64")}),
            Pick("sgdw", _STEP, _F32, {"cpu": ("16M",), "cuda": ("GPT1.3B",)}),
        ),
    ),
)


def figures(summary: Summary, link: str, drawn: bool = False) -> str:
    """A run as Markdown: of a machine with a GPU what ran on that, for the CPU's run is another.

    Args:
        summary: The run.
        link: Where it is, as seen from the README.
        drawn: Whether its overview is beside it, as an SVG of the same name.
    """
    device = "cuda" if any(row.device.startswith("cuda") for row in summary.rows) else "cpu"
    machine = summary.machine
    parts = [f"### {machine['gpu' if device == 'cuda' else 'processor']}"]
    parts += [f"{described(summary)} ([{link}]({link}))."]
    if drawn:
        words = "How many times as fast as torch each op is; the tables below have the figures"
        parts.append(f"![{words}]({link.removesuffix('.json')}.svg)")
    shown: list[Row] = []
    for section in SECTIONS:
        rows = [row for pick in section.picks for row in pick.rows(summary, device)]
        if rows:
            parts.append("\n".join(_table(section, rows)))
            shown += rows
    if any(_mark(row) for row in shown):
        parts.append("(!) Others used the processor meanwhile, or it ran slowly.")
    return "\n\n".join((*parts, "\n".join(_goals(summary))))


def _table(section: Section, rows: Sequence[Row]) -> Iterator[str]:
    field, heading = section.memory
    cells = [
        section.title,
        "regops",
        *section.rivals.values(),
        "in times of its ceiling",
        f"{heading}, {section.beside} → regops",
    ]
    yield _line(cells)
    yield "|---|" + "--:|" * (len(cells) - 1)
    for row in rows:
        over = row.over_ceiling()
        bytes_of = getattr(row, field)
        beside, own = bytes_of.get(section.beside), bytes_of.get("regops")
        yield _line(
            [
                _label(section, rows, row),
                _seconds(row.median["regops"]),
                *(_times(row.speedup(rival)) for rival in section.rivals),
                f"{over:.3g}x {row.ceiling}" if over else "",
                "" if beside is None or own is None else f"{_size(beside)} → {_size(own)}",
            ]
        )


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _label(section: Section, rows: Sequence[Row], row: Row) -> str:
    """What tells a row from the others."""
    op = f"{row.op} " if row.op != section.picks[0].op else ""
    several = len({each.direction for each in rows}) > 1
    direction = f", {row.direction.replace('full', 'forward + backward')}" if several else ""
    cached = " (in cache)" if row.in_cache else ""
    return f"{op}{row.size} {row.dtype}{direction}{cached}{_mark(row)}"


def _mark(row: Row) -> str:
    return " (!)" if row.disturbed or row.throttled else ""


def _goals(summary: Summary) -> Iterator[str]:
    """How many goals are met, and the others by name."""
    verdicts = list(judge(summary))
    missed: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        if not verdict.met:
            goal = verdict.threshold
            missed.setdefault(f"{goal.op} {goal.wording}", []).append(verdict)
    met = sum(verdict.met for verdict in verdicts)
    yield f"{met} of the {len(verdicts)} goals of `make bench-check` are met" + (
        "; those missed:" if missed else "."
    )
    if missed:
        yield ""
    for goal, those in missed.items():
        rows = ", ".join(
            f"{each.row.direction} {each.row.dtype} {each.row.size} {each.measured_words}"
            for each in those
        )
        yield f"- {goal}: {rows}"


def _times(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:#.2g}x" if value < 9.95 else f"{value:.0f}x"


def _seconds(value: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e3)):
        if value * scale >= 1:
            return f"{value * scale:.3g} {unit}"
    return f"{value * 1e6:.3g} us"


def _size(count: int) -> str:
    for unit, scale in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count} B"


def with_figures(text: str, block: str) -> str:
    """A README with this block between its two comments.

    Raises:
        ValueError: It does not have both, once and in order.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in after:
        raise ValueError(f"expected {BEGIN} and then {END}, once each")
    return f"{before}{BEGIN}\n\n{block}\n\n{END}{after}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Rewrites the figures, or compares them.

    Returns:
        1 if they were to be compared and differ, else 0; what cannot be read exits with 2.
    """
    parser = argparse.ArgumentParser(prog="python -m bench readme", description=__doc__)
    parser.add_argument("runs", type=run_file, nargs="*", help="default: all in bench/results")
    parser.add_argument("--readme", type=Path, default=README)
    parser.add_argument("--check", action="store_true", help="write nothing, compare")
    options = parser.parse_args(arguments)
    folder = options.readme.resolve().parent
    try:
        runs = options.runs or [run_file(str(path)) for path in sorted(RESULTS.glob("*.json"))]
        text = options.readme.read_text()
        links = [Path(os.path.relpath(run.path.resolve(), folder)).as_posix() for run in runs]
        blocks = [
            figures(run.summary, link, run.path.with_suffix(".svg").exists())
            for run, link in zip(runs, links, strict=True)
        ]
        made = with_figures(text, "\n\n".join(blocks))
    except (argparse.ArgumentTypeError, OSError, ValueError) as error:
        parser.error(str(error))
    if not options.check:
        options.readme.write_text(made)
    elif made != text:
        print(f"{options.readme} has other figures: `python -m bench readme` writes them")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
