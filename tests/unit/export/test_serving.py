"""Servers that answer, die, hang, or leave children behind; all of it bounded in time."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from compress.core import device
from compress.core.errors import CompressError, UsageError
from export import judge, serving
from export.runtimes import _guard
from export.serving import Answer, Embedded, Server, free_port

SCRIPT = Path(__file__).parents[2] / "fake_server.py"
CHAT = [{"role": "user", "content": "Hello?"}]


def start(mode: str, patience: float = 20.0, port: int = 0) -> Server:
    chosen = port or free_port()
    command = [sys.executable, str(SCRIPT), mode, str(chosen)]
    return Server("fake", command, device.plain_environment(), chosen, patience)


def gone(pid: int, seconds: float = 15.0) -> bool:
    """Whether a process ends within `seconds`."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("client", ["openai", "HTTP"])
def test_a_server_is_asked_by_the_client_that_is_installed(monkeypatch: pytest.MonkeyPatch, client: str) -> None:
    version = device.package_version("openai") if client == "openai" else None
    if client == "openai" and version is None:
        pytest.skip("openai is not installed")
    monkeypatch.setattr(serving.device, "package_version", lambda _: version)
    with start("right:An apple.") as server:
        assert server.chat(CHAT, 32) == Answer("An apple.", 7, f"openai {version}" if version else "HTTP")
        assert server.complete("Once", 32).text == "An apple."
        assert server.embed("Once") == Embedded([4.0, 0.5], 2, f"openai {version}" if version else "HTTP")
        pid = server._process.pid
    assert gone(pid)
    assert not serving.listens(server.port)


def test_one_that_dies_is_told_with_its_last_lines() -> None:
    with pytest.raises(CompressError, match=r"ended with code 1 before it was ready.*no such file: weights"):
        start("dies")


def test_one_that_hangs_is_stopped_after_a_bounded_wait() -> None:
    begin = time.monotonic()
    with pytest.raises(CompressError, match=r"not ready after 2 seconds and was stopped.*still loading"):
        start("hangs", patience=2.0)
    assert time.monotonic() - begin < 12


def test_one_that_dies_when_it_is_asked() -> None:
    with start("late") as server, pytest.raises(CompressError, match=r"did not answer.*out of memory, says the server"):
        server.chat(CHAT, 32)


def test_an_answer_that_is_none() -> None:
    with start("nonsense") as server, pytest.raises(CompressError, match="did not answer"):
        server.chat(CHAT, 32)


def test_a_taken_port_is_one_sentence() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(UsageError, match=f"port {port} of 127.0.0.1 is taken; name another with --port"):
            start("right:x", port=port)


def test_nothing_stays_behind() -> None:
    with start("child") as server:
        child = int(server.last_words().split("child ")[1].split()[0])
        assert psutil.pid_exists(child)
    assert gone(child)


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_nothing_stays_behind_when_the_one_who_asked_is_killed(tmp_path: Path) -> None:
    port = free_port()
    code = (
        "import subprocess, sys, time\n"
        f"guard = subprocess.Popen([sys.executable, {_guard.__file__!r}, {str(SCRIPT)!r}, 'right:x', '{port}'],"
        " stdin=subprocess.PIPE)\n"
        "time.sleep(600)\n"
    )
    asker = subprocess.Popen([sys.executable, "-c", code])
    try:
        until = time.monotonic() + 20
        while not serving.listens(port) and time.monotonic() < until:
            time.sleep(0.05)
        family = psutil.Process(asker.pid).children(recursive=True)
        assert len(family) == 2
    finally:
        os.kill(asker.pid, signal.SIGKILL)
        asker.wait()
    assert all(gone(process.pid) for process in family)
    assert not serving.listens(port)


WORDS = ["<s>", "a", "b", "c", " d", ""]


def decode(ids: list[int]) -> str:
    return "".join(WORDS[i] for i in ids)


def line(text: str, preferred: float) -> judge.Line:
    """The reference says "ab d"; at "b" it prefers its own to "c" by `preferred`."""
    logits = torch.full((4, len(WORDS)), -9.0)
    for row, token in enumerate((1, 2, 4, 5)):
        logits[row, token] = 1.0
    logits[1, 3] = 1.0 - preferred
    allowed = judge.Bounds(1.0, 0.5, 0.1, "", {})
    return judge.served(text, [1, 2, 4, 5], logits, decode, allowed)


def test_served_text_is_judged_where_it_parts() -> None:
    assert line("ab d", 9.0) == {"check": "served answer", "of": 4, "passed": True, "equal": 4}
    close, far = line("ac d", 0.25), line("ac d", 2.0)
    assert (close["passed"], close["equal"], close["gap"]) == (True, 1, 0.25)
    assert (far["passed"], far["equal"], far["gap"]) == (False, 1, 2.0)
    assert not line("zzz", 0.25)["passed"]
    assert not line("", 0.25)["passed"]
    assert not line("ab", 0.25)["passed"]
