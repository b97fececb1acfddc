"""Texts that a model wrote against those they should be: word errors, ROUGE and BLEU, each as counts that add up.

Chinese, Japanese and Thai are written without spaces: each of their characters counts as a word, in all three.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np

from compress.core.errors import MissingExtraError
from compress.core.numerics.bootstrap import Array

ROUGES = ("rougeL", "rouge1", "rouge2")
ORDER = 4  # of BLEU's n-grams
_ALONE = (
    "\u3040-\u30ff\u31f0-\u31ff"  # kana
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f"  # Han
    "\u0e01-\u0e3a\u0e40-\u0e4e"  # Thai
)
_WORD = re.compile(f"[{_ALONE}]|(?:(?![{_ALONE}])[^\\W_])+(?:'(?:(?![{_ALONE}])[^\\W_])+)*")
_UNSPACED = re.compile(f"[{_ALONE}]")


def words(text: str) -> list[str]:
    """Words in lower case without punctuation; an apostrophe inside a word stays (`don't`)."""
    plain = unicodedata.normalize("NFKC", text).replace("\u2019", "'").casefold()
    return _WORD.findall(plain)


def unspaced(text: str) -> bool:
    """Whether most of a text's letters belong to languages that are written without spaces."""
    return 2 * len(_UNSPACED.findall(text)) > sum(map(str.isalpha, text))


def distance(a: Sequence[Any], b: Sequence[Any]) -> int:
    """The fewest insertions, deletions and replacements that make `b` of `a` (Levenshtein 1966).

    A row of the table at a time: what insertions add is a running minimum of the row minus its position.
    """
    known: dict[Any, int] = {}
    left = np.array([known.setdefault(item, len(known)) for item in a], dtype=np.int64)
    right = np.array([known.setdefault(item, len(known)) for item in b], dtype=np.int64)
    at = np.arange(len(right) + 1)
    row = at.copy()
    for number, item in enumerate(left, start=1):
        best = np.empty_like(row)
        best[0] = number
        best[1:] = np.minimum(row[1:] + 1, row[:-1] + (right != item))
        row = np.minimum.accumulate(best - at) + at
    return int(row[-1])


def error_counts(said: str, truth: str) -> Array:
    """(4,): wrong words, words, wrong characters, characters. Sums of them give error rates.

    Words as `words` reads them; characters those of the words, without spaces between them.
    """
    a, b = words(said), words(truth)
    c, d = "".join(a), "".join(b)
    return np.array([distance(a, b), len(b), distance(c, d), len(d)], dtype=np.float64)


def rouge_counts(said: str, truth: str) -> Array:
    """(3,): F1 of ROUGE-L, ROUGE-1 and ROUGE-2 of one text (Lin 2004), by rouge-score over `words`, unstemmed.

    On plain English that is rouge-score's own reading; letters beyond a to z, which it drops, are kept here.
    """
    scores = _scorer().score(truth, said)
    return np.array([scores[name].fmeasure for name in ROUGES])


def bleu_counts(said: str, truth: str) -> Array:
    """(2 + 2 ORDER,): lengths of both, n-grams found, n-grams said, by sacrebleu's tokenizer 13a, or by character."""
    found = _bleu("char" if unspaced(truth) else "13a").sentence_score(said, [truth])
    return np.array([found.sys_len, found.ref_len, *found.counts, *found.totals], dtype=np.float64)


def bleu(totals: Array) -> Array:
    """(R, 2 + 2 ORDER) sums -> (R,) BLEU of 0 to 1 (Papineni et al. 2002), zeros smoothed as sacrebleu does."""
    length, wanted, rest = totals[:, 0], totals[:, 1], totals[:, 2:]
    found, said = rest[:, :ORDER], rest[:, ORDER:]
    halved = 2.0 ** np.cumsum(found == 0, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = np.where(found == 0, 1 / (halved * said), found / said)
        short = np.where(length < wanted, np.exp(1 - wanted / length), 1.0)
        scores = short * np.exp(np.log(precision).mean(1))
    return np.where((found.sum(1) > 0) & (said > 0).all(1), scores, 0.0)


def need_scores() -> None:
    """Raises MissingExtraError when rouge-score or sacrebleu is not installed."""
    _scorer()
    _bleu("13a")


class _Words:
    """`words` as rouge-score wants it."""

    def tokenize(self, text: str) -> list[str]:
        """The words."""
        return words(text)


def _scorer() -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError:
        raise MissingExtraError("rouge-score", "train") from None
    return RougeScorer(list(ROUGES), tokenizer=_Words())


def _bleu(tokenizer: str) -> Any:
    try:
        from sacrebleu.metrics import BLEU
    except ImportError:
        raise MissingExtraError("sacrebleu", "train") from None
    return BLEU(tokenize=tokenizer, effective_order=True)
