"""What each layer costs at each scheme, as a map of heat: block by role and scheme on the page, the dearest layers in
the terminal."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from compress.core.types import RunRecord
from compress.report import words
from compress.report.chartkit import Chart, axis, label, layout, sentence

MOST_ROWS, MOST_SCHEMES = 20, 7
SHADES = ("#1b4f4a", "#2f6f5e", "#7a6a1f", "#a0541f", "#a32626")  # from little to much, white text on each
SCALE = [[0.0, "#e6f4f1"], [0.35, "#79c2b2"], [0.65, "#e0a23c"], [1.0, "#a32626"]]


@dataclass(frozen=True)
class Costs:
    """values: (layer, scheme) -> cost. schemes: fewest bits first. layers: the dearest first."""

    unit: str
    values: dict[tuple[str, str], dict[str, Any]]
    schemes: tuple[str, ...]
    layers: tuple[str, ...]

    def place(self, value: float) -> float:
        """Where a cost lies between the least and the most of all, by its logarithm: 0 to 1."""
        logs = [math.log10(row["value"]) for row in self.values.values() if row["value"] > 0]
        if value <= 0 or not logs or max(logs) == min(logs):
            return 0.0
        return (math.log10(value) - min(logs)) / (max(logs) - min(logs))


def costs(record: RunRecord) -> Costs | None:
    """What the record has of them."""
    rows = record.sensitivity.get("layers") or []
    if not rows:
        return None
    values = {(row["layer"], row["scheme"]): row for row in rows}
    bits: dict[str, list[float]] = {}
    most: dict[str, float] = {}
    for row in rows:
        bits.setdefault(row["scheme"], []).append(row["bits"])
        most[row["layer"]] = max(most.get(row["layer"], 0.0), row["value"])
    schemes = sorted(bits, key=lambda scheme: (sum(bits[scheme]) / len(bits[scheme]), scheme))
    layers = sorted(most, key=lambda layer: (-most[layer], layer))
    return Costs(str(record.sensitivity.get("unit") or ""), values, tuple(schemes), tuple(layers))


def table(record: RunRecord) -> tuple[str, Table] | None:
    """A title and the dearest layers with their cost at each scheme, shaded."""
    found = costs(record)
    if found is None:
        return None
    made = Table(box=None, padding=(0, 1, 0, 0), collapse_padding=True, show_edge=False, header_style="dim")
    made.add_column("block", justify="right")
    made.add_column("layer", overflow="fold")
    shown = _shown(found)
    for scheme in shown:
        made.add_column(_heading(scheme), justify="right", no_wrap=True)
    for layer in found.layers[:MOST_ROWS]:
        cells = [_cell(found, found.values.get((layer, scheme))) for scheme in shown]
        block = next(row["block"] for (name, _), row in found.values.items() if name == layer)
        made.add_row(Text(str(block) if block >= 0 else ""), Text(words.short(_within(layer), 30)), *cells)
    made.add_row(Text(), Text("all together", style="bold"), *(_total(found, scheme) for scheme in shown))
    more = f", the dearest {MOST_ROWS} of {len(found.layers)}" if len(found.layers) > MOST_ROWS else ""
    how = "measured, one layer swapped at a time" if record.recipe.get("metric") == "kl" else "expected"
    return f"What each layer costs, {found.unit}, {how}{more}", made


def _shown(found: Costs) -> list[str]:
    """The schemes that most layers have, as many as there is room for beside names; fewest bits first."""
    count = Counter(scheme for _, scheme in found.values)
    most = sorted(found.schemes, key=lambda scheme: -count[scheme])[:MOST_SCHEMES]
    return [scheme for scheme in found.schemes if scheme in most]


def _total(found: Costs, scheme: str) -> Text:
    """Of all layers in the blocks; nothing where some cannot have the scheme."""
    inside = {layer for (layer, _), row in found.values.items() if row["block"] >= 0}
    mine = {layer: row["value"] for (layer, s), row in found.values.items() if s == scheme}
    return Text(f"{sum(mine.values()):.2g}" if inside <= mine.keys() else "", style="bold")


def _heading(scheme: str) -> str:
    """A scheme in lines: bits over groups, so that eight of them stand side by side."""
    bits, _, rest = words.clean(scheme, 16).partition("-")
    group, _, zero = rest.partition("-")
    return "\n".join(part for part in (bits, group, "" if zero == "sym" else zero) if part)


def _within(layer: str) -> str:
    """The end of a layer's name, from after the number of its block."""
    parts = layer.split(".")
    at = next((n for n, part in enumerate(parts) if part.isdigit()), len(parts) - 2)
    return ".".join(parts[at + 1 :])


def _cell(found: Costs, row: dict[str, Any] | None) -> Text:
    if row is None:
        return Text("")
    shade = SHADES[min(len(SHADES) - 1, int(found.place(row["value"]) * len(SHADES)))]
    mantissa, _, exponent = f"{row['value']:.1e}".partition("e")
    return Text(f" {mantissa}e{int(exponent)} ", style=f"white on {shade}")


def chart(record: RunRecord) -> Chart | None:
    """Blocks from left to right, roles at each scheme from top to bottom."""
    found = costs(record)
    if found is None:
        return None
    inside = [row for row in found.values.values() if row["block"] >= 0]
    blocks = sorted({row["block"] for row in inside})
    roles = list(dict.fromkeys(row["role"] for row in inside))
    lines = [(scheme, role) for scheme in found.schemes for role in roles]
    heat: dict[tuple[str, str, int], float] = {}
    for row in inside:  # experts of one block and role together
        key = (row["scheme"], row["role"], row["block"])
        heat[key] = heat.get(key, 0.0) + row["value"]
    grid = [[heat.get((scheme, role, block)) for block in blocks] for scheme, role in lines]
    trace = {
        "type": "heatmap",
        "z": [[math.log10(v) if v else None for v in line] for line in grid],
        "x": blocks,
        "y": list(range(len(lines))),
        "text": [[f"{label(r)}, {label(s)}: {v:.2e}" if v else "" for v in line]
                 for (s, r), line in zip(lines, grid, strict=True)],
        "hovertemplate": "block %{x}, %{text}<extra></extra>",
        "colorscale": SCALE,
        "xgap": 1,
        "ygap": 1,
        "colorbar": {"title": {"text": "log10"}, "thickness": 12},
    }  # fmt: skip
    ticks = {
        "tickvals": list(range(len(lines))),
        "ticktext": [f"{label(role, 20)} · {label(scheme, 16)}" for scheme, role in lines],
        "autorange": "reversed",
        "showgrid": False,
    }
    x = {"showgrid": False} | ({"tickvals": blocks} if len(blocks) <= 16 else {})
    dearest = found.layers[0]
    worst = max(
        (row for (layer, _), row in found.values.items() if layer == dearest), key=lambda row: float(row["value"])
    )
    said = f"the dearest is {dearest} at {worst['scheme']}: {worst['value']:.2e} {found.unit}"
    figure = {"data": [trace], "layout": layout(axis("block", x), axis("", ticks))}
    return Chart(
        "heat", "sensitivity", f"What each layer costs, {found.unit}", sentence(said), figure, 90 + 17 * len(lines)
    )
