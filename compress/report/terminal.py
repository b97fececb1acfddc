"""A record in the terminal: what it cost, where, why, what to type next; from 80 columns up, and in files.

Names and sentences of a record are only ever wrapped in rich.text.Text, which knows no markup, after
`words.clean` took the control characters out.
"""

from __future__ import annotations

from io import StringIO

from rich.console import Console, Group, RenderableType
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from compress.core.types import RunRecord
from compress.report import exports, fit, frontier, heat, steps, summary, training, words

_PLAIN = str.maketrans({"→": ">", "×": "x", "·": "-", "–": "-", "…": "~", "─": "-"})
MAX_LABELS = 20
DIM, STRONG, GOOD, BAD = "dim", "bold", "green", "bold red"


def show(record: RunRecord, console: Console) -> None:
    """Prints the record to `console`; characters that its encoding lacks are replaced, never fatal."""
    if console.encoding.lower().replace("-", "").startswith("utf"):
        console.print(_page(record, console.width), crop=False)
        return
    plain = text(record, console.width).translate(_PLAIN)
    console.print(Text(plain.encode(console.encoding, "replace").decode(console.encoding)), soft_wrap=True)


def text(record: RunRecord, width: int = 100) -> str:
    """The same as plain text of `width` columns, without colour: report.txt."""
    stream = StringIO()
    # _environ: nothing of the caller's terminal (COLUMNS, FORCE_COLOR) may change the file.
    console = Console(file=stream, width=width, color_system=None, force_terminal=False, _environ={})
    console.print(_page(record, width), crop=False)
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"


def _page(whole: RunRecord, width: int) -> RenderableType:
    """All sections that the record has something for."""
    record = exports.without(whole)
    sections = [
        _title(record),
        _headline(record),
        _subjects(record, (*summary.QUALITY, *summary.other_names(record)), "Quality", width),
        _subjects(record, summary.SPEED, "Speed", width),
        Text(f"\n{summary.basis(record)}", style=DIM) if _many(record) else None,
        _costs(record),
        _training(record),
        _balance(record),
        _roles(record, width),
        _worst(record, width),
        _fallbacks(record),
        _fit(record),
        _exports(whole),
        _heard(whole),
        _verified(record),
        _notes(record),
        _stages(record),
        _next(whole),
    ]
    return Group(*(part for part in sections if part is not None))


def _title(record: RunRecord) -> RenderableType:
    name = words.clean(record.model.get("name") or "model", 60)
    line = Text(name, style=STRONG)
    if made := summary.product(record):
        line.append(" → ", style=DIM).append(words.clean(made, 200), style=STRONG)
    facts = [
        words.clean(record.model.get("architecture") or "", 60),
        f"{words.count(record.model.get('parameters'))} parameters" if record.model.get("parameters") else "",
        training.trained(record),
        words.clean(record.model.get("dtype") or "", 20),
    ]
    card = [Text(" · ".join(filter(None, facts)), style=DIM)] if any(facts) else []
    return Group(
        Text(), Rule(Text(f"compress {words.clean(record.command, 20)}"), align="left", style=DIM), line, *card
    )


def _costs(record: RunRecord) -> RenderableType | None:
    found = [_section(*made) for made in (frontier.table(record), heat.table(record)) if made]
    return Group(*found) if found else None


def _fit(record: RunRecord) -> RenderableType | None:
    found = fit.table(record)
    return _section(*found) if found else None


def _section(title: str, body: RenderableType) -> RenderableType:
    return Group(Text(), Text(title, style=STRONG), body)


def _headline(record: RunRecord) -> RenderableType | None:
    """Before, after and what to make of it; nothing when several subjects have a table of their own."""
    figures = summary.headline(record)
    if not figures or _many(record):
        return None
    table = Table.grid(padding=(0, 2, 0, 0))
    for style, justify in ((DIM, "left"), ("", "right"), ("", "left"), ("", "left"), (DIM, "left")):
        table.add_column(style=style, justify=justify, no_wrap=style == "")  # type: ignore[arg-type]
    for figure in figures:
        style = STRONG if figure.good is None else (GOOD if figure.good else BAD)
        value = Text(figure.value, style=style)
        if figure.unit:
            value.append(f" {figure.unit}", style=DIM)
        table.add_row(
            Text(figure.label),
            Text(figure.before),
            Text("→" if figure.before else ""),
            value,
            Text(figure.note),
        )
    basis = summary.basis(record)
    return Group(Text(), table, *([Text(basis, style=DIM)] if basis else []))


def _many(record: RunRecord) -> bool:
    """Whether subjects need a table: more than one to compare with the reference."""
    return len(summary.subjects(record)) > 2


def _table(*columns: tuple[str, bool]) -> Table:
    """A table in the house style; the flag says that a column holds numbers."""
    table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False, header_style=DIM)
    for name, numeric in columns:
        table.add_column(Text(name), justify="right" if numeric else "left", overflow="fold", no_wrap=numeric)
    return table


def _subjects(record: RunRecord, names: tuple[str, ...], title: str, width: int) -> RenderableType | None:
    """Subjects down, measurements across, the interval below the value."""
    present = summary.names_present(record, names)
    if not _many(record) or not present:
        return None
    table = _table(("model", False), *((_HEADINGS.get(name, words.clean(name, 16)), True) for name in present))
    room = 15 if width < 116 else 30
    table.columns[0].no_wrap, table.columns[0].min_width = True, room
    table.padding = (0, 1, 0, 0) if width < 116 else (0, 3, 0, 0)
    short = summary.short_names(record, room)
    for subject in summary.subjects(record):
        cells = []
        for name in present:
            found = summary.find(record, subject, name)
            cell = Text(words.amount(name, found.median, found.unit) if found else words.MISSING)
            if bounds := words.interval(found):
                cell.append(f"\n{bounds}", style=DIM)
            cells.append(cell)
        table.add_row(Text(short[subject]), *cells)
    return _section(title, table)


_HEADINGS = {
    "bytes": "size",
    "bits_per_weight": "bits/w",
    "kl": "KL, nats",
    "top1_agreement": "top-1",
    "hidden_cosine": "cosine",
    "prefill_tokens_per_s": "prefill tok/s",
    "decode_tokens_per_s": "decode tok/s",
    "latency_ms": "latency ms",
    "peak_rss_bytes": "peak memory",
}


def _training(record: RunRecord) -> RenderableType | None:
    """Loss and validation score, an epoch a line; the kept one is marked."""
    rows = training.epochs(record)
    if not rows:
        return None
    names = [name for name in rows[0].scores if all(name in row.scores for row in rows)]
    scores = [(words.clean(words.LABELS.get(name, name), 20), True) for name in names]
    table = _table(("epoch", True), ("loss", True), *scores, ("", False))
    for row in rows:
        cells = [words.score(name, row.scores[name]) for name in names]
        table.add_row(
            *(Text(cell) for cell in (f"{row.epoch:g}", words.number(row.loss, 3), *cells)),
            Text("kept" if row.kept else "", style=GOOD),
        )
    return _section("Training (scores of validation rows)", table)


def _balance(record: RunRecord) -> RenderableType | None:
    """How often each label occurs, of a run that trained."""
    rows = training.balance(record)
    if not rows or not record.training:
        return None
    table = _table(("label", False), ("rows", True), ("share", True))
    for name, count, share in rows[:MAX_LABELS]:
        table.add_row(*(Text(cell) for cell in (words.clean(name, 40), f"{count:,}", words.percent(share))))
    if len(rows) > MAX_LABELS:
        table.add_row(Text(f"and {len(rows) - MAX_LABELS} more in record.json", style=DIM), Text(), Text())
    return _section("Balance", table)


def _roles(record: RunRecord, width: int) -> RenderableType | None:
    rows = summary.roles(record)
    if not rows:
        return None
    error = summary.error_name(record.layers)
    table = _table(
        ("role", False),
        ("layers", True),
        ("bits/weight", True),
        ("before", True),
        ("after", True),
        (f"{error}", True),
        ("worst", True),
        *((("scheme", False),) if width >= 96 else ()),
    )
    for row in rows:
        cells = [
            words.clean(row.role, 18),
            f"{row.layers:,}",
            words.number(row.bits, 3),
            words.size(row.bytes_before),
            words.size(row.bytes_after),
            words.percent(row.error),
            words.percent(row.worst),
        ]
        if width >= 96:
            more = f" +{len(row.schemes) - 1}" if len(row.schemes) > 1 else ""
            cells.append(words.clean(row.schemes[0], 34) + more)
        table.add_row(*(Text(cell) for cell in cells))
    return _section(f"By role (median and worst {error})", table)


def _worst(record: RunRecord, width: int) -> RenderableType | None:
    """The five worst layers; in a narrow terminal the reason goes below the name."""
    layers = summary.worst(record)
    if not layers:
        return None
    wide = width >= 116
    table = _table(
        (summary.error_name(record.layers), True),
        ("layer", False),
        ("scheme", False),
        *(_WHY if wide else ()),
    )
    table.columns[2].no_wrap = True
    before = ""
    for layer in layers:
        # The same reason five times over says no more than once.
        said = words.clean(summary.why(layer), 160)
        why = Text(said if said != before else "", style="yellow" if layer.fallback else DIM)
        before = said
        name = Text(words.clean(layer.layer, 60))
        cells = [Text(words.percent(summary.error_of(layer))), name, Text(words.clean(layer.scheme, 20))]
        if wide:
            cells.append(why)
        elif why:
            name.append("\n").append_text(why)
        table.add_row(*cells)
    return _section("Worst layers", table)


_WHY = (("why", False),)


def _fallbacks(record: RunRecord) -> RenderableType | None:
    """What could not be done as planned, each sentence once."""
    groups: dict[str, list[str]] = {}
    for layer in record.layers:
        if layer.fallback is not None:
            groups.setdefault(words.clean(layer.fallback, 240), []).append(layer.layer)
    if not groups:
        return None
    lines = []
    for said, names in list(groups.items())[:5]:
        more = f" and {len(names) - 1:,} more" if len(names) > 1 else ""
        lines.append(Text(f"{words.clean(names[0], 80)}{more}: ").append(said, style="yellow"))
    if len(groups) > 5:
        lines.append(Text(f"and {len(groups) - 5} other sentences in record.json", style=DIM))
    return _section("Not done as planned", Group(*lines))


def _verified(record: RunRecord) -> RenderableType | None:
    if not record.verified:
        return None
    lines = []
    for entry in record.verified:
        good = summary.passed(entry)
        word, style = ("agrees", GOOD) if good else ("DISAGREES", BAD) if good is False else ("judged", STRONG)
        line = Text(f"{summary.verifier(entry)}: ").append(word, style=style)
        details = summary.details(entry)
        lines.append(line.append(f" ({details})" if details else "", style=DIM))
    return _section("Verified", Group(*lines))


def _exports(record: RunRecord) -> RenderableType | None:
    """Exports in their runtimes, and what did not agree."""
    found = exports.rows(record)
    if not found:
        return None
    names = exports.columns(found)
    stacks = [kept for stack in exports.STACKED if (kept := [name for name in stack if name in names])]
    heads = ["\n".join(exports.NUMBERS[name] for name in stack) for stack in stacks]
    table = _table(("export\nruntime", False), ("", False), *((head, True) for head in heads))
    table.columns[0].no_wrap = table.columns[1].no_wrap = True
    wrong = []
    for row in found:
        style = {True: GOOD, False: BAD, None: STRONG}[row.agrees]
        cells = [Text("\n".join(row.cells.get(name, words.MISSING) for name in stack)) for stack in stacks]
        name = Text(row.export).append(f"\n{row.runtime}", style=DIM)
        table.add_row(name, Text(row.verdict, style=style), *cells)
        wrong += [f"{row.export}, {row.runtime}: {line}" for line in row.wrong]
    said = Text("KL, differences, top-1 and greedy tokens are against the compressed model in memory.", style=DIM)
    return _section(
        "Exports, each in its own runtime",
        Group(table, *(Text(line, style=BAD) for line in dict.fromkeys(wrong)), said),
    )


def _heard(record: RunRecord) -> RenderableType | None:
    """What clients of users were answered."""
    lines = []
    for each in exports.heard(record):
        line = Text(f"{each.export}, {each.client}: ").append(each.verdict, style=GOOD if each.agrees else BAD)
        lines.append(line.append(f" ({each.details})", style=DIM))
    return _section("Asked as users ask", Group(*lines)) if lines else None


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
    """Commands are never wrapped by us: a terminal that wraps them still copies them whole."""
    lines: list[RenderableType] = []
    for step in steps.next_steps(record):
        lines.append(Text(f"{step.what}:", style=DIM))
        lines += [Text(f"  {line}", style=STRONG, no_wrap=True, overflow="ignore") for line in step.line.split("\n")]
    return Group(_section("Next", Group(*lines)), Text(words.BYTES_NOTE, style=DIM))
