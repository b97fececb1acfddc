"""The artifact as an export: opened by transformers, decoded by compressed-tensors, and every planted fault noticed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from compress.core.errors import RecipeError, VerificationError
from compress.core.numerics.packing import pack_int32, pack_zero, unpack_int32, unpack_zero
from compress.pipeline import verify as stage
from compress.pipeline.verify import raise_if_wrong
from export.environments import refuses
from tests.exports import edit_json, edit_tensors, in_process, judged, reseal, written, wrong_lines
from tests.rebuild import Run, run
from tests.tiny import save_tiny

__all__ = ["in_process"]
CODES = "codes and scales read back"
LAYER = "model.layers.1.self_attn.o_proj"


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


def test_what_is_dense_in_the_artifact_is_no_export(tmp_path: Path) -> None:
    done = run("gpt2", save_tiny("gpt2", tmp_path / "gpt2"), tmp_path / "out", method="rtn")
    with pytest.raises(RecipeError, match="cannot hold int4-g64-asym codes of conv1d weights"):
        written(done.out, "compressed-tensors")


def off_by_one(where: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        rows = tensors[f"{LAYER}.weight_shape"][0]
        zero = unpack_zero(tensors[f"{LAYER}.weight_zero_point"], 4, int(rows))
        tensors[f"{LAYER}.weight_zero_point"] = pack_zero((zero + 1).clamp(max=15).to(torch.uint8), 4)

    edit_tensors(where, change)


def transposed_block(where: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        columns = int(tensors[f"{LAYER}.weight_shape"][1])
        codes = unpack_int32(tensors[f"{LAYER}.weight_packed"], 4, columns)
        codes[:32, :32] = codes[:32, :32].T.clone()
        tensors[f"{LAYER}.weight_packed"] = pack_int32(codes, 4)

    edit_tensors(where, change)


def dropped_bias(where: Path) -> None:
    edit_tensors(where, lambda tensors: tensors["model.layers.0.self_attn.q_proj.bias"].zero_())


def untied_head(where: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        noise = torch.randn(tensors["model.embed_tokens.weight"].shape, generator=torch.Generator().manual_seed(0))
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 0.01 * noise.bfloat16()

    edit_tensors(where, change)
    edit_json(where, "config.json", lambda config: config.update(tie_word_embeddings=False))


def wrong_theta(where: Path) -> None:
    def change(config: dict[str, Any]) -> None:
        config["rope_theta"] = 20000.0
        config["rope_parameters"]["rope_theta"] = 20000.0

    edit_json(where, "config.json", change)


def missing_template(where: Path) -> None:
    (where / "chat_template.jinja").unlink()
    reseal(where)


def other_tokens(where: Path) -> None:
    def change(tokenizer: dict[str, Any]) -> None:
        tokenizer["model"]["merges"] = tokenizer["model"]["merges"][:20]

    edit_json(where, "tokenizer.json", change)


FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "off-by-one zero point": (off_by_one, CODES),
    "transposed block": (transposed_block, CODES),
    "dropped bias": (dropped_bias, "outputs: largest difference"),
    "untied head": (untied_head, "outputs: largest difference"),
    "wrong rope theta": (wrong_theta, "outputs: largest difference"),
    "missing chat template": (missing_template, "tokenizer, template and settings as in the artifact"),
    "other tokens": (other_tokens, "tokenizer, template and settings as in the artifact"),
}


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("fault", list(FAULTS))
def test_planted_faults_are_caught(qwen2: Run, tmp_path: Path, fault: str) -> None:
    plant, expected = FAULTS[fault]
    out = tmp_path / "out"
    shutil.copytree(qwen2.out, out)
    where, _ = written(out, "compressed-tensors")
    plant(where)
    found = judged(where, out, "transformers")
    assert expected in wrong_lines(found)
    with pytest.raises(VerificationError, match="do not serve this file"):
        raise_if_wrong(where, found)
    assert json.loads((where / "verify.json").read_text())["passed"] is False


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("fault", list(FAULTS))
def test_the_runtime_alone_catches_them_too(
    qwen2: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """As if the reader of the format had the same mistake as its writer."""
    out = tmp_path / "out"
    shutil.copytree(qwen2.out, out)
    where, _ = written(out, "compressed-tensors")
    FAULTS[fault][0](where)
    monkeypatch.setattr(stage, "static_lines", lambda *_: [{"check": "nothing", "runtime": "", "passed": True}])
    found = judged(where, out, "transformers")
    expected = {"missing chat template": "chat template", "other tokens": "tokenizer"}
    assert expected.get(fault, "outputs: largest difference") in wrong_lines(found)


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
