"""Runtimes without a server, asked by their users' client: `compress verify --serve` on tiny models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from compress.core.errors import UsageError, VerificationError
from compress.pipeline import verify as stage
from compress.pipeline.expected import VerifySettings
from compress.pipeline.hooks import Hooks
from compress.pipeline.verify import Verified, raise_if_wrong
from export import environments, judge
from export.source import Source
from tests import tiny
from tests.exporting import InProcess, artifact, written
from tests.faults import edit_json, plant, reseal
from tests.integration.test_onnx import compressed

pytestmark = pytest.mark.usefixtures("in_process")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clients")


def asked(where: Path, out: Path, runtime: str, **more: Any) -> Verified:
    return stage.verify(where, Source(out), VerifySettings((runtime,), 1, serve=True, **more), Hooks())


def of_client(found: Verified) -> dict[str, Any]:
    """The one line that a client made."""
    (line,) = [line for line in found.lines if "client" in line]
    return line


def test_a_pipeline_answers_what_the_reference_writes(base: Path, tmp_path: Path) -> None:
    out = artifact("qwen2", base)
    where = written(out, "compressed-tensors", where=tmp_path / "x")[0]
    found = asked(where, out, "transformers")
    line = of_client(found)
    assert found.passed
    assert (line["check"], line["equal"], line["of"]) == ("served answer", 32, 32)
    assert line["client"] == f"transformers {transformers.__version__}, pipeline text-generation"
    edit_json(where / "config.json", lambda config: config["rope_parameters"].update(rope_theta=3.0))
    reseal(where)
    assert not of_client(asked(where, out, "transformers"))["passed"]


def test_sampling_settings_of_the_file_do_not_change_the_answer(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "static_lines", lambda *_: [{"check": "nothing", "runtime": "", "passed": True}])
    out = artifact("qwen2", base)
    where = written(out, "compressed-tensors", where=tmp_path / "x")[0]
    sampled = {"do_sample": True, "temperature": 5.0, "repetition_penalty": 3.0}
    edit_json(where / "generation_config.json", lambda said: said.update(sampled))
    reseal(where)
    assert of_client(asked(where, out, "transformers"))["passed"]


@pytest.mark.parametrize("form", ["onnx", "compressed-tensors"])
def test_an_embedder_is_read_by_the_client(base: Path, tmp_path: Path, form: str) -> None:
    runtime = "onnxruntime" if form == "onnx" else "transformers"
    out = artifact("mpnet", base, bits=8)
    where = written(out, form, where=tmp_path / "x")[0]
    line = of_client(asked(where, out, runtime))
    assert (line["check"], line["passed"]) == ("served values: largest difference", True)
    assert line["difference"] < 1e-4


KINDS = {"BertForSequenceClassification": "text-classification", "BertForTokenClassification": "token-classification"}


@pytest.mark.parametrize("kind", list(KINDS))
def test_labels_are_those_of_the_reference(tmp_path: Path, kind: str) -> None:
    out = compressed(kind, tmp_path, bits=8, method="rtn")
    where = written(out, "compressed-tensors", where=tmp_path / "x")[0]
    line = of_client(asked(where, out, "transformers"))
    assert line["passed"], line
    assert line["client"].endswith(KINDS[kind])
    if kind == "BertForTokenClassification":
        assert line["equal"] == line["of"] > 8


def test_a_model_that_no_client_asks_is_said(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = artifact("bert", base, bits=8)  # a masked model whose tokenizer has no mask
    found = asked(written(out, "compressed-tensors", where=tmp_path / "x")[0], out, "transformers")
    assert found.notes == ["transformers was not asked: it has no client for a model that does what this one does"]
    where = written(out, "onnx", where=tmp_path / "y")[0]
    known = environments.runtime("onnxruntime")
    monkeypatch.setattr(stage.environments, "runtime", lambda _: replace(known, client=False))
    with pytest.raises(UsageError, match="onnxruntime has neither a server nor a client; leave --serve out"):
        asked(where, out, "onnxruntime")


WRITE = {
    ("bart", "compressed-tensors"): "AutoModelForSeq2SeqLM.generate",
    ("bart", "onnx"): "InferenceSession",
    ("whisper", "compressed-tensors"): "pipeline automatic-speech-recognition",
    ("whisper", "onnx"): "InferenceSession",
}


@pytest.mark.parametrize(("name", "form"), list(WRITE))
def test_what_reads_and_writes_is_asked(
    base: Path, tmp_path: Path, name: str, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A text or a sound; beams, lengths and repetitions that generation_config.json asks for are not heeded, tokens
    that it forbids and what it begins with are."""
    runtime = "onnxruntime" if form == "onnx" else "transformers"
    monkeypatch.setattr(tiny, "save_tiny", as_real_ones)
    out = artifact(name, base, bits=8)
    where = written(out, form, where=tmp_path / "x")[0]
    found = asked(where, out, runtime)
    lines = [line for line in found.lines if "client" in line]
    assert found.passed, [line for line in found.lines if not line["passed"]]
    assert [(line["check"], line["equal"], line["of"]) for line in lines] == [("served answer", 32, 32)] * (
        1 if name == "whisper" else 2
    )
    assert all(line["client"].endswith(WRITE[name, form]) for line in lines)
    monkeypatch.setattr(stage, "static_lines", lambda *_: [{"check": "nothing", "runtime": "", "passed": True}])
    if form == "onnx":  # the file begins texts otherwise: only the client goes by it
        other = {"language": "<|en|>"} if name == "whisper" else {"decoder_start_token_id": 9}
        edit_json(where / "generation_config.json", lambda said: said.update(other))
        reseal(where)
    else:
        where = written(plant("dropped bias", Source(out), tmp_path / "faulty"), form, where=tmp_path / "y")[0]
    wrong = [line for line in asked(where, out, runtime).lines if not line["passed"]]
    assert "served answer" in {line["check"] for line in wrong}
    assert form != "onnx" or {line["check"] for line in wrong} == {"served answer"}


def as_real_ones(name: str, folder: Path) -> Path:
    """Writers of text with what real ones ask for; encoders with a mask."""
    tiny.tiny_model(name).save_pretrained(folder)
    tokenizer = tiny.tiny_tokenizer()
    tokenizer.add_special_tokens({"mask_token": "<mask>"})
    tokenizer.save_pretrained(folder)
    if name == "bart":
        asked_for = {"num_beams": 4, "min_length": 20, "no_repeat_ngram_size": 3, "forced_bos_token_id": 7,
                     "forced_eos_token_id": 2, "bad_words_ids": [[84]]}  # fmt: skip
        edit_json(folder / "generation_config.json", lambda said: said.update(asked_for))
    return folder


@pytest.mark.parametrize("form", ["compressed-tensors", "onnx"])
def test_a_mask_is_filled_as_the_reference_fills_it(
    base: Path, tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = "onnxruntime" if form == "onnx" else "transformers"
    monkeypatch.setattr(tiny, "save_tiny", as_real_ones)
    out = artifact("bert", base / "masked", bits=8)
    line = of_client(asked(written(out, form, where=tmp_path / "x")[0], out, runtime))
    assert line["passed"], line
    if form == "compressed-tensors":
        assert line["client"].endswith("pipeline fill-mask")
        assert (line["check"], line["equal"], line["of"]) == ("served labels", 2, 2)
    faulty = written(plant("off-by-one zero", Source(out), tmp_path / "faulty"), form, where=tmp_path / "y")[0]
    monkeypatch.setattr(stage, "static_lines", lambda *_: [{"check": "nothing", "runtime": "", "passed": True}])
    assert not of_client(asked(faulty, out, runtime))["passed"]


@pytest.mark.parametrize("form", ["compressed-tensors", "onnx"])
def test_questions_are_answered_by_the_models_own_class(
    base: Path, tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = "onnxruntime" if form == "onnx" else "transformers"
    monkeypatch.setitem(tiny.AUTO, "bert", "AutoModelForQuestionAnswering")
    out = artifact("bert", base / "questions", bits=8)
    where = written(out, form, where=tmp_path / "x")[0]
    line = of_client(asked(where, out, runtime))
    assert (line["check"], line["passed"]) == ("served values: largest difference", True)
    assert line["client"].endswith("AutoModelForQuestionAnswering" if runtime == "transformers" else "InferenceSession")
    faulty = written(plant("off-by-one zero", Source(out), tmp_path / "faulty"), form, where=tmp_path / "y")[0]
    monkeypatch.setattr(stage, "static_lines", lambda *_: [{"check": "nothing", "runtime": "", "passed": True}])
    assert not of_client(asked(faulty, out, runtime))["passed"]


def test_trust_in_a_models_code_reaches_the_session(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = artifact("mpnet", base, bits=8)
    where = written(out, "onnx", where=tmp_path / "x")[0]
    told: list[bool] = []

    class Listening(InProcess):
        def __init__(self, *given: Any, trusted: bool = False) -> None:
            super().__init__(*given, trusted=trusted)
            told.append(self._server.settings_given["trust_remote_code"])

    monkeypatch.setattr(stage, "RuntimeProcess", Listening)
    for trusted in (False, True):
        stage.verify(where, Source(out), VerifySettings(("onnxruntime",), 1, trusted), Hooks())
    assert told == [False, True]


def test_what_is_not_verified_names_no_flag_that_verify_has_not(tmp_path: Path) -> None:
    absent = Verified([{"check": "x", "runtime": "y", "passed": True}], [], ["z is not installed; install z"])
    with pytest.raises(VerificationError, match=r"not verified: z is not installed; install z$"):
        raise_if_wrong(tmp_path, absent)
    with pytest.raises(VerificationError, match=r"install z, or pass --no-verify$"):
        raise_if_wrong(tmp_path, absent, ", or pass --no-verify")


def test_labels_are_judged_by_what_may_differ() -> None:
    logits = torch.tensor([[3.0, 0.0], [0.1, 0.0]])
    allowed = judge.Bounds(0.2, 0.2, 0.1, "", {})
    shares = logits.softmax(-1)

    def line(second: int, score: float) -> judge.Line:
        told = [[0, 0, float(shares[0, 0])], [1, second, score]]
        return judge.labels([logits], [told], allowed, "served labels")

    right, near, off = line(0, float(shares[1, 0])), line(1, float(shares[1, 1])), line(0, 0.9)
    assert (right["passed"], right["equal"]) == (True, 2)
    assert (near["passed"], near["equal"]) == (True, 1)
    assert not off["passed"]
    assert not judge.labels([logits], [[]], allowed, "served labels")["passed"]
    assert not judge.labels([logits], [[[0, 1, float(shares[0, 1])]]], allowed, "served labels")["passed"]
