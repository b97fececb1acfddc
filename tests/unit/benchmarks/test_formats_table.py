"""The table of formats in README is what the suite measured, and says what was refused and why."""

from __future__ import annotations

import json

from benchmarks.formats import README, Notes, cell, plainly, section, table
from benchmarks.shared import REPORTS
from compress.core.registry import names


def test_readme_has_the_table_that_was_measured() -> None:
    rows = json.loads((REPORTS / "formats.json").read_text(encoding="utf-8"))["rows"]
    assert section(README.read_text(encoding="utf-8")) == table(rows)
    assert sorted({row["format"] for row in rows}) == names("format"), "run python -m benchmarks formats"
    assert all(row["runtimes"] if row["state"] == "verified" else row["why"] for row in rows)


def test_models_of_a_column_that_differ_are_told_apart() -> None:
    notes = Notes()
    fine = {"state": "verified", "runtimes": ["here"], "why": "", "kind": "tagger"}
    refused = {"state": "refused", "runtimes": [], "why": "a.b.c is nf4; use --bits 4", "kind": "embedder"}
    assert cell([fine], notes) == "verified: here"
    assert cell([fine, refused], notes) == "tagger: verified: here; embedder: – [1]"
    assert notes.texts == ["a layer is of this scheme; use --bits 4"]


def test_reasons_name_no_layer_and_no_class() -> None:
    assert plainly("no graph for BertForMaskedLM; use onnx") == "no graph for such a model; use onnx"
    assert plainly("/somewhere/x/out: gone") == "out: gone"
