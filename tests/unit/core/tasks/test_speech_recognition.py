"""Speech and what is said: files, features against the extractor's own, error rates against jiwer."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import pytest
import torch
import transformers

from compress.core.audio import read_samples
from compress.core.errors import DataError, ModelError
from compress.core.task import IGNORED, Context, Row
from compress.core.tasks.speech_recognition import TASK
from tests.tiny import EOS, MELS, tiny_tokenizer
from tests.writing import save_writer, write_speech

COLUMNS = {"audio": "file_name", "text": "transcription"}


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Row]]:
    folder = write_speech(tmp_path_factory.mktemp("speech") / "data", rows=4)
    with (folder / "metadata.csv").open(encoding="utf-8", newline="") as file:
        return folder, TASK.located(list(csv.DictReader(file)), COLUMNS, folder)


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Context:
    folder = save_writer("whisper", tmp_path_factory.mktemp("model") / "whisper")
    return Context(tiny_tokenizer(), COLUMNS, (), 64, settings={**TASK.settings(folder), "new_tokens": 8})


def test_whisper_fits_and_nothing_else() -> None:
    assert TASK.fits("WhisperForConditionalGeneration")
    assert not TASK.fits("T5ForConditionalGeneration")
    assert TASK.metrics[0].lower_is_better


@pytest.mark.parametrize("there", [("audio", "text"), ("path", "sentence"), ("file", "transcription"),
                                   ("file_name", "transcription"), ("audio", "sentence")])  # fmt: skip
def test_columns_as_people_call_them(there: tuple[str, str]) -> None:
    found = TASK.columns([dict.fromkeys(there, "x")], {}, "d.csv")
    assert (found["audio"], found["text"]) == there


def test_paths_are_those_of_the_table(tmp_path: Path) -> None:
    rows = [{"file_name": cell} for cell in ("a.wav", "/abs/b.wav", {"path": "c.wav", "bytes": None},
                                             {"path": "d.wav", "bytes": b"x"}, b"y", None)]  # fmt: skip
    found = [row["file_name"] for row in TASK.located(rows, COLUMNS, tmp_path)]
    assert found == [str(tmp_path / "a.wav"), "/abs/b.wav", {"path": str(tmp_path / "c.wav"), "bytes": None},
                     {"path": "d.wav", "bytes": b"x"}, b"y", None]  # fmt: skip


def test_features_are_those_of_the_extractor(speech: tuple[Path, list[Row]], context: Context) -> None:
    folder, rows = speech
    batch = TASK.collate(TASK.features(rows, context), context)
    extractor = transformers.WhisperFeatureExtractor(feature_size=MELS, chunk_length=2, hop_length=125)
    samples = [read_samples(str(folder / f"clips/{n:02d}.wav"), 16000, "") / 2**15 for n in range(4)]
    expected = extractor(samples, sampling_rate=16000, return_tensors="pt")["input_features"]
    assert batch["input_features"].shape == (4, MELS, 256)
    assert torch.allclose(batch["input_features"], expected, atol=1e-5)
    ids = tiny_tokenizer()(rows[1]["transcription"])["input_ids"]
    assert batch["labels"][1][: len(ids) + 1].tolist() == [*ids, EOS]
    assert set(batch["labels"][1][len(ids) + 1 :].tolist()) <= {IGNORED}


def test_speech_beyond_the_window_is_cut_and_said(
    speech: tuple[Path, list[Row]], context: Context, tmp_path: Path
) -> None:
    from tests.writing import write_tone

    write_tone(tmp_path / "long.wav", 440, 16000, seconds=2.5)
    rows = [{**speech[1][0], "file_name": str(tmp_path / "long.wav")}, speech[1][0]]
    features = TASK.features(rows, context)
    assert [f.truncated for f in features] == [True, False]
    assert features[0].shape == (32000,)


def test_error_rates_are_those_of_jiwer() -> None:
    truths = ["A low tone, twice.", "Nothing was said about it!", "It's late"]
    said = ["a low tune twice", "nothing said about it all", ""]
    rows = [{"transcription": truth} for truth in truths]
    counts = TASK.counts(said, rows, Context(None, COLUMNS, (), 8))
    wer, cer = TASK.figures(counts.sum(0, keepdims=True))[0]
    plain = [truth.lower().replace(",", "").replace(".", "").replace("!", "") for truth in truths]
    assert wer == pytest.approx(jiwer.wer(plain, said), abs=1e-12)
    assert cer == pytest.approx(
        jiwer.cer([text.replace(" ", "") for text in plain], [text.replace(" ", "") for text in said]), abs=1e-12
    )


def test_one_sentence_read_twice_is_one_text(speech: tuple[Path, list[Row]]) -> None:
    rows = [dict(speech[1][0]), {**speech[1][1], "transcription": speech[1][0]["transcription"]}]
    assert len(set(TASK.texts(rows, COLUMNS, "d"))) == 1


@pytest.mark.parametrize(("cell", "said"), [("...", "has no words in column 'transcription'"), (5, "where text")])
def test_a_row_that_says_nothing(cell: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        TASK.labels([{"file_name": "a.wav", "transcription": cell}], COLUMNS, "d.csv")


def test_a_model_without_an_extractor(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no usable preprocessor_config\.json"):
        TASK.settings(tmp_path)


def test_settings_are_plain_values(context: Context) -> None:
    assert isinstance(context.settings["extractor"], dict)
    assert not [v for v in context.settings["extractor"].values() if isinstance(v, np.ndarray)]
