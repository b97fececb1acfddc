"""Text -> text by an encoder-decoder: summaries and translations. ROUGE and BLEU of what the model writes.

All figures are made for all rows: ROUGE is what summaries are compared by, BLEU is for translations (as a fraction:
0.273 is what sacrebleu prints as 27.3). Chinese, Japanese and Thai are compared character by character.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from compress.core.errors import DataError
from compress.core.task import Context, Feature, Field, Metric, Row, text_of
from compress.core.text_scores import bleu, bleu_counts, need_scores, rouge_counts
from compress.core.writing import WritingTask, read_config

if TYPE_CHECKING:
    from torch import Tensor

    from compress.core.numerics.bootstrap import Array

SUMMARIES = ("summary", "highlights", "abstract", "summaries", "tldr", "title", "headline")


class Seq2Seq(WritingTask):
    """A row is a source and a target."""

    name = "seq2seq"
    auto = "AutoModelForSeq2SeqLM"
    target = "target"
    fields = (
        Field("source", ("source", "document", "article", "dialogue", "input", "src", "text", "content", "question",
                         "en", "sentence")),
        Field("target", ("target", "summary", "highlights", "abstract", "output", "tgt", "translation", "summaries",
                         "tldr", "headline", "title", "answer", "de", "fr", "zh"), answer=True),
    )  # fmt: skip
    metrics = (Metric("rouge_l"), Metric("rouge_1"), Metric("rouge_2"), Metric("bleu"))

    def fits(self, architecture: str) -> bool:
        """By transformers' own tables; models that also hear are not meant."""
        from transformers.models.auto import modeling_auto

        heard = modeling_auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES.values()
        return architecture in modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES.values() and (
            architecture not in heard
        )

    def settings(self, folder: Path) -> dict[str, Any]:
        """With `prefix`: what the model's config says comes before a text to be summarized (T5)."""
        said = read_config(folder).get("task_specific_params") or {}
        prefix = (said.get("summarization") or {}).get("prefix") or ""
        return {**super().settings(folder), "prefix": str(prefix)}

    def labels(self, rows: Sequence[Row], columns: Mapping[str, str], source: str) -> tuple[str, ...]:
        """None. Raises DataError for targets that are empty or no text, MissingExtraError without the scorers."""
        need_scores()
        for number, row in enumerate(rows):
            if not text_of(row, columns["target"], number, source).strip():
                raise DataError(f"row {number + 1} of {source} has no text in column {columns['target']!r}; fill it or "
                                "leave the row out")  # fmt: skip
        return ()

    def features(self, rows: Sequence[Row], context: Context) -> list[Feature]:
        """One feature a row: source and target, each cut to max_length; rows without a target have no labels."""
        column, wanted = context.columns["source"], context.columns.get("target")
        summed = wanted is not None and wanted.lower() in SUMMARIES
        prefix = str(context.settings.get("prefix", "")) if summed else ""
        found = []
        for number, row in enumerate(rows):
            text = prefix + text_of(row, column, number)
            full = context.tokenizer(text, truncation=True, max_length=context.max_length)
            inputs: dict[str, Any] = {name: list(full[name]) for name in ("input_ids", "attention_mask")}
            if wanted is not None:
                inputs["labels"] = self.target_ids(row, number, context)
            found.append(Feature(inputs, number, truncated=len(inputs["input_ids"]) >= context.max_length))
        return found

    def encoder_inputs(self, features: Sequence[Feature], context: Context) -> dict[str, Tensor]:
        """Ids and mask, padded by the tokenizer to the longest."""
        plain = [{name: f.inputs[name] for name in ("input_ids", "attention_mask")} for f in features]
        return dict(context.tokenizer.pad(plain, return_tensors="pt"))

    def counts(self, answers: Sequence[Any], rows: Sequence[Row], context: Context) -> Array:
        """(rows, 14): F1 of the three ROUGE, 1, and what BLEU is made from."""
        column = context.columns["target"]
        found = []
        for number, (said, row) in enumerate(zip(answers, rows, strict=True)):
            truth = text_of(row, column, number)
            found.append(np.concatenate([rouge_counts(said, truth), [1.0], bleu_counts(said, truth)]))
        return np.stack(found)

    def figures(self, totals: Array) -> Array:
        """ROUGE-L, 1 and 2, each the mean F1 of rows; BLEU of all rows together, each 0 to 1."""
        return np.concatenate([totals[:, :3] / totals[:, 3:4], bleu(totals[:, 4:])[:, None]], axis=1)


TASK = Seq2Seq()
