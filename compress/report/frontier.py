"""Plans that were judged on text before one was built: sizes against loss, readings of the costs, single changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from compress.core.types import RunRecord
from compress.report import words
from compress.report.chartkit import Chart, Json, axis, color, layout, log_ticks, sentence, sign, symbol

Point = Mapping[str, Any]
TINY = 1e-9  # what is drawn of a loss of nothing


def points(record: RunRecord) -> list[Point]:
    """The frontier, smallest first; none without a budget."""
    return list(record.sensitivity.get("frontier") or [])


def own(record: RunRecord) -> Point | None:
    """The plan that was built first."""
    changes = record.sensitivity.get("changes") or []
    return changes[0] if changes else None


def table(record: RunRecord) -> tuple[str, Table] | None:
    """A title and a line for each plan: what it takes, was expected to lose and lost."""
    found = points(record)
    if not found:
        return None
    made = Table(box=None, padding=(0, 1, 0, 0), show_edge=False, header_style="dim")
    for name in ("plan", "size", "expected", "measured", "95 %"):
        made.add_column(name, justify="left" if name == "plan" else "right", overflow="fold")
    mine = own(record)
    rows = [("frontier", point, "") for point in found]
    if mine is not None:
        rows.append(("this plan", mine, "bold"))
        rows.sort(key=lambda row: float(row[1]["totals"]["bytes"]))
    trial = record.sensitivity.get("trial")
    if trial is not None:
        rows.append(("as many bits everywhere, built", trial, "dim"))
    rows += [(f"read {one['name']}", one, "dim") for one in record.sensitivity.get("readings") or []]
    rows += [(f"with {one['name']}", one, "dim") for one in (record.sensitivity.get("changes") or [])[1:]]
    for name, point, style in rows:
        loss, low, high = point["measured"]
        cells = (words.short(name, 60), words.size(round(point["totals"]["bytes"])), f"{point['expected']:.3g}",
                 f"{loss:.3g}", f"{low:.2g} to {high:.2g}")  # fmt: skip
        made.add_row(*(Text(cell, style=style) for cell in cells))
    alone = "" if trial is None else ", expected as built and measured with layers solved alone"
    return f"Plans judged on calibration text, {record.sensitivity.get('unit', '')}{alone}", made


def chart(record: RunRecord) -> Chart | None:
    """Loss against size: expected, measured, and the plan that was built."""
    found = points(record)
    mine = own(record)
    if len(found) < 2 or mine is None:
        return None
    lines = {"expected": [float(p["expected"]) for p in found], "measured": [float(p["measured"][0]) for p in found]}
    traces: list[Json] = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "x": [_mb(p) for p in found],
            "y": [max(TINY, value) for value in values],
            "line": {"color": color(n), "dash": "dot" if name == "expected" else "solid"},
            "marker": {"symbol": symbol(n), "color": color(n)},
            "hovertemplate": f"%{{x:.1f}} MB: %{{y:.3g}}<extra>{name}</extra>",
        }
        for n, (name, values) in enumerate(lines.items())
    ]
    traces.append(
        {
            "type": "scatter",
            "mode": "markers",
            "x": [_mb(mine)],
            "y": [max(TINY, float(mine["measured"][0]))],
            "marker": {"symbol": symbol(2), "color": color(2), "size": 12},
            "hovertemplate": "%{x:.1f} MB: %{y:.3g}<extra>this plan</extra>",
        }
    )
    seen = [y for trace in traces for y in trace["y"]]
    unit = str(record.sensitivity.get("unit") or "")
    figure = {"data": traces, "layout": layout(axis("MB"), axis("", log_ticks(min(seen), max(seen))))}
    said = f"this plan takes {_mb(mine):.1f} MB and lost {mine['measured'][0]:.2g} {unit} on the judging text"
    legend = tuple((name, color(n), sign(n)) for n, name in enumerate([*lines, "this plan"]))
    return Chart("frontier", "sensitivity", "What a size costs", sentence(said), figure, 300, legend)


def _mb(point: Point) -> float:
    return float(point["totals"]["bytes"]) / 1e6
