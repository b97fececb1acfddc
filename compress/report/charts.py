"""The charts of the report, each with a sentence that says the same in words.

Here: bytes, bits and error by layer. In compare.py: subjects side by side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from compress.core.types import LayerResult, RunRecord
from compress.report import frontier, heat, summary, words
from compress.report.chartkit import (
    ACCENT,
    BAR,
    GREY,
    PALETTE,
    Chart,
    Json,
    axis,
    color,
    label,
    layout,
    log_ticks,
    sentence,
    sign,
    symbol,
)
from compress.report.compare import kl_chart, quality_chart, speed_chart
from compress.report.curve import loss_chart, score_chart

BITS_SCALE = [[0.0, "#c7e9e4"], [0.5, "#3fb3a5"], [1.0, "#0b5d66"]]
MAX_ROLES, MAX_BLOCKS = 24, 512


def build(record: RunRecord) -> list[Chart]:
    """Every chart that the record has data for, in reading order."""
    makers: tuple[Callable[[RunRecord], Chart | None], ...] = (
        frontier.chart,
        heat.chart,
        loss_chart,
        score_chart,
        parts_chart,
        block_bytes_chart,
        bits_chart,
        quality_chart,
        kl_chart,
        speed_chart,
        layer_error_chart,
        block_error_chart,
    )
    return [chart for make in makers if (chart := make(record)) is not None]


def _shade(part: str) -> str:
    """The colour of a part, the same in every chart; what is no part is grey."""
    return PALETTE[summary.PARTS.index(part)] if part in summary.PARTS else PALETTE[-1]


def parts_chart(record: RunRecord) -> Chart | None:
    """Bytes by part of the model, original above compressed."""
    if not record.layers:
        return None
    rest = summary.rest(record)
    before, after = (dict.fromkeys((*summary.PARTS, rest), 0) for _ in range(2))
    for layer in record.layers:
        before[summary.part(layer.role)] += layer.bytes_before
        after[summary.part(layer.role)] += layer.bytes_after
    total_before, total_after = summary.total_bytes(record)
    if total_before and total_after:
        before[rest] = max(0, round(total_before - sum(before.values())))
        after[rest] = max(0, round(total_after - sum(after.values())))
    shown = [name for name in before if before[name] or after[name]]
    if not shown:
        return None
    traces = [
        {
            "type": "bar",
            "orientation": "h",
            "name": name,
            "y": [0, 1],
            "x": [after[name] / 1e6, before[name] / 1e6],
            "text": [words.size(after[name]), words.size(before[name])],
            "textposition": "none",
            "marker": {"color": _shade(name)},
            "hovertemplate": "%{text}<extra>" + name + "</extra>",
        }
        for name in shown
    ]
    ticks = axis("", {"tickvals": [0, 1], "ticktext": ["compressed", "original"]})
    largest = max(shown, key=lambda name: after[name])
    share = words.percent(after[largest] / max(1, sum(after.values())))
    said = (
        f"{words.size(sum(before.values()))} became {words.size(sum(after.values()))}; "
        f"the largest part now is {largest} with {words.size(after[largest])} ({share})"
    )
    figure = {"data": traces, "layout": layout(axis("MB"), ticks, {"barmode": "stack", "bargap": 0.35})}
    legend = tuple((name, _shade(name), BAR) for name in shown)
    return Chart("parts", "size", "Where the bytes are", sentence(said), figure, 220, legend)


def block_bytes_chart(record: RunRecord) -> Chart | None:
    """Bytes of every block: the compressed parts stacked in front of the original."""
    inside = [layer for layer in record.layers if layer.block >= 0]
    blocks = sorted({layer.block for layer in inside})[:MAX_BLOCKS]
    if len(blocks) < 2:
        return None
    before = dict.fromkeys(blocks, 0)
    after: dict[str, dict[int, int]] = {}
    for layer in inside:
        if layer.block in before:
            before[layer.block] += layer.bytes_before
            column = after.setdefault(summary.part(layer.role), dict.fromkeys(blocks, 0))
            column[layer.block] += layer.bytes_after
    outline = {"color": "rgba(148,163,184,0.28)", "line": {"color": GREY, "width": 1}}
    zero = dict.fromkeys(blocks, 0)
    traces = [_column("original", before, zero, outline)]
    top = zero
    for name in [part for part in summary.PARTS if part in after]:
        traces.append(_column(name, after[name], top, {"color": _shade(name)}))
        top = {b: top[b] + after[name][b] for b in blocks}
    x, y = block_axis("block", blocks), axis("MB", {"rangemode": "tozero"})
    old, new = sum(before.values()), sum(top.values())
    said = f"{words.plural(len(blocks), 'block')} went from {words.size(old)} to {words.size(new)}"
    said += f", {old / new:.2f} times smaller" if new else ""
    figure = {"data": traces, "layout": layout(x, y, {"barmode": "overlay", "bargap": 0.2})}
    series = [(name, _shade(name), BAR) for name in summary.PARTS if name in after]
    legend = (("original", GREY, "□"), *series)
    return Chart("block-bytes", "size", "Bytes by block", sentence(said), figure, 300, legend)


def _column(name: str, values: dict[int, int], base: dict[int, int], marker: Json) -> Json:
    """One bar a block, standing on `base`; bytes in, MB drawn."""
    return {
        "type": "bar",
        "name": name,
        "x": list(values),
        "y": [n / 1e6 for n in values.values()],
        "base": [base[block] / 1e6 for block in values],
        "width": 0.8,
        "marker": marker,
        "text": [words.size(n) for n in values.values()],
        "textposition": "none",
        "hovertemplate": "block %{x}: %{text}<extra>" + name + "</extra>",
    }


Grid = dict[str, dict[int, float]]


def block_axis(title: str, blocks: list[int]) -> Json:
    """Whole block numbers only: plotly would write halves between a few blocks."""
    step = {"dtick": 1} if len(blocks) <= 12 else {"dtick": 5} if len(blocks) <= 60 else {}
    return axis(title, {"showgrid": False, **step})


def _grid(layers: Iterable[LayerResult], value: Callable[[LayerResult], float], worst: bool) -> Grid:
    """By role and block the mean (or the largest) value; experts of a block share a cell."""
    cells: dict[tuple[str, int], list[float]] = {}
    for layer in layers:
        if layer.block >= 0 and math.isfinite(found := value(layer)):
            cells.setdefault((layer.role, layer.block), []).append(found)
    roles: Grid = {}
    for (role, block), values in sorted(cells.items(), key=lambda item: item[0][1]):
        roles.setdefault(role, {})[block] = max(values) if worst else sum(values) / len(values)
    return {role: dict(list(points.items())[:MAX_BLOCKS]) for role, points in list(roles.items())[:MAX_ROLES]}


def bits_chart(record: RunRecord) -> Chart | None:
    """Stored bits per weight, block across and role down."""
    roles = _grid(record.layers, summary.bits_per_weight, worst=False)
    if not roles:
        return None
    names = list(roles)
    blocks = sorted({block for points in roles.values() for block in points})
    values = [v for points in roles.values() for v in points.values()]
    heat = {
        "type": "heatmap",
        "x": blocks,
        "y": list(range(len(names))),
        "z": [[roles[name].get(block) for block in blocks] for name in names],
        "text": [[label(name) for _ in blocks] for name in names],
        "colorscale": BITS_SCALE,
        "xgap": 1,
        "ygap": 2,
        "zmin": min(*values, 2),
        "zmax": max(*values, 8),
        "hoverongaps": False,
        "hovertemplate": "block %{x}, %{text}: %{z:.2f} bits<extra></extra>",
        "colorbar": {"title": {"text": "bits", "side": "top"}, "thickness": 10, "outlinewidth": 0},
    }
    ticks = {
        "tickvals": list(range(len(names))),
        "ticktext": [label(n, 16) for n in names],
        "autorange": "reversed",
    }
    y = axis("", {**ticks, "showgrid": False})
    low, high = min(values), max(values)
    span = f"{low:.2f}" if high - low < 0.005 else f"{low:.2f} to {high:.2f}"
    said = f"layers are stored with {span} bits per weight, scales and zeros included"
    figure = {"data": [heat], "layout": layout(block_axis("block", blocks), y)}
    height = 110 + 28 * max(4, len(names))
    return Chart("bits", "size", "Bits per weight by layer", sentence(said), figure, height)


def layer_error_chart(record: RunRecord) -> Chart | None:
    """Relative error by block, one line a role, on a logarithmic axis; zero error has no place on it."""
    what = summary.error_name(record.layers)
    roles = _grid((x for x in record.layers if summary.error_of(x) > 0), summary.error_of, worst=True)
    if not roles:
        return None
    traces = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": label(role, 18),
            "x": list(points),
            "y": [100 * v for v in points.values()],
            "line": {"color": color(i), "width": 1.6},
            "marker": {"symbol": symbol(i), "size": 6},
            "text": [label(role, 18)] * len(points),
            "hovertemplate": "block %{x}, %{text}: %{y:.3g} %<extra></extra>",
        }
        for i, (role, points) in enumerate(roles.items())
    ]
    blocks = sorted({block for points in roles.values() for block in points})
    shown = [100 * v for points in roles.values() for v in points.values()]
    y = axis(f"{what}, %", log_ticks(min(shown), max(shown)))
    peak = summary.worst(record, 1)[0]
    said = f"the largest {what} is {words.percent(summary.error_of(peak))}, in {words.clean(peak.layer, 120)}"
    figure = {"data": traces, "layout": layout(block_axis("block", blocks), y)}
    title = f"{what[0].upper()}{what[1:]} by layer"
    legend = tuple((words.short(role, 18), color(i), sign(i)) for i, role in enumerate(roles))
    return Chart("layer-error", "error", title, sentence(said), figure, 380, legend)


def block_error_chart(record: RunRecord) -> Chart | None:
    """Held-out error of the hidden state after each block: how it builds up."""
    points = [b for b in record.blocks if math.isfinite(b.hidden_error)][:MAX_BLOCKS]
    if len(points) < 2:
        return None
    trace = {
        "type": "scatter",
        "mode": "lines+markers",
        "x": [b.block for b in points],
        "y": [100 * b.hidden_error for b in points],
        "line": {"color": ACCENT, "width": 2},
        "fill": "tozeroy",
        "fillcolor": "rgba(15,159,144,0.12)",
        "marker": {"size": 5},
        "text": [f"{b.hidden_cosine:.5f}" for b in points],
        "hovertemplate": "after block %{x}: %{y:.3g} %, cosine %{text}<extra></extra>",
    }
    y = axis("hidden-state error, %", {"rangemode": "tozero"})
    last, peak = points[-1], max(points, key=lambda b: b.hidden_error)
    off = words.percent(last.hidden_error)
    said = f"after block {last.block} the hidden state is off by {off} of its energy"
    if peak.block != last.block:
        said += f"; the most is {words.percent(peak.hidden_error)}, after block {peak.block}"
    figure = {
        "data": [trace],
        "layout": layout(block_axis("after block", [b.block for b in points]), y),
    }
    return Chart("block-error", "error", "Held-out error by block", sentence(said), figure, 300)
