"""Starts a server and ends it: when its own stdin ends, however that comes about, and when the server ends by itself.

Run by path with the interpreter of the runtime, `_guard.py ARGUMENTS`. The server and all that it starts are one
process group, and the group is killed: nothing stays behind even when the one who asked for it was killed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading

GRACE_SECONDS = 10.0


def main(arguments: list[str]) -> int:
    """Run the interpreter with `arguments` until stdin ends; the server's exit code, negative for a signal."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # who closes stdin decides
    server = subprocess.Popen(
        [sys.executable, *arguments],
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=None if sys.platform == "win32" else _signals_as_usual,
    )
    ended = threading.Event()
    threading.Thread(target=_watch, args=(ended,), daemon=True).start()
    while server.poll() is None and not ended.wait(0.1):
        pass
    if server.poll() is None:
        _signal(server, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(GRACE_SECONDS)
    code = server.poll()
    _signal(server, getattr(signal, "SIGKILL", signal.SIGTERM))  # whatever of the group is left
    server.wait()
    return 0 if code is None else code


def _watch(ended: threading.Event) -> None:
    while sys.stdin.buffer.read(1):
        pass
    ended.set()


def _signals_as_usual() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


def _signal(server: subprocess.Popen[bytes], number: int) -> None:
    try:
        if sys.platform == "win32":
            server.terminate()
        else:
            os.killpg(server.pid, number)
    except OSError:
        pass  # gone already


if __name__ == "__main__":
    code = main(sys.argv[1:])
    os._exit(code if code >= 0 else 128 - code)  # a thread still reads stdin
