"""Our side of a runtime's process: open an export there, ask for logits, tokens, ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from compress.core import device
from compress.core.child import Child
from compress.core.errors import MissingRuntimeError
from export import environments
from export.runtimes import _worker

PATIENCE_SECONDS = 900.0


def worker_command(name: str) -> tuple[list[str], dict[str, str]]:
    """What starts the worker of a runtime, and its environment. Raises MissingRuntimeError."""
    where = environments.place(name)
    if where.interpreter is None:
        raise MissingRuntimeError(where.name, where.install)
    environment = device.child_environment() if where.how == "own" else device.plain_environment()
    environment |= {**environments.runtime(name).environment}
    return [str(where.interpreter), str(_worker.__file__), where.name], environment


class RuntimeProcess(Child):
    """An export, open in its runtime, in a process of its own; a context manager."""

    def __init__(
        self, name: str, threads: int = 0, patience: float | None = PATIENCE_SECONDS, trusted: bool = False
    ) -> None:
        """Start the process. trusted: code that a model brings may be run. Raises MissingRuntimeError."""
        plain = environments.plain(name)
        super().__init__(*worker_command(name), plain, patience)
        self.runtime, self.kind, self.vocabulary, self.normalised = plain, "", 0, False
        try:
            self.threads = int(self.ask("settings", {"values": {"threads": threads, "trust_remote_code": trusted}}))
            self.version = str(self.ask("version", {}))
        except BaseException:
            self.close(at_once=True)
            raise

    @classmethod
    def open(cls, name: str, folder: Path, threads: int = 0, trusted: bool = False) -> RuntimeProcess:
        """A fresh process with the export in `folder` open. Raises what the process raises."""
        process = cls(name, threads, trusted=trusted)
        try:
            told = process.ask("load", {"subject": str(folder.resolve())})
        except BaseException:
            process.close(at_once=True)
            raise
        process.kind, process.vocabulary = str(told["kind"]), int(told["vocabulary"])
        process.normalised = bool(told.get("normalised"))
        return process

    def run(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Logits (B, L, V) of a decoder, the first output of another model, float32."""
        result: Tensor = self.ask("run", {"inputs": {name: value.tolist() for name, value in inputs.items()}})
        return result

    def greedy(self, ids: Sequence[int], n: int) -> list[int]:
        """n next tokens by argmax."""
        return list(self.ask("greedy", {"ids": list(ids), "n": n}))

    def write(self, inputs: Mapping[str, Tensor], n: int) -> list[list[int]]:
        """What an encoder-decoder writes for each row."""
        told = {name: value.tolist() for name, value in inputs.items()}
        return [list(row) for row in self.ask("write", {"inputs": told, "n": n})]

    def tokenize(self, texts: Sequence[str]) -> list[list[int]] | None:
        """Ids by the runtime's own tokenizer; None where it has none."""
        found: list[list[int]] | None = self.ask("tokenize", {"texts": list(texts)})
        return found

    def chat(self, messages: Sequence[Mapping[str, str]]) -> list[int] | None:
        """Ids of the prompt that its server builds: none where it has no template; None where it never builds any."""
        found: list[int] | None = self.ask("chat", {"messages": [dict(m) for m in messages]})
        return found

    def probe(self) -> list[dict[str, Any]]:
        """Rows {what, rows, seconds, plain_seconds} of the runtime's own operators on this machine."""
        found: list[dict[str, Any]] = self.ask("probe", {})
        return found

    def timed(self, path: Path, axes: Mapping[str, int], least: int, seconds: float) -> list[float]:
        """Seconds of each run of a file on inputs that the runtime invents: `least` at least, as many as `seconds`
        hold. axes: sizes of its named axes."""
        told = {"path": str(path.resolve()), "axes": dict(axes), "least": least, "seconds": seconds}
        found: list[float] = self.ask("timed", told)
        return found

    def answer(self, asked: Any, n: int) -> dict[str, Any] | None:
        """{"ids" or "text", "client"}: what the client of its users says to messages, a prompt, a text or a sound; None
        where there is none."""
        found: dict[str, Any] | None = self.ask("answer", {"asked": asked, "n": n})
        return found

    def read(self, texts: Sequence[Sequence[str]]) -> dict[str, Any] | None:
        """{"client", "values" or "labels"}: what that client makes of each text, or pair of texts; None where there is
        none."""
        found: dict[str, Any] | None = self.ask("read", {"texts": [list(text) for text in texts]})
        return found

    def latency(self, prompt: int, decode: int, repeats: int, warmup: int = 1) -> dict[str, Any]:
        """{"prefill_seconds": (repeats,), "step_seconds": (repeats, decode), "threads"}."""
        told = {"prompt": prompt, "decode": decode, "repeats": repeats, "warmup": warmup}
        result: dict[str, Any] = self.ask("latency", told)
        return result

    def rss(self) -> dict[str, Any]:
        """Resident bytes of the process: {"peak", "current", "baseline", "load_seconds"}."""
        result: dict[str, Any] = self.ask("rss", {})
        return result
