"""What the charts share: the figure type, colours, axes and harmless labels.

A figure is plotly's `{"data": [...], "layout": {...}}` as plain data; nothing here imports plotly. Text and
grid colours are left to the page's style sheet, so that light, dark and paper all work. Names go in as labels
of numbered ticks or as hover text, never into axis categories (plotly would read dates and numbers into them)
or templates, and with `<` and `&` escaped, because plotly reads tags in labels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from compress.core.types import Measurement
from compress.report import words

GREY, ACCENT = "#94a3b8", "#0f9f90"
PALETTE = ("#3b82c4", "#e08a3c", "#3fa37a", "#c2567a", "#8b6fc9", "#a58b2f", "#4fb3bf", "#8a8f98")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "hexagon")
SIGNS = ("●", "■", "◆", "▲", "✚", "✖", "★", "⬢")
BAR = "■"
FONT = {"family": "system-ui, sans-serif", "size": 12}
Json = dict[str, Any]


@dataclass(frozen=True)
class Chart:
    """One chart: `key` is its id in the page, `said` what it shows in a sentence, `height` in pixels.

    legend: name, colour and sign of each series; the page sets it in HTML, where it wraps on a phone.
    """

    key: str
    group: str
    title: str
    said: str
    figure: Json
    height: int = 320
    legend: tuple[tuple[str, str, str], ...] = ()


def label(name: object, limit: int = 28) -> str:
    """A role or layer for plotly, which reads tags and entities in labels: shortened, then escaped."""
    return safe(words.short(name, limit))


def safe(text: object, limit: int = 160) -> str:
    """A sentence for plotly's hover box, cleaned and escaped."""
    return words.clean(text, limit).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def color(index: int) -> str:
    """The colour of the `index`-th series."""
    return PALETTE[index % len(PALETTE)]


def symbol(index: int) -> str:
    """The marker of the `index`-th series, so that colour is not the only difference."""
    return SYMBOLS[index % len(SYMBOLS)]


def sign(index: int) -> str:
    """The character that stands for `symbol(index)` in a legend."""
    return SIGNS[index % len(SIGNS)]


def log_ticks(low: float, high: float) -> Json:
    """A logarithmic axis with ticks at 1, 2 and 5 (powers of ten only when it spans many), in full."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    steps = (1, 2, 5) if last - first <= 3 else (1,)
    values = [step * 10.0**power for power in range(first, last + 1) for step in steps]
    return {"type": "log", "tickvals": values, "ticktext": [f"{v:.12g}" for v in values]}


def axis(title: str = "", settings: Json | None = None) -> Json:
    """An axis that cannot be dragged (a page is scrolled by touching its charts)."""
    base: Json = {"automargin": True, "fixedrange": True, "zeroline": False}
    if title:
        base["title"] = {"text": title, "standoff": 8}
    return {**base, **(settings or {})}


def layout(x: Json, y: Json, settings: Json | None = None) -> Json:
    """A transparent, self-sizing layout without title and legend, which the page sets."""
    base: Json = {
        "autosize": True,
        "margin": {"l": 8, "r": 12, "t": 8, "b": 8},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": FONT,
        "hoverlabel": {"font": FONT},
        "showlegend": False,
        "dragmode": False,
        "xaxis": x,
        "yaxis": y,
    }
    return {**base, **(settings or {})}


def sentence(text: str) -> str:
    """`text` with a capital and a full stop."""
    return f"{text[:1].upper()}{text[1:]}."


def value(found: Measurement) -> str:
    """A figure with its unit and interval."""
    return f"{words.shown(found)} {words.interval(found)}".strip()


def whiskers(points: Sequence[Measurement], shade: str) -> Json:
    """Asymmetric error bars; a point without an interval gets none."""
    return {
        "type": "data",
        "symmetric": False,
        "array": [_reach(p.median, p.high) for p in points],
        "arrayminus": [_reach(p.low, p.median) for p in points],
        "thickness": 1.4,
        "width": 5,
        "color": shade,
    }


def _reach(low: float | None, high: float | None) -> float:
    if low is None or high is None or not math.isfinite(high - low):
        return 0.0
    return max(0.0, high - low)
