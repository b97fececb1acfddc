"""The streaming forward is the model's own: states, logits and statistics against hooks on the whole model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from compress.core.blocks import find_structure, read_weight, steps_of
from compress.core.checkpoint import Checkpoint, fill_tied
from compress.core.numerics.correct import UNTRIED
from compress.core.registry import load
from compress.core.types import Plan, Structure
from compress.pipeline.collect import collecting
from compress.pipeline.hooks import Hooks
from compress.pipeline.outside import Outside
from compress.pipeline.prepare import make_streams, open_and_plan
from compress.pipeline.replay import Replay, Trace
from compress.pipeline.store import Store
from compress.recipe import Recipe
from tests.rebuild import (
    Codes,
    Run,
    block_outputs,
    compress_in_memory,
    first_output,
    layer_inputs,
    open_original,
    structure_of,
)
from tests.tiny import ENCODER_DECODERS, TINY, save_tiny

Runs = Callable[[str], Run]
TEXT = [name for name in TINY if name != "whisper"]
TOLERANCE = 1e-5


def collector(width: int) -> Any:
    """A hessian of one layer input."""
    return load("collector", "hessian")(width, torch.device("cpu"))


def batches(name: str) -> list[dict[str, Tensor]]:
    """Two batches of different sizes, longer than the tiny sliding windows."""
    generator = torch.Generator().manual_seed(5)
    ids = [torch.randint(4, 400, shape, generator=generator) for shape in ((2, 40), (1, 24))]
    if name in ENCODER_DECODERS:
        return [{"input_ids": i[:, : i.shape[1] // 2], "decoder_input_ids": i[:, i.shape[1] // 2 :]} for i in ids]
    return [{"input_ids": i} for i in ids]


def opened(source: Path) -> tuple[Checkpoint, Structure]:
    """A checkpoint of ours with every weight in memory."""
    checkpoint = Checkpoint(source)
    structure = find_structure(checkpoint.model, checkpoint.config)
    for name in checkpoint.outside(block.name for block in structure.blocks):
        fill_tied(checkpoint.model, name, checkpoint.load(name).float())
    checkpoint.fill_buffers()
    for block in structure.blocks:
        checkpoint.fill(block.name)
    return checkpoint, structure


def assert_close(got: Tensor, wanted: Tensor) -> None:
    """Within TOLERANCE of the largest wanted value."""
    assert got.shape == wanted.shape
    assert float((got - wanted).abs().max()) <= TOLERANCE * max(1.0, float(wanted.abs().max()))


@pytest.mark.parametrize("name", TEXT)
def test_played_back_blocks_give_the_models_own_outputs(runs: Runs, tmp_path: Path, name: str) -> None:
    """Half way the activations go through the disk and into new traces, as after a kill."""
    checkpoint, structure = opened(runs(name).source)
    hidden, wanted = block_outputs(open_original(runs(name)), batches(name))
    store = Store(checkpoint, Plan({}, 0), tmp_path, torch.bfloat16)
    traces = [Trace(batch) for batch in batches(name)]
    half = len(structure.blocks) // 2
    with Replay(checkpoint.model, structure.blocks) as replay:
        for block in structure.blocks:
            if block.index == half:
                traces = [Trace(batch) for batch in batches(name)]
                lasts = {before.stack: before for before in structure.blocks[:half]}
                for before in lasts.values():
                    store.read_state(before, traces)
            for number, trace in enumerate(traces):
                replay.advance(trace, block.index)
                assert_close(trace.hidden[block.stack], hidden[block.index][number])
            store.write_state(block, traces)
        for trace, output in zip(traces, wanted, strict=True):
            assert_close(first_output(replay.finish(trace)), output)


@pytest.mark.parametrize("name", TEXT)
def test_statistics_are_those_of_plain_hooks(runs: Runs, name: str) -> None:
    checkpoint, structure = opened(runs(name).source)
    inputs = layer_inputs(open_original(runs(name)), batches(name))
    traces = [Trace(batch) for batch in batches(name)]
    with Replay(checkpoint.model, structure.blocks) as replay:
        for block in structure.blocks:
            with collecting(checkpoint.model, block, collector) as gathered:
                for trace in traces:
                    replay.run(trace, block.index)
            for layer in block.layers:
                x, stats = inputs[layer.name], gathered.take(layer)
                assert stats.n_tokens == x.shape[0], layer.name
                if x.shape[0]:
                    assert_close(stats.hessian.double(), 2 / x.shape[0] * x.T @ x)
            for trace in traces:
                replay.advance(trace, block.index)


def test_layers_share_statistics_only_when_they_read_the_same(runs: Runs) -> None:
    """Deberta multiplies query and key, not value, with relative positions; llama's three read one input."""
    groups = {}
    for name in ("deberta-v2", "llama"):
        checkpoint, structure = opened(runs(name).source)
        block = structure.blocks[0]
        with (
            Replay(checkpoint.model, structure.blocks) as replay,
            collecting(checkpoint.model, block, collector) as gathered,
        ):
            replay.run(Trace(batches(name)[0]), 0)
        groups[name] = [[layer.role for layer in group] for group in gathered.inputs()]
    assert groups["deberta-v2"][:2] == [["q_proj", "k_proj"], ["v_proj"]]
    assert groups["llama"] == [["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"]]


def output_error(weight: Tensor, quantized: Tensor, x: Tensor) -> float:
    """|X (W - Q)^T|^2 / |X W^T|^2 in float64."""
    w = weight.double()
    return float((x @ (w - quantized.double()).T).square().sum() / (x @ w.T).square().sum())


@pytest.mark.parametrize("name", TEXT)
def test_each_layer_was_solved_with_the_inputs_that_the_compressed_model_gives_it(runs: Runs, name: str) -> None:
    """The recorded error of every layer that does not write to the residual stream, worked out again: the blocks and
    the steps before it compressed, its own and later ones still original."""
    done = runs(name)
    recorded = {result.layer: result for result in done.record.layers}
    codes = Codes(done)
    text = [trace.inputs for trace in make_streams(open_and_plan(done.recipe, Hooks())).calibration]
    for block in structure_of(open_original(done)).blocks:
        for number, step in enumerate(steps_of(block)):
            model = compress_in_memory(done, open_original(done), block.index, number)
            inputs = layer_inputs(model, text)
            for layer in step.layers:
                x, found = inputs[layer.name], recorded[layer.name]
                weight = read_weight(layer, model.get_parameter(layer.param))
                assert found.n_tokens == x.shape[0], layer.name
                if found.moved == 0:
                    error = output_error(weight, codes.weight(layer), x)
                    assert found.output_error == pytest.approx(error, rel=0.005), layer.name


# the module whose input is the stream after a writer; "" for the block, whose output it is
STREAMS: dict[str, dict[str, str]] = {
    "llama": {"o_proj": "post_attention_layernorm", "down_proj": ""},
    "gpt2": {"o_proj": "ln_2", "fc2": ""},
    "gpt_neox": {"fc2": ""},
    "bert": {"o_proj": "attention.output.LayerNorm", "fc2": "output.LayerNorm"},
    "mixtral": {"o_proj": "post_attention_layernorm"},
    "t5": {"o_proj": "layer.1.layer_norm", "cross_o_proj": "layer.2.layer_norm", "fc2": "", "down_proj": ""},
    "gemma3": {},
}


def stream_of(model: Any, name: str, text: list[dict[str, Tensor]]) -> Tensor:
    """The input of module `name`, or its output when it is a block, for all tokens (n, D), float64."""
    seen: list[Tensor] = []
    path, _, block = name.partition("|")
    module = model.get_submodule(path)

    def after(_: Any, args: Any, output: Any) -> None:
        tensor = (output if isinstance(output, Tensor) else output[0]) if block else args[0]
        seen.append(tensor.reshape(-1, tensor.shape[-1]).double())

    hook = module.register_forward_hook(after)
    with torch.no_grad():
        for batch in text:
            model(**batch)
    hook.remove()
    return torch.cat(seen)


@pytest.mark.parametrize("name", STREAMS)
def test_layers_that_write_to_the_stream_make_good_what_it_lacks(runs: Runs, name: str) -> None:
    """Which layers write, and the weight they are rounded to, in float64 from the two models' streams."""
    done = runs(name)
    recorded = {result.layer: result for result in done.record.layers}
    codes = Codes(done)
    text = [trace.inputs for trace in make_streams(open_and_plan(done.recipe, Hooks())).calibration]
    for block in structure_of(open_original(done)).blocks:
        for number, step in enumerate(steps_of(block)):
            model = compress_in_memory(done, open_original(done), block.index, number)
            for layer in step.layers:
                where = STREAMS[name].get(layer.role)
                if where is None:
                    assert recorded[layer.name].moved == 0, layer.name
                    continue
                path = f"{block.name}.{where}" if where else f"{block.name}|block"
                wanted, got = (stream_of(m, path, text) for m in (open_original(done), model))
                x = layer_inputs(model, text)[layer.name]
                weight = read_weight(layer, model.get_parameter(layer.param)).double()
                share = 1 / wanted.square().mean(1)
                hessian = 2 / share.sum() * (x * share[:, None]).T @ x
                drift = 2 / share.sum() * ((wanted - got) * share[:, None]).T @ x
                mean, trust = hessian.diagonal().mean(), len(x) / (len(x) + UNTRIED * x.shape[1])
                damped = hessian * trust
                damped.diagonal().copy_(hessian.diagonal() + 0.01 * mean)
                target = weight + trust * torch.linalg.solve(damped, drift.T).T
                moved = float((target - weight).square().sum() / weight.square().sum())
                root = share.sqrt()[:, None]
                error = output_error(target, codes.weight(layer), x * root)
                assert recorded[layer.name].moved == pytest.approx(moved, rel=0.01, abs=1e-9), layer.name
                assert recorded[layer.name].output_error == pytest.approx(error, rel=0.01), layer.name


@pytest.mark.parametrize("name", TEXT)
def test_each_blocks_error_is_that_of_the_two_whole_models(
    runs: Runs, models: Callable[[str], tuple[Any, Any]], name: str
) -> None:
    done = runs(name)
    text = [trace.inputs for trace in make_streams(open_and_plan(done.recipe, Hooks())).original]
    original, _ = block_outputs(open_original(done), text)
    compressed, _ = block_outputs(models(name)[1], text)
    assert len(done.record.blocks) == len(original)
    for block, one, other in zip(done.record.blocks, original, compressed, strict=True):
        a = torch.cat([h.reshape(-1, h.shape[-1]) for h in one]).double()
        b = torch.cat([h.reshape(-1, h.shape[-1]) for h in other]).double()
        assert block.hidden_error == pytest.approx(float((a - b).square().sum() / a.square().sum()), rel=0.001)
        assert block.hidden_cosine == pytest.approx(float(torch.cosine_similarity(a, b, dim=-1).mean()), abs=1e-5)


@pytest.mark.parametrize(("dtype", "reads"), [("bfloat16", 1), ("float32", 2)])
def test_a_vocabulary_that_both_models_share_is_in_memory_once(
    dtype: str, reads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kept as the file has it, or rounded to 16 bits; what each model looks up is its own either way."""
    source = save_tiny("qwen2", tmp_path / "source", dtype=dtype)
    recipe = Recipe.build(model=str(source), out=str(tmp_path / "out"), samples=2, seq_len=32, eval_samples=2)
    ready = open_and_plan(recipe, Hooks())
    store = Store(ready.checkpoint, ready.plan, tmp_path / "out", torch.bfloat16)
    store.work.mkdir(parents=True)
    outside = Outside(ready.checkpoint, ready.structure, ready.plan, store)
    outside.compress(store.block_path(-1))
    outside.load_small(store.block_path(-1))
    calls: list[str] = []
    read = outside._matrix
    monkeypatch.setattr(outside, "_matrix", lambda which, name: calls.append(which) or read(which, name))
    original = ready.checkpoint.load("model.embed_tokens.weight", torch.float32)
    with outside.vocabularies(("original", "compressed")) as use:
        assert len(calls) == reads
        for which, expected in (("original", original), ("compressed", original.bfloat16().float())):
            use(which)  # type: ignore[arg-type]
            assert torch.equal(ready.checkpoint.model.get_parameter("model.embed_tokens.weight"), expected)
