"""ONNX exports of tiny models of every kind: verified in onnxruntime; and faults that only graphs have, each found."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import transformers
from onnx import helper, numpy_helper

from compress.core.errors import ModelError, RecipeError, VerificationError
from compress.pipeline.expected import VerifySettings
from compress.pipeline.export import ExportSettings, export
from compress.pipeline.hooks import Hooks
from compress.pipeline.verify import Verified, raise_if_wrong, verify
from export import folder
from export.source import Source
from tests.faults import reseal
from tests.rebuild import run
from tests.tiny import randomize, save_tiny, tiny_config, tiny_tokenizer

ONE = VerifySettings(threads=1)
ASYMMETRIC = {"bits": 4, "symmetric": False, "group_size": 32, "mixed": False}


def exported(artifact: Path, **options: str) -> tuple[Path, dict[str, Any]]:
    """The export of an artifact, and the lines it was judged by, by what they check."""
    record, failures = export(artifact, ExportSettings(("onnx",), options, verify=ONE))
    assert failures == []
    return folder.home(artifact, "onnx"), {line["check"]: line for line in record.verified}


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("bert", {"bits": 8, "activations": "dynamic"}),
        ("distilbert", {"bits": 4}),
        ("roberta", {"bits": 8, "activations": "static"}),
        ("mpnet", {"bits": 8, "activations": "dynamic"}),
        ("electra", {"bits": 2, "group_size": 16, "mixed": False}),
        ("deberta-v2", {"bits": 8, "activations": "none"}),
    ],
)
def test_encoders(tmp_path: Path, name: str, settings: dict[str, Any]) -> None:
    done = run(name, save_tiny(name, tmp_path / name), tmp_path / "out", **settings)
    where, lines = exported(done.out)
    coded = [r for r in done.record.layers if r.scheme.startswith("int")]
    assert lines["codes and scales read back"]["layers"] == len(coded)
    assert lines["kept weights read back"]["tensors"] >= 20
    graph = onnx.load_model(str(where / "model.onnx")).graph
    assert {value.name for value in graph.input} <= {"input_ids", "attention_mask", "token_type_ids"}
    assert graph.output[0].name == ("last_hidden_state" if name == "mpnet" else "logits")
    axes = [dim.dim_param for dim in graph.input[0].type.tensor_type.shape.dim]
    assert axes == ["batch_size", "sequence_length"]
    assert "quantization_config" not in json.loads((where / "config.json").read_text())
    text = (where / "model.onnx").read_bytes()
    assert str(Path(torch.__file__).parent).encode() not in text  # where things lie on this machine


def test_onnxruntime_keeps_norms_apart_from_sums(tmp_path: Path) -> None:
    """Its SkipLayerNormalization takes ten times as long."""
    done = run("bert", save_tiny("bert", tmp_path / "bert"), tmp_path / "out", bits=8)
    where, _ = exported(done.out)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(str(where / "model.onnx"), options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load_model(options.optimized_model_filepath).graph.node]
    blocks = json.loads((where / "config.json").read_text())["num_hidden_layers"]
    assert kinds.count("LayerNormalization") >= 2 * blocks
    assert "SkipLayerNormalization" not in kinds


def test_speech(tmp_path: Path) -> None:
    """Encoder, decoder and decoder with past; the codes of both decoders are one file's."""
    done = run("whisper", save_tiny("whisper", tmp_path / "whisper"), tmp_path / "out", bits=8)
    where, lines = exported(done.out)
    assert lines["greedy tokens"]["of"] > 8
    names = {path.name for path in where.glob("*.onnx*")}
    assert names == {"encoder_model.onnx", "decoder_model.onnx", "decoder_with_past_model.onnx", "model.onnx_data"}
    past = onnx.load_model(str(where / "decoder_with_past_model.onnx"), load_external_data=False).graph
    assert {"input_ids", "past_key_values.1.decoder.key", "past_key_values.0.encoder.value"} <= {
        value.name for value in past.input
    }

    def swap(place: Path) -> None:
        keys = (f"past_key_values.{layer}.decoder.key" for layer in (0, 1))
        change(place, lambda graph: swap_inputs(graph, *keys), "decoder_with_past_model.onnx")

    found = planted(where, done.out, swap)
    with pytest.raises(VerificationError, match="outputs"):
        raise_if_wrong(where, found)


def labelled(kind: str, base: Path) -> tuple[Path, Path]:
    """A random model with a head for two classes, and rows for it."""
    config = tiny_config("bert")
    config.id2label, config.label2id = {0: "A", 1: "B"}, {"A": 0, "B": 1}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = getattr(transformers, kind)(config)
        randomize(model)
    model.save_pretrained(base / "model")
    tiny_tokenizer().save_pretrained(base / "model")
    words = ("lamp", "ships", "coast", "train", "coffee", "scale")
    if kind == "BertForTokenClassification":
        data = base / "rows.jsonl"
        rows = [{"tokens": [words[n % 6], f"n{n}"], "ner_tags": ["A", "B"][:: 1 if n % 2 else -1]} for n in range(90)]
        data.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
        return base / "model", data
    data = base / "rows.csv"
    with data.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows([[f"{words[n % 6]} and {words[n // 6 % 6]} number {n}", "AB"[n % 2]] for n in range(120)])
    return base / "model", data


def compressed(kind: str, base: Path, **settings: Any) -> Path:
    """The artifact of such a model, judged on its rows."""
    from compress.pipeline.quantize import quantize
    from compress.recipe import Recipe

    model, data = labelled(kind, base)
    small = {"samples": 8, "seq_len": 32, "generate": 0, "threads": 1, "verify": False}
    quantize(Recipe.build(model=str(model), out=str(base / "out"), data=str(data), **small, **settings))
    return base / "out"


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, Any]]:
    base = tmp_path_factory.mktemp("classifier")
    out = compressed("BertForSequenceClassification", base, bits=8, activations="static")
    return (out, *exported(out))


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A masked model in 4 bits with zero points; its float embedding is its head."""
    base = tmp_path_factory.mktemp("masked")
    done = run("bert", save_tiny("bert", base / "bert"), base / "out", **ASYMMETRIC)
    return done.out, exported(done.out)[0]


def test_the_task_is_judged_and_the_readme_is_right(
    classifier: tuple[Path, Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, where, lines = classifier
    line = lines["task score"]
    assert (line["metric"], line["passed"]) == ("accuracy", True)
    assert line["rows"] >= 10
    record = json.loads((out / "compress" / "record.json").read_text())
    figures = {(m["subject"], m["name"]): m["median"] for m in record["measurements"]}
    assert line["torch"] == pytest.approx(figures[str(out), "accuracy"], abs=1e-9)
    code = (where / "README.md").read_text().split("```python")[1].split("```")[0]
    monkeypatch.chdir(where)
    exec(code, {})  # as a reader would run it
    assert len(capsys.readouterr().out.strip().strip("[]").split()) == 2  # a class for each sentence


def test_taggers(tmp_path: Path) -> None:
    out = compressed("BertForTokenClassification", tmp_path, bits=8, activations="dynamic")
    _, lines = exported(out)
    assert lines["task score"]["passed"]


def test_floats_and_a_model_repository(classifier: tuple[Path, Path, dict[str, Any]], tmp_path: Path) -> None:
    """The same weights without codes, laid out for Triton, are the same model but for rounded inputs."""
    out, _, _ = classifier
    options = {"weights": "float32", "triton": "true", "external_data": "true"}
    settings = ExportSettings(("onnx",), options, out=tmp_path / "repository", verify=ONE)
    record, failures = export(out, settings)
    assert failures == []
    line = next(line for line in record.verified if line["check"] == "outputs: largest difference")
    assert line["difference"] < 1e-3
    text = (tmp_path / "repository" / "model" / "config.pbtxt").read_text()
    assert 'name: "attention_mask" data_type: TYPE_INT64 dims: [ -1 ]' in text
    assert (tmp_path / "repository" / "model" / "1" / "model.onnx_data").is_file()


def test_decoders_are_refused(tmp_path: Path) -> None:
    done = run("llama", save_tiny("llama", tmp_path / "llama"), tmp_path / "out", bits=4)
    with pytest.raises(RecipeError, match="onnx-genai"):
        export(done.out, ExportSettings(("onnx",), verify=ONE))
    assert not folder.home(done.out, "onnx").exists()


# ---- faults


def planted(where: Path, artifact: Path, fault: Callable[[Path], None]) -> Verified:
    """The judgement on a copy of an export with a fault in it, its hashes made to fit."""
    place = artifact / "exports" / "faulty"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(where, place)
    fault(place)
    reseal(place)
    try:
        return verify(place, Source(artifact), ONE, Hooks())
    finally:
        shutil.rmtree(place)


def change(place: Path, how: Callable[[Any], None], name: str = "model.onnx") -> None:
    model = onnx.load_model(str(place / name), load_external_data=False)
    how(model.graph)
    (place / name).write_bytes(model.SerializeToString())


def edit(graph: Any, ends: str, how: Callable[[Any], Any]) -> None:
    """Change the first weight whose name ends so."""
    tensor = next(t for t in graph.initializer if t.name.endswith(ends))
    before = numpy_helper.to_array(tensor).copy()
    after = how(before.copy())
    assert not np.array_equal(before, after)
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(after), tensor.name))


def replace_input(graph: Any, old: str, new: str) -> None:
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]


def swap_inputs(graph: Any, a: str, b: str) -> None:
    replace_input(graph, a, "held")
    replace_input(graph, b, a)
    replace_input(graph, "held", b)


def no_bias(graph: Any) -> None:
    """The bias of one layer is not added: what reads its sum reads the product."""
    bias = "bert.encoder.layer.1.output.dense.bias"
    node = next(n for n in graph.node if bias in n.input)
    replace_input(graph, node.output[0], next(name for name in node.input if name != bias))
    graph.node.remove(node)


def other_row(graph: Any) -> None:
    edit(graph, "word_embeddings.weight", lambda rows: np.where(np.arange(len(rows))[:, None] == 9, rows + 0.01, rows))


def no_mask(graph: Any) -> None:
    """Padding is read as if it were text."""
    replace_input(graph, "attention_mask", "ones")
    one = numpy_helper.from_array(np.ones(1, np.int64), "value")
    graph.node.insert(0, helper.make_node("ConstantOfShape", ["size"], ["ones"], value=one))
    graph.node.insert(0, helper.make_node("Shape", ["input_ids"], ["size"]))


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (other_row, "kept weights read back"),
        (no_bias, "outputs|kept"),
        (no_mask, "outputs"),
    ],
)
def test_faults_in_the_graph(masked: tuple[Path, Path], tmp_path: Path, fault: Any, said: str) -> None:
    artifact, where = masked
    found = planted(where, artifact, lambda place: change(place, fault))
    with pytest.raises(VerificationError, match=said):
        raise_if_wrong(where, found)


def other_grid(graph: Any) -> None:
    edit(graph, "query.input_zero_point", lambda zero: (zero + 1).astype(zero.dtype))


def transposed(graph: Any) -> None:
    edit(graph, "query.int8", lambda codes: codes.T)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (other_grid, "kept weights read back"),
        (transposed, "codes and scales read back"),
        (no_bias, "outputs|kept"),
        (no_mask, "outputs"),
    ],
)
def test_faults_in_an_int8_graph(
    classifier: tuple[Path, Path, dict[str, Any]], tmp_path: Path, fault: Any, said: str
) -> None:
    artifact, where, _ = classifier
    found = planted(where, artifact, lambda place: change(place, fault))
    with pytest.raises(VerificationError, match=said):
        raise_if_wrong(where, found)


def test_faults_in_the_folder(masked: tuple[Path, Path], tmp_path: Path) -> None:
    artifact, where = masked
    found = planted(where, artifact, lambda place: (place / "tokenizer.json").unlink())
    with pytest.raises(VerificationError, match=r"tokenizer\.json is missing"):
        raise_if_wrong(where, found)
    assert raise_if_wrong(where, planted(where, artifact, lambda _: None)) is None  # the copy itself is sound
    place = artifact / "exports" / "damaged"
    shutil.copytree(where, place)
    change(place, other_row)  # and export.json says what was there
    with pytest.raises(VerificationError, match="changed since"):
        raise_if_wrong(place, verify(place, Source(artifact), ONE, Hooks()))
    (place / "model.onnx").unlink()
    with pytest.raises(ModelError, match=r"model\.onnx is missing"):
        verify(place, Source(artifact), ONE, Hooks())
