"""Exports in a record: one row for each in each runtime, and the lines that did not agree."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from compress.core.types import Measurement, RunRecord
from compress.report import words

NUMBERS = {
    "runtime_kl": "KL, nats",
    "runtime_difference": "largest diff",
    "runtime_top1": "top-1",
    "runtime_greedy": "greedy",
    "score": "score",
    "bytes": "size",
    "decode_tokens_per_s": "decode tok/s",
    "latency_ms": "ms a request",
    "peak_rss_bytes": "memory",
}
"""Columns of numbers; those that no row has anything for are left out."""
STACKED = (
    ("runtime_kl", "runtime_difference"),
    ("runtime_top1", "runtime_greedy"),
    ("score",),
    ("bytes", "peak_rss_bytes"),
    ("decode_tokens_per_s", "latency_ms"),
)
"""The same where there is little room: one above the other."""


@dataclass(frozen=True)
class Row:
    """An export in a runtime, or in none. agrees: None where no runtime judged it. cells: by the names of NUMBERS."""

    export: str
    runtime: str
    agrees: bool | None
    cells: dict[str, str]
    wrong: tuple[str, ...]

    @property
    def verdict(self) -> str:
        """In a word."""
        return {True: "agrees", False: "DISAGREES", None: "not judged"}[self.agrees]


def rows(record: RunRecord) -> list[Row]:
    """Every export and runtime, in the order they were judged."""
    found = []
    for about in record.measurements:
        if about.name != "bytes" or "export" not in about.detail:
            continue
        export, runtime = str(about.detail["export"]), str(about.detail.get("runtime", ""))
        there = [v for v in record.verified if v.get("where") == export]
        lines = [v for v in there if v.get("runtime") in (runtime, "sha256", v["export"])]
        wrong = tuple(said(line) for line in lines if line.get("passed") is False)
        values = {m.name: m for m in record.measurements if m.subject == about.subject}
        cells = {name: _cell(name, values[name]) for name in NUMBERS if name in values}
        score = next((line for line in lines if line.get("check") == "task score"), None)
        if score is not None:
            cells["score"] = f"{score['metric']} {words.number(score['runtime_score'], 3)}"
        agrees = not wrong if runtime else False if wrong else None
        form = words.clean(about.detail.get("format", ""), 40)
        found.append(Row(form, words.clean(runtime, 40), agrees, cells, wrong))
    known = {(row.export, row.runtime) for row in found}
    for line in record.verified:
        key = (str(line.get("export")), str(line.get("runtime")))
        if line.get("check") == "opens and runs" and "export" in line and key not in known:
            found.append(Row(words.clean(key[0], 40), words.clean(key[1], 40), False, {}, (said(line),)))
    return found


@dataclass(frozen=True)
class Heard:
    """What a client of users was answered, and whether that is right. agrees: as in `Row`."""

    export: str
    client: str
    agrees: bool
    details: str

    @property
    def verdict(self) -> str:
        """In a word."""
        return "agrees" if self.agrees else "DISAGREES"


def heard(record: RunRecord) -> list[Heard]:
    """What was asked of servers, and by clients in a runtime's own process (`verify --serve`)."""
    found = []
    for line in record.verified:
        if "client" not in line or "export" not in line:
            continue
        what = str(line.get("check"))
        if not line.get("passed"):
            details = said(line)
        elif "of" in line:
            kind = "labels" if "labels" in what else "tokens"
            details = f"{line.get('equal')} of {line['of']} {kind} are the reference's"
            details += f"; {line['said']}" if line.get("said") else ""
        elif line.get("difference") is not None:
            details = f"vectors differ by {words.number(line['difference'], 2)}, at most"
            details += f" {words.number(line['tolerance'], 2)} may"
        else:
            details = f"{what}: as the reference has it"
        if line.get("text"):
            details += f"; it said {line['text'][:60]!r}"
        who = f"{line['client']} ({line['runtime']})"
        found.append(Heard(words.clean(line["export"], 40), words.clean(who, 90), bool(line.get("passed")),
                           words.clean(details, 300)))  # fmt: skip
    return found


def columns(found: list[Row]) -> list[str]:
    """The names of NUMBERS that some row has."""
    return [name for name in NUMBERS if any(name in row.cells for row in found)]


def without(record: RunRecord) -> RunRecord:
    """The record without its exports: what the sections on the model itself are about."""
    subjects = {m.subject for m in record.measurements if "export" in m.detail}
    kept = tuple(m for m in record.measurements if m.subject not in subjects)
    return replace(record, measurements=kept, verified=tuple(v for v in record.verified if "export" not in v))


def said(line: dict[str, Any]) -> str:
    """A line that did not agree, in words."""
    keys = [key for key in ("kl", "difference", "gap") if line.get(key) is not None]
    numbers = [f"{key} {words.number(line[key], 3)}" for key in keys]
    if line.get("tolerance") is not None:
        numbers.append(f"at most {words.number(line['tolerance'], 3)}")
    return words.clean(f"{line.get('check')}: {line.get('said') or ', '.join(numbers)}", 300)


def _cell(name: str, found: Measurement) -> str:
    value = found.median
    if name in ("bytes", "peak_rss_bytes"):
        return words.size(value)
    if name == "runtime_greedy":
        return f"{value:.0f}/{found.n}"
    if name == "runtime_top1":
        return words.percent(value)
    if name in ("runtime_kl", "runtime_difference"):
        return "0" if value == 0 else f"{value:.1e}" if abs(value) < 1e-3 else f"{value:.3g}"
    return words.number(value, 3)
