"""Any record survives JSON, and any text becomes harmless, short and stable."""

from __future__ import annotations

import json
import math

from hypothesis import given, settings
from hypothesis import strategies as st

from compress.core.types import Generation, Measurement, RunRecord
from compress.report import record as records
from compress.report import words
from compress.report.pieces import esc, script_json

NUMBERS = st.floats() | st.integers(-(10**15), 10**15).map(float)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
MEASUREMENTS = st.builds(
    Measurement,
    st.text(),
    st.text(),
    st.text(),
    NUMBERS,
    st.none() | NUMBERS,
    st.none() | NUMBERS,
    st.integers(0, 99),
)


@settings(max_examples=60, deadline=None)
@given(
    st.text(),
    st.dictionaries(st.text(), JSON, max_size=3),
    st.lists(MEASUREMENTS, max_size=3),
    st.lists(st.text(), max_size=3),
)
def test_records_survive_json(name: str, model: dict[str, object], rows: list[Measurement], texts: list[str]) -> None:
    samples = tuple(Generation(t, {name: t}) for t in texts)
    first = RunRecord(name, model, name, measurements=tuple(rows), notes=tuple(texts), generations=samples)
    again = records.from_json(json.loads(records.dumps(first)))
    assert (again.command, again.model, again.artifact) == (first.command, first.model, first.artifact)
    assert (again.notes, again.generations) == (first.notes, first.generations)
    for old, new in zip(first.measurements, again.measurements, strict=True):
        assert (old.subject, old.name, old.unit, old.n) == (new.subject, new.name, new.unit, new.n)
        assert new.median == old.median if math.isfinite(old.median) else math.isnan(new.median)
        assert new.low == (old.low if old.low is not None and math.isfinite(old.low) else None)


ANY_TEXT = st.text(st.characters(codec=None), max_size=80)


@settings(max_examples=200, deadline=None)
@given(ANY_TEXT, st.booleans())
def test_clean_text_holds_nothing_that_is_obeyed(text: str, lines: bool) -> None:
    cleaned = words.clean(text, lines=lines)
    kept = "\n\t" if lines else ""
    assert all(c in kept or (ord(c) >= 32 and not 0x7F <= ord(c) <= 0x9F) for c in cleaned)
    assert not set(cleaned) & set("\u202d\u202e\u2066\u2067\u2028\u2029")
    cleaned.encode("utf-8")
    assert words.clean(cleaned, lines=lines) == cleaned
    assert not set(esc(text)) & set("<>\"'")


@settings(max_examples=200, deadline=None)
@given(JSON)
def test_script_json_says_the_same_without_closing_its_element(data: object) -> None:
    text = script_json(data)
    assert json.loads(text) == data
    assert text.isascii()
    assert not set(text) & set("<>&")


@settings(max_examples=100, deadline=None)
@given(st.lists(ANY_TEXT, unique=True, max_size=12), st.integers(8, 30))
def test_short_names_are_short_and_differ(names: list[str], limit: int) -> None:
    shorts = words.distinct(names, limit)
    assert list(shorts) == names
    assert len(set(shorts.values())) == len(names)
    assert all(0 < len(s) <= limit for s in shorts.values())
