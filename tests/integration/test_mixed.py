"""Eight bits where four do most damage: what was measured, what was chosen, and that it opens as meant."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers

from compress.core import device
from compress.core.blocks import find_structure
from compress.core.early import reads_weights
from compress.core.errors import RecipeError
from compress.core.numerics.affine import dequantize
from compress.core.registry import load
from compress.core.safetensors_file import read_header
from compress.core.types import Scheme
from compress.pipeline.damage import TRIAL_TOKENS, Trials
from compress.pipeline.hooks import Hooks
from compress.pipeline.outside import Outside
from compress.pipeline.prepare import make_streams, open_and_plan
from compress.pipeline.store import Store
from compress.plan.mixed import groups_of, with_eight_bits
from compress.recipe import Recipe
from export.verify import check_stored, compare_opened
from tests.rebuild import Run, open_artifact, open_original, run, write_text
from tests.tiny import BOS, EOS, PAD, VOCAB, randomize, save_tiny, tiny_model, tiny_tokenizer


def measured(done: Run) -> dict[str, float]:
    lines = (done.out / "compress" / "journal.jsonl").read_text().splitlines()
    return next(line["groups"] for line in map(json.loads, lines) if line.get("kind") == "damage")


@pytest.mark.parametrize("name", ["bert", "deberta-v2"])
def test_an_encoder_at_four_bits_is_mixed(tmp_path: Path, name: str) -> None:
    done = run(name, save_tiny(name, tmp_path / name), tmp_path / "out", bits=4)
    body = [result for result in done.record.layers if result.block >= 0]
    assert {result.scheme for result in body} == {"int4-g32-sym", "int8-g32-sym"}
    assert check_stored(done.out)["layers"] == len(body)
    assert compare_opened(open_artifact(done), read_header(done.probe))["difference"] <= 1e-5
    weights = {result.layer: result.shape[0] * result.shape[1] for result in body}
    eight = [result.layer for result in body if result.scheme == "int8-g32-sym"]
    assert sum(weights[layer] for layer in eight) <= 0.25 * sum(weights.values())
    q, k, v = (next(r.scheme for r in body if r.role == role) for role in ("q_proj", "k_proj", "v_proj"))
    assert q == k == v
    assert all("bits move the output of block" in result.reason for result in body)


def test_one_scheme_when_asked(tmp_path: Path) -> None:
    done = run("bert", save_tiny("bert", tmp_path / "bert"), tmp_path / "out", bits=4, mixed=False)
    assert {result.scheme for result in done.record.layers if result.block >= 0} == {"int4-g32-asym"}


def test_a_model_that_looks_at_its_weights_while_it_is_opened_has_one_scheme(tmp_path: Path) -> None:
    """ModernBERT: transformers initialises what no checkpoint fills by reaching into packed layers."""
    source = tmp_path / "modernbert"
    ids = {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS, "cls_token_id": BOS, "sep_token_id": EOS}
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.AutoConfig.for_model("modernbert", vocab_size=VOCAB, local_attention=16, **ids, **shape)
    model = transformers.AutoModelForMaskedLM.from_config(config)
    randomize(model)
    model.save_pretrained(source)
    tiny_tokenizer().save_pretrained(source)
    done = run("bert", source, tmp_path / "out", bits=4)
    assert {result.scheme for result in done.record.layers if result.block >= 0} == {"int4-g32-asym"}
    assert any("one scheme for all layers, none of 8 bits among those of 4" in note for note in done.record.notes)
    opened = transformers.AutoModelForMaskedLM.from_pretrained(done.out, dtype=torch.float32)
    assert compare_opened(opened.eval(), read_header(done.probe))["difference"] <= 1e-5
    with pytest.raises(RecipeError, match="--mixed is not possible for ModernBertForMaskedLM: this model looks at"):
        run("bert", source, tmp_path / "asked", bits=4, mixed=True)
    kept = run("bert", source, tmp_path / "kept", bits=4, symmetric=True, embeddings="int8")
    assert not kept.record.plan["layers"]["model.embeddings.tok_embeddings"]["packed"]


@pytest.mark.parametrize(("name", "reads"), [("t5", True), ("bert", False), ("whisper", False), ("llama", False)])
def test_which_models_look_at_their_weights(name: str, reads: bool) -> None:
    model = tiny_model(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert reads_weights(model, find_structure(model, model.config)) == reads
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_a_decoder_is_mixed_when_asked(tmp_path: Path) -> None:
    source = save_tiny("llama", tmp_path / "llama")
    done = run("llama", source, tmp_path / "out", bits=3, mixed=True, mixed_share=0.5)
    body = [result for result in done.record.layers if result.block >= 0]
    assert {result.scheme for result in body} == {"int3-g64-sym", "int8-g64-sym"}
    assert compare_opened(open_artifact(done), read_header(done.probe))["difference"] <= 1e-5
    plain = run("llama", source, tmp_path / "plain", bits=3, mixed=False, symmetric=True)
    kl = [next(m.median for m in r.record.measurements if m.name == "kl") for r in (done, plain)]
    assert kl[0] < kl[1]


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("bert", {"bits": 8}, "--bits 4, 3 or 2"),
        ("bert", {"bits": 4, "symmetric": False}, "exclude each other"),
        ("mixtral", {"bits": 4}, "one scheme only"),
    ],
)
def test_what_cannot_be_mixed_is_refused(tmp_path: Path, name: str, settings: dict[str, object], said: str) -> None:
    source = save_tiny(name, tmp_path / name)
    with pytest.raises(RecipeError, match=said):
        run(name, source, tmp_path / "out", mixed=True, **settings)


@torch.no_grad()
def test_damage_is_what_the_whole_model_shows(tmp_path: Path) -> None:
    """Against plain transformers with one group's weights replaced, and a forward hook on the block."""
    source, text = save_tiny("bert", tmp_path / "bert"), write_text(tmp_path / "text.txt")
    recipe = Recipe.build(
        model=str(source), data=str(text), bits=4, method="rtn", samples=6, seq_len=32, eval_samples=2, threads=1
    )
    device.set_threads(1)
    ready = open_and_plan(recipe, Hooks())
    assert ready.mixed
    store = Store(ready.checkpoint, ready.plan, tmp_path / "out", torch.bfloat16)
    store.work.mkdir(parents=True)
    outside = Outside(ready.checkpoint, ready.structure, ready.plan, store)
    outside.compress(store.block_path(-1))
    outside.load_small(store.block_path(-1))
    hessian = load("collector", "hessian")
    trials = Trials(ready.checkpoint, ready.structure, ready.plan, store, lambda n: hessian(n, torch.device("cpu")))
    traces = make_streams(ready).calibration
    inputs = [trace.inputs for trace in traces]
    found = trials.damage(traces, outside, lambda *_: None)
    groups = groups_of(ready.structure)
    assert set(found) == set(groups)
    assert sum(batch["input_ids"].numel() for batch in inputs) <= TRIAL_TOKENS
    rtn = load("method", "rtn")
    for name, layers in groups.items():
        model = open_original(Run("bert", source, tmp_path, tmp_path, recipe, None))  # type: ignore[arg-type]
        block = model.get_submodule(ready.structure.blocks[layers[0].block].name)
        outputs: list[torch.Tensor] = []
        block.register_forward_hook(lambda _m, _a, out, kept=outputs: kept.append(out))
        for batch in inputs:
            model(**batch)
        for layer in layers:
            weight = model.get_parameter(layer.param)
            q, _ = rtn.quantize(weight.data, None, ready.plan.layers[layer.name].scheme, rtn.options())
            weight.copy_(dequantize(q))
        for batch in inputs:
            model(**batch)
        half = len(inputs)
        tensors = [out[0] if isinstance(out, tuple) else out for out in outputs]
        off = sum(float((a - b).square().sum()) for a, b in zip(tensors[:half], tensors[half:], strict=True))
        norm = sum(float(a.square().sum()) for a in tensors[:half])
        assert found[name] == pytest.approx(off / norm, rel=1e-3)


def test_the_most_damage_a_weight_gets_eight_bits(tmp_path: Path) -> None:
    source, text = save_tiny("bert", tmp_path / "bert"), write_text(tmp_path / "text.txt")
    recipe = Recipe.build(model=str(source), data=str(text), bits=4, samples=2, seq_len=32, eval_samples=2)
    ready = open_and_plan(recipe, Hooks())
    groups = groups_of(ready.structure)
    assert sum(len(layers) for layers in groups.values()) == len(ready.structure.layers)
    names = list(groups)
    size = {n: sum(la.shape[0] * la.shape[1] for la in layers) for n, layers in groups.items()}
    damage = {n: float(size[n]) * (position + 1) for position, n in enumerate(names)}  # a weight of the last does most
    eight = Scheme("int", 8, 64, True, "float32", 8)
    plan = with_eight_bits(ready.plan, ready.structure, damage, eight, 0.4)
    chosen = [n for n in names if plan.layers[n].scheme == eight]
    left, expected = 0.4 * sum(size.values()), []
    for n in reversed(names):
        if size[n] <= left:
            left -= size[n]
            expected.append(n)
    assert sorted(chosen) == sorted(expected)
    assert plan.predicted_bytes > ready.plan.predicted_bytes
    assert with_eight_bits(ready.plan, ready.structure, {}, eight, 0.4).layers[names[0]].scheme.bits == 4
