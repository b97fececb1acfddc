"""vLLM itself, in its own environment: tiny models of sizes that its CPU kernels take, its server."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from compress.pipeline import verify as stage
from compress.pipeline.expected import VerifySettings
from compress.pipeline.hooks import Hooks
from export.environments import place
from export.source import Source
from tests.exporting import written, wrong
from tests.faults import edit_json, reseal
from tests.rebuild import Run, run
from tests.tiny import EOS, TOKENS, randomize, tiny_config, tiny_tokenizer

WHERE = place("vllm")
pytestmark = [
    pytest.mark.runtimes,
    pytest.mark.skipif(WHERE.interpreter is None, reason=f"vLLM is not installed: {WHERE.install}"),
]


def save(name: str, folder: Path) -> Path:
    """A tiny model whose heads have 32 values and whose vocabulary is a multiple of 64, which vLLM wants."""
    config = tiny_config(name)
    config.update({"hidden_size": 128, "intermediate_size": 256, "vocab_size": 448, "head_dim": 32})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config)
        randomize(model)
    model.generation_config.eos_token_id = EOS
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    assert config.vocab_size > TOKENS
    return folder


SETTINGS: dict[str, dict[str, Any]] = {
    "4 bits, zero points": {},
    "4 bits, symmetric": {"symmetric": True},
    "int8 inputs": {"bits": 8, "activations": "dynamic"},
}


@pytest.fixture(scope="module")
def qwen2(tmp_path_factory: pytest.TempPathFactory) -> Run:
    base = tmp_path_factory.mktemp("qwen2")
    return run("qwen2", save("qwen2", base / "qwen2"), base / "out", method="rtn")


@pytest.mark.parametrize("settings", list(SETTINGS))
@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_vllm_opens_the_artifact_and_agrees(tmp_path: Path, name: str, settings: str) -> None:
    done = run(name, save(name, tmp_path / name), tmp_path / "out", method="rtn", **SETTINGS[settings])
    _, record = written(done.out, "compressed-tensors", "vllm")
    lines = {line["check"]: line for line in record.verified}
    assert [check for check, line in lines.items() if not line["passed"]] == []
    assert {"tokenizer", "chat template", "greedy tokens"} <= set(lines)
    assert lines["outputs: divergence of the distributions"]["kl"] < 0.05


def test_its_server_answers_what_the_reference_writes(qwen2: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(qwen2.out, out)
    where, _ = written(out, "compressed-tensors")
    settings = VerifySettings(("vllm",), threads=1, serve=True)
    found = stage.verify(where, Source(out), settings, Hooks())
    lines = {line["check"]: line for line in found.lines}
    assert {"served answer", "served question"} <= set(lines)
    assert wrong(found.lines) == []
    edit_json(where / "config.json", lambda config: config["rope_parameters"].update(rope_theta=3.0))
    reseal(where)
    found = stage.verify(where, Source(out), settings, Hooks())
    assert "served answer" in wrong(found.lines)
