"""Ranks and correlations against scikit-learn's and scipy's; pooling as the files of sentence-transformers say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sklearn.metrics import top_k_accuracy_score

from compress.core.errors import DataError, ModelError
from compress.core.task import Context
from compress.core.tasks.feature_extraction import TASK, pooled
from tests.tiny import tiny_tokenizer

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
