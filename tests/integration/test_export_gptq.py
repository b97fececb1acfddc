"""GPTQ checkpoints of tiny models: what is stored, what the settings say, what is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from compress.core.blocks import find_structure
from compress.core.errors import RecipeError
from compress.core.numerics.affine import dequantize
from compress.pipeline.export import ExportSettings, export
from export.formats.gptq import EXPORT
from export.source import Source
from tests.exporting import agrees, static, verified, wrong
from tests.faults import edit_json, edit_weights, reseal
from tests.rebuild import run
from tests.tiny import save_tiny, tiny_config, tiny_model

Make = Callable[..., Path]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Quantizes an architecture by rounding to nearest; once for each way."""
    base, done = tmp_path_factory.mktemp("gptq"), {}  # type: ignore[var-annotated]

    def make(name: str, **settings: Any) -> Path:
        key = f"{name}-{'-'.join(f'{k}{v}' for k, v in settings.items())}"
        if key not in done:
            source = save_tiny(name, base / key)
            done[key] = run(name, source, base / f"{key}-out", method="rtn", **{"mixed": False, **settings}).out
        return done[key]

    return make


def write(out: Path, where: Path, **options: str) -> dict[str, Any]:
    """Export without a runtime; the card."""
    export(out, ExportSettings(("gptq",), options, out=where, check=False))
    card: dict[str, Any] = json.loads((where / "export.json").read_text())
    return card


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("llama", {"bits": 4}),
        ("llama", {"bits": 4, "symmetric": True}),
        ("llama", {"bits": 3}),
        ("llama", {"bits": 2}),
        ("llama", {"bits": 8}),
        ("llama", {"bits": 4, "embeddings": "int8"}),
        ("qwen2", {"bits": 4}),
        ("gpt2", {"bits": 4}),
        ("mixtral", {"bits": 4}),
        ("qwen3_moe", {"bits": 4}),
        ("bert", {"bits": 4, "mixed": True}),
    ],
)
def test_what_is_read_back_is_what_the_codes_stand_for(
    made: Make, tmp_path: Path, name: str, settings: dict[str, Any]
) -> None:
    out = made(name, **settings)
    card = write(out, tmp_path / "x")
    source = Source(out)
    found = dict(EXPORT.read_back(tmp_path / "x", source))
    assert sorted(found) == sorted(card["packed"])
    assert len(found) > 0
    for layer, weight in found.items():
        assert torch.equal(weight, dequantize(source.codes(layer))), layer
    stored = load_file(tmp_path / "x" / "model.safetensors")
    parts = ("qweight", "qzeros", "scales", "g_idx")
    kept = {key: tensor for key, tensor in stored.items() if key.rpartition(".")[2] not in parts}
    for key, tensor in kept.items():  # everything else is as OUT has it
        assert torch.equal(tensor.float(), source.checkpoint.read(key).float()), key


def test_mixed_bits_are_said_module_by_module(made: Make, tmp_path: Path) -> None:
    out = made("llama", bits=4, symmetric=True, mixed=True)
    source = Source(out)
    write(out, tmp_path / "x")
    said = json.loads((tmp_path / "x" / "config.json").read_text())["quantization_config"]
    assert said == json.loads((tmp_path / "x" / "quantize_config.json").read_text())
    eight = [name for name, coded in source.coded.items() if coded.scheme.bits == 8]
    assert eight
    assert said["bits"] == 4
    for name in eight:
        rule = next(rule for rule in said["dynamic"] if rule.startswith("+:") and re.match(rule[2:], name))
        assert said["dynamic"][rule]["bits"] == 8
    assert said["lm_head"] is False
    assert not any(re.match(rule[2:], "lm_head") for rule in said["dynamic"])
    plain = made("llama", bits=4, symmetric=True)
    write(plain, tmp_path / "y")
    assert "dynamic" not in json.loads((tmp_path / "y" / "config.json").read_text())["quantization_config"]


def test_zero_points_choose_the_checkpoint_format(made: Make, tmp_path: Path) -> None:
    out = made("llama", bits=4)
    assert write(out, tmp_path / "auto")["facts"]["checkpoint_format"] == "gptq_v2"
    assert write(out, tmp_path / "v2", checkpoint_format="gptq_v2")["facts"]["checkpoint_format"] == "gptq_v2"
    symmetric = made("llama", bits=4, symmetric=True)
    card = write(symmetric, tmp_path / "sym")
    assert card["facts"]["checkpoint_format"] == "gptq"
    zeros = load_file(tmp_path / "sym" / "model.safetensors")["model.layers.0.mlp.up_proj.qzeros"]
    assert {word % (1 << 32) for word in zeros.flatten().tolist()} == {0x77777777}  # 8 - 1, eight times


def test_a_zero_point_of_zero_is_never_written_as_zero_minus_one(
    made: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = made("llama", bits=4)
    whole = Source.codes

    def codes(self: Source, name: str) -> Any:
        q = whole(self, name)
        q.zero[0, 0] = 0  # type: ignore[index]
        return q

    monkeypatch.setattr(Source, "codes", codes)
    assert write(out, tmp_path / "x")["facts"]["checkpoint_format"] == "gptq_v2"
    with pytest.raises(RecipeError, match="gptq_v2"):
        write(out, tmp_path / "y", checkpoint_format="gptq")
    assert not (tmp_path / "y").exists()


@pytest.mark.parametrize("alike", [True, False])
def test_the_name_of_what_servers_fuse_is_said_where_it_has_one_scheme(tmp_path: Path, alike: bool) -> None:
    """`qkv_proj` of vLLM has no bits where q, k and v differ, which GPTQModel opens."""
    source, path = save_tiny("llama", tmp_path / "llama"), tmp_path / "plan.json"
    layers = [layer.name for layer in find_structure(tiny_model("llama"), tiny_config("llama")).layers]
    eight = [name for name in layers if "layers.0.self_attn" in name and ("q_proj" in name or alike)]
    lines = {n: {"scheme": "int8-row-sym" if n in eight else "int3-g32-sym", "method": "rtn"} for n in layers}
    path.write_text(json.dumps({"layers": lines}))
    write(run("llama", source, tmp_path / "out", method="rtn", plan=str(path)).out, tmp_path / "x")
    rules = json.loads((tmp_path / "x" / "config.json").read_text())["quantization_config"]["dynamic"]
    names = [*eight, "model.layers.0.self_attn.qkv_proj"]
    matched = [name for name in names if any(re.match(rule[2:], name) for rule in rules)]
    assert matched == names[: len(eight) + alike]


def test_what_cannot_be_held_is_refused_before_anything_is_written(made: Make, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="int8 inputs"):
        write(made("llama", bits=8, activations="dynamic"), tmp_path / "x")
    with pytest.raises(RecipeError, match=r"is int5-g.*; gptq holds integer codes of 2, 3, 4 and 8 bits"):
        write(made("llama", bits=5), tmp_path / "x")
    with pytest.raises(RecipeError, match="use auto, gptq or gptq_v2"):
        write(made("llama", bits=4), tmp_path / "x", checkpoint_format="v3")
    assert not (tmp_path / "x").exists()


def test_an_export_that_no_runtime_here_opens_is_not_verified(made: Make, tmp_path: Path) -> None:
    out, where = made("llama", bits=4), tmp_path / "x"
    write(out, where)
    found = verified(where, out)
    assert all(line["passed"] for line in found.lines)
    assert not found.passed
    assert "the runtime gptqmodel is not installed" in found.missing[0]  # and vLLM takes symmetric ones only
    assert not agrees(where, found)


def test_the_other_convention_of_zero_points_is_seen(made: Make, tmp_path: Path) -> None:
    """The settings say v2 of zeros that were stored as v1."""
    out, where = made("llama", bits=4, symmetric=True), tmp_path / "x"
    write(out, where)
    edit_json(where / "config.json", lambda c: c["quantization_config"].update(checkpoint_format="gptq_v2"))
    reseal(where)
    assert wrong(static(where, out)) == ["codes and scales read back"]


def test_a_missing_tensor_is_seen(made: Make, tmp_path: Path) -> None:
    out, where = made("llama", bits=4, symmetric=True), tmp_path / "x"
    write(out, where)
    edit_weights(where, lambda tensors: tensors.pop("model.norm.weight"))
    reseal(where)
    assert wrong(static(where, out)) == ["kept weights read back"]


def test_a_file_that_ends_half_way_is_a_failing_line(made: Make, tmp_path: Path) -> None:
    """What the library that reads it raises is its own kind."""
    out, where = made("llama", bits=4, symmetric=True), tmp_path / "x"
    write(out, where)
    file = where / "model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])
    assert wrong(static(where, out)) == [
        "files as they were written", "codes and scales read back", "kept weights read back"
    ]  # fmt: skip
