"""llama.cpp itself: every architecture and every block type agrees; its server's vectors do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from compress.pipeline import verify as stage
from compress.pipeline.expected import VerifySettings
from compress.pipeline.hooks import Hooks
from export import environments
from export.source import Source
from tests import tiny
from tests.exporting import artifact, verified, written
from tests.faults import edit_json, reseal

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


@pytest.mark.parametrize("pooling", ["none", "mean", "cls"])
def test_an_embedder_is_asked_over_http(
    pooling: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pooled(name: str, folder: Path) -> None:
        """As sentence-transformers lays it out."""
        whole(name, folder)
        if pooling == "none":
            return
        (folder / "1_Pooling").mkdir(exist_ok=True)
        listed = [{"idx": 0, "type": "Transformer", "path": ""}, {"idx": 1, "type": "x.Pooling", "path": "1_Pooling"}]
        (folder / "modules.json").write_text(json.dumps(listed))
        said = {"pooling_mode_mean_tokens": pooling == "mean", "pooling_mode_cls_token": pooling == "cls"}
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(said))

    whole = tiny.save_tiny
    monkeypatch.setattr(tiny, "save_tiny", pooled)
    out = artifact("bert-embedder", base / pooling)
    where = written(out, "gguf", where=tmp_path / "x")[0]

    def lines() -> list[dict[str, object]]:
        found = stage.verify(where, Source(out), VerifySettings(("llama-cpp",), 1, serve=True), Hooks())
        return [line for line in found.lines if "client" in line]

    asked = lines()
    assert [(line["check"], line["passed"]) for line in asked] == [
        ("served values: largest difference", True),
        ("served question", True),
    ]
    assert all(str(line["client"]).startswith("openai ") for line in asked)
    if pooling == "mean":  # the file pools otherwise than the model should: only a client sees it
        edit_json(where / "export.json", lambda card: card["facts"].update(pooling="cls"))
        reseal(where)
        assert [line["passed"] for line in lines()] == [False, True]
