"""A model as plain transformers opens it, and the answers that it writes for rows of a task."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from compress.core.registry import load
from compress.core.task import Context, Row
from compress.core.writing import WritingTask
from compress.measure.size import locate
from compress.measure.subject import WorkerSettings, load_config, load_model, load_tokenizer

BYTES = "base64"


class Answerer:
    """One opened model; the tokenizer and what else the task reads are those of its own folder."""

    def __init__(self, subject: str, task: str, told: Mapping[str, Any], settings: WorkerSettings) -> None:
        """told: columns, max_length and new_tokens of the Context. Raises ModelError when it cannot be opened."""
        import transformers

        self.task: WritingTask = load("task", task)
        found = locate(subject, settings.allow_pickle)
        config = load_config(found, settings)
        self.model = load_model(found, config, getattr(transformers, self.task.auto), settings)
        said = {**self.task.settings(Path(found.folder)), "new_tokens": told["new_tokens"]}
        self.context = Context(
            load_tokenizer(found, settings), dict(told["columns"]), (), int(told["max_length"]), settings=said
        )

    @torch.inference_mode()
    def answers(self, rows: Sequence[Row]) -> list[str]:
        """One text a row, all rows in one batch."""
        read = [{name: value for name, value in row.items() if name in self.context.columns.values()} for row in rows]
        features = self.task.features(read, self.context)
        batch = self.task.collate(features, self.context)
        batch.pop("labels", None)
        written = self.task.predict(self.model, batch, self.context)
        return [str(answer) for answer in self.task.answers(list(written), features, self.context)]


def packed(row: Row, columns: Mapping[str, str]) -> dict[str, Any]:
    """The columns of a row that a task reads, as JSON: bytes become text."""
    return {name: _packed(row.get(name)) for name in columns.values()}


def unpacked(row: Row) -> dict[str, Any]:
    """What `packed` was given."""
    return {name: _unpacked(value) for name, value in row.items()}


def _packed(value: Any) -> Any:
    if isinstance(value, bytes):
        return {BYTES: base64.b64encode(value).decode()}
    return {key: _packed(item) for key, item in value.items()} if isinstance(value, Mapping) else value


def _unpacked(value: Any) -> Any:
    if isinstance(value, Mapping) and set(value) == {BYTES}:
        return base64.b64decode(value[BYTES])
    return {key: _unpacked(item) for key, item in value.items()} if isinstance(value, Mapping) else value
