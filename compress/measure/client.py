"""The parent's side of a worker process: open a subject, ask it things, close it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from compress.core.child import Child
from compress.core.device import child_environment
from compress.core.errors import ModelError
from compress.core.task import Context, Row
from compress.measure.answers import packed
from compress.measure.exported import Exported, exported
from compress.measure.size import locate
from compress.measure.subject import ENCODER, Description, WorkerSettings

ROWS = 64  # rows of logits fetched at once: 64 x 150,000 tokens are 37 MiB
MODULE = "compress.measure.worker"


class Worker(Child):
    """A process of its own for one model, opened by plain transformers; a context manager.

    What it raises is what the process raised, from our error tree; a process that dies is a CompressError
    saying how. `forward` sends and returns at once, so two workers can compute side by side.
    """

    def __init__(self, settings: WorkerSettings, export: Exported | None = None) -> None:
        """Start the process; no model yet. export: what it is for, where that is a runtime's.

        Raises CompressError when it does not start, MissingRuntimeError when the runtime is not installed.
        """
        own = [sys.executable, "-m", MODULE], child_environment()
        super().__init__(*(own if export is None else export.command()))
        self.description: Description | None = None
        self._columns: dict[str, str] = {}
        try:
            self.threads = int(self.ask("settings", {"values": asdict(settings)}))
        except BaseException:
            self.close(at_once=True)
            raise

    @classmethod
    def open(cls, subject: str, settings: WorkerSettings | None = None) -> Worker:
        """A fresh process with `subject` loaded: a folder, .gguf file or hub id.

        Raises ModelError when it cannot be opened, CompressError when the process dies.
        """
        settings = settings or WorkerSettings()
        if (export := exported(subject)) is None:
            locate(subject, settings.allow_pickle)  # what is not there fails before a process starts
        worker = cls(settings, export)
        worker.name = subject
        try:
            if export is None:
                worker.description = Description(**worker.ask("load", {"subject": subject}))
            else:
                worker.ask("load", {"subject": str(export.where.resolve())})
        except BaseException:
            worker.close(at_once=True)
            raise
        return worker

    def describe(self, subject: str) -> Description:
        """What `subject` is, from its config; nothing is loaded. Raises ModelError."""
        if (export := exported(subject)) is None:
            return Description(**self.ask("describe", {"subject": subject}))
        found = self.describe(str(export.artifact))
        return replace(found, subject=subject, quantized=f"{export.form} in {export.runtime}")

    def forward(self, ids: Tensor) -> None:
        """Start a pass over `ids` (L,) int64; `shape` waits for it."""
        self.send("forward", {"ids": ids.tolist()})

    def shape(self) -> tuple[int, int]:
        """(L, V) of the logits, or (L, D) of the hidden states, of the pass that was started."""
        rows, columns = self.receive()
        return int(rows), int(columns)

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows start to stop of the finished pass, float32."""
        result: Tensor = self.ask("rows", {"start": start, "stop": stop})
        return result

    def logits(self, ids: Tensor) -> Tensor:
        """(L, V) float32 logits for `ids` (L,) int64. Raises ModelError for an encoder."""
        if self.description is not None and self.description.kind == ENCODER:
            raise ModelError(f"{self.name} is an encoder and has no logits; compare hidden states")
        return self._whole(ids)

    def hidden(self, ids: Tensor) -> Tensor:
        """(L, D) float32 last hidden states of an encoder (of the decoder, in an encoder-decoder)."""
        return self._whole(ids)

    def greedy(self, ids: Tensor, n: int) -> list[int]:
        """Exactly n next tokens by argmax with the KV cache, end tokens not heeded."""
        return [int(token) for token in self.ask("greedy", {"ids": ids.tolist(), "n": n})]

    def generate(self, prompts: Sequence[str], n: int) -> list[dict[str, Any]]:
        """Greedy continuations, [{"text", "ids"}], through the chat template where there is one."""
        result: list[dict[str, Any]] = self.ask("generate", {"prompts": list(prompts), "n": n})
        return result

    def open_task(self, subject: str, task: str, context: Context) -> None:
        """Open `subject` to write answers for rows of a task. Raises ModelError."""
        self.name = subject
        self._columns = dict(context.columns)
        told = {
            "columns": self._columns,
            "max_length": context.max_length,
            "new_tokens": context.settings["new_tokens"],
        }
        self.ask("open_task", {"subject": subject, "task": task, "told": told})

    def answers(self, rows: Sequence[Row]) -> list[str]:
        """A text a row, all rows in one batch, by the model that `open_task` opened."""
        result: list[str] = self.ask("answers", {"rows": [packed(row, self._columns) for row in rows]})
        return result

    def latency(self, prompt: int, decode: int, repeats: int, warmup: int = 1) -> dict[str, Any]:
        """{"prefill_seconds": (repeats,), "step_seconds": (repeats, decode), "threads"}."""
        arguments = {"prompt": prompt, "decode": decode, "repeats": repeats, "warmup": warmup}
        result: dict[str, Any] = self.ask("latency", arguments)
        return result

    def rss(self) -> dict[str, Any]:
        """Resident bytes of the process: {"peak", "current", "baseline", "load_seconds"}."""
        result: dict[str, Any] = self.ask("rss", {})
        return result

    def _whole(self, ids: Tensor) -> Tensor:
        self.forward(ids)
        length, width = self.shape()
        whole = torch.empty(length, width)
        for start in range(0, length, ROWS):
            whole[start : start + ROWS] = self.rows(start, start + ROWS)
        return whole
