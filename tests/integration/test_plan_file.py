"""`quantize --plan`: another run's plan.json, edited or not; refused where it cannot be; two plans compared."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from compress.core.blocks import find_structure
from compress.core.errors import CompressError, InputError, OutputError, RecipeError
from compress.pipeline.inspect import inspect_plans
from compress.plan import edited
from tests.rebuild import run
from tests.tiny import save_tiny, tiny_config, tiny_model

TEXT = {"samples": 8, "seq_len": 32, "eval_samples": 2, "verify": True}
DOWN = "model.layers.0.mlp.down_proj"
QKV = [f"model.layers.1.self_attn.{part}_proj" for part in "qkv"]
Layers = dict[str, dict[str, Any]]


def plan_of(out: Path) -> Layers:
    """The layers of a run's plan.json."""
    layers: Layers = json.loads((out / "compress" / "plan.json").read_text())["layers"]
    return layers


def written(path: Path, layers: Layers) -> str:
    """A plan.json with these layers."""
    path.write_text(json.dumps({"layers": layers}))
    return str(path)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("llama", {"max_bytes": "175kB", "effort": "fast"}),
        ("bert-classifier", {"bits": 4}),
        ("bert-classifier", {"bits": 8, "activations": "dynamic"}),
        ("gpt2", {"bits": 3, "method": "rtn"}),
        ("qwen2", {"bits": 4, "embeddings": "int8"}),
        ("qwen2", {"bits": 3, "reparam": "rotate,awq"}),
    ],
)
def test_a_plan_gives_the_same_bytes_again(tmp_path: Path, name: str, settings: dict[str, Any]) -> None:
    model = save_tiny(name, tmp_path / name)
    first = run(name, model, tmp_path / "first", **TEXT, **settings)
    again = run(name, model, tmp_path / "again", **TEXT, plan=str(first.out / "compress" / "plan.json"))
    assert plan_of(again.out) == plan_of(first.out)
    assert (again.out / "model.safetensors").read_bytes() == (first.out / "model.safetensors").read_bytes()
    assert all(line["passed"] for line in again.record.verified)


def test_a_plan_of_a_run_that_counted_tokens_by_gradients_says_so(tmp_path: Path) -> None:
    """Its schemes and reasons are applied, its codes are others."""
    model = save_tiny("llama", tmp_path / "llama")
    first = run("llama", model, tmp_path / "first", **TEXT, max_bytes="175kB")
    again = run("llama", model, tmp_path / "again", **TEXT, plan=str(first.out / "compress" / "plan.json"))
    assert plan_of(again.out) == plan_of(first.out)
    assert edited.OTHERWISE in again.record.notes
    assert edited.OTHERWISE not in first.record.notes
    files = [(one.out / "model.safetensors").read_bytes() for one in (first, again)]
    assert files[0] != files[1]
    assert len(files[0]) == len(files[1])
    assert not edited.by_gradients(again.out / "compress" / "plan.json")


def test_a_plan_says_what_was_done_to_blocks(tmp_path: Path) -> None:
    """And --plan does it again, unless another thing is asked for; names that nothing has are refused."""
    model = save_tiny("llama", tmp_path / "llama")
    first = run("llama", model, tmp_path / "first", **TEXT, max_bytes="175kB", reparam="awq")
    plan = first.out / "compress" / "plan.json"
    assert edited.reparams(plan) == ("awq",)
    again = run("llama", model, tmp_path / "again", **TEXT, plan=str(plan))
    assert {result.reparams for result in again.record.layers} == {"", "awq"}
    without = run("llama", model, tmp_path / "without", **TEXT, plan=str(plan), reparam="none")
    assert {result.reparams for result in without.record.layers} == {""}
    assert edited.reparams(without.out / "compress" / "plan.json") == ()
    plan.write_text(plan.read_text(encoding="utf-8").replace('"awq"', '"spin"'), encoding="utf-8")
    with pytest.raises(RecipeError, match="says reparam spin; use awq, rotate"):
        run("llama", model, tmp_path / "wrong", **TEXT, plan=str(plan))


def test_an_edited_line_is_what_is_done(tmp_path: Path) -> None:
    model = save_tiny("llama", tmp_path / "llama")
    first = run("llama", model, tmp_path / "first", **TEXT, bits=4, symmetric=True)
    layers = plan_of(first.out)
    layers[DOWN] |= {"scheme": "int8-row-sym", "method": "rtn", "reason": "because I say so", "options": {}}
    for name in QKV:
        layers[name] = {"scheme": "int8-row-sym"}
    del layers["model.layers.2.mlp.down_proj"]  # stays as it would be
    edited = written(tmp_path / "plan.json", layers)
    done = run("llama", model, tmp_path / "out", **TEXT, plan=edited)
    found = plan_of(done.out)
    assert found[DOWN]["scheme"] == "int8-row-sym"
    assert found[DOWN]["method"] == "rtn"
    assert found[DOWN]["reason"] == "because I say so"
    assert {found[name]["scheme"] for name in QKV} == {"int8-row-sym"}
    assert found["model.layers.2.mlp.down_proj"]["scheme"] == "int4-g64-sym"
    assert all(line["passed"] for line in done.record.verified)
    record = inspect_plans(str(first.out / "compress" / "plan.json"), edited)
    assert {row[0] for row in record.model["lines"]} == {DOWN, *QKV, "model.layers.2.mlp.down_proj"}
    assert record.model["different"] == 5
    with pytest.raises(OutputError, match="--plan"):
        run("llama", model, tmp_path / "out", **TEXT, plan=str(first.out / "compress" / "plan.json"))


def test_a_layer_of_a_block_may_be_kept(tmp_path: Path) -> None:
    """Kept, int8 with int8 inputs, weights alone in 8 and in 4 bits: side by side, and transformers opens them."""
    model = save_tiny("bert-classifier", tmp_path / "bert")
    block = "bert.encoder.layer.0"
    rounded = {"scheme": "int8-row-sym", "activation": "a8-token-dynamic-sym"}
    layers: Layers = {f"{block}.attention.self.{part}": rounded for part in ("query", "key", "value")}
    layers[f"{block}.attention.output.dense"] = {"scheme": "bfloat16"}
    layers[f"{block}.intermediate.dense"] = {"scheme": "int8-row-sym"}
    done = run("bert", model, tmp_path / "out", **TEXT, plan=written(tmp_path / "plan.json", layers), dtype="float16")
    kept = f"{block}.attention.output.dense"
    row = next(row for row in done.record.layers if row.layer == kept)
    assert (row.scheme, row.method, row.bytes_after) == ("float16", "keep", 2 * row.shape[0] * row.shape[1])
    original = load_file(model / "model.safetensors")[f"{kept}.weight"]
    assert torch.equal(done.stored[f"{kept}.weight"], original.half())
    config = json.loads((done.out / "config.json").read_text())["quantization_config"]
    assert kept in config["ignore"]
    assert len({row.scheme for row in done.record.layers if row.block >= 0}) == 3
    assert all(line["passed"] for line in done.record.verified)
    again = run(
        "bert", model, tmp_path / "again", **TEXT, plan=str(done.out / "compress" / "plan.json"), dtype="float16"
    )
    assert (again.out / "model.safetensors").read_bytes() == (done.out / "model.safetensors").read_bytes()


def _named(layers: Layers) -> None:
    layers["model.layers.0.mlp.down_prj"] = {"scheme": "int4-g64-sym"}


def _strange(layers: Layers) -> None:
    layers[DOWN]["scheme"] = "int7-g64-sym"


def _group(layers: Layers) -> None:
    layers[DOWN]["scheme"] = "int4-g48-sym"


def _apart(layers: Layers) -> None:
    layers[QKV[0]]["scheme"] = "int8-row-sym"


def _zeros(layers: Layers) -> None:
    layers[DOWN]["scheme"] = "int4-g64-asym"


def _method(layers: Layers) -> None:
    layers[DOWN]["method"] = "gtpq"


def _option(layers: Layers) -> None:
    layers[DOWN]["options"] = {"damp": 99.0}


def _empty(layers: Layers) -> None:
    layers.clear()


def test_a_plan_of_several_schemes_where_only_one_opens(tmp_path: Path) -> None:
    model, path = save_tiny("t5", tmp_path / "t5"), tmp_path / "plan.json"
    names = [layer.name for layer in find_structure(tiny_model("t5"), tiny_config("t5")).layers]
    path.write_text(json.dumps({"layers": {n: {"scheme": f"int{3 + (n == names[0])}-g32-sym"} for n in names}}))
    with pytest.raises(RecipeError, match="the plan gives layers int3-g32-sym and int4-g32-sym; this model looks at"):
        run("t5", model, tmp_path / "out", plan=str(path), samples=8, seq_len=32)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (_named, "names model.layers.0.mlp.down_prj, and LlamaForCausalLM has no such layer; is .*down_proj meant"),
        (_strange, "7 bits cannot be stored"),
        (_group, "int4-g48-sym, whose groups do not divide"),
        (_apart, "are fused by servers, and the plan gives them int4-g64-sym and int8-row-sym; give them one scheme"),
        (_zeros, "zero points with one scheme for the whole model"),
        (_method, "no method is called 'gtpq'"),
        (_option, "damp 99.0 is out of range"),
        (_empty, "is no plan"),
    ],
)
def test_a_plan_that_cannot_be(tmp_path: Path, edit: Callable[[Layers], None], said: str) -> None:
    model = save_tiny("llama", tmp_path / "llama")
    layers = {
        layer: {"scheme": "int4-g64-sym", "method": "gptq"}
        for block in range(3)
        for layer in (
            *(f"model.layers.{block}.self_attn.{part}_proj" for part in "qkvo"),
            *(f"model.layers.{block}.mlp.{part}_proj" for part in ("gate", "up", "down")),
        )
    }
    edit(layers)
    with pytest.raises(CompressError, match=said):
        run("llama", model, tmp_path / "out", **TEXT, plan=written(tmp_path / "plan.json", layers))
    assert not (tmp_path / "out").exists()


def test_files_that_are_no_plans(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read: No such file"):
        inspect_plans(str(tmp_path / "none.json"), None)
    (tmp_path / "cut.json").write_text('{"layers": {"a": {"sch')
    with pytest.raises(RecipeError, match="is no plan"):
        inspect_plans(str(tmp_path / "cut.json"), None)
    with pytest.raises(RecipeError, match="leave out budgets"):
        run("llama", tmp_path, tmp_path / "out", plan="plan.json", max_bytes="1MB")
