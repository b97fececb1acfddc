"""`--effort`: what it changes in a run, what it says of it, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from compress.core.errors import RecipeError
from compress.core.numerics.affine import round_to_storage
from compress.core.safetensors_file import read_header
from compress.recipe import Recipe
from export.source import Source
from export.verify import compare_opened
from tests.rebuild import Run, compress_in_memory, open_artifact, open_original, run
from tests.tiny import example_inputs, save_tiny


def best(name: str, tmp_path: Path, **settings: Any) -> Run:
    tmp_path.mkdir(exist_ok=True)
    source = save_tiny(name, tmp_path / name)
    small = {"bits": 3, "group_size": 16, "effort": "best", "options": {"tune.epochs": "32"}}
    return run(name, source, tmp_path / "best", **{**small, **settings})


@pytest.mark.parametrize("name", ["llama", "gpt2", "t5"])
def test_blocks_put_out_what_is_nearer_to_the_original(tmp_path: Path, name: str) -> None:
    done = best(name, tmp_path)
    for block in done.record.blocks:
        assert block.solved_error is not None
        assert block.tuned_error is not None
        assert block.tuned_error < 0.99 * block.solved_error
    assert all(0 < layer.rescaled <= 1 for layer in done.record.layers if layer.block >= 0)
    assert any(layer.recoded > 0 for layer in done.record.layers)
    # the codes in the files are those whose outputs were measured
    assert compare_opened(open_artifact(done), read_header(done.probe))["difference"] <= 1e-5
    inputs = example_inputs(open_original(done), name)
    with torch.no_grad():
        ours = compress_in_memory(done, open_original(done))(**inputs)[0]
        theirs = open_artifact(done)(**inputs)[0]
    assert torch.allclose(ours, theirs, atol=1e-5)
    lines = json.loads((done.out / "compress" / "plan.json").read_text())["layers"]
    tuned = [line["tuned"] for line in lines.values() if "tuned" in line]
    assert len(tuned) == sum(layer.block >= 0 for layer in done.record.layers)
    assert all(line["block_error"][1] < line["block_error"][0] for line in tuned)
    assert any("were tuned against the output of their blocks" in note for note in done.record.notes)


def test_the_first_block_starts_where_balanced_ends(tmp_path: Path) -> None:
    """Tuning starts from the codes of the default run: its first block, solved, is the default's to the last bit."""
    tuned = best("llama", tmp_path)
    plain = run("llama", tuned.source, tmp_path / "balanced", bits=3, group_size=16)
    rtn = best("llama", tmp_path / "rtn", method="rtn", options={"tune.epochs": 32, "tune.travel": 0.0})
    for a, b in zip(tuned.record.layers, plain.record.layers, strict=True):
        if a.block == 0:
            assert (a.output_error, a.weight_error) == (b.output_error, b.weight_error)
    assert plain.record.blocks[0].solved_error is None
    first, second = Source(tuned.out), Source(plain.out)
    for layer in first.layers:
        if layer.block == 0 and layer.name in first.coded:
            q, p = first.codes(layer.name), second.codes(layer.name)
            assert int((q.codes.int() - p.codes.int()).abs().max()) <= 1
            assert torch.equal(round_to_storage(q.scale, q.scheme.scale_dtype, q.scheme.scale_bits), q.scale)
    assert (rtn.record.blocks[0].tuned_error or 1) < (rtn.record.blocks[0].solved_error or 0)
    assert all(layer.recoded == 0 for layer in rtn.record.layers)


def test_what_cannot_be_tuned_is_left_and_said(tmp_path: Path) -> None:
    done = best("mixtral", tmp_path, bits=4)
    experts = [layer for layer in done.record.layers if ".experts." in layer.layer]
    assert experts
    assert all(layer.untuned == "few tokens reach an expert" and layer.recoded == 0 for layer in experts)
    assert all(b.tuned_error is not None and b.tuned_error <= (b.solved_error or 0) for b in done.record.blocks)
    assert any("left as they were solved: few tokens" in note for note in done.record.notes)
    rounded = best("bert", tmp_path / "int8", bits=8, group_size="auto", options={})
    assert all(b.solved_error is None for b in rounded.record.blocks)
    assert all("rounded to int8" in layer.untuned for layer in rounded.record.layers if layer.block >= 0)
    unread = best("llama", tmp_path / "again", method="rtn", eval_samples=0, trust_remote_code=False)
    assert all(b.solved_error is not None for b in unread.record.blocks)  # calibration text was read for tuning alone


def test_a_plan_and_a_budget_are_solved_with_the_effort(tmp_path: Path) -> None:
    done = best("llama", tmp_path)
    settings: dict[str, Any] = {"effort": "best", "options": {"tune.epochs": 32}}
    plan = str(done.out / "compress" / "plan.json")
    again = run("llama", done.source, tmp_path / "planned", plan=plan, bits=3, group_size=16, **settings)
    one, two = Source(done.out), Source(again.out)
    for layer in one.layers:
        if layer.name in one.coded and layer.block >= 0:
            assert torch.equal(one.codes(layer.name).codes, two.codes(layer.name).codes)
    budget = run("llama", done.source, tmp_path / "budget", bpw=8.6, **settings)
    assert len({layer.scheme for layer in budget.record.layers if layer.block >= 0}) > 1
    assert all((b.tuned_error or 1) < (b.solved_error or 0) for b in budget.record.blocks)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"options": {"tune.epochs": 2}}, "--effort balanced has none; use --effort best"),
        ({"effort": "fast", "options": {"tune.travel": 0.1}}, "--effort fast has none"),
        ({"effort": "best", "scheme": "q4_1"}, "--scheme q4_1 has others; use --bits"),
        ({"effort": "best", "bits": 8, "activations": "static"}, "--activations static"),
        ({"effort": "great"}, "effort"),
    ],
)
def test_contradictions_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        Recipe.build(**settings)


def test_an_unknown_option_of_the_tuning_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"has no option 'epoch'; it has epochs"):
        best("llama", tmp_path, options={"tune.epoch": 3})
    with pytest.raises(RecipeError, match=r"tune\.epochs -1"):
        best("llama", tmp_path, options={"tune.epochs": -1})


def test_text_grows_with_effort_unless_told() -> None:
    assert [Recipe.build(effort=effort).samples for effort in ("fast", "balanced", "best")] == [16, 64, 256]
    assert Recipe.build().samples == 64
    assert Recipe.build(effort="fast", samples=64).samples == 64
    assert Recipe(**Recipe.build(effort="best", samples=64).model_dump()).samples == 64
