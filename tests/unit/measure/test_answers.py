"""Answers of a model in a process of its own, against the same task asked here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from compress.core.errors import CompressError, ModelError
from compress.core.registry import load
from compress.core.task import Context
from compress.measure.answers import packed, unpacked
from compress.measure.client import Worker
from compress.measure.subject import WorkerSettings
from compress.measure.worker import Server
from tests.tiny import tiny_tokenizer
from tests.writing import original_of, save_writer, write_speech

SETTINGS = WorkerSettings(threads=1)


def asked(folder: Path, name: str, columns: dict[str, str], rows: list[dict[str, Any]]) -> tuple[Context, list[str]]:
    """The context, and what is written when everything happens in this process."""
    task = load("task", name)
    settings = {**task.settings(folder), "new_tokens": 5}
    context = Context(tiny_tokenizer(), columns, (), 32, settings=settings)
    features = task.features(rows, context)
    batch = {name: value for name, value in task.collate(features, context).items() if name != "labels"}
    ids = task.predict(original_of(folder, task.auto), batch, context)
    return context, task.answers(list(ids), features, context)


def test_answers_are_those_of_the_model_opened_here(tmp_path: Path) -> None:
    folder = save_writer("bart", tmp_path / "bart")
    rows = [{"document": f"the market report {n}" * n, "summary": "x", "id": n} for n in range(1, 5)]
    context, expected = asked(folder, "seq2seq", {"source": "document", "target": "summary"}, rows)
    with Worker(SETTINGS) as worker:
        worker.open_task(str(folder), "seq2seq", context)
        assert worker.answers(rows) == expected
    assert len(set(expected)) > 1


def test_speech_goes_as_paths_or_as_bytes(tmp_path: Path) -> None:
    folder, data = save_writer("whisper", tmp_path / "whisper"), write_speech(tmp_path / "speech", rows=2)
    paths = [{"audio": str(data / "clips" / f"{n:02d}.wav"), "text": "a tone"} for n in range(2)]
    context, expected = asked(folder, "speech-recognition", {"audio": "audio", "text": "text"}, paths)
    whole = [{**row, "audio": {"bytes": Path(row["audio"]).read_bytes(), "path": None}} for row in paths]
    with Worker(SETTINGS) as worker:
        worker.open_task(str(folder), "speech-recognition", context)
        assert worker.answers(paths) == expected
        assert worker.answers(whole) == expected


def test_rows_survive_the_pipe() -> None:
    row = {"a": {"bytes": b"\x00\xff", "path": None}, "b": "text", "c": 3, "d": b""}
    columns = {name: name for name in row}
    assert unpacked(packed(row, columns)) == row
    assert packed({**row, "more": object()}, {"x": "b"}) == {"b": "text"}


def test_a_model_that_is_not_one_of_the_task(tmp_path: Path) -> None:
    folder = save_writer("bert", tmp_path / "bert")
    context = Context(tiny_tokenizer(), {}, (), 8, settings={"new_tokens": 3})
    with Worker(SETTINGS) as worker, pytest.raises(ModelError, match="cannot be opened by transformers"):
        worker.open_task(str(folder), "seq2seq", context)
    reply = Server().handle({"verb": "answers", "arguments": {"rows": []}})
    assert "send open_task first" in reply["error"]["message"]
    assert reply["error"]["kind"] == CompressError.__name__
