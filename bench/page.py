"""The report as one page of HTML that loads nothing, and can be read without its script."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from bench import cells, scaling
from bench.fits import fits
from bench.headlines import Headline, headlines
from bench.palette import COLOURS, Style, styles
from bench.plots import SHARE, TIME, Panel, panel_svg, panels
from bench.rows import anchor, grouped, is_usual, standing, timed
from bench.summary import Row, Summary
from bench.wording import DIRECTION, flat, machine_line, marks, times, warnings

_TEMPLATES = Path(__file__).parent / "templates"

# Rows where regops is slower are all named, up to so many before one must ask for them.
_OPEN = 6


@dataclass(frozen=True)
class Plots:
    """The panels of a dtype: time and share beside each other in turn."""

    dtype: str
    figures: list[Figure]


@dataclass(frozen=True)
class Figure:
    """A panel: its name, that of its ceiling, and both plots."""

    name: str
    ceiling: str
    time: str
    share: str


@dataclass(frozen=True)
class Section:
    """An op on a device."""

    name: str
    title: str
    rows: Sequence[Row]
    headline: Headline
    look: dict[str, Style]
    plots: list[Plots]
    tables: list[cells.Table]
    scaling: list[cells.Table]


@dataclass(frozen=True)
class Bar:
    """A speed-up on a logarithmic scale, in percent of its width."""

    rival: str
    what: str
    value: float
    standing: str
    start: float
    length: float
    one: float


def html(summary: Summary) -> str:
    """The page."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["times"] = times
    lines = headlines(summary)
    return environment.get_template("report.html.j2").render(
        summary=summary,
        machine_line=machine_line(summary),
        machine=[(name.replace("_", " "), flat(value)) for name, value in summary.machine.items()],
        command=" ".join(("python -m bench", *summary.arguments)),
        warnings=warnings(summary),
        headlines=[(each, anchor(each.row), _bars(each, lines)) for each in lines],
        slower=[(anchor(row), row, best) for row, best in _slower(lines)],
        open_up_to=_OPEN,
        compared=sum(len(each.standings) for each in lines),
        sections=[_section(summary, each) for each in lines],
        ceilings=scaling.machine_ceilings(summary),
        examples=[_example(example) for example in summary.end_to_end],
        marks=marks,
        direction=DIRECTION,
        css=_colours() + _text("report.css"),
        script=_text("report.js"),
    )


def _section(summary: Summary, headline: Headline) -> Section:
    row = headline.row
    every = [each for each in summary.rows if (each.op, each.device) == (row.op, row.device)]
    usual = [each for each in every if is_usual(summary, each)]
    look, name = styles(timed(every)), anchor(row)
    tables = [cells.comparisons(summary, name, usual), cells.memories(name, usual)]
    scaled = [scaling.costs(name, fits(usual)), *scaling.settings(summary, name, every)]
    return Section(
        name,
        row.op if len({each.device for each in summary.rows}) == 1 else f"{row.op}, {row.device}",
        usual,
        headline,
        look,
        [
            Plots(of_dtype[0].dtype, [_figure(panel, look) for panel in panels(of_dtype)])
            for of_dtype in grouped(usual, "dtype")
            if any(each.median for each in of_dtype)
        ],
        [table for table in tables if table],
        [table for table in scaled if table],
    )


def _figure(panel: Panel, look: dict[str, Style]) -> Figure:
    row = panel.rows[0]
    counted = ", by number of tensors" if panel.axis == "tensors" else ""
    return Figure(
        DIRECTION[row.direction] + counted,
        row.ceiling,
        Markup(panel_svg(panel, TIME, look)),
        Markup(panel_svg(panel, SHARE, look)),
    )


def _slower(lines: Sequence[Headline]) -> list[tuple[Row, str]]:
    return [(row, best) for each in lines for row, best, how in each.standings if how == "slower"]


def _bars(headline: Headline, lines: Sequence[Headline]) -> list[Bar]:
    """Of torch's fastest way, and of its default where that is another."""
    every = [
        ratio
        for each in lines
        for rival in (each.best, each.usual)
        if rival and (ratio := each.row.speedup(rival))
    ]
    least, most = math.log(min([0.9, *every])), math.log(max([2.0, *every]))

    def place(value: float) -> float:
        return round(100 * (math.log(value) - least) / (most - least), 2)

    ways = {headline.best: "torch's fastest", headline.usual: "torch's default"}
    if headline.best == headline.usual:
        ways = {headline.best: "fastest and default"}
    bars = []
    for rival, what in ways.items():
        value = headline.row.speedup(rival) if rival else None
        if rival and value:
            low, high = sorted((1.0, value))
            length = round(place(high) - place(low), 2)
            how = standing(headline.row, rival)
            bars.append(Bar(rival, what, value, how, place(low), length, place(1.0)))
    return bars


def _example(example: dict[str, Any]) -> dict[str, Any]:
    runs = example["runs"]
    both = {"torch", "regops"} <= runs.keys()
    return {
        **example,
        "seeds": len({run["seed"] for run in example.get("of_seeds", ())}) or None,
        "speedup": runs["torch"]["seconds"] / runs["regops"]["seconds"] if both else None,
    }


def _text(name: str) -> Markup:
    return Markup((_TEMPLATES / name).read_text(encoding="utf-8"))


def _colours() -> Markup:
    pairs = (f"--{name}: light-dark({light}, {dark});" for name, (light, dark) in COLOURS.items())
    return Markup(f":root {{ {' '.join(pairs)} }}\n")
