"""The report's plots, with matplotlib: time, and share of the ceiling, against size.

Where sizes are numbers the axis is theirs; shapes have no one number to be placed by, so each has a
line of its own. Bands and bars reach from the 20th to the 80th percentile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator, PercentFormatter

from bench.palette import COLOURS, Style, styles
from bench.rows import elements, grouped, is_plain, timed
from bench.summary import Row
from bench.svg import SETTINGS, inline, save
from bench.wording import DIRECTION, percent, seconds, spread

# Low, middle and high.
Values = tuple[float, float, float]

_WIDTH = 4.3  # inches, of one panel
_HEIGHT = 2.5
_GREY = COLOURS["grey"][0]
_SHADED = ", shaded: in cache"


@dataclass(frozen=True)
class Panel:
    """Rows that differ in size only.

    Attributes:
        rows: In the order of the run.
        axis: "elements" or "tensors", of which there are more from size to size; or "shapes".
    """

    rows: Sequence[Row]
    axis: str

    @property
    def numeric(self) -> bool:
        """Whether sizes have places on a scale."""
        return self.axis != "shapes"

    def place(self, row: Row) -> float:
        """Where a size stands."""
        if self.axis == "elements":
            return row.numel
        return row.tensors if self.axis == "tensors" else self.rows.index(row)


@dataclass(frozen=True)
class Quantity:
    """What is plotted.

    Attributes:
        name: As in "time".
        of: Of a row and a provider; None where it was not measured.
        text: A value in words.
        logarithmic: Or else it begins at 0.
    """

    name: str
    of: Callable[[Row, str], Values | None]
    text: Callable[[float], str]
    logarithmic: bool = False


def _time(row: Row, provider: str) -> Values | None:
    if provider not in row.median:
        return None
    return row.low[provider], row.median[provider], row.high[provider]


def _share(row: Row, provider: str) -> Values | None:
    """Its range is of the provider's time alone: the ceiling's is its median."""
    time = _time(row, provider)
    if time is None or row.ceiling not in row.median:
        return None
    low, middle, high = (row.median[row.ceiling] / value for value in reversed(time))
    return low, middle, high


TIME = Quantity("time of one call", _time, seconds, logarithmic=True)
SHARE = Quantity("share of the ceiling's speed", _share, percent)


def panels(rows: Iterable[Row]) -> list[Panel]:
    """A panel for each direction, dtype, ceiling and kind of size."""
    result = []
    for group in grouped(rows, "direction", "dtype", "ceiling"):
        by_axis: dict[str, list[Row]] = {}
        for row in group:
            by_axis.setdefault(_axis(row), []).append(row)
        for axis in ("elements", "tensors"):
            if len(by_axis.get(axis, ())) == 1:  # no scale comes of one size
                by_axis["shapes"] = by_axis.pop(axis) + by_axis.get("shapes", [])
        result += [Panel(of_axis, axis) for axis, of_axis in by_axis.items()]
    return result


def _axis(row: Row) -> str:
    if elements(row):
        return "elements"
    return "tensors" if row.direction == "step" and is_plain(row) else "shapes"


def panel_svg(panel: Panel, quantity: Quantity, look: Mapping[str, Style]) -> str:
    """One panel, for the page."""
    row = panel.rows[0]
    with mpl.rc_context(SETTINGS):
        figure = Figure(figsize=(_WIDTH, _height(panel)), layout="constrained")
        tips = _draw(figure.subplots(), panel, quantity, look)
        name = f"{quantity.name}-{row.group}-{panel.axis}-{row.ceiling}"
        return inline(figure, name, _label(panel, quantity), tips)


def save_op(rows: Sequence[Row], path: Path) -> None:
    """Writes all panels of an op's first dtype as one figure, a column each, as SVG and PNG."""
    shown = [panel for panel in panels(rows) if panel.rows[0].dtype == rows[0].dtype]
    look = styles(timed(row for panel in shown for row in panel.rows))
    with mpl.rc_context(SETTINGS):
        height = max(map(_height, shown))
        figure = Figure(figsize=(_WIDTH * len(shown), 2 * height + 0.5), layout="constrained")
        grid = figure.subplots(2, len(shown), squeeze=False)
        for column, panel in enumerate(shown):
            for axes, quantity in zip(grid[:, column], (TIME, SHARE), strict=True):
                _draw(axes, panel, quantity, look)
                name = SHARE.name.replace("ceiling", panel.rows[0].ceiling)
                what = name if quantity is SHARE else quantity.name
                direction = DIRECTION[panel.rows[0].direction]
                axes.set_title(f"{direction}: {what}", loc="left", fontsize=9.5)
        handles = [
            Line2D([], [], label=name, color=style.hex, marker=style.marker, ls=_dash(style))
            for name, style in look.items()
        ]
        title = f"{rows[0].op}, {rows[0].device}, {rows[0].dtype}"
        figure.legend(
            handles=handles,
            title=title,
            alignment="left",
            loc="outside upper left",
            ncols=len(handles),
        )
        save(figure, path)


def _draw(
    axes: Axes, panel: Panel, quantity: Quantity, look: Mapping[str, Style]
) -> dict[str, list[str]]:
    """Draws a panel, and returns what its points say when pointed at."""
    tips = {}
    names = [name for name in timed(panel.rows) if name != panel.rows[0].ceiling]
    if quantity is TIME:
        names.append(panel.rows[0].ceiling)
    for number, name in enumerate(names):
        found = [(row, quantity.of(row, name)) for row in panel.rows]
        points = [(row, values) for row, values in found if values is not None]
        if not points:  # the ceiling of a share was not timed
            continue
        at = [panel.place(row) for row, _ in points]
        low, middle, high = zip(*(values for _, values in points), strict=True)
        style, gid = look[name], f"line{number}"
        usual = {"color": style.hex, "marker": style.marker, "markersize": 4.5, "gid": gid}
        usual |= {"zorder": 4 if name == "regops" else 3, "label": name}
        if panel.numeric:
            width = 2.2 if name == "regops" else 1.3
            axes.plot(at, middle, linestyle=_dash(style), linewidth=width, **usual)
            axes.fill_between(at, low, high, color=style.hex, alpha=0.18, linewidth=0)
        else:
            # Side by side: points of one shape may coincide.
            shifted = [place + 0.5 * ((number + 0.5) / len(names) - 0.5) for place in at]
            axes.hlines(shifted, low, high, color=style.hex, linewidth=1.2)
            axes.plot(middle, shifted, linestyle="none", **usual)
        tips[gid] = [
            f"{name}, {row.size}: {quantity.text(values[1])} ({_range(quantity, values)})"
            for row, values in points
        ]
    (_numeric_axes if panel.numeric else _shape_axes)(axes, panel, quantity)
    if quantity is SHARE:
        (axes.axhline if panel.numeric else axes.axvline)(1, color=_GREY, lw=1, ls="--")
    return tips


def _numeric_axes(axes: Axes, panel: Panel, quantity: Quantity) -> None:
    places = [panel.place(row) for row in panel.rows]
    axes.set_xscale("log", base=2)
    sized = panel.axis == "elements"
    axes.set_xticks(places, [row.size if sized else str(row.tensors) for row in panel.rows])
    axes.xaxis.set_minor_locator(NullLocator())
    each = panel.rows[0].numel // panel.rows[0].tensors
    what = "elements" if sized else f"tensors of {each} elements"
    shaded = any(row.in_cache for row in panel.rows)
    axes.set_xlabel(what + _SHADED * shaded, loc="right")
    axes.grid(axis="y", color=_GREY, alpha=0.22, linewidth=0.7)
    _values(axes, "y", quantity)
    hot = [place for row, place in zip(panel.rows, places, strict=True) if row.in_cache]
    cold = [place for row, place in zip(panel.rows, places, strict=True) if not row.in_cache]
    if hot:
        left, right = axes.get_xlim()
        end = (max(hot) * min(cold)) ** 0.5 if cold else right
        axes.axvspan(left, end, color=_GREY, alpha=0.1, linewidth=0, zorder=0)
        axes.set_xlim(left, right)


def _shape_axes(axes: Axes, panel: Panel, quantity: Quantity) -> None:
    axes.set_yticks(range(len(panel.rows)), [row.size for row in panel.rows])
    axes.tick_params("y", length=0)
    axes.set_ylim(len(panel.rows) - 0.5, -0.5)
    axes.grid(axis="x", color=_GREY, alpha=0.22, linewidth=0.7)
    for place, row in enumerate(panel.rows):
        if row.in_cache:
            span = (place - 0.5, place + 0.5)
            axes.axhspan(*span, color=_GREY, alpha=0.1, linewidth=0, zorder=0)
    _values(axes, "x", quantity)
    if any(row.in_cache for row in panel.rows):
        axes.set_xlabel(_SHADED.strip(" ,"), loc="right")


def _values(axes: Axes, along: str, quantity: Quantity) -> None:
    axis = axes.xaxis if along == "x" else axes.yaxis
    if quantity.logarithmic:
        (axes.set_xscale if along == "x" else axes.set_yscale)("log")
        axis.set_major_locator(LogLocator(10, (1,), numticks=7))
        axis.set_major_formatter(FuncFormatter(lambda value, _: seconds(value)))
        axis.set_minor_locator(NullLocator())
    else:
        (axes.set_xlim if along == "x" else axes.set_ylim)(0)
        axis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def _dash(style: Style) -> str:
    return "--" if style.dashed else "-"


def _height(panel: Panel) -> float:
    return _HEIGHT if panel.numeric else 0.6 + 0.42 * max(len(panel.rows), 3)


def _range(quantity: Quantity, values: Values) -> str:
    low, _, high = values
    return spread(low, high) if quantity is TIME else f"{percent(low)}–{percent(high)}"


def _label(panel: Panel, quantity: Quantity) -> str:
    row = panel.rows[-1]
    said = ((name, quantity.of(row, name)) for name in timed(panel.rows))
    last = ", ".join(f"{name} {quantity.text(values[1])}" for name, values in said if values)
    return (
        f"{quantity.name} of {row.op}, {DIRECTION[row.direction]}, {row.dtype}, {row.device}, "
        f"for {len(panel.rows)} sizes. At {row.size}: {last}. The table below has all figures."
    )
