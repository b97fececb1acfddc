"""The process that holds one export in one runtime: run by path, with the interpreter the runtime is installed in.

Nothing of ours is installed there, and nothing of ours may be seen there: only `export.runtimes` is made importable,
from where this file lies. Requests and replies as in compress.core.child; the verbs are those of
compress.measure.worker as far as a runtime has them, so that `bench` asks both alike.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import time
import traceback
import types
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import IO, Any


def main() -> int:
    """`_worker.py RUNTIME`: serve requests until stdin ends. Always 0: failures are replies."""
    here = Path(__file__).resolve().parent  # its files are called like the packages they import
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != here]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when to stop
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    server = Server(sys.argv[1])
    for line in sys.stdin.buffer:
        try:
            _answer(out, server.handle(json.loads(line)))
        except BrokenPipeError:
            break
    return 0


class Server:
    """Verbs of one process; at most one export is open."""

    def __init__(self, name: str) -> None:
        here = Path(__file__).resolve().parent  # first on the path of a script: our vllm.py would be everybody's vllm
        sys.path[:] = [path for path in sys.path if not path or Path(path).resolve() != here]
        package = types.ModuleType("export")
        package.__path__ = [str(Path(__file__).resolve().parents[1])]
        sys.modules.setdefault("export", package)
        self.runtime = importlib.import_module(f"export.runtimes.{name.replace('-', '_')}").RUNTIME
        self.settings_given: dict[str, Any] = {"threads": 0}
        self.session: Any = None
        self.kept: Any = None
        self.load_seconds: float | None = None
        self.baseline = _status("VmRSS")

    def handle(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The reply to one request; every failure becomes an `error`."""
        verb = str(request.get("verb"))
        try:
            if verb.startswith("_") or verb in ("handle", "runtime", "session"):
                raise ValueError(f"no such request: {verb}")
            return {"result": getattr(self, verb)(**request.get("arguments", {}))}
        except Exception as error:
            traceback.print_exc()
            said = " ".join(str(error).split())[:400]
            return {"error": {"kind": "CompressError", "message": f"{verb} failed: {type(error).__name__}: {said}"}}

    def settings(self, values: Mapping[str, Any]) -> int:
        """Take settings; the number of threads."""
        self.settings_given = {**values, "threads": int(values.get("threads") or _cores())}
        return int(self.settings_given["threads"])

    def version(self) -> str:
        """The runtime's version."""
        return metadata.version(self.runtime.distribution)

    def probe(self) -> list[dict[str, Any]]:
        """How long the runtime's own operators take on this machine."""
        found: list[dict[str, Any]] = self.runtime.probe(self.settings_given["threads"])
        return found

    def timed(self, path: str, axes: dict[str, int], least: int, seconds: float) -> list[float]:
        """Seconds of each run of a file on inputs that the runtime invents."""
        found: list[float] = self.runtime.timed(path, self.settings_given, axes, least, seconds)
        return found

    def load(self, subject: str) -> dict[str, Any]:
        """Open an export."""
        begin = time.perf_counter()
        self.session = self.runtime.open(subject, self.settings_given)
        self.load_seconds = time.perf_counter() - begin
        normalised = bool(getattr(self.session, "normalised", False))
        return {"kind": self.session.kind, "vocabulary": int(self.session.vocabulary), "normalised": normalised}

    def run(self, inputs: Mapping[str, Any]) -> Any:
        """The first output for named inputs: nested lists of whole numbers, or of floats."""
        return self._open().run(_arrays(inputs))

    def forward(self, ids: list[int]) -> list[int]:
        """Run a decoder or an encoder over one sequence; its shape. The rows stay here until asked for."""
        import numpy as np

        inputs = {"input_ids": np.asarray([ids], dtype=np.int64)}
        self.kept = self._open().run(inputs)[0]
        return list(self.kept.shape)

    def rows(self, start: int, stop: int) -> Any:
        """Some rows of what `forward` kept."""
        return self.kept[start:stop]

    def greedy(self, ids: list[int], n: int) -> list[int]:
        """Next tokens by argmax."""
        return [int(token) for token in self._open().greedy(ids, n)]

    def write(self, inputs: Mapping[str, Any], n: int) -> list[list[int]]:
        """What an encoder-decoder writes, a list of ids for each row."""
        return [[int(token) for token in row] for row in self._open().write(_arrays(inputs), n)]

    def tokenize(self, texts: list[str]) -> list[list[int]] | None:
        """Ids of texts by the runtime's own tokenizer."""
        found = [self._open().tokenize(text) for text in texts]
        return None if any(ids is None for ids in found) else [list(map(int, ids)) for ids in found]

    def chat(self, messages: list[dict[str, str]]) -> list[int] | None:
        """Ids of the prompt that it builds from messages: none without a template; None where it never builds one."""
        if not hasattr(self._open(), "chat"):
            return None
        return [int(token) for token in self._open().chat(messages) or []]

    def answer(self, asked: Any, n: int) -> dict[str, Any] | None:
        """What its client says to messages, a prompt, a text or a sound: {"ids" or "text", "client"}; None where it has
        none."""
        if not hasattr(self._open(), "answer"):
            return None
        said, client = self._open().answer(asked, n)
        told = {"text": said} if isinstance(said, str) else {"ids": [int(token) for token in said]}
        return {**told, "client": client}

    def read(self, texts: list[list[str]]) -> dict[str, Any] | None:
        """What its client makes of texts: {"client", "values" or "labels"}, plain lists; None where it has none."""
        return self._open().read(texts) if hasattr(self._open(), "read") else None

    def latency(self, prompt: int, decode: int, repeats: int, warmup: int) -> dict[str, Any]:
        """Seconds of prefill and of decode steps, as compress.measure.subject times them."""
        import numpy as np

        session, threads = self._open(), self.settings_given["threads"]
        most = getattr(session, "tokens", 0) or session.vocabulary or 1000
        ids = np.random.default_rng(0).integers(0, most, prompt)
        prefill, steps = [], []
        for turn in range(warmup + repeats):
            first, taken = _timed(session, ids, decode)
            if turn >= warmup:
                prefill.append(first)
                steps.append(taken)
        return {"prefill_seconds": prefill, "step_seconds": steps, "threads": threads}

    def rss(self) -> dict[str, Any]:
        """Resident bytes: peak, now, and before a model was loaded; seconds the loading took."""
        now = _status("VmRSS")
        peak = max(_status("VmHWM"), now)
        return {"peak": peak, "current": now, "baseline": self.baseline, "load_seconds": self.load_seconds}

    def _open(self) -> Any:
        if self.session is None:
            raise ValueError("no export is open in this worker; send load first")
        return self.session


def _timed(session: Any, ids: Any, decode: int) -> tuple[float, list[float]]:
    """Seconds of one prefill, and of the decode steps after it."""
    told = [int(token) for token in ids]
    if hasattr(session, "timed"):
        first, taken = session.timed(told, decode)
        return float(first), [float(seconds) for seconds in taken]
    begin = time.perf_counter()
    if session.kind != "decoder":
        session.run({"input_ids": ids[None].astype("int64")})
        return time.perf_counter() - begin, []
    logits = session.step(told, True)
    first, taken = time.perf_counter() - begin, []
    for _ in range(decode):
        begin = time.perf_counter()
        logits = session.step([int(logits.argmax())], False)
        taken.append(time.perf_counter() - begin)
    return first, taken


def _arrays(inputs: Mapping[str, Any]) -> dict[str, Any]:
    import numpy as np

    found = {name: np.asarray(values) for name, values in inputs.items()}
    return {n: a.astype(np.float32 if a.dtype.kind == "f" else np.int64) for n, a in found.items()}


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _status(field: str) -> int:
    try:
        text = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith(f"{field}:")), 0)


def _answer(out: IO[bytes], reply: dict[str, Any]) -> None:
    result = reply.get("result")
    if hasattr(result, "dtype"):
        import numpy as np

        array = np.ascontiguousarray(result, dtype="<f4")
        header = {"result": None, "shape": list(array.shape), "bytes": array.nbytes}
        out.write(json.dumps(header).encode() + b"\n")
        if array.size:
            out.write(array.tobytes())
    else:
        out.write(json.dumps(reply).encode() + b"\n")
    out.flush()


if __name__ == "__main__":
    sys.exit(main())
