"""llama.cpp itself: every architecture and every block type agrees."""

from __future__ import annotations

from pathlib import Path

import pytest

from export import environments
from tests.exporting import artifact, verified, written

pytestmark = [
    pytest.mark.runtimes,
    pytest.mark.skipif(
        environments.place("llama-cpp").interpreter is None, reason="compress runtime install llama.cpp installs it"
    ),
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("llama-cpp")


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2", "qwen3-wide", "gemma3", "gpt2"])
def test_every_architecture_agrees(name: str, base: Path, tmp_path: Path) -> None:
    out = artifact(name, base)
    found = verified(written(out, "gguf", where=tmp_path / "x")[0], out, "llama-cpp")
    assert found.passed, [line for line in found.lines if not line["passed"]]
    assert {"outputs: divergence of the distributions", "greedy tokens", "tokenizer", "chat template"} <= {
        line["check"] for line in found.lines
    }


@pytest.mark.parametrize("scheme", ["q4_0", "q5_0", "q5_1", "q8_0"])
def test_every_block_type_agrees(scheme: str, base: Path, tmp_path: Path) -> None:
    out = artifact("llama", base / scheme, bits=4, group_size="auto", scheme=scheme)
    found = verified(written(out, "gguf", where=tmp_path / "x")[0], out, "llama-cpp")
    assert found.passed, [line for line in found.lines if not line["passed"]]
