"""One process that forks, for the whole folder; and how two output folders are compared."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from compress.core.device import child_environment
from tests.tiny import save_tiny

QUICK: dict[str, Any] = {"samples": 2, "seq_len": 32, "eval_samples": 2, "generate": 0, "verify": False, "threads": 1}
QUICK["options"] = {"rounds": 0, "steps": 8}
TIMED = {"seconds", "stages", "environment"}
"""Keys of record.json that say when and how fast, not what."""

Ask = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny models by architecture, each with its tokenizer."""
    folder = tmp_path_factory.mktemp("models")
    return {name: save_tiny(name, folder / name) for name in ("llama", "t5", "gpt2", "bert")}


@pytest.fixture(scope="session")
def ask() -> Iterator[Ask]:
    """Sends a request to the runner: `ask(cwd, model, kill=None, **settings)`."""
    if not hasattr(os, "fork"):
        pytest.skip("this system cannot fork; the tests of kills need Linux or macOS")
    environment = child_environment() | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.resume.runner"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert process.stdin is not None
    assert process.stdout is not None

    def send(
        cwd: Path, kill: int | None = None, calls: int = 1, overwrite: bool = False, **settings: Any
    ) -> dict[str, Any]:
        cwd.mkdir(parents=True, exist_ok=True)
        request = {"cwd": str(cwd), "kill": kill, "calls": calls, "overwrite": overwrite}
        verb = settings.pop("verb", "quantize")
        request |= {"verb": verb, "settings": settings if verb == "tune" else QUICK | settings}
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        line = process.stdout.readline()
        assert line, "the runner died"
        reply: dict[str, Any] = json.loads(line)
        return reply

    yield send
    process.stdin.close()
    process.wait(30)
    process.stdout.close()


def contents(out: Path) -> dict[str, str]:
    """sha256 of every file of an output folder; journal left out, record.json without what was timed.

    Reports are made from the record, so they are compared with what their own record renders to.
    """
    from compress.report import html, record, terminal

    made = record.read(out / "compress" / "record.json")
    assert (out / "report.html").read_text(encoding="utf-8") == html.render(made)
    assert (out / "report.txt").read_text(encoding="utf-8") == terminal.text(made)
    found = {}
    for path in sorted(p for p in out.rglob("*") if p.is_file()):
        name = path.relative_to(out).as_posix()
        data = path.read_bytes()
        if name == "compress/record.json":
            found[name] = json.dumps(_untimed(json.loads(data)), indent=1)
        elif name not in ("compress/journal.jsonl", "report.html", "report.txt"):
            found[name] = hashlib.sha256(data).hexdigest()
    folders = {p.relative_to(out).as_posix(): "folder" for p in out.rglob("*") if p.is_dir()}
    return found | folders


def _untimed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _untimed(item) for key, item in value.items() if key not in TIMED}
    return [_untimed(item) for item in value] if isinstance(value, list) else value
