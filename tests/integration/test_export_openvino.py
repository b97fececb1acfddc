"""openvino in OpenVINO: tiny models agree, and what it cannot hold is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from compress.core.errors import RecipeError
from compress.pipeline.expected import VerifySettings
from compress.pipeline.export import ExportSettings, export
from export import environments
from tests.rebuild import run
from tests.tiny import save_tiny

Make = Callable[..., Path]


@pytest.fixture
def there() -> None:
    """Skips where the runtime is not installed."""
    place = environments.place("openvino")
    if place.interpreter is None:
        pytest.skip(f"needs openvino: {place.install}")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Quantizes an architecture by rounding to nearest; once for each way."""
    base, done = tmp_path_factory.mktemp("openvino"), {}  # type: ignore[var-annotated]

    def make(name: str, **settings: Any) -> Path:
        key = f"{name}-{'-'.join(f'{k}{v}' for k, v in settings.items())}"
        if key not in done:
            source = save_tiny(name, base / key)
            AutoTokenizer.from_pretrained(source).save_pretrained(source)  # as the class of the model has it
            done[key] = run(name, source, base / f"{key}-out", method="rtn", **{"mixed": False, **settings}).out
        return done[key]

    return make


@pytest.mark.runtimes
@pytest.mark.usefixtures("there")
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("llama", {"bits": 4, "symmetric": True, "mixed": True}),
        ("llama", {"bits": 3}),
        ("llama", {"bits": 5}),
        ("llama", {"bits": 6, "symmetric": True}),
        ("qwen2", {"bits": 4, "embeddings": "int8"}),
        ("qwen3", {"bits": 4}),
        ("mistral", {"bits": 4}),
        ("gpt2", {"bits": 8}),
    ],
)
def test_the_runtime_agrees(made: Make, tmp_path: Path, name: str, settings: dict[str, Any]) -> None:
    where = tmp_path / "x"
    out = made(name, **settings)
    record, failures = export(out, ExportSettings(("openvino",), out=where, verify=VerifySettings(threads=1)))
    assert failures == []
    figures = {m.name: m.median for m in record.measurements}
    assert figures["runtime_kl"] < 1e-9
    assert figures["runtime_top1"] == 1.0
    assert figures["runtime_greedy"] == 32
    assert all(line["passed"] for line in record.verified)
    assert not list(where.glob(".*"))


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("gemma3", {"bits": 4}, "Gemma3ForCausalLM"),
        ("t5", {"bits": 4}, "no task is known"),
        ("llama", {"bits": 8, "activations": "dynamic"}, "int8 inputs"),
    ],
)
def test_what_it_cannot_hold_is_refused(
    made: Make, tmp_path: Path, name: str, settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(RecipeError, match=said):
        export(made(name, **settings), ExportSettings(("openvino",), out=tmp_path / "x", check=False))
    assert not (tmp_path / "x").exists()
