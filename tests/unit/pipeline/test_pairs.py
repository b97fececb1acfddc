"""Rows of tasks that write, as pairs for the loop: which rows, how many, and what tells two runs apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from calibrate.data import PreparedData
from compress.core.registry import load
from compress.core.task import Context
from compress.pipeline.labelled import Labelled, Wanted, read_labelled
from compress.pipeline.pairs import prepared_pairs
from compress.pipeline.task_text import TaskText
from compress.recipe import Recipe
from tests.tiny import MELS, PAD, tiny_tokenizer
from tests.writing import save_writer, write_speech, write_summaries

T5 = ["T5ForConditionalGeneration"]


def texts(path: Path, **settings: Any) -> tuple[Labelled, PreparedData, TaskText]:
    labelled = read_labelled(Wanted(str(path), "auto", {}, 0), T5)
    context = Context(tiny_tokenizer(), labelled.columns, (), 64, settings={"start": PAD})
    return labelled, *prepared_pairs(labelled, context, Recipe.build(**({"samples": 4, "seq_len": 64} | settings)))


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_summaries(tmp_path_factory.mktemp("data") / "s.csv", 150)


def test_training_rows_calibrate_and_test_rows_are_written_for(table: Path) -> None:
    labelled, data, text = texts(table)
    assert {f.row for f in text.calibration} <= set(labelled.division.train)
    count = sum(len(f.inputs["input_ids"]) + len(f.inputs["labels"]) for f in text.calibration)
    last = text.calibration[-1].inputs
    assert count >= 4 * 64 > count - len(last["input_ids"]) - len(last["labels"])
    held = [labelled.rows[n] for n in labelled.division.test]
    assert len(text.rows) == len(held) == 30
    assert all(row in held for row in text.rows)
    assert len(text.heldout) == 16  # ride along with their targets
    assert [f.inputs["input_ids"] for f in text.heldout] == [
        tiny_tokenizer()(row["document"])["input_ids"] for row in text.rows[:16]
    ]
    assert data.card["heldout"]["answers"] == 30


def test_batches_hold_every_row_once_and_no_padding(table: Path) -> None:
    _, _, text = texts(table)
    assert sorted(n for batch in text.calibration_batches for n in batch) == list(range(len(text.calibration)))
    for batch, inputs in zip(text.calibration_batches, text.inputs(True), strict=True):
        assert set(inputs) == {"input_ids", "decoder_input_ids"}
        for row, number in enumerate(batch):
            feature = text.calibration[number].inputs
            assert inputs["input_ids"][row].tolist() == feature["input_ids"]
            assert inputs["decoder_input_ids"][row].tolist() == [PAD, *feature["labels"]]


@pytest.mark.parametrize(("asked", "rows"), [(0, 0), (5, 5), (1000, 30)])
def test_how_many_are_judged_is_the_users(table: Path, asked: int, rows: int) -> None:
    _, data, text = texts(table, eval_samples=asked)
    assert len(text.rows) == rows
    assert len(text.heldout) == min(16, rows) == len(data.heldout.documents)


def test_a_row_that_changes_changes_the_digests(table: Path, tmp_path: Path) -> None:
    _, before, text = texts(table)
    row = text.rows[-1]  # judged, and too late to ride along
    changed = table.read_text(encoding="utf-8").replace(f"{row['document']},", f"{row['document']},a ")
    (tmp_path / "s.csv").write_text(changed, encoding="utf-8")
    _, after, again = texts(tmp_path / "s.csv")
    assert again.rows[-1] != row
    assert after.heldout.digest != before.heldout.digest
    assert after.calibration.digest == before.calibration.digest
    assert texts(table)[1].heldout.digest == before.heldout.digest


def test_speech_counts_rows_and_goes_one_by_one(tmp_path: Path) -> None:
    data = write_speech(tmp_path / "speech", rows=20)
    folder = save_writer("whisper", tmp_path / "whisper")
    labelled = read_labelled(Wanted(str(data), "auto", {}, 0), ["WhisperForConditionalGeneration"])
    settings = load("task", "speech-recognition").settings(folder)
    context = Context(tiny_tokenizer(), labelled.columns, (), 64, settings=settings)
    made, text = prepared_pairs(labelled, context, Recipe.build(samples=6))
    assert len(text.calibration) == 6
    inputs = text.inputs(True)
    assert [i["input_features"].shape for i in inputs] == [(1, MELS, 256)] * 6
    assert text.context.settings["new_tokens"] > 1
    (data / "clips" / f"{text.calibration[0].row:02d}.wav").write_bytes((data / "clips" / "19.wav").read_bytes())
    other, _ = prepared_pairs(labelled, context, Recipe.build(samples=6))
    assert other.calibration.digest != made.calibration.digest
