"""A server for tests: `fake_server.py MODE PORT`; speaks as much of OpenAI's protocol as clients ask for.

Modes: `right:TEXT` answers TEXT, `dies` ends with a message, `hangs` never listens, `child` starts a process that
stays, `late` dies when it is asked, `nonsense` replies what no client understands.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

MODE, _, TEXT = sys.argv[1].partition(":")


class Handler(BaseHTTPRequestHandler):
    """Two entrances."""

    def do_GET(self) -> None:
        """The models."""
        self._reply({"object": "list", "data": [{"id": "fake", "object": "model"}]})

    def do_POST(self) -> None:
        """A chat, a text that goes on, or the vector of one."""
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if MODE == "late":
            sys.stderr.write("out of memory, says the server\n")
            sys.stderr.flush()
            os._exit(3)
        if "input" in asked:
            row = {"object": "embedding", "index": 0, "embedding": [float(len(asked["input"])), 0.5]}
            usage = {"prompt_tokens": 2, "total_tokens": 2}
            body = {"object": "list", "model": "fake", "data": [row], "usage": usage}
            self._reply({"nothing": True} if MODE == "nonsense" else body)
            return
        assert asked["temperature"] == 0
        said: dict[str, Any] = {"index": 0, "finish_reason": "length"}
        if "messages" in asked:
            said["message"] = {"role": "assistant", "content": TEXT}
        else:
            said["text"] = TEXT
        usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
        body = {
            "id": "x",
            "object": "chat.completion",
            "created": 0,
            "model": "fake",
            "choices": [said],
            "usage": usage,
        }
        self._reply({"nothing": True} if MODE == "nonsense" else body)

    def log_message(self, *_: Any) -> None:
        """Quiet."""

    def _reply(self, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


if MODE == "dies":
    sys.exit("no such file: weights")
if MODE == "hangs":
    sys.stderr.write("still loading\n")
    sys.stderr.flush()
    time.sleep(600)
if MODE == "child":
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    sys.stderr.write(f"child {child.pid}\n")
    sys.stderr.flush()
HTTPServer(("127.0.0.1", int(sys.argv[2])), Handler).serve_forever()
