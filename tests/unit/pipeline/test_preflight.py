"""Whether it will be faster here is said before any work, from the runtime's own operators."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from compress.core.errors import CompressError
from compress.pipeline import preflight
from compress.pipeline.preflight import probes, slower
from export.formats.gguf import EXPORT, Options
from export.runtimes._onnx_probe import probe
from export.source import Source
from tests.exporting import artifact

ROWS = [
    {"what": "q4_1", "rows": 1, "speedup": 2.0},
    {"what": "q4_1", "rows": 64, "speedup": 0.5},
    {"what": "q8_0", "rows": 1, "speedup": 0.1},
]


def test_only_what_is_slower_and_used_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Source(artifact("llama", tmp_path))
    monkeypatch.setattr(preflight, "probes", lambda *_: ROWS)
    said = slower(EXPORT, source, Options())
    assert said == [
        "q4_1 will not be faster than float32 in llama-cpp on this machine for 64 tokens at once: 0.50 times its speed"
    ]

    def fails(*_: Any) -> list[dict[str, Any]]:
        raise CompressError("the runtime is broken")

    monkeypatch.setattr(preflight, "probes", fails)
    assert slower(EXPORT, source, Options()) == []


def test_onnxruntime_times_its_own_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    from export.runtimes import _onnx_probe

    monkeypatch.setattr(_onnx_probe, "SIZE", 128)
    rows = probe(1)
    assert {row["rows"] for row in rows} == {1, 128}
    assert len({row["what"] for row in rows}) == 3
    assert all(row["seconds"] > 0 and row["plain_seconds"] > 0 for row in rows)


def test_runtimes_without_operators_of_their_own_say_nothing() -> None:
    assert probes("transformers") == []
