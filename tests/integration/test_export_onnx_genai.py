"""onnx-genai in onnxruntime-genai: tiny models agree, and what it cannot hold is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from compress.core.errors import RecipeError
from compress.pipeline.expected import VerifySettings
from compress.pipeline.export import ExportSettings, export
from export import environments
from export.formats.onnx_genai import EXPORT
from export.source import Source
from tests import tiny
from tests.exporting import verified
from tests.rebuild import run
from tests.tiny import save_tiny

RUNTIME = "onnxruntime-genai"
Make = Callable[..., Path]


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
    ("llama", {"bits": 5}),
    ("llama", {"bits": 6, "symmetric": True}),
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
    found = verified(tmp_path / "x", out)
    assert found.passed
    line = next(line for line in found.lines if "arithmetic" in line)
    assert line["tolerance"] > 1e-6
    assert "accuracy_level 4" in line["arithmetic"]


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


@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [("llama", "yarn", "does not compute the rope scaling 'yarn' of Llama"), ("llama", "linear", "'linear'"),
     ("qwen3", "llama3", "'llama3'"), ("gemma3", "linear", "'linear' of Gemma3")],
)  # fmt: skip
def test_rope_that_its_builder_passes_over_is_refused(
    made: Make, monkeypatch: pytest.MonkeyPatch, name: str, kind: str, said: str
) -> None:
    """Kinds that were built without a word, and judged wrong afterwards (0.18)."""
    source = Source(made(name, bits=4))
    rope = source.checkpoint.config.rope_parameters
    whole = rope.get("full_attention", rope)
    monkeypatch.setitem(whole, "rope_type", kind)
    assert said in str(EXPORT.refuses(source, EXPORT.options()))
