"""openvino in OpenVINO: tiny models agree, and what is wrong with a file is seen."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from compress.core.errors import MissingRuntimeError, RecipeError
from compress.pipeline.expected import VerifySettings
from compress.pipeline.export import ExportSettings, export
from export import environments, folder
from export.environments import Place
from export.source import Source
from tests.planted import agrees, change_json, judged, sealed
from tests.rebuild import run
from tests.tiny import save_tiny

CODES = "codes and scales read back"
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


def constant(where: Path, name: str) -> tuple[int, int]:
    """First byte and number of bytes of a constant, by what its name ends with."""
    text = (where / "openvino_model.xml").read_text()
    found = re.search(rf'name="[^"]*{re.escape(name)}" type="Const".*?offset="(\d+)" size="(\d+)"', text, re.DOTALL)
    assert found, name
    return int(found[1]), int(found[2])


def bytes_changed(where: Path, name: str, change: Callable[[Any], None]) -> None:
    """Edit the bytes of a constant."""
    start, size = constant(where, name)
    data = np.fromfile(where / "openvino_model.bin", np.uint8)
    change(data[start : start + size])
    data.tofile(where / "openvino_model.bin")


def zero_off_by_one(where: Path) -> None:
    bytes_changed(where, "q_proj/zero", lambda part: part.__setitem__(0, part[0] ^ 1))


def block_transposed(where: Path) -> None:
    def change(part: Any) -> None:
        square = part[: 8 * 48].reshape(8, 48)[:, :8]
        square[:] = square.T.copy()

    bytes_changed(where, "o_proj/codes", change)


def bias_dropped(where: Path) -> None:
    """Found by its values: the converter gives biases no name."""
    source = Source(folder.artifact_of(where, folder.card(where)))
    bias = source.weight("model.layers.0.self_attn.k_proj.bias").numpy().tobytes()
    file = where / "openvino_model.bin"
    assert file.read_bytes().count(bias) == 1
    file.write_bytes(file.read_bytes().replace(bias, bytes(len(bias))))


def head_perturbed(where: Path) -> None:
    """The table that embeds and predicts: one row is another one."""

    def change(part: Any) -> None:
        rows = part.reshape(416, -1)
        rows[7] = rows[8]

    bytes_changed(where, "/16", change)


def rope_theta_wrong(where: Path) -> None:
    def change(part: Any) -> None:
        values = part.view(np.float32)
        values[1:] *= 1.1

    bytes_changed(where, "rotary_emb/aten::to/Convert", change)


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
    export(out, ExportSettings(("openvino",), out=where, check=False))
    fault(where)
    sealed(where)
    assert not agrees(where, out)
    first = next(line for line in judged(where, out).lines if not line["passed"])
    assert first["check"].startswith(FAULTS[fault])


@pytest.mark.runtimes
@pytest.mark.usefixtures("there")
def test_a_missing_template_is_seen(made: Make, tmp_path: Path) -> None:
    out, where = made("qwen2", bits=4), tmp_path / "x"
    export(out, ExportSettings(("openvino",), out=where, check=False))
    (where / "chat_template.jinja").unlink()
    change_json(where / "export.json", lambda card: card["files"].pop("chat_template.jinja"))
    assert not agrees(where, out)


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


def test_without_its_converter_nothing_is_written(made: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = "compress runtime install openvino"
    monkeypatch.setattr(environments, "place", lambda name: Place("openvino", None, None, "installed", line))
    with pytest.raises(MissingRuntimeError, match=line):
        export(made("llama", bits=4), ExportSettings(("openvino",), out=tmp_path / "x", check=False))
    assert not (tmp_path / "x").exists()
