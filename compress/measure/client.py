"""The parent's side of a worker process: open a subject, ask it things, close it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from types import TracebackType
from typing import IO, Any

import torch
from torch import Tensor

from compress.core import errors
from compress.core.device import child_environment, free_memory_bytes
from compress.core.errors import CompressError, ModelError
from compress.core.task import Context, Row
from compress.measure.answers import packed
from compress.measure.size import locate
from compress.measure.subject import ENCODER, Description, WorkerSettings

ROWS = 64  # rows of logits fetched at once: 64 x 150,000 tokens are 37 MiB
CLOSE_SECONDS = 5.0
MODULE = "compress.measure.worker"


class Worker:
    """A process of its own for one model, opened by plain transformers; a context manager.

    What it raises is what the process raised, from our error tree; a process that dies is a CompressError
    saying how. `forward` sends and returns at once, so two workers can compute side by side.
    """

    def __init__(self, settings: WorkerSettings) -> None:
        """Start the process; no model yet. Raises CompressError when it does not start."""
        self.name = ""
        self.description: Description | None = None
        self._columns: dict[str, str] = {}
        self.free_bytes = free_memory_bytes()
        self._pending: list[str] = []
        self._stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed in close()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", MODULE],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                env=child_environment(),
            )
        except OSError as error:
            self._stderr.close()
            raise CompressError(f"a worker process cannot be started ({error}); free some memory") from None
        try:
            self.threads = int(self._ask("settings", {"values": asdict(settings)}))
        except BaseException:
            self.close(at_once=True)
            raise

    @classmethod
    def open(cls, subject: str, settings: WorkerSettings | None = None) -> Worker:
        """A fresh process with `subject` loaded: a folder, .gguf file or hub id.

        Raises ModelError when it cannot be opened, CompressError when the process dies.
        """
        settings = settings or WorkerSettings()
        locate(subject, settings.allow_pickle)  # what is not there fails before a process starts
        worker = cls(settings)
        worker.name = subject
        try:
            worker.description = Description(**worker._ask("load", {"subject": subject}))
        except BaseException:
            worker.close(at_once=True)
            raise
        return worker

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def describe(self, subject: str) -> Description:
        """What `subject` is, from its config; nothing is loaded. Raises ModelError."""
        return Description(**self._ask("describe", {"subject": subject}))

    def forward(self, ids: Tensor) -> None:
        """Start a pass over `ids` (L,) int64; `shape` waits for it."""
        self._send("forward", {"ids": ids.tolist()})

    def shape(self) -> tuple[int, int]:
        """(L, V) of the logits, or (L, D) of the hidden states, of the pass that was started."""
        rows, columns = self._receive()
        return int(rows), int(columns)

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows start to stop of the finished pass, float32."""
        result: Tensor = self._ask("rows", {"start": start, "stop": stop})
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
        return [int(token) for token in self._ask("greedy", {"ids": ids.tolist(), "n": n})]

    def generate(self, prompts: Sequence[str], n: int) -> list[dict[str, Any]]:
        """Greedy continuations, [{"text", "ids"}], through the chat template where there is one."""
        result: list[dict[str, Any]] = self._ask("generate", {"prompts": list(prompts), "n": n})
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
        self._ask("open_task", {"subject": subject, "task": task, "told": told})

    def answers(self, rows: Sequence[Row]) -> list[str]:
        """A text a row, all rows in one batch, by the model that `open_task` opened."""
        result: list[str] = self._ask("answers", {"rows": [packed(row, self._columns) for row in rows]})
        return result

    def latency(self, prompt: int, decode: int, repeats: int, warmup: int = 1) -> dict[str, Any]:
        """{"prefill_seconds": (repeats,), "step_seconds": (repeats, decode), "threads"}."""
        arguments = {"prompt": prompt, "decode": decode, "repeats": repeats, "warmup": warmup}
        result: dict[str, Any] = self._ask("latency", arguments)
        return result

    def rss(self) -> dict[str, Any]:
        """Resident bytes of the process: {"peak", "current", "baseline", "load_seconds"}."""
        result: dict[str, Any] = self._ask("rss", {})
        return result

    def close(self, at_once: bool = False) -> None:
        """End the process, politely unless `at_once`. May be called again."""
        for pipe in (self._process.stdin, self._process.stdout):
            try:
                if pipe is not None:
                    pipe.close()
            except OSError:
                pass  # a dead reader: the request was lost with it
        if at_once or self._pending:
            self._process.kill()
        try:
            self._process.wait(CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._stderr.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(at_once=kind is not None)

    def _whole(self, ids: Tensor) -> Tensor:
        self.forward(ids)
        length, width = self.shape()
        whole = torch.empty(length, width)
        for start in range(0, length, ROWS):
            whole[start : start + ROWS] = self.rows(start, start + ROWS)
        return whole

    def _ask(self, verb: str, arguments: dict[str, Any]) -> Any:
        self._send(verb, arguments)
        return self._receive()

    def _send(self, verb: str, arguments: dict[str, Any]) -> None:
        line = json.dumps({"verb": verb, "arguments": arguments}).encode() + b"\n"
        stdin = self._process.stdin
        if stdin is None or stdin.closed:
            raise CompressError(f"the process measuring {self.name or 'models'} was closed; open another")
        try:
            stdin.write(line)
            stdin.flush()
        except OSError:
            raise self._died() from None
        self._pending.append(verb)

    def _receive(self) -> Any:
        if not self._pending:
            raise CompressError(f"nothing was asked of {self.name}; send a request first")
        stdout = self._process.stdout
        line = stdout.readline() if stdout is not None else b""
        if stdout is None or not line.endswith(b"\n"):
            raise self._died()
        self._pending.pop(0)
        reply = json.loads(line)
        if "error" in reply:
            raise _error(reply["error"], self.name)
        if "bytes" not in reply:
            return reply["result"]
        if not reply["bytes"]:
            return torch.empty(reply["shape"])
        data = bytearray(reply["bytes"])
        if stdout.readinto(data) != len(data):  # type: ignore[attr-defined]
            raise self._died()
        return torch.frombuffer(data, dtype=torch.float32).reshape(reply["shape"])

    def _died(self) -> CompressError:
        """Why the process is gone, in one sentence."""
        try:
            code = self._process.wait(CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            return CompressError(f"the process measuring {self.name or 'models'} stopped answering; run again")
        free = f"{self.free_bytes / 2**30:.1f} GiB were free when it started"
        if code < 0:
            return CompressError(
                f"the process measuring {self.name or 'models'} was killed by {signal.Signals(-code).name} "
                f"({free}); if memory ran out, use a smaller --dtype or a larger machine"
            )
        self._stderr.seek(0)
        tail = self._stderr.read()[-2000:].decode(errors="replace").strip().splitlines()
        said = tail[-1].strip() if tail else "no message"
        return CompressError(f"the process measuring {self.name or 'models'} ended with code {code}: {said}; {free}")


def _error(reply: dict[str, str], name: str) -> CompressError:
    """The worker's error, of its own class and naming the subject."""
    kind = getattr(errors, reply["kind"], CompressError)
    if not (isinstance(kind, type) and issubclass(kind, CompressError)):
        kind = CompressError
    message = reply["message"] if not name or name in reply["message"] else f"{name}: {reply['message']}"
    error = CompressError.__new__(kind)  # MissingExtraError builds its own sentence; this one is built already
    Exception.__init__(error, message)
    return error
