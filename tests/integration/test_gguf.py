"""GGUF without its runtime: what is written is what the gguf package reads, and what cannot be written is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path

import gguf
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from compress.core.errors import RecipeError, UsageError
from compress.pipeline.expected import VerifySettings
from compress.pipeline.export import ExportSettings, export
from compress.pipeline.probe import texts_of
from export.formats.gguf import Options
from export.ggml.architecture import architecture_of, pooling, refuses, rope_factors, yarn_scale
from export.ggml.vocabulary import vocabulary, write_vocabulary
from export.source import Source
from tests.exporting import artifact, static, written, wrong
from tests.tiny import tiny_config, tiny_tokenizer


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


@pytest.mark.parametrize(
    ("to", "options", "runtimes", "because"),
    [
        ("gguf", {"wrds": "x"}, (), "--option wrds is no option of these formats: gguf takes kept, words"),
        ("gptq", {"gguf.words": "x"}, (), "gguf is not among --to"),
        ("gguf", {"kept": "F13"}, (), "kept=F13 is unknown; use auto, F32, F16, BF16"),
        ("", {}, (), "no format is named"),
        ("gguf", {}, ("vllm",), "vllm does not open gguf; llama-cpp would"),
    ],
)
def test_what_is_asked_for_wrongly_is_said_before_work(
    to: str, options: dict[str, str], runtimes: tuple[str, ...], because: str, base: Path
) -> None:
    out = artifact("llama", base)
    settings = ExportSettings(tuple(filter(None, [to])), options, verify=VerifySettings(runtimes))
    with pytest.raises((UsageError, RecipeError), match=because):
        export(out, settings)


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


YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}


@pytest.mark.parametrize(
    ("name", "told", "because"),
    [
        ("llama", {"hidden_act": "relu"}, "activation relu is not what llama.cpp's llama has (silu, swish)"),
        ("gemma3", {"hidden_activation": "gelu"}, "activation gelu is not what llama.cpp's gemma3 has"),
        ("gpt2", {"activation_function": "relu"}, "activation relu is not"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "llama.cpp scales attention by the size of a head"),
        ("qwen2", {"head_dim": 32}, "llama.cpp's qwen2 has heads that are 96 wide together, and these have 32"),
        ("qwen3", {"attention_bias": True}, "llama.cpp's qwen3 has no bias in attention"),
        ("qwen3", {"rope_parameters": {**YARN, "rope_type": "llama3"}}, "has no rope scaling 'llama3'"),
        ("llama", {"rope_parameters": {**YARN, "rope_type": "dynamic"}}, "rope scaling 'dynamic' is not written here"),
        ("llama", {"rope_parameters": {**YARN, "beta_fast": 16.0}}, "reads no beta_fast of yarn, and it is 16.0 here"),
        ("llama", {"rope_parameters": {**YARN, "beta_fast": 32.0}, "attention_bias": True, "mlp_bias": True}, None),
        ("qwen3", {"rope_parameters": YARN}, None),
    ],
)
def test_what_llama_cpp_computes_otherwise_is_refused(name: str, told: dict[str, object], because: str | None) -> None:
    config = tiny_config(name)
    for key, value in told.items():
        setattr(config, key, value)
    said = refuses(config, "SomeForCausalLM")
    assert said is None if because is None else because in str(said)


def test_yarn_is_scaled_as_transformers_does() -> None:
    config = tiny_config("llama")
    config.rope_parameters = YARN
    assert yarn_scale(config) == 1.0
    config.rope_parameters = {**YARN, "attention_factor": 1.5}
    assert yarn_scale(config) * (0.1 * math.log(4.0) + 1.0) == pytest.approx(1.5)


def test_pooling_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert pooling(tmp_path) == "none"
    (tmp_path / "modules.json").write_text('[{"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}]')
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    assert pooling(tmp_path) == "cls"
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode_max_tokens": true}')
    with pytest.raises(RecipeError, match=r"is not in llama\.cpp"):
        pooling(tmp_path)
    dense = {"path": "2_Dense", "type": "sentence_transformers.models.Dense"}
    (tmp_path / "modules.json").write_text(json.dumps([dense]))
    with pytest.raises(RecipeError, match="Dense layer"):
        pooling(tmp_path)


@pytest.mark.parametrize(
    ("lower", "strip", "told"),
    [(True, None, (True, True)), (False, None, (False, False)), (True, False, (True, False))],
)
def test_wordpiece_says_whether_it_reads_lower_case(
    lower: bool, strip: bool | None, told: tuple[bool, bool], tmp_path: Path
) -> None:
    words = {word: number for number, word in enumerate(("[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]", "a", "##b"))}
    core = Tokenizer(models.WordPiece(words, unk_token="[UNK]"))
    core.normalizer = normalizers.BertNormalizer(lowercase=lower, strip_accents=strip)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]", pad_token="[PAD]").save_pretrained(tmp_path)
    found = vocabulary(tmp_path, 8)
    assert (found.lowercase, found.strip_accents) == told
    assert found.unlike == (("HANGUL",) if told[1] else ())
    assert found.tokens[5:] == ["\u2581a", "b", "[PAD7]"]
    with pytest.raises(RecipeError, match="makes the id 6, and the model has 5 rows"):
        vocabulary(tmp_path, 5)


@pytest.mark.parametrize(
    ("scheme", "chats", "unlike"),
    [("never", True, ()), ("always", True, ("LEADING BLANKS",)), ("first", False, ("LEADING BLANKS",))],
)
def test_blanks_before_texts_are_said(scheme: str, chats: bool, unlike: tuple[str, ...], tmp_path: Path) -> None:
    words = {word: number for number, word in enumerate(("<unk>", "</s>", "\u2581", "a", "\u2581a"))}
    core = Tokenizer(models.BPE(words, [("\u2581", "a")], unk_token="<unk>", byte_fallback=True))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    made = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", eos_token="</s>")
    made.chat_template = "{{ messages[0]['content'] }}" if chats else None
    made.save_pretrained(tmp_path)
    found = vocabulary(tmp_path, 8)
    assert (found.space_first, found.unlike) == (scheme != "never", unlike)
    assert found.scores is not None
    assert found.scores[4] == -1.0
    tried = texts_of(made, [], found.unlike)
    assert len(tried) == len(texts_of(made, []))
    assert any(text.startswith(" ") for text in tried) == (not unlike)
    if scheme == "first":
        (tmp_path / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
        with pytest.raises(RecipeError, match=r"llama\.cpp puts a blank before what follows a special token"):
            vocabulary(tmp_path, 8)


def test_several_end_tokens_are_told(tmp_path: Path) -> None:
    tiny_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 7, 3, 900]}))
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    write_vocabulary(writer, vocabulary(tmp_path, 416), tmp_path)
    kept = {name.rpartition(".")[2]: value.value for name, value in writer.kv_data[0].items()}
    assert (kept["eos_token_id"], kept["eot_token_id"], "eom_token_id" in kept) == (2, 7, False)


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
