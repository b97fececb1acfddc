"""Every architecture, tiny and random: quantize, save, load with plain transformers, same outputs.

The oracle is tests/rebuild.py: the original opened by transformers, its weights replaced by codes read from the files.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from compress.core.safetensors_file import read_header
from export.verify import check_stored, compare_opened
from tests.rebuild import Codes, Run, first_output, open_original, run, structure_of
from tests.tiny import DECODERS, ENCODER_DECODERS, ENCODERS, TINY, example_inputs

TOLERANCE = 2e-5  # logits of order 1; the same float32 products in another order
AUDIO = "whisper"
TEXT = [name for name in TINY if name != AUDIO]
GREEDY_TOKENS = 64

Runs = Callable[[str], Run]
Models = Callable[[str], tuple[Any, Any]]


@torch.no_grad()
def outputs(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    return first_output(model(**inputs))


@pytest.mark.parametrize("name", TINY)
def test_every_layer_has_codes(runs: Runs, name: str) -> None:
    done = runs(name)
    found = structure_of(open_original(done))
    results = {result.layer: result for result in done.record.layers if result.block >= 0}
    assert set(results) == {layer.name for layer in found.layers}
    codes = Codes(done)
    for layer in found.layers:
        packed = layer.container != "conv1d"
        assert codes.plan[layer.name]["packed"] == packed, "only a transposed Conv1D is beyond the format"
        scheme = codes.plan[layer.name]["scheme"].removesuffix("asym").removesuffix("sym")
        eight = name in ENCODERS and scheme.startswith("int8")  # a quarter of an encoder's weights at most
        assert scheme.startswith("int4-row" if name == "qwen3" else "int8-g" if eight else "int4-g"), "80 = 16 * 5"
        assert codes.weight(layer).shape == layer.shape
        assert results[layer.name].weight_error < 0.03
    stored = done.stored
    assert not [layer.param for layer in found.layers if layer.container != "conv1d" and layer.param in stored]
    if name == "gpt2":
        assert any("cannot pack a conv1d" in note for note in done.record.notes)


@pytest.mark.parametrize("name", TINY)
def test_transformers_opens_the_compressed_model(models: Models, name: str) -> None:
    opened, expected = models(name)
    assert type(opened) is type(expected)
    inputs = example_inputs(expected, name)
    wanted = outputs(expected, inputs)
    assert float((outputs(opened, inputs) - wanted).abs().max()) <= TOLERANCE * max(1.0, float(wanted.abs().max()))


@pytest.mark.parametrize("name", DECODERS)
def test_greedy_tokens_are_identical(models: Models, name: str) -> None:
    opened, expected = models(name)
    prompt = example_inputs(expected, name, rows=1, length=8)
    settings = {"do_sample": False, "max_new_tokens": GREEDY_TOKENS, "min_new_tokens": GREEDY_TOKENS}
    written, wanted = opened.generate(**prompt, **settings), expected.generate(**prompt, **settings)
    assert wanted.shape[1] == 8 + GREEDY_TOKENS
    assert torch.equal(written, wanted)


@pytest.mark.parametrize("name", TEXT)
def test_the_loop_ends_at_the_outputs_of_the_artifact(runs: Runs, models: Models, name: str) -> None:
    """The probe holds what the streamed compressed model put out; no block was whole in memory with another."""
    line = compare_opened(models(name)[0], read_header(runs(name).probe))
    assert line["passed"]
    assert line["difference"] <= TOLERANCE * 10
    assert line["positions"] >= 16


@pytest.mark.parametrize("name", TINY)
def test_compressed_tensors_decodes_every_packed_layer(runs: Runs, name: str) -> None:
    line = check_stored(runs(name).out)
    packed = [key for key in runs(name).stored if key.endswith(".weight_scale")]
    assert line["passed"]
    assert line["layers"] == len(packed)
    assert bool(packed) == (name != "gpt2")


@pytest.mark.parametrize("name", TINY)
def test_ties_and_companions_survive(runs: Runs, models: Models, name: str) -> None:
    done = runs(name)
    opened, original = models(name)[0], open_original(done)
    found = structure_of(original)
    if found.tied:
        assert opened.get_output_embeddings().weight is opened.get_input_embeddings().weight
        ends = {
            n
            for n, p in original.named_parameters(remove_duplicate=False)
            if p is original.get_input_embeddings().weight
        }
        assert len(ends & set(done.stored)) == 1, "a tied matrix is stored once"
    for path in done.source.iterdir():
        if path.suffix != ".safetensors" and path.name != "config.json":
            assert (done.out / path.name).read_bytes() == path.read_bytes(), path.name
    assert (done.out / "tokenizer.json").is_file()
    assert any(path.name.startswith("chat_template") for path in done.out.iterdir())


@pytest.mark.parametrize("name", TEXT)
def test_every_layer_was_solved_with_statistics(runs: Runs, name: str) -> None:
    record = runs(name).record
    tokens = record.data["calibration"]["tokens"]
    assert tokens == 4 * 32
    inside = [result for result in record.layers if result.block >= 0]
    for result in inside:
        assert result.method == "gptq"
        assert 0 < result.output_error < 0.05, result.layer
        if ".experts." in result.layer:
            assert 0 < result.n_tokens < tokens, "an expert reads what is routed to it"
            assert result.fallback is None or result.fallback.startswith("only ")
        else:
            assert result.fallback is None, result.layer
            halves = 2 if name in ENCODER_DECODERS else 1
            assert result.n_tokens >= tokens // halves, result.layer
    if name in ENCODER_DECODERS:
        assert [result for result in inside if result.role.startswith("cross_")]


def test_a_model_that_hears_is_rounded_and_says_so(runs: Runs) -> None:
    record = runs(AUDIO).record
    assert any("reads input_features, not text" in note for note in record.notes)
    assert {result.fallback for result in record.layers if result.block >= 0} == {
        "no calibration token reached this layer: rounded to nearest"
    }
    assert [m.name for m in record.measurements] == ["bytes", "bits_per_weight"] * 2


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3_moe", "deberta-v2", "t5"])
def test_the_same_command_twice_writes_the_same_bytes(runs: Runs, tmp_path: Path, name: str) -> None:
    first = runs(name)
    second = run(name, first.source, tmp_path / "again")
    files = {p.relative_to(first.out) for p in first.out.rglob("*.safetensors")}
    assert files == {p.relative_to(second.out) for p in second.out.rglob("*.safetensors")}
    for path in files | {Path("config.json")}:
        assert (first.out / path).read_bytes() == (second.out / path).read_bytes(), path


@pytest.mark.parametrize("name", ["llama", "bert", "bart"])
def test_verification_in_a_fresh_process_passes(runs: Runs, tmp_path: Path, name: str) -> None:
    record = run(name, runs(name).source, tmp_path / "out", verify=True).record
    assert [line["passed"] for line in record.verified] == [True, True]
    assert record.verified[1]["difference"] <= TOLERANCE * 10
