"""LLM.int8 checkpoints of our codes: opened by transformers with bitsandbytes; what it cannot hold is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from compress.core.errors import RecipeError
from export.reference import rounded_but_outliers
from tests.exporting import static, written, wrong
from tests.faults import edit_weights, reseal
from tests.rebuild import Codes, run, structure_of
from tests.tiny import meta_model, save_tiny

pytest.importorskip("bitsandbytes")
pytestmark = pytest.mark.filterwarnings("ignore")


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


def test_codes_of_a_byte_the_other_way_round_are_seen(tmp_path: Path) -> None:
    done = run("llama", save_tiny("llama", tmp_path / "llama"), tmp_path / "out", scheme="nf4", method="rtn")
    where, _ = written(done.out, "bitsandbytes")

    def change(tensors: dict[str, torch.Tensor]) -> None:
        packed = tensors["model.layers.1.self_attn.o_proj.weight"]
        packed.copy_((packed << 4) | (packed >> 4))

    edit_weights(where, change)
    reseal(where)
    assert wrong(static(where, done.out)) == ["codes and scales read back"]


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
