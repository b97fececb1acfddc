"""The artifact as an export: opened by transformers, decoded by compressed-tensors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compress.core.errors import RecipeError
from export.environments import refuses
from export.runtimes.transformers import Session
from tests.exporting import Bench, artifact, judged, static, subject, written, wrong
from tests.faults import edit_json, reseal
from tests.rebuild import Run, run
from tests.tiny import BOS, EOS, MELS, save_tiny

CODES = "codes and scales read back"


@pytest.fixture(scope="module")
def qwen2(tmp_path_factory: pytest.TempPathFactory) -> Run:
    base = tmp_path_factory.mktemp("qwen2")
    return run("qwen2", save_tiny("qwen2", base / "qwen2"), base / "out", method="rtn")


def test_the_export_is_the_artifact_without_our_own_files(qwen2: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(qwen2.out, out)
    where, record = written(out, "compressed-tensors", "transformers")  # in a process of its own, this once
    lines = {line["check"]: line for line in record.verified}
    assert all(line["passed"] for line in record.verified)
    assert lines[CODES]["layers"] == 14
    assert lines["outputs: largest difference"]["difference"] <= 1e-5
    assert lines["greedy tokens"]["equal"] == 32
    assert {"tokenizer", "chat template"} <= set(lines)
    assert (where / "model.safetensors").samefile(out / "model.safetensors")
    assert not (where / "compress").exists()
    assert (where / "config.json").read_bytes() == (out / "config.json").read_bytes()
    readme = (where / "README.md").read_text()
    assert "Qwen2ForCausalLM.from_pretrained" in readme
    assert "vllm serve . " in readme
    saved = json.loads((where / "verify.json").read_text())
    assert saved["passed"]
    assert {m["name"] for m in saved["measurements"]} >= {"runtime_kl", "decode_tokens_per_s", "peak_rss_bytes"}


def test_a_copy_shares_nothing(qwen2: Run, tmp_path: Path) -> None:
    shutil.copytree(qwen2.out, tmp_path / "out")
    where, _ = written(tmp_path / "out", "compressed-tensors", **{"compressed-tensors.copy": "true"})
    assert not (where / "model.safetensors").samefile(tmp_path / "out" / "model.safetensors")


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("llama", {"activations": "dynamic", "bits": 8}),
        ("bert", {"activations": "static", "bits": 8}),
        ("bert", {}),
        ("mixtral", {}),
    ],
    ids=["w8a8 decoder", "w8a8 static encoder", "mixed encoder", "experts"],
)
def test_other_models_agree_in_transformers(tmp_path: Path, name: str, settings: dict[str, Any]) -> None:
    done = run(name, save_tiny(name, tmp_path / name), tmp_path / "out", method="rtn", **settings)
    _, record = written(done.out, "compressed-tensors", "transformers")
    assert [line["check"] for line in record.verified if not line["passed"]] == []
    if "activations" in settings:
        assert next(line for line in record.verified if "largest" in line["check"])["difference"] <= 1e-5


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize(("name", "activations"), [("bart", "dynamic"), ("bart", "static"), ("whisper", "dynamic")])
def test_what_reads_and_writes_with_int8_inputs_writes_as_its_readme_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, activations: str
) -> None:
    """Its weights are decoded before `generate` is called, which begins with the encoder."""
    done = run(name, save_tiny(name, tmp_path / name), tmp_path / "out", method="rtn", bits=8, activations=activations)
    where, record = written(done.out, "compressed-tensors", "transformers")
    assert [line["check"] for line in record.verified if not line["passed"]] == []
    if name == "whisper":
        return
    tokens = [5, 6, 7, 8]
    expected = Session(str(where), 1).write({"input_ids": [tokens]}, 6)
    for folder in (where, done.out):
        monkeypatch.chdir(folder)
        told: dict[str, Any] = {}
        lines = (folder / "README.md").read_text().split("```python")[1].split("```")[0]
        exec(lines.replace('"auto"', '"float32"'), told)
        made = told["model"].generate(input_ids=torch.tensor([tokens]), max_new_tokens=6, do_sample=False, num_beams=1)
        assert made[0, 1:].tolist() == expected[0]


@pytest.mark.usefixtures("in_process")
def test_the_first_token_that_whisper_writes_is_not_lost(tmp_path: Path) -> None:
    """Its `generate` leaves out by itself what it began with."""
    out = artifact("whisper", tmp_path)
    where, _ = written(out, "compressed-tensors")
    given = {"input_features": np.random.default_rng(0).normal(size=(1, MELS, 256)).astype(np.float32) / 2}
    session = Session(str(where), 1)
    first = session.run({**given, "decoder_input_ids": np.array([[BOS]])})[0, -1].argmax()
    found = session.write({**given, "decoder_input_ids": np.array([[BOS]])}, 8)[0]
    assert (len(found), found[0]) == (8, first)
    assert wrong(judged(where, out, "transformers")) == []


@pytest.mark.usefixtures("in_process")
def test_speech_gives_static_grids_and_is_judged_again_in_the_runtime(tmp_path: Path) -> None:
    bench, of = Bench(tmp_path), subject("whisper", "W8A8 static")
    source, where = bench.source(of), bench.export("compressed-tensors", of)
    assert all(source.input_grid(name) is not None for name, coded in source.coded.items() if coded.activation)
    lines = {line["check"]: line for line in judged(where, bench.artifact(of), "transformers")}
    assert wrong(list(lines.values())) == []
    assert lines["outputs: largest difference"]["difference"] <= 1e-5
    assert (lines["task score"]["metric"], lines["task score"]["rows"]) == ("wer", 2)


@pytest.mark.usefixtures("in_process")
def test_rules_of_generation_are_not_for_comparing_tokens(tmp_path: Path) -> None:
    """Such as bart-large-cnn has: its first token is forced everywhere, its last is not, and what was said may come."""
    rules = {"forced_bos_token_id": 9, "forced_eos_token_id": EOS, "no_repeat_ngram_size": 2, "min_length": 5}
    source = save_tiny("bart", tmp_path / "bart")
    edit_json(source / "generation_config.json", lambda told: told.update(rules))
    done = run("bart", source, tmp_path / "out", method="rtn")
    where, _ = written(done.out, "compressed-tensors")
    assert wrong(judged(where, done.out, "transformers")) == []
    made = Session(str(where), 1).write({"input_ids": [[5, 6, 7, 8]]}, 8)[0]
    assert made[0] == 9
    assert made[-1] != EOS


def test_what_is_dense_in_the_artifact_is_no_export(tmp_path: Path) -> None:
    done = run("gpt2", save_tiny("gpt2", tmp_path / "gpt2"), tmp_path / "out", method="rtn")
    with pytest.raises(RecipeError, match="cannot hold int4-g64-asym codes of conv1d weights"):
        written(done.out, "compressed-tensors")


def test_other_tokens_are_seen_by_the_runtime_itself(qwen2: Run, tmp_path: Path, in_process: None) -> None:
    """The file is not the artifact's, and the ids that come of it are others."""
    shutil.copytree(qwen2.out, tmp_path / "out")
    where, _ = written(tmp_path / "out", "compressed-tensors")
    edit_json(where / "tokenizer.json", lambda told: told["model"].update(merges=told["model"]["merges"][:20]))
    reseal(where)
    assert wrong(static(where, qwen2.out)) == ["tokenizer, template and settings as in the artifact"]
    assert {"tokenizer", "chat template"} == set(wrong(judged(where, qwen2.out, "transformers")))


def test_what_vllm_opens_is_told_by_the_config(tmp_path: Path) -> None:
    def because(architecture: str, bits: int, inputs: Any = None, **more: Any) -> str | None:
        group = {"weights": {"num_bits": bits}, "input_activations": inputs}
        config = {"architectures": [architecture], "quantization_config": {"config_groups": {"group_0": group}}, **more}
        (tmp_path / "config.json").write_text(json.dumps(config))
        return refuses("vllm", tmp_path)

    assert because("LlamaForCausalLM", 4) is None
    assert because("LlamaForCausalLM", 8, {"num_bits": 8}) is None
    assert "writes no text" in (because("BertModel", 4) or "")
    assert "weights of 4 bits" in (because("LlamaForCausalLM", 3) or "")
    assert "weights of 4 bits" in (because("LlamaForCausalLM", 8) or "")
    assert "multiples of 32" in (because("LlamaForCausalLM", 4, hidden_size=80) or "")
    assert refuses("transformers", tmp_path) is None
    gptq = {"quant_method": "gptq", "bits": 4, "sym": False}
    (tmp_path / "config.json").write_text(
        json.dumps({"architectures": ["LlamaForCausalLM"], "quantization_config": gptq})
    )
    assert "without zero points only" in (refuses("vllm", tmp_path) or "")
