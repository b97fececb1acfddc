"""Exports in a record: rows by runtime, what clients were answered, what to type next."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from compress.core.types import Measurement, RunRecord
from compress.report import exports, html, steps, terminal
from tests import fake_record as fake

WHERE, RUNTIME = "out/exports/gguf", "llama-cpp 1.0"
ABOUT = {"export": WHERE, "format": "gguf", "where": WHERE}


def record(*lines: dict[str, Any]) -> RunRecord:
    """Of `compress verify`, with these lines."""
    size = Measurement(f"{WHERE} in llama-cpp", "bytes", "bytes", 1e6, detail={**ABOUT, "runtime": RUNTIME})
    told = tuple({**ABOUT, "export": "gguf", **line} for line in lines)
    return replace(fake.quantize_record(1), command="verify", measurements=(size,), verified=told)


ANSWER = {
    "check": "served answer",
    "runtime": "llama-cpp server",
    "client": "openai 3.0",
    "equal": 6,
    "of": 32,
    "passed": True,
    "said": "it parts at token 7, where the reference prefers its own by 0.1",
    "text": "The story",
}
VALUES = {"check": "served values: largest difference", "difference": 2e-6, "tolerance": 1e-3, "passed": True}
LINES = {
    "an answer": (ANSWER, "agrees", "6 of 32 tokens are the reference's; it parts at token 7, where the reference"),
    "a wrong one": ({**ANSWER, "passed": False, "said": "it answers 'no'"}, "DISAGREES", "served answer: it answers"),
}


@pytest.mark.parametrize("kind", list(LINES))
def test_what_a_client_was_answered_is_shown(kind: str) -> None:
    line, verdict, details = LINES[kind]
    (heard,) = exports.heard(record(line))
    assert (heard.export, heard.client, heard.verdict) == ("gguf", "openai 3.0 (llama-cpp server)", verdict)
    assert details in heard.details
    assert verdict in terminal.text(record(line), 200)
    assert f"gguf, openai 3.0 (llama-cpp server): {verdict}" in terminal.text(record(line), 200)
    assert "Asked as users ask" in html.render(record(line))


def test_vectors_and_labels_say_how_far_they_are_off() -> None:
    labels = {"check": "served labels", "runtime": RUNTIME, "client": "pipeline", "equal": 5, "of": 5, "passed": True}
    vectors = {"runtime": RUNTIME, "client": "session", **VALUES}
    found = [heard.details for heard in exports.heard(record(labels, vectors))]
    assert found[0] == "5 of 5 labels are the reference's"
    assert found[1] == "vectors differ by 2e-06, at most 0.0010 may"


def test_who_was_asked_is_not_told_to_ask() -> None:
    asked, silent = record(ANSWER), record({"check": "outputs", "runtime": RUNTIME, "passed": True})
    assert not [step for step in steps.next_steps(asked) if "--serve" in step.line]
    assert [step for step in steps.next_steps(silent) if "--serve" in step.line]
    assert exports.heard(silent) == []
