"""AWQ's scales and rotated values: the same function, in float64 and in the artifact, and less lost to rounding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.linalg import hadamard

from calibrate.collectors.hessian import HessianCollector
from compress.core.blocks import find_structure
from compress.core.checkpoint import Checkpoint
from compress.core.errors import RecipeError
from compress.core.journal import Journal
from compress.core.numerics.affine import dequantize
from compress.core.numerics.awq import column_scale
from compress.core.numerics.rotation import random_rotation
from compress.core.safetensors_file import read_header
from compress.core.types import BlockRef, LayerPlan, Plan, Scheme
from compress.methods import rtn
from compress.pipeline import scaling
from compress.pipeline.awq import Awq, Wanted
from compress.pipeline.folding import Reparam
from compress.pipeline.hooks import Hooks
from compress.pipeline.prepare import open_and_plan
from compress.pipeline.replay import Replay, Trace
from compress.pipeline.rotate import Rotate
from compress.recipe import Recipe
from export.verify import compare_opened
from tests.rebuild import open_artifact, run, write_text
from tests.tiny import example_inputs, save_tiny, tiny_model

SCHEME = Scheme("int", 3, -1)
SCALED: dict[str, set[str]] = {
    "llama": {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"},
    "qwen2": {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"},
    "gemma3": {"o_proj", "down_proj"},  # its gains are 1 + w
    "bert": {"o_proj"},  # its norms are added to the stream as well
    "opt": {"q_proj", "k_proj", "v_proj", "o_proj", "fc1"},
    "gpt_neox": {"qkv_proj", "fc1"},
    "gpt2": set(),  # its matrices lie the other way round
    "t5": {"q_proj", "k_proj", "v_proj", "o_proj", "cross_q_proj", "gate_proj", "up_proj", "down_proj"},
}
"""Roles of which some layer can take scales; what is rotated is o_proj, where it is among them."""


def loud(model: Any) -> Any:
    """Some channels of what norms, values and FFNs put out are up to 8 times as large."""
    generator = torch.Generator().manual_seed(5)
    for name, parameter in model.named_parameters():
        if (parameter.ndim == 1 and "weight" in name) or any(
            part in name for part in ("v_proj", "up_proj", ".v.", ".wi")
        ):
            channels = torch.exp2(3 * torch.rand(len(parameter), generator=generator))
            parameter.data.mul_(channels if parameter.ndim == 1 else channels.unsqueeze(1))
    return model


class Scales:
    """AWQ as one of the others."""

    name = "awq"

    def __init__(self, model: Any, values: bool = True) -> None:
        structure = find_structure(model, model.config)
        lines = {layer.name: LayerPlan(layer.name, SCHEME, "rtn", "") for layer in structure.layers}
        self.awq = Awq(
            model,
            Plan(lines, 0),
            lambda width: HessianCollector(width, torch.device("cpu")),
            Wanted(True, values, torch.bfloat16),
        )

    def change(self, block: BlockRef, replay: Replay, traces: Sequence[Trace]) -> list[str]:
        return [layer.name for candidate, _ in self.awq.change(block, replay, traces) for layer in candidate.layers]


def awq(model: Any) -> Reparam:
    return Scales(model)


def rotate(model: Any) -> Reparam:
    return Rotate(model, 0)


@pytest.mark.parametrize("make", [awq, rotate])
@pytest.mark.parametrize("name", SCALED)
@torch.no_grad()
def test_the_function_is_the_same(name: str, make: Callable[[Any], Reparam]) -> None:
    """Every weight in float64; norms of llama's kind and softmax compute in float32 whatever they are given."""
    model = loud(tiny_model(name)).double()
    inputs = example_inputs(model, name)
    before, weights = model(**inputs).logits, {n: p.clone() for n, p in model.named_parameters()}
    structure, reparam = find_structure(model, model.config), make(model)
    trace, roles = Trace(inputs), set()
    with Replay(model, structure.blocks) as replay:
        for block in structure.blocks:
            names = reparam.change(block, replay, [trace])
            roles |= {layer.role for layer in block.layers if layer.name in names}
            replay.advance(trace, block.index)
    after = model(**inputs).logits
    assert roles == SCALED[name] & ({"o_proj"} if make is rotate else SCALED[name])
    bound = 1e-5 if name in ("llama", "qwen2", "gemma3", "t5") else 1e-10
    assert float((after - before).abs().max()) <= bound * float(before.abs().max())
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, weights[n])}
    assert bool(moved) == bool(roles)


@pytest.mark.parametrize("width", [1, 8, 64, 12])
def test_rotations_are_orthogonal(width: int) -> None:
    found = random_rotation(width, torch.Generator().manual_seed(3))
    assert torch.allclose(found @ found.T, torch.eye(width).double(), atol=1e-12)
    if width != 12:  # a Hadamard matrix whose columns have signs
        assert torch.allclose(found * found[0].sign() * width**0.5, torch.from_numpy(hadamard(width)).double())
    assert torch.equal(found, random_rotation(width, torch.Generator().manual_seed(3)))
    assert width == 1 or not torch.equal(found, random_rotation(width, torch.Generator().manual_seed(4)))


def test_awq_scales_are_powers_of_loudness_and_size() -> None:
    energy, same = torch.tensor([1.0, 2.0**12, 2.0**6, 0.0]), torch.ones(4)
    assert torch.equal(column_scale(energy, same, 1.0, 0.0), torch.tensor([2.0**-3, 2.0**3, 1.0, 1.0]))
    assert torch.allclose(column_scale(energy, same, 0.25, 0.0), torch.tensor([2.0**-0.75, 2.0**0.75, 1.0, 1.0]))
    assert torch.equal(column_scale(energy, same, 0.0, 0.0), same)
    assert torch.equal(column_scale(torch.zeros(4), same, 0.5, 0.5), same)
    assert torch.allclose(column_scale(energy * 1e-30, same, 0.5, 0.0), column_scale(energy, same, 0.5, 0.0))
    size = torch.tensor([1.0, 2.0**8, 0.0, 4.0])
    assert torch.equal(column_scale(same, size, 0.0, 1.0), torch.tensor([4.0, 0.25, 1.0, 2.0]))
    assert torch.equal(column_scale(torch.tensor([4.0, 1.0]), torch.tensor([1.0, 4.0]), 1.0, 0.5),
                       torch.tensor([2.0**0.75, 2.0**-0.75]))  # fmt: skip


@torch.no_grad()
def test_columns_that_stand_out_cost_less() -> None:
    """Columns of very different sizes, whose inputs differ by the inverse: after scaling, they are more alike, and a
    block rounded to nearest is off by at most .8 of what it is without."""
    off, spread = {}, {}
    for scaled in (False, True):
        model = tiny_model("llama")
        block = find_structure(model, model.config).blocks[0]
        factors = torch.exp2(3 * torch.rand(model.config.hidden_size, generator=torch.Generator().manual_seed(6)))
        model.get_parameter(f"{block.name}.input_layernorm.weight").div_(factors)
        readers = [layer for layer in block.layers if layer.role in ("q_proj", "k_proj", "v_proj")]
        for layer in readers:
            model.get_parameter(layer.param).mul_(factors)
        trace = Trace(example_inputs(model, "llama", 8))
        with Replay(model, find_structure(model, model.config).blocks) as replay:
            wanted = replay.run(trace, 0)
            if scaled:
                assert {layer.name for layer in readers} <= set(awq(model).change(block, replay, [trace]))
            size = model.get_parameter(readers[0].param).square().mean(0).sqrt()
            spread[scaled] = float(size.std() / size.mean())
            for layer in readers:
                weight = model.get_parameter(layer.param)
                weight.copy_(dequantize(rtn.quantize(weight, None, SCHEME, rtn.Options())[0]))
            off[scaled] = float((replay.run(trace, 0) - wanted).square().sum())
    print(off, spread)
    assert off[True] < 0.8 * off[False]
    assert spread[True] < 0.5 * spread[False]


@torch.no_grad()
def test_loud_channels_cost_less() -> None:
    """Channels 64 times as loud as others of weights as large, whole rows at 3 bits: after scaling, a block rounded to
    nearest is off by at most .7 of what it is without."""
    off = {}
    for scaled in (False, True):
        model = tiny_model("llama")
        model.get_parameter("model.layers.0.input_layernorm.weight")[:3] *= 64
        structure = find_structure(model, model.config)
        block, trace = structure.blocks[0], Trace(example_inputs(model, "llama", 8))
        with Replay(model, structure.blocks) as replay:
            wanted = replay.run(trace, 0)
            if scaled:
                assert awq(model).change(block, replay, [trace])
            for layer in block.layers:
                weight = model.get_parameter(layer.param)
                weight.copy_(dequantize(rtn.quantize(weight, None, SCHEME, rtn.Options())[0]))
            off[scaled] = float((replay.run(trace, 0) - wanted).square().sum())
    print(off)
    assert off[True] < 0.7 * off[False]


def test_awq_in_the_artifact(tmp_path: Path) -> None:
    done = run("llama", save_tiny("llama", tmp_path / "llama"), tmp_path / "out", method="awq")
    assert compare_opened(open_artifact(done), read_header(done.probe))["difference"] <= 1e-6
    assert any("were scaled by AWQ" in note for note in done.record.notes)
    assert {result.reparams for result in done.record.layers} == {"", "awq"}


@torch.no_grad()
def test_a_model_is_read_with_its_scales(tmp_path: Path) -> None:
    """To the bit what was in memory when they were chosen, and another model than the file's in every scaled matrix."""
    source = save_tiny("qwen2", tmp_path / "qwen2")
    text = write_text(tmp_path / "text.txt")
    ready = open_and_plan(Recipe.build(model=str(source), reparam="awq", data=str(text), samples=8), Hooks())
    plain, seen = Checkpoint(source), {}
    before = Awq.change

    def change(self: Awq, block: BlockRef, replay: Replay, traces: Sequence[Trace]) -> Any:
        found = before(self, block, replay, traces)
        module = ready.checkpoint.model.get_submodule(block.name)
        seen.update({f"{block.name}.{name}": value.clone() for name, value in module.named_parameters()})
        return found

    with pytest.MonkeyPatch.context() as patch, Journal.open(tmp_path / "out", {}, False) as journal:
        patch.setattr(Awq, "change", change)
        scaled = scaling.scaled(ready, tmp_path / "out", journal, lambda *_: None)
    names = {name for layers in scaled.values() for name in layers}
    assert names
    for name, value in seen.items():
        assert torch.equal(ready.checkpoint.load(name, torch.float32), value)
    for name in names:
        assert not torch.equal(ready.checkpoint.load(f"{name}.weight"), plain.load(f"{name}.weight").float())
    outside = "model.embed_tokens.weight"
    assert torch.equal(ready.checkpoint.load(outside), plain.load(outside))


def test_a_budget_has_scales_too(tmp_path: Path) -> None:
    source = save_tiny("llama", tmp_path / "llama")
    done = run("llama", source, tmp_path / "out", reparam="awq", max_bytes="155kB")
    assert compare_opened(open_artifact(done), read_header(done.probe))["difference"] <= 1e-6
    assert any("were scaled by AWQ" in note for note in done.record.notes)
    assert any("Budget" in note for note in done.record.notes)


def test_both_before_gptq(tmp_path: Path) -> None:
    done = run("qwen2", save_tiny("qwen2", tmp_path / "qwen2"), tmp_path / "out", reparam="rotate,awq")
    assert compare_opened(open_artifact(done), read_header(done.probe))["difference"] <= 1e-6
    said = {result.role: result.reparams for result in done.record.layers}
    assert said["o_proj"] in ("rotate", "rotate,awq")
    assert "rotate" not in said["down_proj"]
    assert sum("of 14 layers were" in note for note in done.record.notes) == 2


def test_what_is_unknown_is_refused() -> None:
    with pytest.raises(RecipeError, match="--reparam spin is unknown; use awq, rotate"):
        Recipe.build(reparam="awq,spin")
