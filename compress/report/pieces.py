"""Small pieces of HTML. Everything that is passed in as text is cleaned and escaped here."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from compress.report import words
from compress.report.chartkit import Chart
from compress.report.summary import Figure


@dataclass(frozen=True)
class Cell:
    """A table cell: text, a second muted line, a sort key where the text does not sort, and how it is set."""

    text: str
    below: str = ""
    key: float | None = None
    tone: str = ""


@dataclass(frozen=True)
class Column:
    """A table column; numbers are set right and sort by `Cell.key`, codes (schemes, roles) do not wrap."""

    title: str
    numeric: bool = False
    code: bool = False


def esc(text: object, limit: int = 4000, lines: bool = False) -> str:
    """`text` for element content or a double-quoted attribute."""
    return html.escape(words.clean(text, limit, lines), quote=True)


def script_json(data: Any) -> str:
    """`data` as ASCII JSON that may stand in a script element: without `<`, `>`, `&`, U+2028 or U+2029."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def section(key: str, title: str, body: str, intro: str = "") -> str:
    """A titled section, nothing when the body is empty."""
    if not body:
        return ""
    lead = f'<p class="intro">{esc(intro)}</p>' if intro else ""
    return f'<section id="{esc(key)}"><h2>{esc(title)}</h2>{lead}{body}</section>'


def table(caption: str, columns: Sequence[Column], rows: Iterable[Sequence[Cell | str]], sortable: bool = False) -> str:
    """A table in its own scrolling container, which can be reached by keyboard."""
    heads = "".join(_head(column, sortable) for column in columns)
    body = "".join(f"<tr>{''.join(_cell(cell, c) for cell, c in zip(row, columns, strict=True))}</tr>" for row in rows)
    if not body:
        return ""
    kind = ' class="sortable"' if sortable else ""
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{esc(caption)}"><table{kind}>'
        f"<caption>{esc(caption)}</caption><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _head(column: Column, sortable: bool) -> str:
    text = f'<button type="button">{esc(column.title)}</button>' if sortable else esc(column.title)
    kind = ' class="num"' if column.numeric else ""
    state = ' aria-sort="none"' if sortable else ""
    return f'<th scope="col"{kind}{state}>{text}</th>'


def _cell(cell: Cell | str, column: Column) -> str:
    cell = Cell(cell) if isinstance(cell, str) else cell
    kind = " ".join(filter(None, ("num" if column.numeric else "", "code" if column.code else "", cell.tone)))
    below = f"<small>{esc(cell.below)}</small>" if cell.below else ""
    key = f' data-key="{float(cell.key)!r}"' if cell.key is not None and words.finite(cell.key) else ""
    text = words.middle_cut(words.clean(cell.text), 72) if column.code else cell.text
    return f"<td{f' class={chr(34)}{esc(kind)}{chr(34)}' if kind else ''}{key}>{esc(text, 400)}{below}</td>"


def card(figure: Figure) -> str:
    """A headline number: label, value, what it was before, an explanation."""
    tone = {True: " good", False: " bad", None: ""}[figure.good]
    unit = f' <span class="unit">{esc(figure.unit)}</span>' if figure.unit else ""
    before = f'<span class="before">from {esc(figure.before)}</span>' if figure.before else ""
    note = " · ".join(filter(None, (before, esc(figure.note))))
    return (
        f'<div class="card{tone}"><h3>{esc(figure.label)}</h3><p class="value">{esc(figure.value)}{unit}</p>'
        f'<p class="note">{note}</p></div>'
    )


def facts(title: str, pairs: Iterable[tuple[object, object]]) -> str:
    """A card of names and values."""
    rows = "".join(f"<div><dt>{esc(name, 80)}</dt><dd>{esc(_fact(name, value))}</dd></div>" for name, value in pairs)
    return f'<div class="facts"><h3>{esc(title, 80)}</h3><dl>{rows}</dl></div>' if rows else ""


def _fact(name: object, value: object) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool) and str(name).endswith("bytes"):
        return words.size(value)
    return words.plain_value(value)


def code(text: str) -> str:
    """A command line to copy."""
    inner = f'<pre class="command"><code>{esc(text, 8000, True)}</code></pre>'
    return f'<div class="scroll" tabindex="0" role="region" aria-label="command">{inner}</div>'


def chart(drawn: Chart) -> str:
    """The place of one chart, with its legend and its summary in words."""
    key, title, said, height = drawn.key, drawn.title, drawn.said, drawn.height
    names = "".join(
        f'<li><span aria-hidden="true" style="color:{esc(shade)}">{esc(mark)}</span> {esc(name)}</li>'
        for name, shade, mark in drawn.legend
    )
    legend = f'<ul class="legend">{names}</ul>' if names else ""
    name, style = f"chart-{esc(key)}", f"height:{int(height)}px"
    return (
        f'<figure aria-labelledby="{name}-title"><h3 id="{name}-title">{esc(title)}</h3>{legend}'
        f'<div class="plot" id="{name}" role="img" aria-label="{esc(said)}" style="{style}"></div>'
        f"<figcaption>{esc(said)}</figcaption></figure>"
    )
