"""Bits, groups, dtypes, shards and vocabularies: each opens in plain transformers as the model that was meant."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from compress.core.safetensors_file import read_header
from export.verify import check_stored, compare_opened
from tests.rebuild import Run, compress_in_memory, first_output, open_artifact, open_original, run
from tests.tiny import example_inputs, randomize, save_tiny, tiny_config, tiny_tokenizer

TOLERANCE = 2e-5


@torch.no_grad()
def assert_opens_as_meant(done: Run) -> Any:
    """The artifact by plain transformers against the rebuilt model and the streamed one; returns it."""
    opened = open_artifact(done)
    expected = compress_in_memory(done, open_original(done))
    inputs = example_inputs(expected, done.name)
    wanted = first_output(expected(**inputs))
    difference = float((first_output(opened(**inputs)) - wanted).abs().max())
    assert difference <= TOLERANCE * max(1.0, float(wanted.abs().max()))
    if done.probe.is_file():
        assert compare_opened(opened, read_header(done.probe))["difference"] <= 10 * TOLERANCE
    assert check_stored(done.out)["passed"]
    return opened


def schemes(done: Run) -> set[str]:
    """The names of the schemes inside blocks."""
    return {result.scheme for result in done.record.layers if result.block >= 0}


@pytest.mark.parametrize(
    ("bits", "group", "symmetric"),
    [
        (2, 16, True),
        (2, 32, False),
        (3, -1, True),
        (3, 32, False),
        (4, 64, True),
        (4, -1, False),
        (5, 64, True),
        (6, 32, False),
        (8, 32, True),
        (8, -1, False),
        (8, -1, True),
    ],
)
def test_bits_and_groups(tmp_path: Path, bits: int, group: int, symmetric: bool) -> None:
    source = save_tiny("llama", tmp_path / "llama")
    done = run("llama", source, tmp_path / "out", bits=bits, group_size=group, symmetric=symmetric)
    size = "row" if group == -1 else f"g{group}"
    assert schemes(done) == {f"int{bits}-{size}-{'sym' if symmetric else 'asym'}"}
    assert_opens_as_meant(done)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("mixtral", {"bits": 3, "group_size": 64}),
        ("mixtral", {"bits": 8}),
        ("qwen3_moe", {"bits": 4, "head": "int8", "embeddings": "int8"}),
        ("phi3", {"bits": 3, "group_size": 96}),
        ("gpt2", {"bits": 8, "embeddings": "int8"}),
        ("t5", {"bits": 8, "embeddings": "int8"}),
        ("qwen3", {"bits": 4, "group_size": 16}),
        ("bert", {"method": "rtn", "eval_samples": 0}),
        ("mixtral", {"method": "rtn", "eval_samples": 0}),
        ("llama", {"method": "hqq", "bits": 3, "eval_samples": 0, "data": "no-such-file.txt"}),  # reads no text
    ],
)
def test_other_architectures(tmp_path: Path, name: str, settings: dict[str, Any]) -> None:
    done = run(name, save_tiny(name, tmp_path / name), tmp_path / "out", **settings)
    assert done.probe.is_file() == (settings.get("eval_samples") != 0)
    assert_opens_as_meant(done)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("name", ["qwen2", "llama", "bart", "bert"])
def test_vocabularies_at_int8(tmp_path: Path, name: str, bits: int) -> None:
    """Codes of the embedding are on the int8 grid in the file; a tied head stays tied."""
    wanted = {"bits": bits, "embeddings": "int8", "head": "int8", "mixed": False, "activations": "none"}
    done = run(name, save_tiny(name, tmp_path / name), tmp_path / "out", **wanted)
    opened = assert_opens_as_meant(done)
    embedding, head = opened.get_input_embeddings().weight, opened.get_output_embeddings()
    tied = name != "llama"
    assert (head.weight is embedding) == tied
    if name == "llama" and bits == 8:  # untied and symmetric: packed itself
        table = done.stored["model.embed_tokens.weight"]
        assert table.dtype == torch.int8
        assert torch.equal(table.float() * done.stored["model.embed_tokens.weight_scale"].float(), embedding.detach())
        return
    codes = load_file(done.out / "compress" / "codes.safetensors")
    quantized = {result.role: result for result in done.record.layers if result.block < 0}
    name_of = quantized["embedding"].layer
    scale = codes[f"{name_of}.scale"].float()
    assert codes[f"{name_of}.codes"].dtype == torch.uint8
    again = (codes[f"{name_of}.codes"].float() - 128) * scale
    assert torch.equal(again.bfloat16().float(), embedding.detach())
    assert quantized["embedding"].scheme == "int8-row-sym"
    assert tied or quantized["lm_head"].scheme == "int8-row-sym"
    if not tied:  # zero points and several schemes do not go together: then the head's codes are beside it
        assert ("lm_head.weight_packed" in done.stored) == (bits == 8)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sources_of_sixteen_bits_keep_their_dtype(tmp_path: Path, dtype: str) -> None:
    done = run("llama", save_tiny("llama", tmp_path / "llama", dtype), tmp_path / "out")
    assert_opens_as_meant(done)
    kept = {str(t.dtype) for key, t in done.stored.items() if key.endswith("norm.weight") or "embed" in key}
    assert kept == {f"torch.{dtype}"}
    assert json.loads((done.out / "config.json").read_text(encoding="utf-8"))["dtype"] == dtype


def test_kept_weights_in_float32_are_those_of_the_source(tmp_path: Path) -> None:
    done = run("llama", save_tiny("llama", tmp_path / "llama"), tmp_path / "out", dtype="float32")
    assert_opens_as_meant(done)
    source = load_file(done.source / "model.safetensors")
    for key in ("lm_head.weight", "model.embed_tokens.weight", "model.layers.1.input_layernorm.weight"):
        assert torch.equal(done.stored[key], source[key])


@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_shards_of_the_source_and_of_the_output(tmp_path: Path, name: str) -> None:
    whole = run(name, save_tiny(name, tmp_path / "whole"), tmp_path / "whole-out")
    parts = run(name, save_tiny(name, tmp_path / "parts", shard="90KB"), tmp_path / "parts-out", max_shard_size="50KB")
    assert len(list(parts.source.glob("model-*.safetensors"))) > 2
    files = sorted(parts.out.glob("model-*.safetensors"))
    assert len(files) > 2
    index = json.loads((parts.out / "model.safetensors.index.json").read_text(encoding="utf-8"))
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in parts.stored.values())
    assert set(index["weight_map"]) == set(parts.stored)
    assert not (parts.out / "model.safetensors").exists()
    for path in files:
        tensors = load_file(path)
        assert {index["weight_map"][key] for key in tensors} == {path.name}
        assert len(tensors) == 1 or sum(t.nbytes for t in tensors.values()) <= 50_000
    assert set(whole.stored) == set(parts.stored)
    assert all(torch.equal(tensor, parts.stored[key]) for key, tensor in whole.stored.items())
    assert_opens_as_meant(parts)


def test_a_tie_that_the_weights_contradict_is_none(tmp_path: Path) -> None:
    """Both are stored, with different values, though the config ties them: transformers keeps two, and so do we."""
    source = save_tiny("qwen2", tmp_path / "qwen2")
    tensors = load_file(source / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 0.1
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    done = run("qwen2", source, tmp_path / "out")
    opened = assert_opens_as_meant(done)
    assert not torch.equal(opened.lm_head.weight, opened.model.embed_tokens.weight)


def test_a_tie_that_is_stored_twice_is_stored_once_again(tmp_path: Path) -> None:
    source = save_tiny("qwen2", tmp_path / "qwen2")
    tensors = load_file(source / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    done = run("qwen2", source, tmp_path / "out")
    opened = assert_opens_as_meant(done)
    assert opened.lm_head.weight is opened.model.embed_tokens.weight
    assert len({"lm_head.weight", "model.embed_tokens.weight"} & set(done.stored)) == 1


def test_two_vocabularies_are_rounded_without_text(tmp_path: Path) -> None:
    """Text in the source's tokens means nothing to the decoder; its embedding is tied to the head and kept."""
    config = tiny_config("marian")
    config.share_encoder_decoder_embeddings, config.decoder_vocab_size = False, 352
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.MarianMTModel(config)
        randomize(model)
    model.save_pretrained(tmp_path / "marian")
    tiny_tokenizer().save_pretrained(tmp_path / "marian")
    done = run("marian", tmp_path / "marian", tmp_path / "out", embeddings="int8", head="int8")
    assert any("their own vocabularies" in note for note in done.record.notes)
    assert done.record.plan["layers"]["lm_head"]["reason"].startswith("tied to model.decoder.embed_tokens.weight")
    assert done.record.plan["layers"]["model.encoder.embed_tokens"]["scheme"] == "int8-row-sym"
    opened = open_artifact(done)
    expected = compress_in_memory(done, open_original(done))
    ids = torch.arange(4, 40)[None]
    with torch.no_grad():
        wanted, got = (m(input_ids=ids, decoder_input_ids=ids).logits for m in (expected, opened))
    assert wanted.shape == (1, 36, 352)
    assert float((got - wanted).abs().max()) <= TOLERANCE * max(1.0, float(wanted.abs().max()))


def test_an_encoder_saved_without_the_head_its_config_names(tmp_path: Path) -> None:
    """Sentence encoders are: the config says MPNetForMaskedLM, the file holds the encoder and a pooler."""
    source = save_tiny("mpnet", tmp_path / "mpnet")
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config["architectures"] = ["MPNetForMaskedLM"]
    (source / "config.json").write_text(json.dumps(config), encoding="utf-8")
    done = run("mpnet", source, tmp_path / "out", verify=True)
    assert [line["passed"] for line in done.record.verified] == [True, True]
    assert done.record.model["architecture"] == "MPNetModel"
    assert_opens_as_meant(done)
