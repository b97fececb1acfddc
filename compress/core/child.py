"""A process of its own, asked over its pipes: one JSON line a request, one JSON line a reply, arrays behind it.

The other side is `compress.measure.worker` or `export.runtimes._worker`. In: {"verb", "arguments"}. Out: {"result"} or
{"error": {"kind", "message"}}; where it says "bytes": N, N bytes of little-endian float32 follow, of "shape". Nothing
goes through files, so there is nothing to delete when a process is killed.
"""

from __future__ import annotations

import json
import select
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import IO, Any, Self

import torch

from compress.core import errors
from compress.core.device import free_memory_bytes
from compress.core.errors import CompressError

CLOSE_SECONDS = 5.0
TAIL_BYTES = 4000


class Child:
    """A started process; a context manager. What it raises is what the process raised, from our error tree.

    A process that dies is a CompressError with its last words; one that is silent for longer than `patience` seconds
    (None: for ever) is killed, and that is said.
    """

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], name: str = "", patience: float | None = None
    ) -> None:
        """Start `command`. name: what the errors call it. Raises CompressError when it does not start."""
        self.name, self.patience = name, patience
        self.free_bytes = free_memory_bytes()
        self._pending: list[str] = []
        self._stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed in close()
        try:
            self._process = subprocess.Popen(
                list(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr, env=dict(environment)
            )
        except OSError as error:
            self._stderr.close()
            raise CompressError(f"a worker process cannot be started ({error}); free some memory") from None

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def ask(self, verb: str, arguments: Mapping[str, Any]) -> Any:
        """Send a request and wait for its reply: plain data, or a float32 tensor."""
        self.send(verb, arguments)
        return self.receive()

    def send(self, verb: str, arguments: Mapping[str, Any]) -> None:
        """Send a request and return at once, so that two children can compute side by side."""
        line = json.dumps({"verb": verb, "arguments": arguments}).encode() + b"\n"
        stdin = self._process.stdin
        if stdin is None or stdin.closed:
            raise CompressError(f"the process of {self.name or 'models'} was closed; open another")
        try:
            stdin.write(line)
            stdin.flush()
        except OSError:
            raise self._died() from None
        self._pending.append(verb)

    def receive(self) -> Any:
        """The reply to the oldest request that has none yet."""
        if not self._pending:
            raise CompressError(f"nothing was asked of {self.name}; send a request first")
        stdout = self._process.stdout
        line = self._line(stdout) if stdout is not None else b""
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

    def last_words(self, lines: int = 1) -> str:
        """The last lines that the process wrote to stderr, on one line."""
        self._stderr.seek(0)
        tail = self._stderr.read()[-TAIL_BYTES:].decode(errors="replace").strip().splitlines()
        return " | ".join(line.strip() for line in tail[-lines:]) or "no message"

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

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(at_once=kind is not None)

    def _line(self, stdout: IO[bytes]) -> bytes:
        # nothing is left in the buffer between replies, so that the descriptor tells whether one has begun
        if self.patience is not None and not select.select([stdout], [], [], self.patience)[0]:
            self._process.kill()
            raise CompressError(
                f"{self.name} did not answer {self._pending[0]} within {self.patience:g} seconds and was stopped; its "
                f"last words: {self.last_words()}"
            )
        return stdout.readline()

    def _died(self) -> CompressError:
        """Why the process is gone, in one sentence."""
        name = self.name or "models"
        try:
            code = self._process.wait(CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            return CompressError(f"the process of {name} stopped answering; run again")
        free = f"{self.free_bytes / 2**30:.1f} GiB were free when it started"
        if code < 0:
            return CompressError(
                f"the process of {name} was killed by {signal.Signals(-code).name} "
                f"({free}); if memory ran out, use a smaller --dtype or a larger machine"
            )
        return CompressError(f"the process of {name} ended with code {code}: {self.last_words()}; {free}")


def _error(reply: dict[str, str], name: str) -> CompressError:
    """The worker's error, of its own class and naming the subject."""
    kind = getattr(errors, reply["kind"], CompressError)
    if not (isinstance(kind, type) and issubclass(kind, CompressError)):
        kind = CompressError
    message = reply["message"] if not name or name in reply["message"] else f"{name}: {reply['message']}"
    error = CompressError.__new__(kind)  # MissingExtraError builds its own sentence; this one is built already
    Exception.__init__(error, message)
    return error
