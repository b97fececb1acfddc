"""The charts of the report as plotly figures in plain data, each with a sentence that says the same in words.

Nothing here imports plotly: a figure is `{"data": [...], "layout": {...}}`. Text colours and grid lines are left to
the page's style sheet, so that light, dark and paper all work. Names go in as labels of numbered ticks or as hover
text, never into axis categories (plotly would read dates and numbers into them) or templates, and with `<` and `&`
escaped, because plotly reads tags in labels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from compress.core.types import LayerResult, Measurement, RunRecord
from compress.report import summary, words

GREY, ACCENT = "#94a3b8", "#0f9f90"
PALETTE = ("#3b82c4", "#e08a3c", "#3fa37a", "#c2567a", "#8b6fc9", "#a58b2f", "#4fb3bf", "#8a8f98")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "hexagon")
BITS_SCALE = [[0.0, "#c7e9e4"], [0.5, "#3fb3a5"], [1.0, "#0b5d66"]]
MAX_ROLES, MAX_SUBJECTS, MAX_BLOCKS = 16, 24, 512


@dataclass(frozen=True)
class Chart:
    """One chart: `key` is its id in the page, `summary` what it shows in a sentence, `height` in pixels."""

    key: str
    group: str
    title: str
    summary: str
    figure: dict[str, Any]
    height: int = 320


def build(record: RunRecord) -> list[Chart]:
    """Every chart that the record has data for, in reading order."""
    makers: tuple[Callable[[RunRecord], Chart | None], ...] = (
        parts_chart,
        block_bytes_chart,
        bits_chart,
        layer_error_chart,
        block_error_chart,
        quality_chart,
        kl_chart,
        latency_chart,
    )
    return [chart for make in makers if (chart := make(record)) is not None]


def label(text: object, limit: int = 28) -> str:
    """A name for plotly, which reads tags and entities in labels: shortened, then escaped."""
    return _safe(words.short(text, limit))


def _safe(text: object, limit: int = 160) -> str:
    return words.clean(text, limit).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _axis(title: str = "", **settings: Any) -> dict[str, Any]:
    base: dict[str, Any] = {"automargin": True, "fixedrange": True, "zeroline": False}
    if title:
        base["title"] = {"text": title, "standoff": 8}
    return {**base, **settings}


def _layout(x: dict[str, Any], y: dict[str, Any], **settings: Any) -> dict[str, Any]:
    return {
        "autosize": True,
        "margin": {"l": 8, "r": 12, "t": 8, "b": 8},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "size": 12},
        "hoverlabel": {"font": {"family": "system-ui, sans-serif", "size": 12}},
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "font": {"size": 12}},
        "dragmode": False,
        "xaxis": x,
        "yaxis": y,
        **settings,
    }


def parts_chart(record: RunRecord) -> Chart | None:
    """Bytes by part of the model, original above compressed."""
    if not record.layers:
        return None
    before, after = (dict.fromkeys(summary.PARTS, 0) for _ in range(2))
    for layer in record.layers:
        home = summary.part(layer.role)
        before[home] += layer.bytes_before
        after[home] += layer.bytes_after
    total_before, total_after = summary.total_bytes(record)
    rest = "Norms, biases, the rest" if before["Embedding"] else "Embedding, norms, the rest"
    if total_before and total_after:
        before[rest] = max(0, round(total_before - sum(before.values())))
        after[rest] = max(0, round(total_after - sum(after.values())))
    traces = []
    shown = [name for name in before if before[name] or after[name]]
    for index, name in enumerate(shown):
        sizes = [after[name], before[name]]
        traces.append(
            {
                "type": "bar", "orientation": "h", "name": name, "y": [0, 1], "x": [n / 1e6 for n in sizes],
                "text": [words.size(n) for n in sizes], "textposition": "none", "marker": {"color": PALETTE[index % 8]},
                "hovertemplate": "%{text}<extra>" + name + "</extra>",
            }
        )  # fmt: skip
    names = ["compressed", "original"]
    layout = _layout(_axis("MB"), _axis(tickvals=[0, 1], ticktext=names), barmode="stack", bargap=0.35)
    largest = max(shown, key=lambda name: after[name], default="")
    share = words.percent(after[largest] / max(1, sum(after.values()))) if largest else ""
    said = (
        f"The weights go from {words.size(sum(before.values()))} to {words.size(sum(after.values()))}; "
        f"the largest part that is left is {largest} with {words.size(after[largest])} ({share})."
    )
    return Chart("parts", "size", "Where the bytes are", said, {"data": traces, "layout": layout}, 260)


def block_bytes_chart(record: RunRecord) -> Chart | None:
    """Bytes of every block: the original as a grey outline behind the compressed one, stacked by part."""
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
    traces: list[dict[str, Any]] = [
        {
            "type": "bar", "name": "original", "x": blocks, "y": [before[b] / 1e6 for b in blocks], "width": 0.8,
            "offset": -0.4, "marker": {"color": "rgba(148,163,184,0.28)", "line": {"color": GREY, "width": 1}},
            "hovertemplate": "block %{x}: %{y:.3f} MB<extra>original</extra>",
        }
    ]  # fmt: skip
    base = dict.fromkeys(blocks, 0.0)
    for name in [part for part in summary.PARTS if part in after]:
        traces.append(
            {
                "type": "bar", "name": f"{name}, compressed", "x": blocks, "y": [after[name][b] / 1e6 for b in blocks],
                "base": [base[b] / 1e6 for b in blocks], "width": 0.8, "offset": -0.4,
                "marker": {"color": PALETTE[summary.PARTS.index(name)]},
                "hovertemplate": "block %{x}: %{y:.3f} MB<extra>" + name + "</extra>",
            }
        )  # fmt: skip
        base = {b: base[b] + after[name][b] for b in blocks}
    layout = _layout(
        _axis("block", showgrid=False), _axis("MB", rangemode="tozero"), barmode="overlay", bargap=0.2
    )
    ratio = sum(before.values()) / max(1.0, sum(base.values()))
    said = f"{words.plural(len(blocks), 'block')} went from {words.size(sum(before.values()))} to "
    said += f"{words.size(sum(base.values()))}, {ratio:.2f} times smaller."
    return Chart("block-bytes", "size", "Bytes by block", said, {"data": traces, "layout": layout})


def _grid(
    layers: list[LayerResult], value: Callable[[LayerResult], float], worst: bool
) -> tuple[list[int], dict[str, dict[int, float]]]:
    """Blocks, and by role the mean (or the largest) value in each block; experts of a block share a cell."""
    cells: dict[tuple[str, int], list[float]] = {}
    for layer in layers:
        if layer.block >= 0 and math.isfinite(found := value(layer)):
            cells.setdefault((layer.role, layer.block), []).append(found)
    roles: dict[str, dict[int, float]] = {}
    for (role, block), values in cells.items():
        roles.setdefault(role, {})[block] = max(values) if worst else sum(values) / len(values)
    blocks = sorted({block for _, block in cells})[:MAX_BLOCKS]
    return blocks, dict(list(roles.items())[:MAX_ROLES])


def bits_chart(record: RunRecord) -> Chart | None:
    """Stored bits per weight, block across and role down."""
    blocks, roles = _grid(list(record.layers), summary.bits_per_weight, worst=False)
    if not blocks:
        return None
    names = list(roles)
    values = [round(v, 3) for role in roles.values() for v in role.values()]
    low, high = min(values), max(values)
    heat = {
        "type": "heatmap", "x": blocks, "y": list(range(len(names))), "z": [[roles[n].get(b) for b in blocks] for n in names],
        "text": [[label(n) for _ in blocks] for n in names], "colorscale": BITS_SCALE, "xgap": 1, "ygap": 2,
        "zmin": min(low, 2), "zmax": max(high, 8), "hoverongaps": False,
        "hovertemplate": "block %{x}, %{text}: %{z:.2f} bits<extra></extra>",
        "colorbar": {"title": {"text": "bits", "side": "top"}, "thickness": 10, "len": 0.9, "outlinewidth": 0},
    }  # fmt: skip
    ticks = _axis(
        tickvals=list(range(len(names))),
        ticktext=[label(n, 16) for n in names],
        autorange="reversed",
        showgrid=False,
    )
    layout = _layout(_axis("block", showgrid=False), ticks)
    same = f"Every layer is stored with {low:.2f} bits per weight, scales and zeros included."
    said = (
        same
        if high - low < 0.005
        else f"Layers are stored with {low:.2f} to {high:.2f} bits per weight, scales and zeros included."
    )
    return Chart(
        "bits",
        "size",
        "Bits per weight by layer",
        said,
        {"data": [heat], "layout": layout},
        120 + 30 * max(4, len(names)),
    )


def layer_error_chart(record: RunRecord) -> Chart | None:
    """Relative output error by block, one line a role, on a logarithmic axis."""
    what = summary.error_name(record.layers)
    blocks, roles = _grid([x for x in record.layers if summary.error_of(x) > 0], summary.error_of, worst=True)
    if not blocks:
        return None
    traces = [
        {
            "type": "scatter", "mode": "lines+markers", "name": label(role, 18), "x": [b for b in blocks if b in points],
            "y": [100 * points[b] for b in blocks if b in points], "line": {"color": PALETTE[i % 8], "width": 1.6},
            "marker": {"symbol": SYMBOLS[i % 8], "size": 6}, "text": [label(role, 18)] * len(points),
            "hovertemplate": "block %{x}, %{text}: %{y:.3g} %<extra></extra>",
        }
        for i, (role, points) in enumerate(roles.items())
    ]  # fmt: skip
    layout = _layout(
        _axis("block", showgrid=False),
        _axis("% of the output's energy", type="log", dtick=1, exponentformat="none"),
    )
    peak = summary.worst(record, 1)[0]
    said = (
        f"The largest {what} is {words.percent(summary.error_of(peak))}, in {words.clean(peak.layer, 120)}."
    )
    title = f"{what[0].upper()}{what[1:]} by layer"
    return Chart("layer-error", "error", title, said, {"data": traces, "layout": layout}, 380)


def block_error_chart(record: RunRecord) -> Chart | None:
    """Held-out error of the hidden state after each block: how it builds up."""
    points = [b for b in record.blocks if math.isfinite(b.hidden_error)][:MAX_BLOCKS]
    if len(points) < 2:
        return None
    trace = {
        "type": "scatter", "mode": "lines+markers", "name": "hidden state", "x": [b.block for b in points],
        "y": [100 * b.hidden_error for b in points], "line": {"color": ACCENT, "width": 2}, "fill": "tozeroy",
        "fillcolor": "rgba(15,159,144,0.12)", "marker": {"size": 5}, "text": [f"{b.hidden_cosine:.5f}" for b in points],
        "hovertemplate": "after block %{x}: %{y:.3g} %, cosine %{text}<extra></extra>",
    }  # fmt: skip
    layout = _layout(
        _axis("after block", showgrid=False),
        _axis("% of the hidden state's energy", rangemode="tozero"),
        showlegend=False,
    )
    last, peak = points[-1], max(points, key=lambda b: b.hidden_error)
    said = f"On held-out text the hidden state is off by {words.percent(last.hidden_error)} of its energy after block {last.block}"
    said += f" (largest: {words.percent(peak.hidden_error)} after block {peak.block})."
    return Chart(
        "block-error", "error", "Held-out error by block", said, {"data": [trace], "layout": layout}, 300
    )


def _whiskers(points: list[Measurement], scale: float = 1.0) -> dict[str, Any]:
    """Asymmetric error bars over the points that have an interval."""
    above = [
        (p.high - p.median) * scale if p.high is not None and words.finite(p.high) else 0 for p in points
    ]
    below = [(p.median - p.low) * scale if p.low is not None and words.finite(p.low) else 0 for p in points]
    return {
        "type": "data",
        "symmetric": False,
        "array": above,
        "arrayminus": below,
        "thickness": 1.4,
        "width": 5,
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
        n_bytes, found = summary.find(record, subject, "bytes"), summary.find(record, subject, name)
        if n_bytes and found and math.isfinite(found.median):
            points.append((subject, n_bytes, found))
    if not points:
        return None
    what = words.LABELS.get(name, words.clean(name, 40))
    traces = [
        {
            "type": "scatter", "mode": "markers", "name": label(subject), "x": [n.median / 1e6], "y": [found.median],
            "error_y": {**_whiskers([found]), "color": PALETTE[i % 8]}, "text": [f"{label(subject)}: {_safe(_value(found))}"],
            "marker": {"size": 11, "symbol": SYMBOLS[i % 8], "color": GREY if subject == summary.ORIGINAL else PALETTE[i % 8]},
            "hovertemplate": "%{text}, %{x:.1f} MB<extra></extra>",
        }
        for i, (subject, n, found) in enumerate(points)
    ]  # fmt: skip
    layout = _layout(_axis("size in MB", rangemode="tozero"), _axis(_safe(what, 40)), showlegend=True)
    said = f"{what[0].upper()}{what[1:]}: " + "; ".join(
        f"{words.short(subject)} {_value(found)} at {words.size(n.median)}"
        for subject, n, found in points[:8]
    )
    title = f"{what[0].upper()}{what[1:]} against size"
    return Chart(key, "quality", title, said + ".", {"data": traces, "layout": layout}, 340)


def _value(found: Measurement) -> str:
    return f"{words.shown(found)} {words.interval(found)}".strip()


def latency_chart(record: RunRecord) -> Chart | None:
    """Speed of every subject with its interval, a panel for each measure."""
    names = summary.names_present(record, ("prefill_tokens_per_s", "decode_tokens_per_s", "latency_ms"))
    subjects = [s for s in summary.subjects(record) if any(summary.find(record, s, n) for n in names)][
        :MAX_SUBJECTS
    ]
    if not names or not subjects:
        return None
    titles = {
        "prefill_tokens_per_s": "prefill, tokens/s (more is better)",
        "decode_tokens_per_s": "decode, tokens/s (more is better)",
        "latency_ms": "latency, ms (less is better)",
    }
    traces: list[dict[str, Any]] = []
    layout = _layout(
        {},
        {},
        showlegend=False,
        bargap=0.3,
        grid={"rows": len(names), "columns": 1, "pattern": "independent", "ygap": 0.5},
    )
    said = []
    for panel, name in enumerate(names):
        suffix = "" if panel == 0 else str(panel + 1)
        points = [(i, found) for i, s in enumerate(subjects) if (found := summary.find(record, s, name))]
        traces.append(
            {
                "type": "bar", "orientation": "h", "y": [i for i, _ in points], "x": [m.median for _, m in points],
                "xaxis": f"x{suffix}", "yaxis": f"y{suffix}", "error_x": {**_whiskers([m for _, m in points]), "color": "#64748b"},
                "marker": {"color": [GREY if m.subject == summary.ORIGINAL else ACCENT for _, m in points]},
                "text": [f"{label(m.subject)}: {_safe(_value(m))}" for _, m in points], "textposition": "none",
                "hovertemplate": "%{text}<extra></extra>",
            }
        )  # fmt: skip
        layout[f"xaxis{suffix}"] = _axis(titles[name], rangemode="tozero")
        ticks = [label(s, 18) for s in subjects]
        layout[f"yaxis{suffix}"] = _axis(
            tickvals=list(range(len(subjects))), ticktext=ticks, autorange="reversed", showgrid=False
        )
        said.append(
            f"{titles[name].split(',')[0]} "
            + ", ".join(f"{words.short(m.subject)} {words.shown(m)}" for _, m in points[:6])
        )
    height = len(names) * (70 + 30 * len(subjects)) + 20
    sentence = "; ".join(said)
    return Chart(
        "latency",
        "speed",
        "Speed, with 95 % intervals",
        f"{sentence[0].upper()}{sentence[1:]}.",
        {"data": traces, "layout": layout},
        height,
    )
