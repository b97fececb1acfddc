"""Models that write, tuned on tables and quantized with them: judged by what both write, opened by transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jiwer
import pytest
import torch
import transformers
from rouge_score.rouge_scorer import RougeScorer
from transformers import AutoFeatureExtractor, AutoTokenizer

from compress.core.audio import read_samples
from compress.core.errors import DataError, ModelError
from compress.core.task import Context
from compress.core.tasks.speech_recognition import TASK
from compress.core.types import RunRecord
from compress.pipeline import answered
from compress.pipeline.labelled import Wanted, read_labelled
from compress.pipeline.quantize import quantize
from compress.pipeline.tune import tune
from compress.recipe import Recipe, TuneRecipe
from tests.writing import SIGNS, save_writer, write_speech, write_summaries

QUICK: dict[str, Any] = {"epochs": 4, "learning_rate": 5e-3, "threads": 1, "batch_size": 8, "patience": 0}
SMALL: dict[str, Any] = {"samples": 8, "seq_len": 64, "threads": 1, "bits": 8}


def figure(record: RunRecord, name: str, subject: str) -> float:
    return next(m.median for m in record.measurements if (m.name, m.subject) == (name, subject))


def run(model: Path, data: Path, out: Path, **settings: Any) -> RunRecord:
    return tune(TuneRecipe.build(model=str(model), data=str(data), out=str(out), **(QUICK | settings)))


def held_out(data: Path, architecture: str) -> list[Any]:
    labelled = read_labelled(Wanted(str(data), "auto", {}, 0), [architecture])
    return [labelled.rows[n] for n in labelled.division.test]


@pytest.fixture(scope="module")
def bart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_writer("bart", tmp_path_factory.mktemp("source") / "bart")


@pytest.fixture(scope="module")
def tuned(bart: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, RunRecord]:
    folder = tmp_path_factory.mktemp("summaries")
    data = write_summaries(folder / "s.csv", 90)
    return folder / "out", data, run(bart, data, folder / "out")


def test_summaries_are_learned_and_the_model_opens_anywhere(tuned: tuple[Path, Path, RunRecord]) -> None:
    out, _, record = tuned
    assert figure(record, "rouge_l", str(out)) > 0.9
    scores = [line["rouge_l"] for line in record.training["lines"] if "rouge_l" in line]
    assert len(scores) == 4  # written anew after every epoch
    assert scores[0] < max(scores)
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(out)
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    batch = tokenizer(["river chip chip chip window 999"], return_tensors="pt")
    ids = model.generate(input_ids=batch["input_ids"], max_new_tokens=12)
    assert tokenizer.decode(ids[0], skip_special_tokens=True).strip() == SIGNS["chip"]


def test_the_artifact_is_judged_on_held_out_rows_by_what_it_writes(
    tuned: tuple[Path, Path, RunRecord], tmp_path: Path
) -> None:
    """Two commands and no other flag; and the figure is rouge-score's of what plain transformers writes."""
    folder, data, before = tuned
    out = tmp_path / "small"
    record = quantize(Recipe.build(model=str(folder), out=str(out), **SMALL))
    assert figure(record, "rouge_l", "original") == figure(before, "rouge_l", str(folder))
    assert abs(figure(record, "rouge_l_change", str(out))) < 0.2
    assert figure(record, "kl", str(out)) < 1e-3
    assert record.data["heldout"]["answers"] == 18
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(out, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    scorer, found = RougeScorer(["rougeL"]), []
    for row in held_out(data, "BartForConditionalGeneration"):
        ids = model.generate(input_ids=tokenizer([row["document"]], return_tensors="pt")["input_ids"], max_new_tokens=9)
        said = tokenizer.decode(ids[0], skip_special_tokens=True).strip()
        found.append(scorer.score(row["summary"], said)["rougeL"].fmeasure)
    assert len(found) == 18
    assert figure(record, "rouge_l", str(out)) == pytest.approx(sum(found) / 18, abs=1e-9)
    again = quantize(Recipe.build(model=str(folder), out=str(out), **SMALL))
    assert again.measurements == record.measurements


def test_an_artifact_with_int8_inputs_writes_its_answers(tuned: tuple[Path, Path, RunRecord], tmp_path: Path) -> None:
    """transformers decodes such weights in the first forward, after `generate` has run the encoder."""
    out = tmp_path / "out"
    record = quantize(Recipe.build(model=str(tuned[0]), out=str(out), activations="dynamic", **SMALL))
    assert abs(figure(record, "rouge_l_change", str(out))) < 0.2
    assert record.data["heldout"]["answers"] == 18


def test_answers_that_a_kill_left_are_not_written_again(
    tuned: tuple[Path, Path, RunRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, asked = answered._written, []

    def written(folder: Path, *rest: Any) -> list[str]:
        if len(asked) == 1:
            asked.append(folder)
            raise KeyboardInterrupt
        asked.append(folder)
        return real(folder, *rest)

    monkeypatch.setattr(answered, "_written", written)
    recipe = Recipe.build(model=str(tuned[0]), out=str(tmp_path / "out"), **SMALL)
    with pytest.raises(KeyboardInterrupt):
        quantize(recipe)
    record = quantize(recipe)
    assert asked == [tuned[0], tmp_path / "out", tmp_path / "out"]
    assert figure(record, "rouge_l", "original") == figure(tuned[2], "rouge_l", str(tuned[0]))


def test_a_large_model_is_not_loaded_to_write(
    tuned: tuple[Path, Path, RunRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answered, "WHOLE_BYTES", 1000)
    out = tmp_path / "out"
    record = quantize(Recipe.build(model=str(tuned[0]), out=str(out), **SMALL))
    assert not [m for m in record.measurements if m.name.startswith("rouge")]
    assert figure(record, "perplexity", str(out)) > 1
    assert [note for note in record.notes if "no answers were written" in note]


@pytest.mark.parametrize("name", ["t5", "marian"])
def test_other_architectures_write_too(name: str, tmp_path: Path) -> None:
    """Untrained: this proves the wiring, no quality."""
    folder, out = save_writer(name, tmp_path / name), tmp_path / "out"
    data = write_summaries(tmp_path / "s.csv", 30)
    record = quantize(Recipe.build(model=str(folder), data=str(data), out=str(out), **SMALL))
    assert 0 <= figure(record, "rouge_l", "original") <= 1
    assert figure(record, "perplexity", "original") > 1
    assert all(line["passed"] for line in record.verified)
    tokens = record.data["calibration"]["tokens"]
    assert tokens > 100


def test_text_without_targets_is_text(bart: Path, tmp_path: Path) -> None:
    data = tmp_path / "plain.txt"
    data.write_text("\n\n".join(f"the river {n} runs past the market and the school" for n in range(200)), "utf-8")
    record = quantize(Recipe.build(model=str(bart), data=str(data), out=str(tmp_path / "out"), **SMALL))
    assert "task" not in record.data
    assert not [m for m in record.measurements if m.name.startswith("rouge")]


@pytest.mark.parametrize(("name", "method"), [("t5", "lora"), ("bart", "ia3"), ("bart", "prompt"), ("bart", "bitfit")])
def test_adapters_of_models_that_write(name: str, method: str, tmp_path: Path) -> None:
    folder = save_writer(name, tmp_path / name)
    data = write_summaries(tmp_path / "s.csv", 60)
    rate = {"prompt": 5e-2, "ia3": 3e-2}.get(method, 5e-3)
    record = run(folder, data, tmp_path / "out", method=method, learning_rate=rate)
    losses = [line["loss"] for line in record.training["lines"] if "loss" in line]
    assert sum(losses[-3:]) < 0.97 * sum(losses[:3])
    assert record.model["trained"] < record.model["parameters"]
    if method == "lora":
        adapter = json.loads((tmp_path / "out" / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
        assert adapter["task_type"] == "SEQ_2_SEQ_LM"


def test_a_prefix_is_refused(bart: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="peft cannot put a prefix before what BartForConditionalGeneration writes"):
        run(bart, write_summaries(tmp_path / "s.csv", 30), tmp_path / "out", method="prefix")


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_writer("whisper", tmp_path_factory.mktemp("source") / "whisper")


@pytest.mark.parametrize("method", ["full", "lora"])
def test_speech_is_tuned_quantized_and_judged_by_what_is_written(method: str, whisper: Path, tmp_path: Path) -> None:
    data, heard, out = write_speech(tmp_path / "speech", 60), tmp_path / "heard", tmp_path / "small"
    before = run(whisper, data, heard, method=method, epochs=6)
    losses = [line["loss"] for line in before.training["lines"] if "loss" in line]
    assert losses[-1] < 0.5 * losses[0]
    assert before.data["columns"] == {"audio": "file_name", "text": "transcription"}
    record = quantize(Recipe.build(model=str(heard), out=str(out), **SMALL))
    assert figure(record, "wer", "original") == figure(before, "wer", str(heard))
    assert abs(figure(record, "wer_change", str(out))) < 0.1
    assert all(line["passed"] for line in record.verified)
    model = transformers.AutoModelForSpeechSeq2Seq.from_pretrained(out, dtype=torch.float32)
    tokenizer, extractor = (kind.from_pretrained(out) for kind in (AutoTokenizer, AutoFeatureExtractor))
    trained = read_labelled(Wanted(str(data), "auto", {}, 0), ["WhisperForConditionalGeneration"])
    context = Context(tokenizer, trained.columns, (), 128)
    most = TASK.surveyed([trained.rows[n] for n in trained.division.train], context).settings["new_tokens"]
    truths, said = [], []
    for row in held_out(data, "WhisperForConditionalGeneration"):
        samples = read_samples(row["file_name"], 16000, "") / 2**15
        features = extractor(samples, sampling_rate=16000, return_tensors="pt")["input_features"]
        ids = model.generate(input_features=features, max_new_tokens=most)
        said.append(tokenizer.decode(ids[0], skip_special_tokens=True).strip())
        truths.append(row["transcription"])
    assert len(said) == 12
    assert figure(record, "wer", str(out)) == pytest.approx(jiwer.wer(truths, said), abs=1e-9)


def test_speech_without_rows_is_rounded_and_said(whisper: Path, tmp_path: Path) -> None:
    record = quantize(Recipe.build(model=str(whisper), out=str(tmp_path / "out"), **SMALL))
    assert [note for note in record.notes if "reads input_features, not text" in note and "--data" in note]
    assert not [m for m in record.measurements if m.name in ("wer", "perplexity")]


def test_rows_that_are_no_speech(whisper: Path, tmp_path: Path) -> None:
    data = write_summaries(tmp_path / "s.csv", 30)
    with pytest.raises(DataError, match="speech-recognition reads a column of audio"):
        quantize(Recipe.build(model=str(whisper), data=str(data), out=str(tmp_path / "out"), **SMALL))
    folder = write_speech(tmp_path / "speech", 12)
    (folder / "clips" / "03.wav").unlink()
    with pytest.raises(DataError, match=r"03\.wav, which is not there"):
        run(whisper, folder, tmp_path / "tuned")
    with pytest.raises(ModelError, match="reads no single text that a prompt could stand before"):
        run(whisper, write_speech(tmp_path / "whole", 12), tmp_path / "prompted", method="prompt")
