"""How far a compressed model is from the original, on held-out text, with intervals.

Perplexity, its ratio, KL(original || compressed) per token and top-1 agreement for language models;
the cosine of hidden states for encoders. Intervals are 95 %, by a paired bootstrap over documents:
tokens of one document are not independent, and both models saw the same documents.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from compress.core.errors import CompressError, DataError, ModelError
from compress.core.numerics.bootstrap import CONFIDENCE, Array, bootstrap
from compress.core.numerics.paired import Pair
from compress.core.types import Measurement

Score = TypeVar("Score", "DocumentScore", "HiddenScore")

BLOCK_ELEMENTS = 1 << 20  # logits compared at once: 4 MiB an array in float32
MAX_NLL = 700.0  # nats a token: exp of more is no float64


@dataclass(frozen=True)
class DocumentScore:
    """Sums over the `n` predicted tokens of one document; natural logarithm.

    nll_original, nll_compressed, kl: nats. agree: tokens where both models rank the same one first.
    """

    document: int
    n: int
    nll_original: float
    nll_compressed: float
    kl: float
    agree: int

    def __add__(self, other: DocumentScore) -> DocumentScore:
        """The sums of two chunks of one document. Raises CompressError for two documents."""
        _same_document(self.document, other.document)
        return DocumentScore(
            self.document,
            self.n + other.n,
            self.nll_original + other.nll_original,
            self.nll_compressed + other.nll_compressed,
            self.kl + other.kl,
            self.agree + other.agree,
        )


@dataclass(frozen=True)
class HiddenScore:
    """Sum of the cosines of `n` hidden states of one document."""

    document: int
    n: int
    cosine: float

    def __add__(self, other: HiddenScore) -> HiddenScore:
        """The sums of two chunks of one document. Raises CompressError for two documents."""
        _same_document(self.document, other.document)
        return HiddenScore(self.document, self.n + other.n, self.cosine + other.cosine)


def score_chunk(document: int, original: Tensor, compressed: Tensor, targets: Tensor) -> DocumentScore:
    """Compare two models' predictions of `targets`.

    original, compressed: (n, V) logits, any float dtype, unmodified, on one device. targets: (n,) token ids.
    Log-softmax in float32; sums in float64. Beside the inputs it holds about 5 arrays of 4 MiB (or of one
    row, where a row is longer), whatever n is: rows go through in blocks.
    A KL below 1e-6 nats a token is rounding, and may be negative; equal logits give exactly 0.
    Raises ModelError when vocabularies differ, a target lies outside them, or a logit is not finite.
    """
    _check_chunk(document, original, compressed, targets)
    n, vocabulary = original.shape
    rows = max(1, BLOCK_ELEMENTS // vocabulary)
    nll_original = nll_compressed = kl = 0.0
    agree = 0
    for start in range(0, n, rows):
        part = slice(start, start + rows)
        index = targets[part].to(original.device, torch.int64).unsqueeze(1)
        p = torch.log_softmax(original[part].float(), dim=-1)
        q = torch.log_softmax(compressed[part].float(), dim=-1)
        nll_original -= float(p.gather(1, index).double().sum())
        nll_compressed -= float(q.gather(1, index).double().sum())
        agree += int((p.argmax(-1) == q.argmax(-1)).sum())
        torch.sub(p, q, out=q)
        kl += float(p.exp_().mul_(q).sum(-1).double().sum())
    if not math.isfinite(nll_original + nll_compressed + kl):
        _refuse_logits(document, original, compressed)
    return DocumentScore(document, n, nll_original, nll_compressed, kl, agree)


def score_hidden(document: int, original: Tensor, compressed: Tensor) -> HiddenScore:
    """Cosine between two models' hidden states, position by position, in float64.

    original, compressed: (L, D), any float dtype. Two zero vectors agree (1), one against another do not (0).
    Raises ModelError when shapes differ or a value is not finite.
    """
    if original.ndim != 2 or original.shape != compressed.shape:
        raise ModelError(
            f"document {document}: hidden states are {tuple(original.shape)} and {tuple(compressed.shape)}; "
            "compare two models of the same width on the same tokens"
        )
    a, b = original.double(), compressed.double()
    norm_a, norm_b = a.norm(dim=1), b.norm(dim=1)
    norms = norm_a * norm_b
    cosine = (a * b).sum(1) / torch.where(norms > 0, norms, torch.ones_like(norms))
    cosine = torch.where((norm_a == 0) & (norm_b == 0), torch.ones_like(cosine), cosine)
    total = float(cosine.sum())
    if not math.isfinite(total):
        _refuse_logits(document, original, compressed)
    return HiddenScore(document, len(a), total)


def summarise(scores: Sequence[DocumentScore], subject: str, seed: int = 0) -> list[Measurement]:
    """`perplexity` of `original` and `subject`; `perplexity_ratio`, `kl`, `top1_agreement` of `subject`.

    Chunks of one document are added first. n counts documents; detail counts tokens. All figures weigh
    tokens equally. With one document there is no interval. Raises DataError when nothing was scored.
    """
    merged = [s for s in _merge(scores) if s.n > 0]
    if not merged:
        raise DataError("no held-out token was scored; give at least one document of two tokens or more")
    sums = np.array([(s.n, s.nll_original, s.nll_compressed, s.kl, s.agree) for s in merged], dtype=np.float64)

    def figures(totals: Array) -> Array:
        tokens, original, compressed, kl, agree = totals.T
        columns = (
            _exp(original / tokens),
            _exp(compressed / tokens),
            _exp((compressed - original) / tokens),
            kl / tokens,
            agree / tokens,
        )
        return np.stack(columns, axis=1)

    values, bounds = bootstrap(sums, figures, seed)
    detail = {"tokens": int(sums[:, 0].sum()), "interval": "paired bootstrap over documents, 95 %"}
    names = (
        ("original", "perplexity", ""),
        (subject, "perplexity", ""),
        (subject, "perplexity_ratio", "ratio"),
        (subject, "kl", "nats/token"),
        (subject, "top1_agreement", "fraction"),
    )
    return [
        Measurement(*name, float(value), *bound, n=len(merged), detail=dict(detail))
        for name, value, bound in zip(names, values, bounds, strict=True)
    ]


def pair(scores: Sequence[DocumentScore]) -> Pair:
    """Both models' nats by document; the drop is how much the perplexity grows, as a share."""
    merged = [s for s in _merge(scores) if s.n > 0]
    sides = ([(s.n, s.nll_original) for s in merged], [(s.n, s.nll_compressed) for s in merged])
    first, second = (np.array(side, dtype=np.float64).reshape(-1, 2) for side in sides)
    return Pair(first, second, lambda a, b: _exp((b[:, 1] - a[:, 1]) / np.maximum(a[:, 0], 1)) - 1)


def summarise_hidden(scores: Sequence[HiddenScore], subject: str, seed: int = 0) -> Measurement:
    """`hidden_cosine`: the mean over all positions, interval over documents. Raises DataError when empty."""
    merged = [s for s in _merge(scores) if s.n > 0]
    if not merged:
        raise DataError("no held-out position was compared; give at least one document of one token")
    sums = np.array([(s.n, s.cosine) for s in merged], dtype=np.float64)
    values, bounds = bootstrap(sums, lambda totals: totals[:, 1:] / totals[:, :1], seed)
    detail = {"tokens": int(sums[:, 0].sum()), "interval": "paired bootstrap over documents, 95 %"}
    return Measurement(subject, "hidden_cosine", "cosine", float(values[0]), *bounds[0], len(merged), detail)


def median_interval(samples: Sequence[float]) -> tuple[float, float | None, float | None]:
    """Median of `samples` and the 95 % interval of the true median by order statistics.

    The pair of order statistics closest to the middle whose coverage, exact for independent samples of any
    distribution, is 95 % or more (David and Nagaraja, Order Statistics, 7.1). None below 6 samples: not
    even the extremes cover then. Raises DataError for none.
    """
    ordered = sorted(samples)
    n = len(ordered)
    if not n:
        raise DataError("a median of no samples was asked for; measure at least once")
    median = (ordered[(n - 1) // 2] + ordered[n // 2]) / 2
    below, tail = -1, 0.0
    for k in range(n // 2):
        tail += math.comb(n, k) / 2**n
        if 2 * tail > 1 - CONFIDENCE:
            break
        below = k
    return (median, None, None) if below < 0 else (median, ordered[below], ordered[n - 1 - below])


def _exp(values: Array) -> Array:
    """exp, bounded so that a broken model gives a huge number and not an infinity that JSON cannot hold."""
    return np.asarray(np.exp(np.minimum(values, MAX_NLL)), dtype=np.float64)


def _merge(scores: Iterable[Score]) -> list[Score]:
    merged: dict[int, Score] = {}
    for score in scores:
        known = merged.get(score.document)
        merged[score.document] = score if known is None else known + score
    return [merged[document] for document in sorted(merged)]


def _same_document(first: int, second: int) -> None:
    if first != second:
        raise CompressError(f"scores of documents {first} and {second} were added; add chunks of one document only")


def _check_chunk(document: int, original: Tensor, compressed: Tensor, targets: Tensor) -> None:
    if original.ndim != 2 or original.shape[1] != compressed.shape[-1]:
        raise ModelError(
            f"document {document}: the vocabularies differ, {original.shape[-1]} and {compressed.shape[-1]} "
            "tokens; KL needs two models with the same tokenizer and output size"
        )
    if original.shape != compressed.shape or targets.shape != original.shape[:1]:
        raise ModelError(
            f"document {document}: logits {tuple(original.shape)} and {tuple(compressed.shape)} do not pair "
            f"with {tuple(targets.shape)} targets; score both models on the same tokens"
        )
    if len(targets) and not 0 <= int(targets.min()) <= int(targets.max()) < original.shape[1]:
        worst = max(int(targets.max()), int(targets.min()), key=lambda i: abs(i - original.shape[1] / 2))
        raise ModelError(
            f"document {document}: token id {worst} lies outside the vocabulary of {original.shape[1]}; "
            "use the tokenizer that belongs to the model"
        )


def _refuse_logits(document: int, original: Tensor, compressed: Tensor) -> None:
    """Raises ModelError naming whose values are not finite, and how many positions have them."""
    for whose, values in (("original", original), ("compressed model", compressed)):
        if bad := int((~values.isfinite()).any(-1).sum()):
            raise ModelError(
                f"document {document}: the {whose} gives NaN or infinity at {bad} of {len(values)} "
                "positions; check its weights, or compute in float32"
            )
    raise ModelError(f"document {document}: values overflow float32 when compared; check the models' weights")
