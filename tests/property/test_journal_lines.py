"""The journal under every way of dying: what was promised durable is there, what was torn is not."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from compress.core.journal import JOURNAL, Journal

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.dictionaries(st.sampled_from(["layers", "result", "block", "text"]), PLAIN, max_size=3)
LINES = st.lists(st.tuples(st.sampled_from(["outside", "block", "measured"]), FIELDS), max_size=6)
PRINT = {"--bits": 4, "--options": {"damp": 0.01}}


def reopened(out: Path) -> list[dict[str, Any]]:
    """The lines that the next run of the same command finds."""
    with Journal.open(out, PRINT) as journal:
        return journal.lines[1:]


@settings(max_examples=60, deadline=None)
@given(LINES)
def test_what_was_appended_is_read_back_in_order(lines: list[tuple[str, dict[str, Any]]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        with Journal.open(out, PRINT) as journal:
            for kind, fields in lines:
                journal.append(kind, **fields)
        found = reopened(out)
    assert found == [{"kind": kind, **fields} for kind, fields in lines]
    assert [list(line) for line in found] == [["kind", *fields] for _, fields in lines]  # the order of keys too


@settings(max_examples=80, deadline=None)
@given(LINES, st.data())
def test_cut_anywhere_the_whole_lines_survive(lines: list[tuple[str, dict[str, Any]]], data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        with Journal.open(out, PRINT) as journal:
            for kind, fields in lines:
                journal.append(kind, **fields)
        raw = (out / JOURNAL).read_bytes()
        first = raw.index(b"\n") + 1  # the start line is renamed into place: it is never torn
        cut = data.draw(st.integers(first, len(raw)))
        (out / JOURNAL).write_bytes(raw[:cut])
        whole = raw[:cut].count(b"\n") - 1
        expected = [{"kind": kind, **fields} for kind, fields in lines[:whole]]
        assert reopened(out) == expected
        with Journal.open(out, PRINT) as journal:
            journal.append("block", block=7)
        assert reopened(out) == [*expected, {"kind": "block", "block": 7}]
        assert all(json.loads(line) for line in (out / JOURNAL).read_bytes().splitlines())


@settings(max_examples=60, deadline=None)
@given(LINES, st.binary(min_size=1, max_size=40))
def test_rubbish_at_the_end_is_dropped(lines: list[tuple[str, dict[str, Any]]], rubbish: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        with Journal.open(out, PRINT) as journal:
            for kind, fields in lines:
                journal.append(kind, **fields)
        with (out / JOURNAL).open("ab") as file:
            file.write(b"\x00" + rubbish)  # as file systems leave after a power cut
        assert reopened(out) == [{"kind": kind, **fields} for kind, fields in lines]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["--bits", "--seed", "calibration text"]), st.integers() | st.text() | st.none())
def test_another_setting_is_named_with_both_values(name: str, value: Any) -> None:
    import pytest

    from compress.core.errors import OutputError

    before = PRINT | {"--seed": 0, "calibration text": "ab12"}
    after = before | {name: value}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        Journal.open(out, before).close()
        if after == before:
            Journal.open(out, after).close()
            return
        with pytest.raises(OutputError) as refused:
            Journal.open(out, after)
        assert f"{name}: {before[name]!r} -> {value!r}" in str(refused.value)
