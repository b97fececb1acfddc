"""How answers in words are compared: the official normalisation of SQuAD, exact match and F1.

After Rajpurkar et al. 2016 (the dataset's evaluate-v2.0.py). Differs for text with characters of scripts that put no
blanks between words (Chinese, Japanese, Thai ...): each of them is a token of its own, as in CMRC 2018, and punctuation
of every language is dropped, not that of ASCII alone.
"""

from __future__ import annotations

import json
import re
import string
import unicodedata
from ast import literal_eval
from collections import Counter
from collections.abc import Sequence
from typing import Any

ARTICLES = re.compile(r"\b(a|an|the)\b")
UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u2fff\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf"
                      "\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")  # fmt: skip
"""Thai, Lao, Burmese, Khmer, Han, kana."""


def normalised(text: str) -> str:
    """Lower case without punctuation, articles and white space that says nothing."""
    lowered = text.lower()
    if UNSPACED.search(text):
        kept = "".join(c for c in lowered if not unicodedata.category(c).startswith("P"))
        return " ".join(UNSPACED.sub(lambda found: f" {found[0]} ", kept).split())
    kept = "".join(c for c in lowered if c not in string.punctuation)
    return " ".join(ARTICLES.sub(" ", kept).split())


def exact(said: str, golds: Sequence[str]) -> float:
    """1.0 when the answer is one of `golds`, else 0.0; no answer is an empty text."""
    return float(any(normalised(said) == normalised(gold) for gold in golds))


def f1(said: str, golds: Sequence[str]) -> float:
    """The best F1 of tokens over `golds`; of an empty answer or gold, whether both are."""
    return max(_f1(normalised(said).split(), normalised(gold).split()) for gold in golds)


def _f1(said: list[str], gold: list[str]) -> float:
    if not said or not gold:
        return float(said == gold)
    common = sum((Counter(said) & Counter(gold)).values())
    return 2 * common / (len(said) + len(gold))


def parsed(value: Any) -> Any:
    """A list or object that a csv cell holds as text; anything else as it is."""
    if isinstance(value, str) and value.strip()[:1] in ("[", "{"):
        for read in (json.loads, literal_eval):
            try:
                return read(value)
            except (ValueError, SyntaxError):
                continue
    return value
