"""Scores against float64, intervals against repeated experiments."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from compress.core.device import current_rss_bytes, peak_rss_bytes, reset_peak_rss
from compress.core.errors import CompressError, DataError, ModelError
from compress.core.numerics import bootstrap
from compress.measure.quality import (
    DocumentScore,
    HiddenScore,
    median_interval,
    score_chunk,
    score_hidden,
    summarise,
    summarise_hidden,
)


def pair(n: int, vocabulary: int, noise: float, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of two models that differ by `noise`, and targets."""
    generator = torch.Generator().manual_seed(n * vocabulary)
    original = 4 * torch.randn(n, vocabulary, generator=generator)
    compressed = original + noise * torch.randn(n, vocabulary, generator=generator)
    return original.to(dtype), compressed.to(dtype), torch.randint(0, vocabulary, (n,), generator=generator)


def oracle(original: Tensor, compressed: Tensor, targets: Tensor) -> tuple[float, float, float, int]:
    """The same sums by their definitions, in float64, with explicit normalisation."""
    p, q = original.double(), compressed.double()
    p, q = p - p.logsumexp(1, True), q - q.logsumexp(1, True)
    rows = torch.arange(len(targets))
    kl = torch.nn.functional.kl_div(q, p, reduction="sum", log_target=True)
    agree = sum(int(a.argmax()) == int(b.argmax()) for a, b in zip(p, q, strict=True))
    return -float(p[rows, targets].sum()), -float(q[rows, targets].sum()), float(kl), agree


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("n", "vocabulary"), [(1, 2), (37, 300), (70, 50_000)])
def test_sums_match_float64(n: int, vocabulary: int, dtype: torch.dtype) -> None:
    original, compressed, targets = pair(n, vocabulary, 0.3, dtype)
    score = score_chunk(5, original, compressed, targets)
    first, second, kl, agree = oracle(original, compressed, targets)
    assert (score.document, score.n, score.agree) == (5, n, agree)
    assert score.nll_original == pytest.approx(first, rel=1e-6, abs=1e-6 * n)
    assert score.nll_compressed == pytest.approx(second, rel=1e-6, abs=1e-6 * n)
    assert score.kl == pytest.approx(kl, rel=1e-4, abs=2e-6 * n)


def test_chunks_add_up_to_the_whole() -> None:
    original, compressed, targets = pair(50, 300, 0.5)
    whole = score_chunk(1, original, compressed, targets)
    parts = [score_chunk(1, original[i : i + 7], compressed[i : i + 7], targets[i : i + 7]) for i in range(0, 50, 7)]
    added = parts[0]
    for part in parts[1:]:
        added = added + part
    assert (added.n, added.agree) == (whole.n, whole.agree)
    assert added.kl == pytest.approx(whole.kl, rel=1e-12)
    assert added.nll_compressed == pytest.approx(whole.nll_compressed, rel=1e-12)


def test_equal_logits_have_no_distance_and_inputs_stay_as_they_were() -> None:
    original, compressed, targets = pair(20, 300, 0.0)
    before = original.clone()
    score = score_chunk(0, original, compressed, targets)
    assert score.kl == 0.0
    assert score.agree == 20
    assert torch.equal(original, before)
    assert torch.equal(compressed, before)


def test_temporaries_do_not_grow_with_the_rows() -> None:
    if not reset_peak_rss():
        pytest.skip("this system cannot reset the peak: /proc/self/clear_refs is not writable")
    original, compressed, targets = pair(400, 60_000, 0.1)
    score_chunk(0, original[:40], compressed[:40], targets[:40])
    reset_peak_rss()
    start = current_rss_bytes()
    score_chunk(0, original, compressed, targets)
    assert peak_rss_bytes() - start < 40 << 20  # one array of the logits is 92 MiB


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_finite_are_named(value: float) -> None:
    original, compressed, targets = pair(6, 30, 0.1)
    compressed[2, int(targets[2])] = value
    with pytest.raises(ModelError, match="document 9: the compressed model gives NaN or infinity at 1 of 6 positions"):
        score_chunk(9, original, compressed, targets)
    with pytest.raises(ModelError, match="document 9: the original gives"):
        score_chunk(9, compressed, original, targets)


def test_what_does_not_pair_is_refused() -> None:
    original, compressed, targets = pair(6, 30, 0.1)
    with pytest.raises(ModelError, match="vocabularies differ, 30 and 29"):
        score_chunk(0, original, compressed[:, :29], targets)
    with pytest.raises(ModelError, match="do not pair"):
        score_chunk(0, original, compressed[:5], targets)
    with pytest.raises(ModelError, match="token id 30 lies outside the vocabulary of 30"):
        score_chunk(0, original, compressed, targets.clone().fill_(30))
    with pytest.raises(ModelError, match="token id -100 lies outside"):
        score_chunk(0, original, compressed, targets.clone().fill_(-100))
    with pytest.raises(CompressError, match="documents 1 and 2"):
        DocumentScore(1, 1, 1, 1, 0, 1) + DocumentScore(2, 1, 1, 1, 0, 1)


def test_figures_by_hand() -> None:
    scores = [DocumentScore(0, 10, 20.0, 23.0, 1.0, 9), DocumentScore(1, 30, 60.0, 69.0, 3.0, 21)]
    rows = {(m.subject, m.name): m for m in summarise(scores, "x")}
    assert rows["original", "perplexity"].median == pytest.approx(math.exp(2.0))
    assert rows["x", "perplexity"].median == pytest.approx(math.exp(92 / 40))
    assert rows["x", "perplexity_ratio"].median == pytest.approx(math.exp(0.3))
    assert rows["x", "kl"].median == pytest.approx(0.1)
    assert rows["x", "top1_agreement"].median == pytest.approx(0.75)
    assert {m.n for m in rows.values()} == {2}
    assert rows["x", "kl"].detail["tokens"] == 40
    # documents with the same ratio: a paired interval has no width, unpaired perplexities do not matter
    assert rows["x", "perplexity_ratio"].low == pytest.approx(math.exp(0.3))
    assert rows["x", "perplexity_ratio"].high == pytest.approx(math.exp(0.3))


def test_one_document_has_no_interval_and_none_is_an_error() -> None:
    chunks = [DocumentScore(4, 5, 10.0, 11.0, 0.5, 5), DocumentScore(4, 5, 12.0, 13.0, 0.5, 4)]
    for row in summarise(chunks, "x"):
        assert (row.low, row.high, row.n) == (None, None, 1)
    for nothing in ([], [DocumentScore(0, 0, 0.0, 0.0, 0.0, 0)]):
        with pytest.raises(DataError, match="no held-out token"):
            summarise(nothing, "x")


def test_same_seed_same_interval_and_a_broken_model_stays_finite() -> None:
    scores = [DocumentScore(i, 10, 20.0 + i, 1e6, 50.0 * i, i) for i in range(9)]
    assert summarise(scores, "x", 3) == summarise(scores, "x", 3)
    assert summarise(scores, "x", 3) != summarise(scores, "x", 4)
    assert all(math.isfinite(m.median) and math.isfinite(m.high or 0) for m in summarise(scores, "x"))


@pytest.mark.parametrize(("documents", "least"), [(5, 0.88), (12, 0.90), (40, 0.92)])
def test_intervals_cover(documents: int, least: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """200 experiments with a known mean: about 95 % of the intervals hold it, also with 5 documents."""
    monkeypatch.setattr(bootstrap, "RESAMPLES", 1000)
    draw = np.random.default_rng(documents)
    hits = 0
    for trial in range(200):
        kl = 100 * draw.gamma(4.0, 0.025, size=documents)  # mean 0.1 a token, skewed as KL is
        scores = [DocumentScore(i, 100, 300.0, 300.0 + v, float(v), 90) for i, v in enumerate(kl)]
        row = next(m for m in summarise(scores, "x", trial) if m.name == "kl")
        assert row.low is not None
        assert row.high is not None
        hits += row.low <= 0.1 <= row.high
    assert least <= hits / 200 <= 0.99


@pytest.mark.parametrize(
    ("freedom", "table"), [(1, 12.706), (2, 4.303), (3, 3.182), (5, 2.571), (10, 2.228), (30, 2.042)]
)
def test_t_quantiles_of_the_printed_table(freedom: int, table: float) -> None:
    assert bootstrap.t_quantile(freedom) == pytest.approx(table, rel=2e-3)


def test_hidden_cosine_matches_float64() -> None:
    a, b, _ = pair(40, 64, 1.0)
    a[3], b[3], a[5] = 0.0, 0.0, 0.0  # padding in both, a dead state in one
    expected = torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=1)
    expected[3], expected[5] = 1.0, 0.0
    score = score_hidden(2, a, b)
    assert score.cosine == pytest.approx(float(expected.sum()), rel=1e-12)
    row = summarise_hidden([score, HiddenScore(7, 40, 30.0)], "x")
    assert row.name == "hidden_cosine"
    assert row.median == pytest.approx((score.cosine + 30.0) / 80)
    with pytest.raises(ModelError, match="same width"):
        score_hidden(0, a, b[:, :32])
    a[0, 0] = math.nan
    with pytest.raises(ModelError, match="document 0: the original gives NaN"):
        score_hidden(0, a, b)
    with pytest.raises(DataError, match="no held-out position"):
        summarise_hidden([], "x")


def test_median_interval_by_order_statistics() -> None:
    assert median_interval([3.0, 1.0, 2.0]) == (2.0, None, None)
    assert median_interval([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]) == (3.5, 1.0, 6.0)  # 1 - 2/64 = 96.9 %
    assert median_interval([float(i) for i in range(1, 11)]) == (
        5.5,
        2.0,
        9.0,
    )  # the textbook pair for n = 10
    with pytest.raises(DataError):
        median_interval([])
    draw = np.random.default_rng(0)
    hits = 0
    for _ in range(1000):
        _, low, high = median_interval([float(v) for v in draw.exponential(size=10)])
        assert low is not None
        assert high is not None
        hits += low <= math.log(2) <= high
    assert 0.96 <= hits / 1000 <= 0.995  # exact coverage 97.9 %
