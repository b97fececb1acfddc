"""A record in the terminal: what it cost, where, why, and what to type next. Readable at 80 columns and in a file.

Names and sentences of a record are only ever wrapped in rich.text.Text, which knows no markup, after
`words.clean` took the control characters out.
"""

from __future__ import annotations

from io import StringIO

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from compress.core.types import RunRecord
from compress.report import summary, words

DIM, STRONG, GOOD, BAD = "dim", "bold", "green", "bold red"


def show(record: RunRecord, console: Console) -> None:
    """Prints the record to `console`; characters that its encoding lacks are replaced, never fatal."""
    if _unicode(console):
        console.print(_page(record, console.width))
        return
    plain = text(record, console.width).encode(console.encoding, "replace").decode(console.encoding)
    console.print(Text(plain.replace("?", "?")), soft_wrap=True)


def text(record: RunRecord, width: int = 100) -> str:
    """The same as plain text of `width` columns, without colour: report.txt."""
    console = Console(
        file=StringIO(),
        width=width,
        color_system=None,
        force_terminal=False,
        force_jupyter=False,
        _environ={},
    )
    console.print(_page(record, width))
    assert isinstance(console.file, StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines()) + "\n"


def _unicode(console: Console) -> bool:
    return console.encoding.lower().replace("-", "").startswith("utf")


def _page(record: RunRecord, width: int) -> RenderableType:
    """All sections that the record has something for."""
    sections = [
        _title(record),
        _headline(record),
        _subjects(record, summary.QUALITY, "Quality"),
        _subjects(record, summary.SPEED, "Speed"),
        _roles(record, width),
        _worst(record, width),
        _verified(record),
        _notes(record),
        _stages(record),
        _next(record),
    ]
    return Group(*(part for part in sections if part is not None))


def _title(record: RunRecord) -> RenderableType:
    name = words.clean(record.model.get("name") or "model", 60)
    line = Text(name, style=STRONG)
    if record.artifact:
        line.append(" → ", style=DIM).append(words.clean(record.artifact, 200), style=STRONG)
    facts = [
        words.clean(record.model.get("architecture") or "", 60),
        f"{words.count(record.model.get('parameters'))} parameters" if record.model.get("parameters") else "",
        words.clean(record.model.get("dtype") or "", 20),
    ]
    card = Text(" · ".join(filter(None, facts)), style=DIM)
    return Group(
        Text(), Rule(Text(f"compress {words.clean(record.command, 20)}"), align="left", style=DIM), line, card
    )


def _section(title: str, body: RenderableType) -> RenderableType:
    return Group(Text(), Text(title, style=STRONG), body)


def _headline(record: RunRecord) -> RenderableType | None:
    """Before, after and what to make of it; nothing when several subjects have a table of their own."""
    figures = summary.headline(record)
    if not figures or _many(record):
        return None
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style=DIM, no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(justify="left", no_wrap=True)
    table.add_column(style=DIM)
    for figure in figures:
        style = STRONG if figure.good is None else (GOOD if figure.good else BAD)
        arrow = "→" if figure.before else ""
        table.add_row(
            Text(figure.label),
            Text(figure.before),
            Text(arrow),
            Text(figure.value, style=style),
            Text(figure.note),
        )
    return Group(Text(), table)


def _many(record: RunRecord) -> bool:
    """Whether subjects need a table: more than one to compare with the reference."""
    return len(summary.subjects(record)) > 2


def _table(*columns: tuple[str, bool]) -> Table:
    """A table in the house style; the flag says that a column holds numbers."""
    table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False, header_style=DIM)
    for name, numeric in columns:
        table.add_column(name, justify="right" if numeric else "left", overflow="fold", no_wrap=numeric)
    return table


def _subjects(record: RunRecord, names: tuple[str, ...], title: str) -> RenderableType | None:
    """Subjects down, measurements across, the interval below the value."""
    present = summary.names_present(record, names)
    if not _many(record) or not present:
        return None
    table = _table(("model", False), *((_heading(record, name), True) for name in present))
    for subject in summary.subjects(record):
        cells = []
        for name in present:
            found = summary.find(record, subject, name)
            value = words.amount(name, found.median, found.unit) if found else words.MISSING
            cell = Text(value)
            if bounds := words.interval(found):
                cell.append(f"\n{bounds}", style=DIM)
            cells.append(cell)
        table.add_row(Text(words.short(subject, 24)), *cells)
    return _section(f"{title}, with 95 % intervals", table)


_SHORT_HEADINGS = {
    "bits_per_weight": "bits/weight",
    "kl": "KL (nats)",
    "top1_agreement": "top-1",
    "hidden_cosine": "cosine",
    "prefill_tokens_per_s": "prefill tok/s",
    "decode_tokens_per_s": "decode tok/s",
    "latency_ms": "latency ms",
    "peak_rss_bytes": "peak memory",
    "bytes": "size",
}


def _heading(record: RunRecord, name: str) -> str:
    return _SHORT_HEADINGS.get(name, name)


def _roles(record: RunRecord, width: int) -> RenderableType | None:
    rows = summary.roles(record)
    if not rows:
        return None
    error = summary.error_name(record.layers)
    table = _table(
        ("role", False), ("layers", True), ("bits/weight", True), ("before", True), ("after", True),
        (f"{error}", True), ("worst", True), *((("scheme", False),) if width >= 96 else ()),
    )  # fmt: skip
    for row in rows:
        cells = [
            words.clean(row.role, 18), f"{row.layers:,}", words.number(row.bits, 3), words.size(row.bytes_before),
            words.size(row.bytes_after), words.percent(row.error), words.percent(row.worst),
        ]  # fmt: skip
        if width >= 96:
            more = f" +{len(row.schemes) - 1}" if len(row.schemes) > 1 else ""
            cells.append(words.clean(row.schemes[0], 20) + more)
        table.add_row(*(Text(cell) for cell in cells))
    return _section(f"By role (median and worst {error})", table)


def _worst(record: RunRecord, width: int) -> RenderableType | None:
    layers = summary.worst(record)
    if not layers:
        return None
    table = _table(
        (summary.error_name(record.layers), True), ("layer", False), ("scheme", False), ("why", False)
    )
    for layer in layers:
        style = "yellow" if layer.fallback else DIM
        table.add_row(
            Text(words.percent(summary.error_of(layer))),
            Text(words.clean(layer.layer, 60)),
            Text(words.clean(layer.scheme, 20)),
            Text(words.clean(summary.why(layer), 160), style=style),
        )
    fallbacks = sum(layer.fallback is not None for layer in record.layers)
    said = f"; {words.plural(fallbacks, 'layer')} could not be done as planned" if fallbacks else ""
    return _section(f"Worst layers{said}", table)


def _verified(record: RunRecord) -> RenderableType | None:
    if not record.verified:
        return None
    lines = []
    for entry in record.verified:
        good = summary.passed(entry)
        word, style = (
            ("agrees", GOOD) if good else ("DISAGREES", BAD) if good is False else ("judged", STRONG)
        )
        line = Text(f"{summary.verifier(entry)}: ").append(word, style=style)
        details = summary.details(entry)
        lines.append(line.append(f" ({details})" if details else "", style=DIM))
    return _section("Verified", Group(*lines))


def _notes(record: RunRecord) -> RenderableType | None:
    if not record.notes:
        return None
    table = Table.grid(padding=(0, 1, 0, 0))
    for note in record.notes[:20]:
        table.add_row(Text("·", style=DIM), Text(words.clean(note, 400)))
    if len(record.notes) > 20:
        table.add_row(Text("·", style=DIM), Text(f"and {len(record.notes) - 20} more in record.json"))
    return _section("Notes", table)


def _stages(record: RunRecord) -> RenderableType | None:
    if not record.stages:
        return None
    parts = [f"{words.clean(name, 24)} {words.duration(seconds)}" for name, seconds in record.stages.items()]
    total = words.duration(sum(record.stages.values()))
    return _section(f"Time: {total}", Text(" · ".join(parts), style=DIM))


def _next(record: RunRecord) -> RenderableType:
    lines: list[RenderableType] = []
    for step in summary.next_steps(record):
        lines += [
            Text(f"{step.what}:", style=DIM),
            Padding(Text(step.line, style=STRONG, overflow="fold"), (0, 0, 0, 2)),
        ]
    return Group(_section("Next", Group(*lines)), Text(words.BYTES_NOTE, style=DIM))
