"""The process that holds one model: `python -m compress.measure.worker`, driven by compress.measure.client.

Protocol, request by request. In: one JSON line {"verb", "arguments"}. Out: one JSON line {"result"} or
{"error": {"kind", "message"}}; when it says "bytes": N, N bytes of little-endian float32 follow, of "shape".
Arrays go through the pipe and not through files: there is nothing to delete when a process is killed.
End of input ends the process. Everything libraries print goes to stderr. The allocator is left as it is:
speed and memory are to be those of anyone's process, not of one tuned by us.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from dataclasses import asdict
from typing import IO, TYPE_CHECKING, Any

from compress.core.device import (
    current_rss_bytes,
    peak_rss_bytes,
    release_memory,
    set_threads,
)
from compress.core.errors import CompressError

if TYPE_CHECKING:
    from torch import Tensor

    from compress.measure.answers import Answerer
    from compress.measure.subject import Subject


def main() -> int:
    """Serve requests until stdin ends. Always 0: failures are replies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when to stop
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    _quiet()
    server = Server()
    for line in sys.stdin.buffer:
        try:
            _answer(out, server.handle(json.loads(line)))
        except BrokenPipeError:
            break
    return 0


class Server:
    """Verbs of one process; at most one loaded model."""

    def __init__(self) -> None:
        import torch  # noqa: F401 - its memory belongs to the baseline
        import transformers  # noqa: F401 - and so does its

        from compress.measure import subject

        self._home = subject
        self._settings = subject.WorkerSettings()
        self._subject: subject.Subject | None = None
        self._answerer: Answerer | None = None
        release_memory()
        self._baseline = current_rss_bytes()

    def handle(self, request: dict[str, Any]) -> dict[str, Any]:
        """The reply to one request; every failure becomes an `error`."""
        verb = str(request.get("verb"))
        verbs: dict[str, Callable[..., Any]] = {
            "settings": self.settings,
            "describe": self.describe,
            "load": self.load,
            "forward": self.forward,
            "rows": self.rows,
            "greedy": self.greedy,
            "generate": self.generate,
            "open_task": self.open_task,
            "answers": self.answers,
            "latency": self.latency,
            "rss": self.rss,
        }
        try:
            return {"result": verbs[verb](**request.get("arguments", {}))}
        except CompressError as error:
            return {"error": {"kind": type(error).__name__, "message": str(error)}}
        except Exception as error:
            traceback.print_exc()
            said = " ".join(str(error).split())[:240]
            return {
                "error": {
                    "kind": "CompressError",
                    "message": f"{verb} failed: {type(error).__name__}: {said}",
                }
            }

    def settings(self, values: dict[str, Any]) -> int:
        """Take WorkerSettings; the number of threads set."""
        self._settings = self._home.WorkerSettings(**values)
        return set_threads(self._settings.threads)

    def describe(self, subject: str) -> dict[str, Any]:
        """Description of any subject, from its config."""
        return asdict(self._home.describe(subject, self._settings))

    def load(self, subject: str) -> dict[str, Any]:
        """Open the model of this process."""
        self._subject = self._home.Subject(subject, self._settings)
        return asdict(self._subject.description)

    def forward(self, ids: list[int]) -> list[int]:
        """Run the model; its shape. The rows stay here until asked for."""
        return list(self._loaded().forward(ids))

    def rows(self, start: int, stop: int) -> Tensor:
        """A float32 tensor."""
        return self._loaded().rows(start, stop)

    def greedy(self, ids: list[int], n: int) -> list[int]:
        """Next tokens by argmax."""
        return self._loaded().greedy(ids, n)

    def generate(self, prompts: list[str], n: int) -> list[dict[str, Any]]:
        """Continuations of texts."""
        return self._loaded().generate(prompts, n)

    def open_task(self, subject: str, task: str, told: dict[str, Any]) -> None:
        """Open the model of this process to write answers with."""
        from compress.measure.answers import Answerer

        self._answerer = Answerer(subject, task, told, self._settings)

    def answers(self, rows: list[dict[str, Any]]) -> list[str]:
        """What it writes for rows of the task."""
        from compress.measure.answers import unpacked

        if self._answerer is None:
            raise CompressError("no model is open for a task in this worker; send open_task first")
        return self._answerer.answers([unpacked(row) for row in rows])

    def latency(self, prompt: int, decode: int, repeats: int, warmup: int) -> dict[str, Any]:
        """Seconds of prefill and of decode steps."""
        self._loaded().drop()
        return self._loaded().latency(prompt, decode, repeats, warmup)

    def rss(self) -> dict[str, Any]:
        """Resident bytes: peak, now, and before a model was loaded; seconds the loading took."""
        loaded = self._subject.load_seconds if self._subject is not None else None
        current = current_rss_bytes()
        return {
            "peak": max(peak_rss_bytes(), current),  # the system counts the peak a little late
            "current": current,
            "baseline": self._baseline,
            "load_seconds": loaded,
        }

    def _loaded(self) -> Subject:
        if self._subject is None:
            raise CompressError("no model is loaded in this worker; send load first")
        return self._subject


def _answer(out: IO[bytes], reply: dict[str, Any]) -> None:
    result: Any = reply.get("result")
    if hasattr(result, "numpy"):
        array = result.numpy().astype("<f4", copy=False)
        _send(out, {"result": None, "shape": list(array.shape), "bytes": array.nbytes})
        if array.size:  # an empty view cannot be cast
            out.write(memoryview(array).cast("B"))
            out.flush()
    else:
        _send(out, reply)


def _send(out: IO[bytes], header: dict[str, Any]) -> None:
    out.write(json.dumps(header).encode() + b"\n")
    out.flush()


def _quiet() -> None:
    """No progress bars, no advice: stderr is shown only when the process fails."""
    warnings.simplefilter("ignore")
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


if __name__ == "__main__":
    sys.exit(main())
