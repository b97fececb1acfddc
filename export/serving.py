"""A runtime's server, started on a free port of this machine and asked as its users ask it.

The client is the `openai` package where it is installed (extra `serve`), else the same request by plain HTTP.
"""

from __future__ import annotations

import json
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, TypeVar

from compress.core import device
from compress.core.errors import CompressError, MissingRuntimeError, UsageError
from export import environments
from export.runtimes import _guard

Told = TypeVar("Told")
HOST = "127.0.0.1"
START_SECONDS, ANSWER_SECONDS, POLL_SECONDS = 600.0, 300.0, 0.25
LAST_LINES, TAIL_BYTES = 5, 8000


@dataclass(frozen=True)
class Embedded:
    """What a server made of a text: a vector, or one of each token where it pools none; the rest as in `Answer`."""

    vector: list[Any]
    prompt_tokens: int | None
    client: str


@dataclass(frozen=True)
class Answer:
    """What a server said. prompt_tokens: how many tokens it made of what it was asked, None when it does not say."""

    text: str
    prompt_tokens: int | None
    client: str


class Server:
    """A started server; a context manager. It is ready when the constructor returns, and gone after `close`."""

    def __init__(
        self, name: str, command: Sequence[str], environment: Mapping[str, str], port: int, patience: float
    ) -> None:
        """Start `command` (interpreter and arguments) and wait, at most `patience` seconds, until it lists its models.

        Raises UsageError when something else listens on `port`, CompressError with its last lines when it dies or does
        not become ready.
        """
        if listens(port):
            raise UsageError(f"port {port} of {HOST} is taken; name another with --port, or leave it out")
        self.name, self.port = name, port
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed in close()
        guarded = [command[0], str(_guard.__file__), *command[1:]]
        self._process = subprocess.Popen(
            guarded, stdin=subprocess.PIPE, stdout=self._log, stderr=subprocess.STDOUT, env=dict(environment)
        )
        begin = time.monotonic()
        try:
            self.model = self._wait(patience)
        except BaseException:
            self.close()
            raise
        self.seconds = time.monotonic() - begin

    @classmethod
    def of(cls, name: str, folder: Path, port: int = 0, threads: int = 0, trusted: bool = False) -> Server:
        """The server of the runtime `name` for the export in `folder`. port 0: a free one. trusted: code that the model
        brings may be run.

        Raises MissingRuntimeError, UsageError for a runtime without a server, and what the constructor raises.
        """
        kind, where = environments.runtime(name), environments.place(name)
        if kind.server is None:
            raise UsageError(f"{name} has no server; leave --serve out, or name another --runtime")
        if where.interpreter is None:
            raise MissingRuntimeError(where.name, where.install)
        chosen = port or free_port()
        variables = {"OMP_NUM_THREADS": str(threads)} if threads else {}
        environment = device.plain_environment() | variables | {**kind.environment}
        command = [str(where.interpreter), *kind.server(str(folder.resolve()), chosen)]
        return cls(where.name, [*command, *(kind.trusting if trusted else ())], environment, chosen, START_SECONDS)

    def chat(self, messages: Sequence[Mapping[str, str]], tokens: int) -> Answer:
        """What it answers with temperature 0 in at most `tokens` tokens. Raises CompressError when it does not."""
        return self._ask("chat/completions", {"messages": [dict(m) for m in messages]}, tokens)

    def complete(self, prompt: str, tokens: int) -> Answer:
        """How it goes on from `prompt`, for models without a chat template."""
        return self._ask("completions", {"prompt": prompt}, tokens)

    def embed(self, text: str) -> Embedded:
        """The vector of a text. Raises CompressError when it gives none.

        Texts are asked for one by one: of several without pooling llama-cpp-python (0.3.36, `Llama.embed`) gives wrong
        rows of all but the first.
        """

        def told(found: dict[str, Any], client: str) -> Embedded:
            usage = found.get("usage") or {}
            return Embedded(found["data"][0]["embedding"], usage.get("prompt_tokens"), client)

        return self._reply("embeddings", {"input": text, "encoding_format": "float"}, told)

    def last_words(self) -> str:
        """The last lines of its log, on one line."""
        self._log.seek(0, 2)
        self._log.seek(max(0, self._log.tell() - TAIL_BYTES))
        tail = self._log.read().decode(errors="replace").strip().splitlines()
        return " | ".join(line.strip() for line in tail[-LAST_LINES:]) or "no message"

    def close(self) -> None:
        """End it and everything that it started. May be called again."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            self._process.stdin.close()
        try:
            self._process.wait(_guard.GRACE_SECONDS + 10)
        except subprocess.TimeoutExpired:  # the guard itself hangs: not known to happen
            self._process.kill()
            self._process.wait()
        self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _wait(self, patience: float) -> str:
        """The name of the model that it serves, as soon as it says so."""
        until = time.monotonic() + patience
        while time.monotonic() < until:
            if self._process.poll() is not None:
                raise CompressError(
                    f"the server of {self.name} ended with code {self._process.returncode} before it was ready; its "
                    f"last lines: {self.last_words()}"
                )
            try:
                found = _request(f"{self._base}/models", None, 5.0)
                return str(found["data"][0]["id"])
            except (OSError, ValueError, LookupError, TypeError):
                time.sleep(POLL_SECONDS)
        raise CompressError(
            f"the server of {self.name} was not ready after {patience:g} seconds and was stopped; its last lines: "
            f"{self.last_words()}"
        )

    def _ask(self, entrance: str, said: dict[str, Any], tokens: int) -> Answer:
        def told(found: dict[str, Any], client: str) -> Answer:
            choice = found["choices"][0]
            text = choice["message"]["content"] if "message" in choice else choice["text"]
            usage = found.get("usage") or {}
            return Answer(str(text or ""), usage.get("prompt_tokens"), client)

        return self._reply(entrance, {**said, "temperature": 0, "max_tokens": tokens}, told)

    def _reply(self, entrance: str, said: dict[str, Any], told: Callable[[dict[str, Any], str], Told]) -> Told:
        """What `told` makes of the reply and of the client's name."""
        try:
            return told(*_by_client(self._base, entrance, {"model": self.model, **said}))
        except Exception as error:  # the client's own kinds, a broken connection, an answer of another shape
            said_so = " ".join(str(error).split())[:300] or type(error).__name__
            raise CompressError(
                f"the server of {self.name} did not answer ({said_so}); its last lines: {self.last_words()}"
            ) from None

    @property
    def _base(self) -> str:
        return f"http://{HOST}:{self.port}/v1"


def free_port() -> int:
    """A port of the loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def listens(port: int) -> bool:
    """Whether something listens on a port of the loopback."""
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex((HOST, port)) == 0


def _by_client(base: str, entrance: str, asked: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """The reply as plain data, and which client got it."""
    version = device.package_version("openai")
    if version is None:
        return _request(f"{base}/{entrance}", asked, ANSWER_SECONDS), "HTTP"
    from openai import OpenAI

    with OpenAI(base_url=base, api_key="none", timeout=ANSWER_SECONDS, max_retries=0) as client:
        places: dict[str, Any] = {"chat/completions": client.chat.completions, "embeddings": client.embeddings}
        place = places.get(entrance, client.completions)
        found: dict[str, Any] = place.create(**asked).model_dump(warnings=False)
    return found, f"openai {version}"


def _request(url: str, asked: dict[str, Any] | None, patience: float) -> dict[str, Any]:
    data = None if asked is None else json.dumps(asked).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # this machine needs no proxy
    try:
        with direct.open(request, timeout=patience) as reply:
            found: dict[str, Any] = json.load(reply)
            return found
    except urllib.error.HTTPError as error:
        said = error.read(300).decode(errors="replace")
        raise OSError(f"{error.code} {error.reason}: {said}") from None
