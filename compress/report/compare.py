"""Charts that set subjects side by side: quality and KL against size, speed; intervals as whiskers."""

from __future__ import annotations

import math

from compress.core.types import Measurement, RunRecord
from compress.report import summary, words
from compress.report.chartkit import (
    ACCENT,
    GREY,
    Chart,
    Json,
    axis,
    color,
    layout,
    safe,
    sentence,
    sign,
    symbol,
    value,
    whiskers,
)

MAX_SUBJECTS = 24
SPEEDS = {
    "prefill_tokens_per_s": "prefill, tokens/s",
    "decode_tokens_per_s": "decode, tokens/s",
    "latency_ms": "latency, ms",
}


def quality_chart(record: RunRecord) -> Chart | None:
    """Perplexity (or the first quality measure there is) of every subject against its size."""
    for name in ("perplexity", "hidden_cosine", *summary.other_names(record)):
        chart = _against_size(record, name, "quality")
        if chart is not None:
            return chart
    return None


def kl_chart(record: RunRecord) -> Chart | None:
    """KL to the original against size, where there are several to compare."""
    return _against_size(record, "kl", "kl") if len(summary.subjects(record)) > 2 else None


def _against_size(record: RunRecord, name: str, key: str) -> Chart | None:
    points = []
    for subject in summary.subjects(record)[:MAX_SUBJECTS]:
        size, found = summary.find(record, subject, "bytes"), summary.find(record, subject, name)
        if size and found and math.isfinite(found.median):
            points.append((subject, size, found))
    if not points:
        return None
    what = words.LABELS.get(name, words.clean(name, 40).replace("_", " "))
    order, names = summary.subjects(record), summary.short_names(record, 24)
    shades = {s: GREY if s == order[0] else color(i) for i, s in enumerate(order)}
    traces = [_point(order.index(s), (names[s], shades[s]), size, found) for s, size, found in points]
    x = axis("size, MB", {"rangemode": "tozero"})
    said = f"{what}: " + "; ".join(
        f"{names[subject]} {value(found)} at {words.size(size.median)}" for subject, size, found in points[:8]
    )
    if name == "perplexity" and summary.find(record, summary.target(record), "perplexity_ratio"):
        said += ". The ratio above is paired by document, so it is known better than either perplexity"
    figure = {"data": traces, "layout": layout(x, axis(safe(what, 40)))}
    title = f"{what[0].upper()}{what[1:]} against size"
    legend = tuple((names[s], shades[s], sign(order.index(s))) for s, _, _ in points)
    return Chart(key, "quality", title, sentence(said), figure, 320, legend)


def _point(index: int, look: tuple[str, str], size: Measurement, found: Measurement) -> Json:
    """One subject; it keeps colour and marker from chart to chart."""
    name, shade = look
    return {
        "type": "scatter",
        "mode": "markers",
        "name": safe(name),
        "x": [size.median / 1e6],
        "y": [found.median],
        "error_y": whiskers([found], shade),
        "text": [safe(f"{name}: {value(found)}")],
        "marker": {"size": 11, "symbol": symbol(index), "color": shade},
        "hovertemplate": "%{text}, %{x:.1f} MB<extra></extra>",
    }


def speed_chart(record: RunRecord) -> Chart | None:
    """Speed of every subject with its interval, a panel for each measure."""
    names = summary.names_present(record, tuple(SPEEDS))
    subjects = [s for s in summary.subjects(record) if any(summary.find(record, s, n) for n in names)][:MAX_SUBJECTS]
    if not subjects:
        return None
    traces: list[Json] = []
    short = summary.short_names(record, 18)
    panels = {"rows": len(names), "columns": 1, "pattern": "independent", "ygap": 0.45}
    drawing = layout({}, {}, {"bargap": 0.3, "grid": panels})
    ticks = {"tickvals": list(range(len(subjects))), "ticktext": [safe(short[s]) for s in subjects]}
    said = []
    for panel, name in enumerate(names):
        suffix = "" if panel == 0 else str(panel + 1)
        points = {i: found for i, s in enumerate(subjects) if (found := summary.find(record, s, name))}
        traces.append({**_bars(points, short, summary.reference(record)), "xaxis": f"x{suffix}", "yaxis": f"y{suffix}"})
        drawing[f"xaxis{suffix}"] = axis(SPEEDS[name], {"rangemode": "tozero"})
        drawing[f"yaxis{suffix}"] = axis("", {**ticks, "autorange": "reversed", "showgrid": False})
        listed = ", ".join(f"{short[m.subject]} {words.shown(m)}" for m in list(points.values())[:6])
        said.append(f"{SPEEDS[name].split(',')[0]}: {listed}")
    height = len(names) * (74 + 28 * len(subjects)) + 20
    figure = {"data": traces, "layout": drawing}
    return Chart(
        "speed",
        "speed",
        "Speed, with 95 % intervals",
        sentence("; ".join(said) + ". More tokens/s and fewer ms are better"),
        figure,
        height,
    )


def _bars(points: dict[int, Measurement], names: dict[str, str], reference: str) -> Json:
    """Horizontal bars at the numbered places of their subjects."""
    found = list(points.values())
    return {
        "type": "bar",
        "orientation": "h",
        "y": list(points),
        "x": [m.median if math.isfinite(m.median) else None for m in found],
        "error_x": whiskers(found, "#64748b"),
        "marker": {"color": [GREY if m.subject == reference else ACCENT for m in found]},
        "text": [safe(f"{names[m.subject]}: {value(m)}") for m in found],
        "textposition": "none",
        "hovertemplate": "%{text}<extra></extra>",
    }
