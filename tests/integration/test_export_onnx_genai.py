"""onnx-genai in onnxruntime-genai: tiny models agree, and what is wrong with a file is seen."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from transformers import AutoTokenizer

from compress.core.errors import MissingRuntimeError, RecipeError
from compress.pipeline.expected import VerifySettings
from compress.pipeline.export import ExportSettings, export
from export import environments
from export.environments import Place
from tests import tiny
from tests.planted import agrees, change_json, failed_without_a_runtime, judged, sealed
from tests.rebuild import run
from tests.tiny import save_tiny

RUNTIME = "onnxruntime-genai"
CODES = "codes and scales read back"
Make = Callable[..., Path]
Change = Callable[[dict[str, np.ndarray], onnx.ModelProto], None]  # type: ignore[type-arg]


@pytest.fixture
def there() -> None:
    """Skips where the runtime is not installed."""
    place = environments.place(RUNTIME)
    if place.interpreter is None:
        pytest.skip(f"needs {RUNTIME}: {place.install}")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Quantizes an architecture by rounding to nearest; once for each way. Heads are multiples of 16."""
    base, done = tmp_path_factory.mktemp("genai"), {}  # type: ignore[var-annotated]

    def make(name: str, **settings: Any) -> Path:
        key = f"{name}-{'-'.join(f'{k}{v}' for k, v in settings.items())}"
        if key not in done:
            heads = {"qwen2": 6, "phi3": 6}.get(name)
            with pytest.MonkeyPatch.context() as patch:
                if heads:
                    patch.setitem(tiny.TINY[name].config, "num_attention_heads", heads)
                source = save_tiny(name, base / key)
            AutoTokenizer.from_pretrained(source).save_pretrained(source)  # as the class of the model has it
            done[key] = run(name, source, base / f"{key}-out", method="rtn", **{"mixed": False, **settings}).out
        return done[key]

    return make


def write(out: Path, where: Path, **options: str) -> dict[str, Any]:
    """Export, unjudged; the card."""
    export(out, ExportSettings(("onnx-genai",), options, out=where, check=False))
    card: dict[str, Any] = json.loads((where / "export.json").read_text())
    return card


WAYS = [
    ("llama", {"bits": 4}),
    ("llama", {"bits": 4, "symmetric": True, "mixed": True}),
    ("llama", {"bits": 3}),
    ("llama", {"bits": 8, "head": "int8"}),
    ("llama", {"bits": 4, "embeddings": "int8"}),
    ("qwen2", {"bits": 4}),
    ("qwen2", {"bits": 4, "embeddings": "int8"}),
    ("qwen3", {"bits": 4}),
    ("mistral", {"bits": 4}),
    ("gemma3", {"bits": 4}),
    ("phi3", {"bits": 4}),
]


@pytest.mark.runtimes
@pytest.mark.usefixtures("there")
@pytest.mark.parametrize(("name", "settings"), WAYS)
def test_the_runtime_agrees(made: Make, tmp_path: Path, name: str, settings: dict[str, Any]) -> None:
    out = made(name, **settings)
    record, failures = export(
        out, ExportSettings(("onnx-genai",), out=tmp_path / "x", verify=VerifySettings(threads=1))
    )
    assert failures == []
    figures = {m.name: m.median for m in record.measurements}
    assert figures["runtime_kl"] < 1e-9
    assert figures["runtime_top1"] == 1.0
    assert figures["runtime_greedy"] == 32
    assert all(line["passed"] for line in record.verified)
    assert not list((tmp_path / "x").glob(".*"))  # nothing of the builder's is left


@pytest.mark.runtimes
@pytest.mark.usefixtures("there")
def test_int8_inputs_are_judged_as_such(made: Make, tmp_path: Path) -> None:
    out = made("llama", bits=4)
    assert write(out, tmp_path / "x", accuracy_level="4")["facts"]["arithmetic"]["coded"] == "int8-group"
    found = judged(tmp_path / "x", out)
    assert found.passed
    line = next(line for line in found.lines if "arithmetic" in line)
    assert line["tolerance"] > 1e-6
    assert "accuracy_level 4" in line["arithmetic"]


def edited(where: Path, change: Change) -> None:
    """Read the graph whole, change its tensors by name, and write it as it was."""
    model = onnx.load(where / "model.onnx")
    arrays = {item.name: np.array(numpy_helper.to_array(item)) for item in model.graph.initializer}
    change(arrays, model)
    for item in model.graph.initializer:
        if item.data_type != onnx.TensorProto.BFLOAT16:
            item.CopyFrom(numpy_helper.from_array(arrays[item.name], item.name))
    (where / "model.onnx.data").unlink()
    onnx.save(model, where / "model.onnx", save_as_external_data=True, location="model.onnx.data", size_threshold=0)


def zero_off_by_one(where: Path) -> None:
    def change(arrays: dict[str, Any], _: onnx.ModelProto) -> None:
        name = next(name for name in arrays if name.endswith("q_proj.qzeros"))
        arrays[name][0, 0] ^= 1

    edited(where, change)


def block_transposed(where: Path) -> None:
    def change(arrays: dict[str, Any], _: onnx.ModelProto) -> None:
        name = next(name for name in arrays if name.endswith("o_proj.qweight"))
        arrays[name][:8, 0, :8] = arrays[name][:8, 0, :8].T.copy()

    edited(where, change)


def bias_dropped(where: Path) -> None:
    def change(arrays: dict[str, Any], _: onnx.ModelProto) -> None:
        name = next(name for name in arrays if "k_proj" in name and name.endswith("bias"))
        arrays[name][:] = 0

    edited(where, change)


def head_perturbed(where: Path) -> None:
    """The head is no longer the embedding: one of its columns is scaled before it multiplies."""

    def change(_: dict[str, Any], model: onnx.ModelProto) -> None:
        head = next(node for node in model.graph.node if node.name.startswith("/lm_head/MatMul"))
        factor = np.ones(model.graph.output[0].type.tensor_type.shape.dim[-1].dim_value, dtype=np.float32)
        factor[7] = 1.01
        model.graph.initializer.append(numpy_helper.from_array(factor, "factor"))
        _["factor"] = factor
        output = head.output[0]
        head.output[0] = "plain"
        model.graph.node.append(onnx.helper.make_node("Mul", ["plain", "factor"], [output], "/fault"))

    edited(where, change)


def rope_theta_wrong(where: Path) -> None:
    def change(arrays: dict[str, Any], _: onnx.ModelProto) -> None:
        half, length = arrays["cos_cache"].shape[1], arrays["cos_cache"].shape[0]
        angle = np.arange(length)[:, None] * 20000.0 ** -(np.arange(half) / half)
        arrays["cos_cache"][:] = np.cos(angle)
        arrays["sin_cache"][:] = np.sin(angle)

    edited(where, change)


FAULTS: dict[Callable[[Path], None], str] = {
    zero_off_by_one: CODES,
    block_transposed: CODES,
    bias_dropped: "outputs",
    head_perturbed: "outputs",
    rope_theta_wrong: "outputs",
}


@pytest.mark.runtimes
@pytest.mark.usefixtures("there")
@pytest.mark.parametrize("fault", FAULTS)
def test_faults(made: Make, tmp_path: Path, fault: Callable[[Path], None]) -> None:
    out, where = made("qwen2", bits=4), tmp_path / "x"
    write(out, where)
    edited(where, lambda arrays, model: None)
    sealed(where)
    assert agrees(where, out)  # writing the graph anew is no fault
    fault(where)
    sealed(where)
    assert not agrees(where, out)
    first = next(line for line in judged(where, out).lines if not line["passed"])
    assert first["check"].startswith(FAULTS[fault])


@pytest.mark.runtimes
@pytest.mark.usefixtures("there")
def test_a_missing_template_is_seen(made: Make, tmp_path: Path) -> None:
    out, where = made("qwen2", bits=4), tmp_path / "x"
    write(out, where)
    (where / "chat_template.jinja").unlink()
    change_json(where / "export.json", lambda card: card["files"].pop("chat_template.jinja"))
    assert failed_without_a_runtime(where, out) == ["tokenizer, template and settings as in the artifact"]
    assert not agrees(where, out)


@pytest.mark.parametrize(
    ("name", "settings", "options", "said"),
    [
        ("gpt2", {"bits": 4}, {}, "no graph for GPT2LMHeadModel"),
        ("opt", {"bits": 4}, {}, "no graph for OPTForCausalLM"),
        ("llama", {"bits": 8, "activations": "dynamic"}, {}, "int8 inputs"),
        ("llama", {"bits": 4}, {"accuracy_level": "2"}, "use 0 or 4"),
    ],
)
def test_what_it_cannot_hold_is_refused(
    made: Make, tmp_path: Path, name: str, settings: dict[str, Any], options: dict[str, str], said: str
) -> None:
    with pytest.raises(RecipeError, match=said):
        write(made(name, **settings), tmp_path / "x", **options)
    assert not (tmp_path / "x").exists()


def test_without_its_builder_nothing_is_written(made: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = f"compress runtime install {RUNTIME}"
    monkeypatch.setattr(environments, "place", lambda name: Place(RUNTIME, None, None, "installed", line))
    with pytest.raises(MissingRuntimeError, match=line):
        write(made("llama", bits=4), tmp_path / "x")
    assert not (tmp_path / "x").exists()
