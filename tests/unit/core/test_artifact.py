"""Assembling, copying what lies beside weights, hashing, and opening what was written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from compress.core import artifact
from compress.core.errors import ModelError, RecipeError


@pytest.mark.parametrize(
    ("text", "expected"),
    [("5GB", 5_000_000_000), ("1.5 gb", 1_500_000_000), ("500MB", 500_000_000),
     ("40KB", 40_000), ("4096", 4096), ("2GiB", 2 * 2**30)],
)  # fmt: skip
def test_sizes(text: str, expected: int) -> None:
    assert artifact.parse_size(text) == expected


@pytest.mark.parametrize("text", ["", "big", "-1GB", "0", "5PB", "1e9", "5 G B"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(RecipeError, match="5GB or 500MB"):
        artifact.parse_size(text)


@pytest.mark.parametrize("limit", [1, 90, 200, 10**6])
def test_shards_hold_everything_once_and_stay_small(tmp_path: Path, limit: int) -> None:
    tensors = {f"layer.{n}": torch.arange(n + 1, dtype=torch.float32) for n in range(9)}
    codes = {"compress.codes.x.codes": torch.ones(3, 4, dtype=torch.uint8)}
    own = {"compress.embed.codes": torch.zeros(2, dtype=torch.uint8)}
    save_file(dict(list(tensors.items())[:4]) | own, tmp_path / "a.safetensors")
    save_file(dict(list(tensors.items())[4:]) | codes, tmp_path / "b.safetensors")
    out = tmp_path / "out"
    artifact.assemble(out, [tmp_path / "a.safetensors", tmp_path / "b.safetensors"], limit)
    files = sorted(out.glob("*.safetensors"))
    found = {name: tensor for file in files for name, tensor in load_file(file).items()}
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert load_file(out / "compress" / "codes.safetensors").keys() == {"x.codes"}
    if len(files) > 1:
        index = json.loads((out / "model.safetensors.index.json").read_text(encoding="utf-8"))
        assert {out / name for name in index["weight_map"].values()} == set(files)
        assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors.values())
        for file in files:
            held = load_file(file)
            assert len(held) == 1 or sum(t.nbytes for t in held.values()) <= limit
            assert all(index["weight_map"][name] == file.name for name in held)
    else:
        assert [file.name for file in files] == ["model.safetensors"]


def test_companions_are_all_that_is_no_weight(tmp_path: Path) -> None:
    source = tmp_path / "model"
    wanted = ["1_Pooling/config.json", "chat_template.jinja", "modules.json", "tokenizer.json"]
    others = ["config.json", "README.md", "model.safetensors", "pytorch_model.bin", "model.safetensors.index.json"]
    others += [".git/config", "onnx/model.onnx", "out/compress/journal.jsonl", "out/tokenizer.json", "tf_model.h5"]
    others += ["older/compress/journal.jsonl", "older/tokenizer.json", "older/compress/plan.json"]
    for name in [*wanted, *others]:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(name, encoding="utf-8")
    out = source / "out"
    found = artifact.companions(source, out)
    assert [name.as_posix() for name in found] == wanted
    artifact.copy_companions(source, out, found)
    for name in wanted:
        assert (out / name).read_bytes() == (source / name).read_bytes()


def test_config_keeps_everything_but_dtype_and_quantization(tmp_path: Path) -> None:
    config = {"model_type": "llama", "torch_dtype": "float32", "x": {"y": 1}, "quantization_config": {"old": True}}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    artifact.write_config(tmp_path, tmp_path / "out", "bfloat16", {"quant_method": "compressed-tensors"})
    found = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    assert found == {
        "model_type": "llama",
        "torch_dtype": "bfloat16",
        "dtype": "bfloat16",
        "x": {"y": 1},
        "quantization_config": {"quant_method": "compressed-tensors"},
    }


def finished(out: Path) -> Path:
    """A little artifact."""
    (out / "compress" / "work").mkdir(parents=True)
    for name in ("a.json", "compress/plan.json", "compress/work/x", "compress/journal.jsonl", "report.html"):
        (out / name).write_text(name, encoding="utf-8")
    files = artifact.hashes(out)
    assert sorted(files) == ["a.json", "compress/plan.json"]
    (out / artifact.MANIFEST).write_text(json.dumps({"files": files, "model": "m"}), encoding="utf-8")
    return out


def test_an_artifact_opens_and_its_changes_are_seen(tmp_path: Path) -> None:
    out = finished(tmp_path / "out")
    assert artifact.open_artifact(out).manifest["model"] == "m"
    (out / "a.json").write_text("A.json", encoding="utf-8")
    artifact.open_artifact(out, verify=False)
    with pytest.raises(ModelError, match=r"a\.json is missing or changed"):
        artifact.open_artifact(out)
    (out / "a.json").unlink()
    with pytest.raises(ModelError, match=r"a\.json is missing or changed"):
        artifact.open_artifact(out, verify=False)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"files": 3}'])
def test_a_damaged_manifest(tmp_path: Path, text: str) -> None:
    out = finished(tmp_path / "out")
    (out / artifact.MANIFEST).write_text(text, encoding="utf-8")
    with pytest.raises(ModelError, match="damaged"):
        artifact.open_artifact(out)
    with pytest.raises(ModelError, match="is not an artifact"):
        artifact.open_artifact(tmp_path)
