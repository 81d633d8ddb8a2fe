"""Matplotlib's SVG, made small, labelled, and light or dark as its reader's page is."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

import matplotlib as mpl
from matplotlib.figure import Figure

from bench.palette import COLOURS

_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_LONG_NUMBER = re.compile(r"-?\d+\.\d{2,}")
_COORDINATES = ("d", "x", "y", "transform", "width", "height")
_COLOUR_NAMES = {light: name for name, (light, _) in COLOURS.items()}
_COLOUR = re.compile("|".join(_COLOUR_NAMES))
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"

ElementTree.register_namespace("", _SVG)
ElementTree.register_namespace("xlink", _XLINK)

# Text stays text, which is smaller, can be read aloud, and takes the page's font.
SETTINGS = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9.5,
    "text.color": COLOURS["ink"][0],
    "axes.labelcolor": COLOURS["soft"][0],
    "axes.edgecolor": COLOURS["grey"][0],
    "axes.linewidth": 0.8,
    "xtick.color": COLOURS["grey"][0],
    "ytick.color": COLOURS["grey"][0],
    "xtick.labelcolor": COLOURS["soft"][0],
    "ytick.labelcolor": COLOURS["soft"][0],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "legend.frameon": False,
}


def inline(figure: Figure, name: str, label: str, tips: Mapping[str, Sequence[str]]) -> str:
    """A plot for the page, whose colours are the page's.

    Args:
        figure: The plot.
        name: Different from that of every other plot in the page.
        label: What there is to see, for those who do not.
        tips: Of the points of a line, by the line's gid: what shows when pointed at.
    """
    root = _tree(figure, name)
    for style in root.findall(f".//{{{_SVG}}}style"):
        style.text = ""  # it would hold for the whole page
    for gid, texts in tips.items():
        line = root.find(f".//*[@id='{gid}']")
        points = [] if line is None else line.findall(f".//{{{_SVG}}}use")
        for point, text in zip(points, texts, strict=True):
            ElementTree.SubElement(point, f"{{{_SVG}}}title").text = text
    for attribute in ("width", "height"):
        del root.attrib[attribute]
    root.set("role", "img")
    root.set("aria-label", label)
    return _text(root)


def save(figure: Figure, path: Path) -> None:
    """Writes an `.svg` that is light or dark as its reader's page is, and a light `.png`."""
    root = _tree(figure, path.stem)
    light, dark = (
        "".join(f"--{name}: {pair[index]};" for name, pair in COLOURS.items()) for index in (0, 1)
    )
    style = ElementTree.Element(f"{{{_SVG}}}style")
    style.text = (
        f"svg {{ {light} }} text {{ font-family: {_FONT} !important; }} "
        f"@media (prefers-color-scheme: dark) {{ svg {{ {dark} }} }}"
    )
    paper = ElementTree.Element(f"{{{_SVG}}}rect", width="100%", height="100%", rx="6")
    paper.set("style", "fill: var(--paper)")
    root[:0] = [style, paper]
    path.with_suffix(".svg").write_text(_text(root) + "\n", encoding="utf-8")
    figure.savefig(path.with_suffix(".png"), dpi=160, facecolor=COLOURS["paper"][0])


def _tree(figure: Figure, name: str) -> ElementTree.Element:
    buffer = io.StringIO()
    # The salt goes into the names of the SVG's parts, which two plots in a page must not share.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    root = ElementTree.fromstring(buffer.getvalue())
    for metadata in root.findall(f"{{{_SVG}}}metadata"):
        root.remove(metadata)
    for element in root.iter():
        for attribute, value in element.attrib.items():
            if attribute in _COORDINATES:
                value = _LONG_NUMBER.sub(lambda found: f"{float(found[0]):.1f}", value)
            value = _COLOUR.sub(lambda found: f"var(--{_COLOUR_NAMES[found[0]]})", value)
            element.set(attribute, value)
        element.text = (element.text or "").strip() or None
        element.tail = None
    return root


def _text(root: ElementTree.Element) -> str:
    text = ElementTree.tostring(root, encoding="unicode")
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', text))
    return re.sub(r' id="([^"]+)"', lambda found: found[0] if found[1] in used else "", text)
