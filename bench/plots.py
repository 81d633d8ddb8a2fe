"""The report's plots, as SVG fragments that take the page's colours and fonts."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.summary import Row

# Replaced by `currentColor` in the SVG, which reads on dark and on light; no line uses it.
_INK = "#010203"

# Of middle lightness, to stand out on white and on near-black; the markers differ as well, for
# readers who cannot tell the colours apart.
_STYLES = {
    "regops": {"color": "#e8590c", "marker": "o", "linewidth": 2.2, "zorder": 3},
    "eager": {"color": "#4c8dff", "marker": "s"},
    "compile": {"color": "#2f9e64", "marker": "^"},
    "copy": {"color": "#868e96", "marker": "x", "linestyle": "--"},
    "stream": {"color": "#868e96", "marker": "x", "linestyle": "--"},
    "linear": {"color": "#868e96", "marker": "+", "linestyle": "--"},
    "foreach": {"color": "#15aabf", "marker": "v"},
    "fused": {"color": "#c2255c", "marker": "P"},
}
_PEER_STYLE = {"color": "#ae6bd9", "marker": "D"}

# Characters that fit side by side under a plot.
_ROOM = 36

_SETTINGS = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "lines.markersize": 5,
}


def time_against_size(rows: Sequence[Row]) -> str:
    """Median time of every provider. Rows differ in size only."""

    def draw(axes: Axes) -> None:
        _lines(axes, rows, lambda row, provider: row.median.get(provider))
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(mpl.ticker.FuncFormatter(lambda s, _: seconds(s)))
        axes.set_title("time of one call", loc="left", fontsize=10)

    return _svg(f"time-{rows[0].group}", draw, rows)


def ceiling_share_against_size(rows: Sequence[Row]) -> str:
    """Share of the ceiling's speed that every other reaches. Rows differ in size only."""

    def share(row: Row, provider: str) -> float | None:
        over = row.over_ceiling(provider)
        return 1 / over if over else None

    # A copy and a stream do nothing but move bytes.
    speed = "bandwidth" if rows[0].ceiling in ("copy", "stream") else "speed"

    def draw(axes: Axes) -> None:
        _lines(axes, rows, share)
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(mpl.ticker.PercentFormatter(1.0, decimals=0))
        axes.set_title(f"share of the {rows[0].ceiling}'s {speed}", loc="left", fontsize=10)

    return _svg(f"share-{rows[0].group}", draw, rows)


def seconds(value: float) -> str:
    """A time with the unit that suits it, to three digits."""
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("us", 1e6)):
        if value * scale >= 1:
            return f"{value * scale:.3g} {unit}"
    return f"{value * 1e9:.3g} ns"


def _lines(axes: Axes, rows: Sequence[Row], of: Callable[[Row, str], float | None]) -> None:
    providers = dict.fromkeys(name for row in rows for name in row.median)
    for provider in providers:
        points = [(place, of(row, provider)) for place, row in enumerate(rows)]
        kept = [(place, value) for place, value in points if value is not None]
        axes.plot(*zip(*kept, strict=True), label=provider, **_STYLES.get(provider, _PEER_STYLE))


def _svg(name: str, draw: Callable[[Axes], None], rows: Sequence[Row]) -> str:
    # The salt goes into the names of the SVG's parts, which two plots in a page must not share.
    with mpl.rc_context({**_SETTINGS, "svg.hashsalt": name}):
        figure = Figure(figsize=(4.4, 3.1), layout="constrained")
        axes = figure.subplots()
        draw(axes)
        # Side by side whatever their distance: shapes have no one number to be drawn to scale by.
        axes.set_xticks(range(len(rows)), [row.size for row in rows])
        longest = max(len(row.size) for row in rows)
        axes.tick_params("x", rotation=20 if longest * len(rows) > _ROOM else 0)
        axes.minorticks_off()
        axes.grid(axis="y", color="#868e96", alpha=0.25, linewidth=0.7)
        axes.set_xlim(-0.5, len(rows) - 0.5)
        cached = [place for place, row in enumerate(rows) if row.in_cache]
        for place in cached:
            axes.axvspan(place - 0.5, place + 0.5, color="#868e96", alpha=0.12, linewidth=0)
        axes.set_xlabel("size (shaded: in cache)" if cached else "size")
        axes.legend(frameon=False, fontsize=8)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    return svg[svg.index("<svg") :].replace(_INK, "currentColor")
