"""Ranks and correlations against scikit-learn's and scipy's; pooling as the files of sentence-transformers say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from scipy.stats import spearmanr
from sklearn.metrics import top_k_accuracy_score

from compress.core.errors import DataError, ModelError
from compress.core.task import Context
from compress.core.tasks.feature_extraction import TASK, pooled, pooled_batch
from tests.tiny import tiny_config, tiny_tokenizer

COLUMNS = {"query": "query", "passage": "passage"}


def context_of(**columns: str) -> Context:
    return Context(tiny_tokenizer(), COLUMNS | columns, (), 32)


def rows_of(passages: list[str]) -> list[dict[str, Any]]:
    return [{"query": f"q{n}", "passage": text, "similarity": (n * 7) % 5} for n, text in enumerate(passages)]


def test_recall_is_top_k_accuracy_of_scikit_learn() -> None:
    draw = np.random.default_rng(0)
    passages = draw.normal(size=(60, 8))
    answers = [(p + draw.normal(size=8), 3 * p) for p in passages]  # lengths do not count
    counts = TASK.counts(answers, rows_of([f"p{n}" for n in range(60)]), context_of())
    at_10, at_1, mrr, rho = TASK.figures(counts.sum(0, keepdims=True))[0]
    unit = [np.stack(side) for side in zip(*answers, strict=True)]
    unit = [side / np.linalg.norm(side, axis=1, keepdims=True) for side in unit]
    scores = unit[0] @ unit[1].T
    assert at_1 == top_k_accuracy_score(np.arange(60), scores, k=1)
    assert at_10 == top_k_accuracy_score(np.arange(60), scores, k=10)
    ranks = (-scores).argsort(1).argsort(1)[np.arange(60), np.arange(60)] + 1
    assert mrr == pytest.approx(float(np.mean(1 / ranks)))
    assert np.isnan(rho)


def test_rows_with_one_passage_share_it() -> None:
    """Two queries of one passage must not be each other's wrong answers."""
    vectors = np.eye(3)
    answers = [(vectors[0], vectors[0]), (vectors[0], vectors[0]), (vectors[1], vectors[1])]
    counts = TASK.counts(answers, rows_of(["same", "same", "other"]), context_of())
    assert TASK.figures(counts.sum(0, keepdims=True))[0, :3].tolist() == [1, 1, 1]


def test_a_model_that_gives_one_vector_finds_nothing() -> None:
    answers = [(np.ones(4), np.ones(4))] * 20
    counts = TASK.counts(answers, rows_of([f"p{n}" for n in range(20)]), context_of())
    assert TASK.figures(counts.sum(0, keepdims=True))[0, :2].tolist() == [0, 0]


def test_spearman_with_ties() -> None:
    draw = np.random.default_rng(1)
    answers = [(draw.normal(size=6), draw.normal(size=6)) for _ in range(40)]
    rows = rows_of([f"p{n}" for n in range(40)])
    counts = TASK.counts(answers, rows, context_of(similarity="similarity"))
    cosines = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in answers]
    expected = spearmanr(cosines, [row["similarity"] for row in rows]).statistic
    assert TASK.figures(counts.sum(0, keepdims=True))[0, 3] == pytest.approx(expected, abs=1e-12)


def test_pooling_of_hidden_states() -> None:
    hidden = torch.tensor([[1.0, 5.0], [3.0, 1.0]])
    assert pooled(hidden, "cls").tolist() == [1, 5]
    assert pooled(hidden, "mean").tolist() == [2, 3]
    assert pooled(hidden, "max").tolist() == [3, 5]


def write_modules(folder: Path, pooling: dict[str, bool], extra: str = "Normalize") -> None:
    modules = [{"type": "sentence_transformers.models.Transformer", "path": ""},
               {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"},
               {"type": f"sentence_transformers.models.{extra}", "path": f"2_{extra}"}]  # fmt: skip
    (folder / "1_Pooling").mkdir()
    (folder / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling), encoding="utf-8")


def test_pooling_is_read_from_the_model(tmp_path: Path) -> None:
    assert TASK.settings(tmp_path) == {"pooling": "mean"}
    write_modules(tmp_path, {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False})
    assert TASK.settings(tmp_path) == {"pooling": "cls"}


def test_models_that_do_more_than_pool_are_refused(tmp_path: Path) -> None:
    write_modules(tmp_path, {"pooling_mode_mean_tokens": True}, "Dense")
    with pytest.raises(ModelError, match="ends in a Dense layer"):
        TASK.settings(tmp_path)


def test_two_poolings_at_once_are_refused(tmp_path: Path) -> None:
    write_modules(tmp_path, {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True})
    with pytest.raises(ModelError, match="pools by cls, mean; cls, mean and max are known, one at a time"):
        TASK.settings(tmp_path)


def test_similarities_that_are_no_numbers() -> None:
    with pytest.raises(DataError, match="row 2 of x has 'high' in column 's', which is no number"):
        TASK.labels([{"s": "0.5"}, {"s": "high"}], COLUMNS | {"similarity": "s"}, "x")


@pytest.mark.parametrize("mode", ["cls", "mean", "max"])
@pytest.mark.parametrize("left", [False, True])
def test_pooling_of_a_padded_batch_is_that_of_each_text(mode: str, left: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    lengths, hidden = (5, 2, 3), torch.randn(3, 5, 4, generator=draw)
    mask = torch.zeros(3, 5, dtype=torch.int64)
    for n, length in enumerate(lengths):
        mask[n, 5 - length if left else 0 :][:length] = 1
    found = pooled_batch(hidden, mask, mode)
    for n in range(3):
        expected = torch.from_numpy(pooled(hidden[n][mask[n].bool()], mode)).float()
        torch.testing.assert_close(found[n], expected)


def embedder() -> Any:
    torch.manual_seed(0)
    return transformers.BertModel(tiny_config("bert")).eval()


def vectors_of(model: Any, texts: list[str]) -> torch.Tensor:
    """Mean-pooled unit vectors, each text by itself."""
    tokenizer, found = tiny_tokenizer(), []
    for text in texts:
        hidden = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        found.append(torch.nn.functional.normalize(hidden.mean(0), dim=0))
    return torch.stack(found)


def loss_of(model: Any, rows: list[dict[str, Any]], context: Context) -> float:
    examples = TASK.examples(rows, context)
    batch = TASK.collate([feature for example in examples for feature in example], context)
    return TASK.loss(model, batch, context).item()


@pytest.mark.parametrize("negatives", [False, True])
def test_the_loss_is_that_of_multiple_negatives_ranking(negatives: bool) -> None:
    """sentence-transformers: cross entropy of scale 20 times the cosines, own passage first among all and negatives."""
    model, columns = embedder(), {"negative": "wrong"} if negatives else {}
    rows = [{"query": f"river {n}", "passage": f"market {n} window", "wrong": f"engine {n}"} for n in range(5)]
    sides = [vectors_of(model, [row[name] for row in rows]) for name in ("query", "passage", "wrong")]
    candidates = torch.cat(sides[1:] if negatives else sides[1:2])
    logits = 20 * sides[0] @ candidates.T
    expected = torch.stack([-torch.log_softmax(logits[n], -1)[n] for n in range(5)]).mean().item()
    assert loss_of(model, rows, context_of(**columns)) == pytest.approx(expected, abs=1e-4)


def test_copies_of_a_passage_are_no_wrong_answers() -> None:
    model = embedder()
    rows = [{"query": f"river {n}", "passage": text} for n, text in enumerate(("same text", "same text", "other"))]
    queries, passages = (vectors_of(model, [row[name] for row in rows]) for name in ("query", "passage"))
    logits = 20 * queries @ passages.T
    logits[0, 1] = logits[1, 0] = -torch.inf
    expected = torch.stack([-torch.log_softmax(logits[n], -1)[n] for n in range(3)]).mean().item()
    assert loss_of(model, rows, context_of()) == pytest.approx(expected, abs=1e-4)


def test_similarities_are_fitted_by_the_cosine() -> None:
    model, context = embedder(), context_of(similarity="similarity")
    rows = rows_of([f"window {n}" for n in range(6)])
    queries, passages = (vectors_of(model, [row[name] for row in rows]) for name in ("query", "passage"))
    scores = torch.tensor([float(row["similarity"]) for row in rows])
    expected = torch.nn.functional.mse_loss((queries * passages).sum(1), scores / scores.max()).item()
    assert loss_of(model, rows, context) == pytest.approx(expected, abs=1e-5)
    assert TASK.aim(context).name == "spearman"
    assert TASK.aim(context_of()).name == "recall_at_10"


def test_examples_keep_the_features_of_a_row_together() -> None:
    rows = [{"query": "a", "passage": "b", "wrong": "c"}] * 2
    assert [len(example) for example in TASK.examples(rows, context_of(negative="wrong"))] == [3, 3]
    assert [feature.row for feature in TASK.features(rows, context_of(negative="wrong"))] == [0, 0, 1, 1]
    assert "labels" not in TASK.collate(TASK.features(rows, context_of()), context_of())
