"""The one figure for those who decide: how many times as fast as torch each op is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from bench.headlines import Headline
from bench.palette import COLOURS
from bench.svg import SETTINGS, save
from bench.wording import marks, times


def save_overview(headlines: Sequence[Headline], path: Path) -> None:
    """Writes each op's speed-up over torch as bars, as SVG and PNG."""
    shown = [each for each in headlines if each.timed and each.best]
    if not shown:
        return
    with mpl.rc_context(SETTINGS):
        figure = Figure(figsize=(7.2, 0.75 + 0.62 * len(shown)), layout="constrained")
        axes = figure.subplots()
        ratios: list[float] = []
        for place, each in enumerate(shown):
            bars = {each.best or "": ("accent", -0.2 if each.usual != each.best else 0)}
            bars.setdefault(each.usual, ("grey", 0.2))
            for name, (colour, offset) in bars.items():
                value = each.row.speedup(name)
                if value is None:
                    continue
                ratios.append(value)
                axes.barh(place + offset, value - 1, 0.36, left=1, color=COLOURS[colour][0])
                mark = " (!)" * bool(marks(each.row))
                axes.annotate(
                    f"{times(value)} {name}{mark}",
                    (max(value, 1), place + offset),
                    xytext=(4, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=8.5,
                )
        axes.set_yticks(
            range(len(shown)),
            [
                f"{each.row.op}, {each.row.device}\n{each.row.dtype}, {each.row.size}"
                for each in shown
            ],
        )
        axes.tick_params("y", length=0, labelcolor=COLOURS["ink"][0])
        axes.invert_yaxis()
        axes.set_xscale("log")
        axes.set_xlim(min(0.9, min(ratios) * 0.8), max(ratios) * 1.9)  # room for the words
        axes.xaxis.set_major_locator(LogLocator(10, (1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.axvline(1, color=COLOURS["ink"][0], linewidth=0.8)
        axes.spines["left"].set_visible(False)
        axes.set_title(
            "regops: times as fast as torch's fastest way (orange) and its default (grey)",
            loc="left",
            fontsize=9.5,
        )
        save(figure, path)
