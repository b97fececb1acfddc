"""Speech -> text by Whisper: the word error rate of what the model writes, and the rate of wrong characters.

A row is a wav file (its path, relative to the table, or its bytes) and what is said in it. Case and punctuation are not
compared. In languages without spaces a character is a word.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from compress.core.audio import read_samples
from compress.core.errors import DataError, ModelError
from compress.core.task import Context, Feature, Field, Metric, Row, text_of
from compress.core.text_scores import error_counts, words
from compress.core.writing import WritingTask

if TYPE_CHECKING:
    from torch import Tensor

    from compress.core.numerics.bootstrap import Array


class SpeechRecognition(WritingTask):
    """Samples stay samples until a batch is made: a second of speech is 32 kB so, its 30 s of features are a MB."""

    name = "speech-recognition"
    auto = "AutoModelForSpeechSeq2Seq"
    peft = ""  # peft's class for encoder-decoders knows token ids only
    architecture = "WhisperForConditionalGeneration"
    hears = True
    target = "text"
    fields = (
        Field("audio", ("audio", "path", "file", "file_name", "filename", "wav", "audio_path")),
        Field("text", ("text", "transcription", "transcript", "sentence", "normalized_text", "raw_transcription"),
              answer=True),
    )  # fmt: skip
    metrics = (Metric("wer", lower_is_better=True), Metric("cer", lower_is_better=True))

    def settings(self, folder: Path) -> dict[str, Any]:
        """With `extractor`, what preprocessor_config.json says. Raises ModelError when the folder has none."""
        from transformers import AutoFeatureExtractor

        try:
            extractor = AutoFeatureExtractor.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise ModelError(f"{folder} has no usable preprocessor_config.json ({str(error).splitlines()[0][:120]}); "
                             "copy the one of the original model") from None  # fmt: skip
        return {**super().settings(folder), "extractor": extractor.to_dict()}

    def located(self, rows: Sequence[Row], columns: Mapping[str, str], folder: Path) -> list[Row]:
        """Paths made absolute."""
        column = columns["audio"]

        def found(value: Any) -> Any:
            if isinstance(value, Mapping) and isinstance(value.get("path"), str) and not value.get("bytes"):
                return {**value, "path": str(folder / value["path"])}
            return str(folder / value) if isinstance(value, str) and value else value

        return [{**row, column: found(row.get(column))} for row in rows]

    def texts(self, rows: Sequence[Row], columns: Mapping[str, str], source: str) -> list[str]:
        """What is said: one sentence read twice must not be in two parts of the data."""
        return [text_of(row, columns["text"], number, source) for number, row in enumerate(rows)]

    def labels(self, rows: Sequence[Row], columns: Mapping[str, str], source: str) -> tuple[str, ...]:
        """None. Raises DataError for rows that say nothing."""
        for number, row in enumerate(rows):
            if not words(text_of(row, columns["text"], number, source)):
                raise DataError(
                    f"row {number + 1} of {source} has no words in column {columns['text']!r}; leave it out"
                )
        return ()

    def features(self, rows: Sequence[Row], context: Context) -> list[Feature]:
        """One feature a row: samples at the model's rate, those beyond its window cut off, and labels."""
        extractor, column = extractor_of(context), context.columns["audio"]
        rate, most = int(extractor.sampling_rate), int(extractor.n_samples)
        found = []
        for number, row in enumerate(rows):
            samples = read_samples(row.get(column), rate, f"row {number + 1}")
            inputs: dict[str, Any] = {"samples": samples[:most]}
            if "text" in context.columns:
                inputs["labels"] = self.target_ids(row, number, context)
            found.append(Feature(inputs, number, truncated=len(samples) > most))
        return found

    def encoder_inputs(self, features: Sequence[Feature], context: Context) -> dict[str, Tensor]:
        """`input_features` (B, mels, frames) float32, silence up to the window."""
        extractor = extractor_of(context)
        samples = [feature.inputs["samples"].astype(np.float32) / 2**15 for feature in features]
        made = extractor(samples, sampling_rate=extractor.sampling_rate, return_tensors="pt")
        return {"input_features": made["input_features"].float()}

    def counts(self, answers: Sequence[Any], rows: Sequence[Row], context: Context) -> Array:
        """(rows, 4): see `error_counts`."""
        column = context.columns["text"]
        truths = [text_of(row, column, number) for number, row in enumerate(rows)]
        return np.stack([error_counts(said, truth) for said, truth in zip(answers, truths, strict=True)])

    def figures(self, totals: Array) -> Array:
        """Wrong words by words, wrong characters by characters; above 1 where more is written than was said."""
        return np.stack([totals[:, 0] / totals[:, 1], totals[:, 2] / totals[:, 3]], axis=1)


def extractor_of(context: Context) -> Any:
    """What makes features of samples."""
    return _extractor(json.dumps(context.settings["extractor"], sort_keys=True))


@lru_cache(maxsize=2)
def _extractor(settings: str) -> Any:
    from transformers import WhisperFeatureExtractor

    return WhisperFeatureExtractor.from_dict(json.loads(settings))


TASK = SpeechRecognition()
