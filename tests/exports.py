"""Exports of tiny models in tests: runtimes of our own environment without a process each, and faults planted in files.

A fault is what a wrong exporter would have written: it is put into the files, and export.json is made to fit them, so
that only what reads the file can notice.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from compress.core.fingerprint import file_sha256
from compress.core.types import RunRecord
from compress.pipeline import verify as stage
from compress.pipeline.expected import VerifySettings
from compress.pipeline.export import ExportSettings, export
from compress.pipeline.hooks import Hooks
from compress.pipeline.verify import Verified
from export.client import RuntimeProcess
from export.folder import EXPORT, OWN
from export.runtimes._worker import Server
from export.source import Source

SETTINGS = VerifySettings(threads=1)


class InProcess(RuntimeProcess):
    """The worker of a runtime, called instead of started."""

    def __init__(self, name: str, threads: int = 0, patience: float | None = None, trusted: bool = False) -> None:
        del patience
        self._server = Server(name)
        self.runtime, self.kind, self.vocabulary, self.normalised = name, "", 0, False
        self.threads = int(self.ask("settings", {"values": {"threads": threads, "trust_remote_code": trusted}}))
        self.version = str(self.ask("version", {}))

    def ask(self, verb: str, arguments: Mapping[str, Any]) -> Any:
        """The worker's reply, as it comes out of a pipe."""
        reply = self._server.handle({"verb": verb, "arguments": json.loads(json.dumps(arguments))})
        if "error" in reply:
            raise RuntimeError(reply["error"]["message"])
        result = reply["result"]
        return torch.from_numpy(result.copy()) if hasattr(result, "dtype") else json.loads(json.dumps(result))

    def close(self, at_once: bool = False) -> None:
        """Nothing was started."""

    def __enter__(self) -> Self:
        return self


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runtimes of our own environment run in the process of the test."""
    monkeypatch.setattr(stage, "RuntimeProcess", InProcess)


def written(out: Path, form: str, runtime: str = "", **options: str) -> tuple[Path, RunRecord]:
    """An export of the artifact `out` in the format `form`, judged in `runtime`, or not at all."""
    verify = VerifySettings((runtime,) if runtime else (), threads=1)
    settings = ExportSettings((form,), options, None, bool(runtime), True, verify)
    record, failures = export(out, settings, Hooks())
    assert [str(failure) for failure in failures] == []
    return out / "exports" / form, record


def judged(where: Path, out: Path, runtime: str) -> Verified:
    """The export in `where`, judged in `runtime`."""
    return stage.verify(where, Source(out), VerifySettings((runtime,), threads=1), Hooks())


def reseal(where: Path) -> None:
    """Make export.json say of the files what they now are."""
    told = json.loads((where / EXPORT).read_text())
    files = [path for path in sorted(where.rglob("*")) if path.is_file() and path.name not in OWN - {"README.md"}]
    told["files"] = {path.relative_to(where).as_posix(): file_sha256(path) for path in files}
    (where / EXPORT).write_text(json.dumps(told))


def edit_tensors(where: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    """Change the weights of a checkpoint of one file."""
    file = where / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    file.unlink()  # it may be the artifact's own by another name
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file, {"format": "pt"})
    reseal(where)


def edit_json(where: Path, name: str, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a JSON file of an export."""
    told = json.loads((where / name).read_text())
    change(told)
    (where / name).write_text(json.dumps(told))
    reseal(where)


def wrong_lines(found: Verified) -> list[str]:
    """The checks that did not pass."""
    return [line["check"] for line in found.lines if not line["passed"]]
