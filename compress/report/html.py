"""A record as one HTML file that opens anywhere, with no network: charts, tables, samples, how to reproduce.

The page forbids itself every connection (Content-Security-Policy) and runs only the scripts whose hashes it
lists, so a string that got past the escaping still could not act.
"""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files
from string import Template

from compress.core.errors import MissingExtraError
from compress.core.types import LayerResult, RunRecord
from compress.report import charts, exports, fit, steps, summary, training, words
from compress.report.chartkit import Chart
from compress.report.pieces import Cell, Column, card, chart, code, esc, facts, script_json, section, table

MAX_ROWS, MAX_SAMPLES, MAX_NOTES = 600, 24, 100
MAX_SAMPLE = 6000
GROUPS = (
    (
        "training",
        "Training",
        "The loss is that of training rows; scores are of rows that the model is not trained on.",
    ),
    (
        "sensitivity",
        "Sensitivity",
        "What the model's answers would lose if one layer alone had fewer bits; colours go by powers of ten.",
    ),
    ("size", "Size", ""),
    ("quality", "Quality", "Whiskers and brackets are 95 % intervals."),
    ("speed", "Speed", ""),
    (
        "error",
        "Where the error comes from",
        "Squared error relative to the energy of what is compared, in per cent.",
    ),
)


def render(record: RunRecord) -> str:
    """The record as one HTML document, charts and all; under 6 MB (plotly.js is 4.8 MB of it).

    Sections that the record holds nothing for are left out. Raises MissingExtraError without plotly.
    """
    plotly = _plotly()
    template = Template((files("compress.report") / "template.html").read_text(encoding="utf-8"))
    page = (files("compress.report") / "page.js").read_text(encoding="utf-8")
    drawn = charts.build(exports.without(record))
    data = script_json({f"chart-{c.key}": c.figure for c in drawn})
    return template.substitute(
        title=esc(_title(record), 200),
        policy="; ".join(
            (
                "default-src 'none'",
                f"script-src {_hash(plotly)} {_hash(page)}",
                "style-src 'unsafe-inline'",
                "img-src data: blob:",
                "base-uri 'none'",
                "form-action 'none'",
            )
        ),
        style=(files("compress.report") / "page.css").read_text(encoding="utf-8"),
        header=_header(record),
        body=_body(record, drawn),
        footer=esc(f"{words.BYTES_NOTE}. Intervals are 95 %."),
        plotly=plotly if drawn else "",
        data=data,
        page=page,
    )


def _plotly() -> str:
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise MissingExtraError("plotly", "report") from None
    source: str = get_plotlyjs()
    return source


def _hash(script: str) -> str:
    """The CSP source expression that admits exactly this inline script."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _title(record: RunRecord) -> str:
    name = words.clean(record.model.get("name") or "model", 80)
    return f"{name} · compress {record.command}"


def _body(whole: RunRecord, drawn: list[Chart]) -> str:
    record = exports.without(whole)
    by_group = {key: "".join(chart(c) for c in drawn if c.group == key) for key, _, _ in GROUPS}
    extra = {
        "training": _balance(record),
        "sensitivity": "",
        "size": _roles(record),
        "quality": _subjects(record, "Quality by model", (*summary.QUALITY, *summary.other_names(record))),
        "speed": _subjects(record, "Speed by model", summary.SPEED),
        "error": _worst(record),
    }
    grouped = [section(key, title, _figures(by_group[key]) + extra[key], intro) for key, title, intro in GROUPS]
    return "".join(
        (
            section("summary", "Summary", _cards(record), summary.basis(record)),
            *grouped,
            section("fit", fit.TITLE, fit.html(record)),
            section("samples", "Samples", _samples(record), "Written from the same prompts, greedily."),
            section(
                "verified",
                "Verification",
                _verified(record),
                "The written file, loaded in its own runtime and compared.",
            ),
            section(
                "exports",
                "Exports",
                _exports(whole),
                "Each opened by its own runtime, against the compressed model in memory.",
            ),
            section("plan", "Plan", _reasons(record)),
            section("layers", "Layers", _layers(record)),
            section("notes", "Notes", _notes(record)),
            section("run", "The run", _run(record)),
            section("reproduce", "How to reproduce", code(record.reproduce) if record.reproduce else ""),
            section(
                "next",
                "Next",
                "".join(f"<p>{esc(s.what)}</p>{code(s.line)}" for s in steps.next_steps(record)),
            ),
        )
    )


def _figures(figures: str) -> str:
    return f'<div class="figures">{figures}</div>' if figures else ""


def _header(whole: RunRecord) -> str:
    record = exports.without(whole)
    model = record.model
    facts_line = [
        words.clean(model.get("architecture") or "", 60),
        f"{words.count(model.get('parameters'))} parameters" if model.get("parameters") else "",
        words.plural(model["blocks"], "block") if isinstance(model.get("blocks"), int) else "",
        training.trained(record),
        words.clean(model.get("dtype") or "", 20),
    ]
    made = summary.product(record)
    out = f'<p class="artifact"><span aria-hidden="true">→ </span>{esc(made, 200)}</p>' if made else ""
    said = summary.verdict(record)
    return (
        f'<p class="brand">compress <span>{esc(record.command, 20)}</span></p>'
        f"<h1>{esc(model.get('name') or 'model', 120)}</h1>{out}"
        f'<p class="facts-line">{esc(" · ".join(filter(None, facts_line)))}</p>'
        + (f'<p class="verdict">{esc(said)}</p>' if said else "")
    )


def _cards(record: RunRecord) -> str:
    figures = summary.headline(record) if len(summary.subjects(record)) <= 2 else summary.best(record)
    made = "".join(map(card, figures))
    return f'<div class="cards">{made}</div>' if made else ""


def _subjects(record: RunRecord, caption: str, names: tuple[str, ...]) -> str:
    present = summary.names_present(record, names)
    if not present or (names == summary.SPEED and not present):
        return ""
    columns = [Column("model", code=True), *(Column(words.LABELS.get(name, name), True) for name in present)]
    rows: list[list[Cell | str]] = []
    for subject in summary.subjects(record):
        found = [summary.find(record, subject, name) for name in present]
        cells = [Cell(words.shown(m), words.interval(m), m.median if m else None) for m in found]
        rows.append([subject, *cells])
    return table(caption, columns, rows)


def _balance(record: RunRecord) -> str:
    """How often each label occurs, of a run that trained."""
    if not record.training:
        return ""
    found = training.balance(record)
    columns = [Column("label", code=True), Column("rows", True), Column("share", True)]
    rows: list[list[Cell | str]] = [
        [name, Cell(f"{count:,}", key=count), Cell(words.percent(share), key=share)]
        for name, count, share in found[:MAX_ROWS]
    ]
    return table("Balance of the labels", columns, rows)


def _roles(record: RunRecord) -> str:
    what = summary.error_name(record.layers)
    columns = [
        Column("role", code=True),
        Column("layers", True),
        Column("scheme", code=True),
        Column("bits per weight", True),
        Column("original", True),
        Column("compressed", True),
        Column(f"median {what}", True),
        Column("worst", True),
        Column("fallbacks", True),
    ]
    rows: list[list[Cell | str]] = [
        [
            row.role,
            f"{row.layers:,}",
            Cell(words.clean(row.schemes[0], 40), words.clean(", ".join(row.schemes[1:4]), 80)),
            words.number(row.bits, 3),
            words.size(row.bytes_before),
            words.size(row.bytes_after),
            words.percent(row.error),
            words.percent(row.worst),
            str(row.fallbacks or ""),
        ]
        for row in summary.roles(record)
    ]
    return table("By role", columns, rows)


def _worst(record: RunRecord) -> str:
    columns = [
        Column("layer", code=True),
        Column("scheme", code=True),
        Column(summary.error_name(record.layers), True),
        Column("why"),
    ]
    rows: list[list[Cell | str]] = [
        [
            x.layer,
            summary.scheme_of(x),
            words.percent(summary.error_of(x)),
            Cell(summary.why(x), tone="warn" if x.fallback else ""),
        ]
        for x in summary.worst(record, 8)
    ]
    return table("Layers with the largest error", columns, rows)


def _reasons(record: RunRecord) -> str:
    columns = [
        Column("scheme", code=True),
        Column("method", code=True),
        Column("layers", True),
        Column("why"),
        Column("for example", code=True),
    ]
    rows = [
        [scheme, method, f"{n:,}", reason, example] for scheme, method, reason, n, example in summary.reasons(record)
    ]
    rows += [["float", "keep", "", why, what] for what, why in summary.in_float(record)]
    more = f'<p class="intro">The {len(rows) - 100} rarer decisions are in record.json.</p>' if len(rows) > 100 else ""
    return table("What was done, and why", columns, rows[:100]) + more


def _layers(record: RunRecord) -> str:
    """The sortable table of layers: all of them, or the worst ones of a very large model."""
    columns = [
        Column("layer", code=True),
        Column("shape", code=True),
        Column("scheme", code=True),
        Column("method", code=True),
        Column("bits", True),
        Column("bytes", True),
        Column("output error", True),
        Column("weight error", True),
        Column("tokens", True),
        Column("note"),
    ]
    many = len(record.layers) > MAX_ROWS
    ranked = sorted(record.layers, key=lambda x: -summary.error_of(x) if summary.error_of(x) > 0 else 0.0)
    chosen = ranked[:MAX_ROWS] if many else list(record.layers)
    made = table(
        f"{words.plural(len(chosen), 'layer')}; activate a heading to sort",
        columns,
        map(_layer, chosen),
        sortable=True,
    )
    if not made:
        return ""
    if any(x.moved > 0 for x in record.layers):
        said = (
            "Errors are what rounding cost. Moved: how far, in share of its energy, a layer's weight was taken from "
            "the original's before it was rounded, to make good what earlier layers had lost."
        )
        made = f'<p class="intro">{said}</p>{made}'
    if many:
        said = f"The {len(chosen):,} with the largest error of {len(record.layers):,}; all are in record.json."
        made = f'<p class="intro">{said}</p>{made}'
    return f'<div class="tall">{made}</div>'


def _layer(x: LayerResult) -> list[Cell | str]:
    bits = summary.bits_per_weight(x)
    return [
        x.layer,
        f"{x.shape[0]:,} × {x.shape[1]:,}",
        summary.scheme_of(x),
        x.method,
        Cell(words.number(bits, 3), key=bits),
        Cell(words.size(x.bytes_after), key=x.bytes_after),
        Cell(words.percent(x.output_error), key=x.output_error),
        Cell(words.percent(x.weight_error), key=x.weight_error),
        Cell(f"{x.n_tokens:,}", key=x.n_tokens),
        Cell(words.clean(x.fallback or _moved(x), 240), tone="warn" if x.fallback else ""),
    ]


def _moved(x: LayerResult) -> str:
    said = [f"moved {words.percent(x.moved)}"] if x.moved > 0 else []
    if x.untuned:
        said.append(f"not tuned: {x.untuned}")
    elif x.rescaled or x.recoded:
        said.append(f"tuned: {words.percent(x.recoded)} of codes, {words.percent(x.rescaled)} of scales")
    return "; ".join(said)


def _samples(record: RunRecord) -> str:
    made = []
    for sample in record.generations[:MAX_SAMPLES]:
        sides = "".join(
            f'<div><h4>{esc(name, 80)}</h4><p class="text" dir="auto">{esc(text, MAX_SAMPLE, True)}</p></div>'
            for name, text in list(sample.texts.items())[:8]
        )
        prompt = f'<h3 dir="auto">{esc(sample.prompt, 1000, True)}</h3>'
        made.append(f'<article class="sample">{prompt}<div class="sides">{sides}</div></article>')
    if len(record.generations) > MAX_SAMPLES:
        made.append(f'<p class="intro">{len(record.generations) - MAX_SAMPLES} more are in record.json.</p>')
    return "".join(made)


def _verified(record: RunRecord) -> str:
    columns = [Column("runtime", code=True), Column("verdict", code=True), Column("details")]
    word = {True: "agrees", False: "DISAGREES", None: "judged"}
    tone = {True: "good", False: "bad", None: ""}
    rows: list[list[Cell | str]] = [
        [summary.verifier(v), Cell(word[summary.passed(v)], tone=tone[summary.passed(v)]), summary.details(v)]
        for v in record.verified[:50]
    ]
    return table("Loaded and compared", columns, rows)


def _exports(record: RunRecord) -> str:
    found = exports.rows(record)
    names = exports.columns(found)
    columns = [Column("export", code=True), Column("runtime", code=True), Column("verdict", code=True)]
    columns += [Column(exports.NUMBERS[name], True) for name in names]
    tone = {True: "good", False: "bad", None: ""}
    made: list[list[Cell | str]] = []
    for row in found:
        verdict = Cell(row.verdict, below="; ".join(row.wrong), tone=tone[row.agrees])
        made.append([row.export, row.runtime, verdict, *(row.cells.get(name, words.MISSING) for name in names)])
    asked = [Column("export", code=True), Column("client", code=True), Column("verdict", code=True), Column("answer")]
    answers: list[list[Cell | str]] = [
        [each.export, each.client, Cell(each.verdict, tone=tone[each.agrees]), each.details]
        for each in exports.heard(record)
    ]
    told = table("Asked as users ask", asked, answers) if answers else ""
    return table("Exports in their runtimes", columns, made) + told


def _notes(record: RunRecord) -> str:
    notes = "".join(f"<li>{esc(note, 1000)}</li>" for note in record.notes[:MAX_NOTES])
    more = len(record.notes) - MAX_NOTES
    return f"<ul>{notes}{f'<li>{more} more are in record.json</li>' if more > 0 else ''}</ul>" if notes else ""


def _run(record: RunRecord) -> str:
    """Cards of everything that a rerun needs to know: times, data, settings, machine."""
    stages = [(name, words.duration(seconds)) for name, seconds in record.stages.items()]
    if len(stages) > 1:
        stages.append(("total", words.duration(sum(record.stages.values()))))
    made = [facts("Time", stages)]
    loose = []
    for name, value in [item for item in record.data.items() if item[0] != "fit"][:12]:
        if isinstance(value, dict):
            made.append(facts(f"Data: {str(name).replace('_', ' ')}", list(value.items())[:40]))
        elif name != "warnings":  # they are among the notes
            loose.append((name, value))
    made += [facts("Data", loose), facts("Settings", list(record.recipe.items())[:60])]
    made += [
        facts("Model", list(record.model.items())[:40]),
        facts("Environment", list(record.environment.items())[:60]),
    ]
    joined = "".join(made)
    return f'<div class="cards wide">{joined}</div>' if joined else ""
