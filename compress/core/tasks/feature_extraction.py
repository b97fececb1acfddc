"""Text -> vector: search and similarity. recall@1, recall@10 and MRR of finding each query's passage among all.

With a column of similarities instead, Spearman's rank correlation of cosine and similarity.

Training follows sentence-transformers: without similarities every other passage of the batch is a wrong answer (van den
Oord et al. 2018; Henderson et al. 2017, "multiple negatives"), with them the cosine itself is fitted. Copies of a row's
own passage are no wrong answers here, which they are there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from compress.core.errors import DataError, ModelError
from compress.core.task import Context, Feature, Field, Metric, Row, Task, text_of

if TYPE_CHECKING:
    from torch import Tensor, nn

    from compress.core.numerics.bootstrap import Array

POOLINGS = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean", "pooling_mode_max_tokens": "max"}
QUERY, PASSAGE, NEGATIVE = 0, 1, 2
SCALE = 20.0
"""Of cosines before the softmax over passages, 1 / temperature: that of sentence-transformers."""


class FeatureExtraction(Task):
    """A row is a query and the passage that answers it; both are embedded."""

    name = "feature-extraction"
    auto = "AutoModel"
    peft = "FEATURE_EXTRACTION"
    classes = False
    fields = (
        Field("query", ("query", "question", "anchor", "title", "sentence1", "text1")),
        Field("passage", ("passage", "positive", "document", "context", "answer", "article", "body", "sentence2",
                          "text2")),
        Field("negative", ("negative", "hard_negative", "negative_passage"), required=False),
        Field("similarity", ("similarity", "score", "similarity_score"), required=False, answer=True),
    )  # fmt: skip
    metrics = (Metric("recall_at_10"), Metric("recall_at_1"), Metric("mrr", ""), Metric("spearman", ""))

    def labels(self, rows: Sequence[Row], columns: Mapping[str, str], source: str) -> tuple[str, ...]:
        """None. Raises DataError for similarities that are no numbers."""
        for number, row in enumerate(rows):
            if "similarity" in columns:
                similarity_of(row, columns["similarity"], number, source)
        return ()

    def settings(self, folder: Path) -> dict[str, Any]:
        """How vectors are pooled, by the files of sentence-transformers; else by mean. Cosines need no more."""
        modules = _json(folder / "modules.json", [])
        paths = {str(m.get("type", "")).rpartition(".")[2]: str(m.get("path", "")) for m in modules}
        if "Dense" in paths:
            raise ModelError(f"{folder} ends in a Dense layer of sentence-transformers, which is not part of the model")
        found = _json(folder / paths["Pooling"] / "config.json", {}) if "Pooling" in paths else {}
        modes = [mode for name, mode in POOLINGS.items() if found.get(name)]
        if found and len(modes) != 1:
            raise ModelError(f"{folder} pools by {', '.join(modes) or 'none of ' + ', '.join(POOLINGS.values())}; "
                             "cls, mean and max are known, one at a time")  # fmt: skip
        return {"pooling": modes[0] if modes else "mean"}

    def texts(self, rows: Sequence[Row], columns: Mapping[str, str], source: str) -> list[str]:
        """Query and passage; the wrong passage does not tell rows apart."""
        return super().texts(rows, {role: name for role, name in columns.items() if role != "negative"}, source)

    def features(self, rows: Sequence[Row], context: Context) -> list[Feature]:
        """Two features a row: query, then passage, each cut to max_length."""
        return [
            _feature(row, number, role, unit, context)
            for number, row in enumerate(rows)
            for unit, role in ((QUERY, "query"), (PASSAGE, "passage"))
        ]

    def examples(self, rows: Sequence[Row], context: Context) -> list[tuple[Feature, ...]]:
        """Query, passage and, where there is one and no similarity, the wrong passage; `labels` of the query is the
        similarity, divided by the largest of all rows where that is above 1 (a scale of 0 to 5 becomes 0 to 1)."""
        column = context.columns.get("similarity")
        roles = [(QUERY, "query"), (PASSAGE, "passage")]
        if column is None:
            roles += [(NEGATIVE, "negative")] if "negative" in context.columns else []
            return [tuple(_feature(row, n, role, unit, context) for unit, role in roles) for n, row in enumerate(rows)]
        scores = [similarity_of(row, column, number) for number, row in enumerate(rows)]
        largest = max([1.0, *map(abs, scores)])
        found: list[tuple[Feature, ...]] = []
        for number, (row, score) in enumerate(zip(rows, scores, strict=True)):
            query, passage = (_feature(row, number, role, unit, context) for unit, role in roles)
            found.append((replace(query, inputs={**query.inputs, "labels": score / largest}), passage))
        return found

    def collate(self, features: Sequence[Feature], context: Context) -> dict[str, Tensor]:
        """Padded by the tokenizer to the longest; `labels` (float32) are similarities, one a pair, where given."""
        import torch

        plain = [{name: ids for name, ids in f.inputs.items() if name != "labels"} for f in features]
        scores = [f.inputs["labels"] for f in features if "labels" in f.inputs]
        batch = dict(context.tokenizer.pad(plain, return_tensors="pt"))
        return {**batch, "labels": torch.tensor(scores)} if scores else batch

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor], context: Context) -> Tensor:
        """Squared error of the cosines where there are similarities, else cross entropy of each query's own passage
        among all passages of the batch. batch: the features of whole examples, one after the other."""
        import torch

        ids = batch["input_ids"]
        vectors = pooled_batch(
            self.run(model, batch), batch["attention_mask"], str(context.settings.get("pooling", "mean"))
        )
        vectors = torch.nn.functional.normalize(vectors, dim=-1)
        if "labels" in batch:
            cosines = (vectors[0::2] * vectors[1::2]).sum(-1)
            return torch.nn.functional.mse_loss(cosines, batch["labels"].to(cosines.dtype))
        width = 3 if "negative" in context.columns else 2
        order = torch.cat([torch.arange(unit, len(ids), width, device=ids.device) for unit in range(1, width)])
        own = torch.arange(len(ids) // width, device=ids.device)
        scores = SCALE * vectors[0::width] @ vectors[order].T
        copies = (ids[1::width, None] == ids[order][None]).all(-1)
        copies[own, own] = False
        return torch.nn.functional.cross_entropy(scores.masked_fill(copies, -torch.inf), own)

    def aim(self, context: Context) -> Metric:
        """Spearman's rho where there are similarities, else recall@10."""
        wanted = "spearman" if "similarity" in context.columns else self.metrics[0].name
        return next(metric for metric in self.metrics if metric.name == wanted)

    def outputs(self, output: Any, inputs: Mapping[str, Tensor]) -> Tensor:
        """The last hidden states (B, L, D)."""
        del inputs
        hidden: Tensor = output.last_hidden_state
        return hidden

    def answers(
        self, outputs: Sequence[Tensor], features: Sequence[Feature], context: Context
    ) -> list[tuple[Array, Array]]:
        """(query, passage) vectors of each row, float64. outputs: (L, D) without padding."""
        vectors = [pooled(hidden, str(context.settings.get("pooling", "mean"))) for hidden in outputs]
        found: dict[int, dict[int, Array]] = {}
        for vector, feature in zip(vectors, features, strict=True):
            found.setdefault(feature.row, {})[feature.units[0]] = vector
        return [(pair[QUERY], pair[PASSAGE]) for _, pair in sorted(found.items())]

    def counts(self, answers: Sequence[Any], rows: Sequence[Row], context: Context) -> Array:
        """(rows, 10): found first, found among ten, 1 / rank, 1; then the sums of the rank correlation.

        The passage's rank is among the different passages of all rows, equal scores against it. Ranks of similarities
        and cosines are those of all rows, so the interval of Spearman's rho is that of the correlation of fixed ranks.
        """
        queries = _unit(np.stack([query for query, _ in answers]))
        passages = _unit(np.stack([passage for _, passage in answers]))
        texts = [text_of(row, context.columns["passage"], n) for n, row in enumerate(rows)]
        first = {text: n for n, text in reversed(list(enumerate(texts)))}
        kept = sorted(first.values())
        scores = queries @ passages[kept].T
        own = np.array([kept.index(first[text]) for text in texts])
        mine = scores[np.arange(len(rows)), own][:, None]
        ranks = (scores >= mine).sum(1)
        counts = np.zeros((len(rows), 10))
        counts[:, :4] = np.stack([ranks <= 1, ranks <= 10, 1 / ranks, np.ones(len(rows))], axis=1)
        if "similarity" in context.columns:
            from scipy.stats import rankdata

            truth = [similarity_of(row, context.columns["similarity"], n) for n, row in enumerate(rows)]
            x, y = rankdata((queries * passages).sum(1)), rankdata(truth)
            counts[:, 4:] = np.stack([x, y, x * x, y * y, x * y, np.ones(len(rows))], axis=1)
        return counts

    def figures(self, totals: Array) -> Array:
        """recall@10, recall@1, mean reciprocal rank; Spearman's rho, nan without similarities."""
        at_1, at_10, reciprocal, n, x, y, xx, yy, xy, m = totals.T
        with np.errstate(divide="ignore", invalid="ignore"):
            rho = (m * xy - x * y) / np.sqrt((m * xx - x * x) * (m * yy - y * y))
        return np.stack([at_10 / n, at_1 / n, reciprocal / n, rho], axis=1)

    def wrong(self, totals: Array) -> Array:
        """No passage found; a correlation of the other sign."""
        at_1, _, _, n, x, y, xx, yy, xy, m = totals.T
        none = np.zeros_like(at_1)
        return np.stack([none, none, none, n, x, y, xx, yy, 2 * x * y / np.maximum(m, 1) - xy, m], axis=1)


def pooled(hidden: Tensor, mode: str) -> Array:
    """One vector (D,) float64 of hidden states (L, D): the first, the mean, or the largest of each."""
    values = hidden.double()
    found = values[0] if mode == "cls" else values.mean(0) if mode == "mean" else values.max(0).values
    return np.asarray(found.numpy(), dtype=np.float64)


def pooled_batch(hidden: Tensor, mask: Tensor, mode: str) -> Tensor:
    """The same (B, D) of padded hidden states (B, L, D) with gradients. mask: (B, L), 1 where there is text."""
    seen = mask.unsqueeze(-1).to(hidden.dtype)
    if mode == "mean":
        return (hidden * seen).sum(1) / seen.sum(1).clamp_min(1)
    if mode == "max":
        return hidden.masked_fill(seen == 0, -float("inf")).max(1).values
    first = mask.argmax(1)
    return hidden[first.new_tensor(range(len(first))), first]


def _feature(row: Row, number: int, role: str, unit: int, context: Context) -> Feature:
    text = text_of(row, context.columns[role], number)
    full = context.tokenizer(text, truncation=True, max_length=context.max_length)
    inputs: dict[str, Any] = {name: list(ids) for name, ids in full.items()}
    return Feature(inputs, number, (unit,), len(inputs["input_ids"]) >= context.max_length)


def similarity_of(row: Row, column: str, number: int, source: str = "the data") -> float:
    """The similarity in a cell. Raises DataError when it is no number."""
    value = row.get(column)
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise DataError(
            f"row {number + 1} of {source} has {value!r} in column {column!r}, which is no number"
        ) from None


def _unit(vectors: Array) -> Array:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(norms > 0, norms, 1)


def _json(path: Path, default: Any) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return default
    except (OSError, ValueError):
        raise ModelError(f"{path} cannot be read; copy it anew from the model") from None


TASK = FeatureExtraction()
