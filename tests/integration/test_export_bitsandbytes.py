"""LLM.int8 checkpoints of our codes: opened by transformers with bitsandbytes, and planted faults noticed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from compress.core.errors import RecipeError, VerificationError
from compress.pipeline import verify as stage
from compress.pipeline.verify import raise_if_wrong
from export.reference import rounded_but_outliers
from tests.exports import edit_json, edit_tensors, in_process, judged, reseal, written, wrong_lines
from tests.rebuild import Codes, Run, run, structure_of
from tests.tiny import meta_model, save_tiny

pytest.importorskip("bitsandbytes")
pytestmark = pytest.mark.filterwarnings("ignore")
__all__ = ["in_process"]
CODES = "codes and scales read back"
LAYER = "model.layers.1.self_attn.o_proj"


@pytest.fixture(scope="module")
def qwen2(tmp_path_factory: pytest.TempPathFactory) -> Run:
    base = tmp_path_factory.mktemp("qwen2")
    return run("qwen2", save_tiny("qwen2", base / "qwen2"), base / "out", method="rtn", bits=8, group_size=-1)


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2", "bert", "mpnet", "gpt_neox"])
def test_transformers_opens_it_and_agrees(tmp_path: Path, name: str) -> None:
    done = run(name, save_tiny(name, tmp_path / name), tmp_path / "out", method="rtn", bits=8, group_size=-1)
    where, record = written(done.out, "bitsandbytes", "transformers")
    assert [line["check"] for line in record.verified if not line["passed"]] == []
    stored, codes = load_file(where / "model.safetensors"), Codes(done)
    layers = [layer for layer in structure_of(meta_model(name)).layers if codes.quantized(layer.name)]
    for layer in layers:
        weight = stored[f"{layer.name}.weight"].float() * (stored[f"{layer.name}.SCB"] / 127)[:, None]
        if codes.plan[layer.name]["packed"]:
            assert torch.equal(weight, codes.weight(layer))
    assert len(layers) == sum(key.endswith(".SCB") for key in stored)
    assert "bitsandbytes" in (where / "README.md").read_text()


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
def test_nf4_agrees_in_transformers(tmp_path: Path, name: str) -> None:
    done = run(name, save_tiny(name, tmp_path / name), tmp_path / "out", scheme="nf4")
    where, record = written(done.out, "bitsandbytes", "transformers")
    assert [line["check"] for line in record.verified if not line["passed"]] == []
    told = json.loads((where / "export.json").read_text())
    assert len(told["packed"]) == len([p for p in done.record.plan["layers"].values() if p["scheme"] == "nf4"]) > 0
    config = json.loads((where / "config.json").read_text())
    assert config["quantization_config"]["bnb_4bit_quant_type"] == "nf4"


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("fault", ["code", "scale"])
def test_nf4_faults_are_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    done = run("llama", save_tiny("llama", tmp_path / "llama"), tmp_path / "out", scheme="nf4", method="rtn")
    where, _ = written(done.out, "bitsandbytes")

    def change(tensors: dict[str, torch.Tensor]) -> None:
        if fault == "code":  # the halves of a byte the other way round
            packed = tensors[f"{LAYER}.weight"]
            tensors[f"{LAYER}.weight"] = (packed << 4) | (packed >> 4)
        else:
            tensors[f"{LAYER}.weight.absmax"] = tensors[f"{LAYER}.weight.absmax"].flip(0)

    edit_tensors(where, change)
    assert wrong_lines(judged(where, done.out, "transformers")) == [CODES]
    monkeypatch.setattr(stage, "static_lines", lambda *_: [{"check": "nothing", "runtime": "", "passed": True}])
    assert "outputs: largest difference" in wrong_lines(judged(where, done.out, "transformers"))


def test_other_schemes_are_refused_by_name(tmp_path: Path) -> None:
    done = run("llama", save_tiny("llama", tmp_path / "llama"), tmp_path / "out", method="rtn")
    with pytest.raises(RecipeError, match=r"cannot hold int4-g64-asym; it holds int8-row-sym .*--scheme nf4"):
        written(done.out, "bitsandbytes")
    done = run(
        "mixtral", save_tiny("mixtral", tmp_path / "mixtral"), tmp_path / "moe", method="rtn", bits=8, group_size=-1
    )
    with pytest.raises(RecipeError, match="does not open fused experts"):
        written(done.out, "bitsandbytes")


def test_outliers_are_left_out_as_bitsandbytes_does() -> None:
    import bitsandbytes as bnb
    from bitsandbytes.functional import int8_vectorwise_dequant, int8_vectorwise_quant

    torch.manual_seed(0)
    x = torch.randn(12, 32)
    x[3, 5], x[7, 9] = 40.0, -8.0
    codes, largest, columns = int8_vectorwise_quant(x.half(), 6.0)
    theirs = int8_vectorwise_dequant(codes, largest)
    theirs[:, columns] = x[:, columns]
    assert columns.tolist() == [5, 9]
    assert torch.allclose(rounded_but_outliers(x), theirs, rtol=2e-3, atol=1e-6)
    assert bnb.__version__ >= "0.50"


def off_by_one(where: Path) -> None:
    """Every code one up: what a wrong zero point is where the zero is not stored."""

    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[f"{LAYER}.weight"] = (tensors[f"{LAYER}.weight"].int() + 1).clamp(max=127).to(torch.int8)

    edit_tensors(where, change)


def transposed_block(where: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        block = tensors[f"{LAYER}.weight"][:32, :32]
        block.copy_(block.T.clone())

    edit_tensors(where, change)


def wrong_scale(where: Path) -> None:
    edit_tensors(where, lambda tensors: tensors[f"{LAYER}.SCB"].mul_(128 / 127))


def dropped_bias(where: Path) -> None:
    edit_tensors(where, lambda tensors: tensors["model.layers.0.self_attn.q_proj.bias"].zero_())


def untied_head(where: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        noise = torch.randn(tensors["model.embed_tokens.weight"].shape, generator=torch.Generator().manual_seed(0))
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 0.2 * noise.bfloat16()

    edit_tensors(where, change)
    edit_json(where, "config.json", lambda config: config.update(tie_word_embeddings=False))


def wrong_theta(where: Path) -> None:
    edit_json(where, "config.json", lambda config: config["rope_parameters"].update(rope_theta=100.0))


def missing_template(where: Path) -> None:
    (where / "chat_template.jinja").unlink()
    reseal(where)


FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "off-by-one zero point": (off_by_one, CODES),
    "transposed block": (transposed_block, CODES),
    "wrong scale": (wrong_scale, CODES),
    "dropped bias": (dropped_bias, "outputs"),
    "untied head": (untied_head, "outputs"),
    "wrong rope theta": (wrong_theta, "outputs"),
    "missing chat template": (missing_template, "tokenizer, template and settings as in the artifact"),
}


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("fault", list(FAULTS))
def test_planted_faults_are_caught(qwen2: Run, tmp_path: Path, fault: str) -> None:
    plant, expected = FAULTS[fault]
    out = tmp_path / "out"
    shutil.copytree(qwen2.out, out)
    where, _ = written(out, "bitsandbytes")
    plant(where)
    found = judged(where, out, "transformers")
    assert any(check.startswith(expected) for check in wrong_lines(found))
    with pytest.raises(VerificationError, match="do not serve this file"):
        raise_if_wrong(where, found)


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("fault", ["transposed block", "missing chat template"])
def test_the_runtime_alone_catches_them_too(
    qwen2: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """But one code up in one layer: that is less than what rounding inputs does, and only reading back shows it."""
    out = tmp_path / "out"
    shutil.copytree(qwen2.out, out)
    where, _ = written(out, "bitsandbytes")
    FAULTS[fault][0](where)
    monkeypatch.setattr(stage, "static_lines", lambda *_: [{"check": "nothing", "runtime": "", "passed": True}])
    assert wrong_lines(judged(where, out, "transformers"))
