"""Colours of the report, on light and on dark, and how each provider is drawn.

Markers differ as well as colours, for readers who cannot tell these apart.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from bench.rows import OWN
from bench.summary import CEILINGS

# By name: on light, on dark. Text has a contrast of 4.5 with the paper at least, lines of 3.
COLOURS = {
    "paper": ("#ffffff", "#15181c"),
    "shade": ("#f5f6f8", "#1d2126"),
    "rule": ("#d9dde2", "#363c44"),
    "ink": ("#1d2229", "#e4e7eb"),
    "soft": ("#59616b", "#9fa8b3"),
    "accent": ("#b8400a", "#ff9152"),
    "link": ("#0b57ad", "#82b4ff"),
    "blue": ("#2b6cd4", "#6ea8ff"),
    "green": ("#217a49", "#5cc58a"),
    "teal": ("#0d7c8c", "#48c2d3"),
    "pink": ("#b4246b", "#f083b4"),
    "grey": ("#757e88", "#8a939e"),
    "violet": ("#6d4bc4", "#ae97f5"),
    "brown": ("#8a5a12", "#d3a35a"),
    "olive": ("#5f7512", "#a9c24d"),
    "slate": ("#46607a", "#93b0cc"),
}


@dataclass(frozen=True)
class Style:
    """How a provider is drawn.

    Attributes:
        colour: A name in `COLOURS`.
        marker: As matplotlib calls it.
        dashed: Of a ceiling, which no one is meant to reach.
    """

    colour: str
    marker: str
    dashed: bool = False

    @property
    def path(self) -> str:
        """The marker in a legend."""
        return PATHS[self.marker]

    @property
    def hex(self) -> str:
        """On light; `bench.svg` replaces it."""
        return COLOURS[self.colour][0]


# Of a legend: the same markers as paths, around the origin, about 8 units wide.
PATHS = {
    "o": "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z",
    "s": "M-4-4h8v8h-8z",
    "v": "M-4.5-4h9l-4.5 8z",
    "^": "M-4.5 4h9l-4.5-8z",
    "P": "M-1.5-4.5h3v3h3v3h-3v3h-3v-3h-3v-3h3z",
    "D": "M0-5l5 5-5 5-5-5z",
    "d": "M0-5l3 5-3 5-3-5z",
    "X": "M-4-2l2-2 2 2 2-2 2 2-2 2 2 2-2 2-2-2-2 2-2-2 2-2z",
    "p": "M0-4.5l4.5 3.3-1.7 5.2h-5.6l-1.7-5.2z",
    "x": "M-3-3l6 6M3-3l-6 6",
}

_TORCH = {
    "eager": Style("blue", "s"),
    "foreach": Style("teal", "v"),
    "fused": Style("pink", "P"),
    "compile": Style("green", "^"),
}
_OWN = {"regops": Style("accent", "o"), "float32-states": Style("accent", "d", dashed=True)}
_OTHERS = tuple(
    Style(colour, marker)
    for marker in ("D", "X", "p")
    for colour in ("violet", "brown", "olive", "slate")
)


def styles(names: Iterable[str]) -> dict[str, Style]:
    """One for each provider; other libraries' follow from their order."""
    result, others = {}, 0
    for name in names:
        if name in CEILINGS:
            result[name] = Style("grey", "x", dashed=True)
        elif name in _TORCH or name in OWN:
            result[name] = {**_TORCH, **_OWN}[name]
        else:
            result[name] = _OTHERS[others % len(_OTHERS)]
            others += 1
    return result
