"""GGUF without its runtime: what is written is what the gguf package reads, and what cannot be written is refused."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import pytest
import torch

from compress.core.errors import RecipeError
from compress.pipeline.export import ExportSettings, export
from export.formats.gguf import Options
from export.ggml.architecture import architecture_of, rope_factors
from export.ggml.vocabulary import vocabulary
from export.source import Source
from tests.exporting import artifact, static, written, wrong
from tests.tiny import tiny_config


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gguf")


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2", "gemma3", "gpt2"])
def test_every_tensor_reads_back(name: str, base: Path, tmp_path: Path) -> None:
    out = artifact(name, base)
    where, _ = written(out, "gguf", where=tmp_path / "x")
    source = Source(out)
    lines = {line["check"]: line for line in static(where, out)}
    assert wrong(list(lines.values())) == []
    assert lines["codes and scales read back"]["layers"] == len(source.coded) > 0
    assert lines["kept weights read back"]["tensors"] > len(source.structure.blocks)
    reader = gguf.GGUFReader(where / "model.gguf")
    assert {"Q4_1"} <= {t.tensor_type.name for t in reader.tensors}
    assert reader.fields["general.architecture"].contents() == architecture_of(source.checkpoint.config).arch


@pytest.mark.parametrize(
    ("name", "settings", "because"),
    [
        ("qwen3", {"group_size": 16}, "int4-g16-asym; GGUF holds q4_0"),
        ("bert", {"mixed": False}, "llama.cpp serves text and embeddings, not BertForMaskedLM; use onnx"),
        ("opt", {}, "model type 'opt' has no GGUF layout here; there is llama"),
        ("mixtral", {}, "model type 'mixtral' has no GGUF layout"),
    ],
)
def test_what_llama_cpp_cannot_hold_is_refused_before_work(
    name: str, settings: dict[str, object], because: str, base: Path
) -> None:
    out = artifact(name, base, **settings)
    with pytest.raises(RecipeError, match=because):
        export(out, ExportSettings(("gguf",)))
    assert not (out / "exports").exists()


def test_llama_3_frequencies_are_those_of_transformers() -> None:
    config = tiny_config("llama")
    told = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    }
    config.rope_parameters = {**told, "high_freq_factor": 4.0, "original_max_position_embeddings": 128}
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    theirs, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    size = 16
    plain = 500000.0 ** -(torch.arange(0, size, 2) / size)
    factors = rope_factors(config)
    assert factors is not None
    torch.testing.assert_close(plain / factors, theirs, rtol=1e-5, atol=0)
    assert float(factors.max()) > 1


def test_tokenizers_that_cut_otherwise_are_refused(base: Path, tmp_path: Path) -> None:
    out = artifact("llama", base)
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        (tmp_path / name).write_bytes((out / name).read_bytes())
    path = tmp_path / "tokenizer.json"
    told = json.loads(path.read_text(encoding="utf-8"))
    assert vocabulary(tmp_path, 416).words == "gpt-2"
    told["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [
        {"type": "Digits", "individual_digits": True}, told["pre_tokenizer"],
    ]}  # fmt: skip
    path.write_text(json.dumps(told), encoding="utf-8")
    assert vocabulary(tmp_path, 416).words == "smollm"
    told["pre_tokenizer"] = {"type": "Split", "pattern": {"Regex": "x+"}, "behavior": "Isolated", "invert": False}
    path.write_text(json.dumps(told), encoding="utf-8")
    with pytest.raises(RecipeError, match=r"no name of llama.cpp is known here .*x\+"):
        vocabulary(tmp_path, 416)
    assert vocabulary(tmp_path, 416, "qwen2").words == "qwen2"


def test_a_half_written_export_is_never_there(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = artifact("llama", base)
    from export.formats import gguf as form

    def fails(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(form, "pack", fails)
    with pytest.raises(Exception, match="cannot be written: No space left on device; free some space"):
        export(out, ExportSettings(("gguf",), check=False))
    assert list((out / "exports").iterdir()) == []
    assert Options().kept == "auto"
