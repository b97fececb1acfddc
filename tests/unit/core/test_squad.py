"""Exact match and F1 against the official script's formulas, written down once more."""

from __future__ import annotations

import collections
import re
import string

import numpy as np
import pytest

from compress.core import squad

WORDS = ("the", "a", "An", "lamp,", "lamp", "Six", "six.", "at", "-", "it's", "U.S.", "lights")


def official_normal(text: str) -> str:
    """normalize_answer of evaluate-v2.0.py."""
    text = "".join(c for c in text.lower() if c not in set(string.punctuation))
    return " ".join(re.sub(re.compile(r"\b(a|an|the)\b", re.UNICODE), " ", text).split())


def official_f1(gold: str, said: str) -> float:
    """compute_f1 of evaluate-v2.0.py."""
    gold_tokens, said_tokens = official_normal(gold).split(), official_normal(said).split()
    same = sum((collections.Counter(gold_tokens) & collections.Counter(said_tokens)).values())
    if len(gold_tokens) == 0 or len(said_tokens) == 0:
        return int(gold_tokens == said_tokens)
    if same == 0:
        return 0
    precision, recall = same / len(said_tokens), same / len(gold_tokens)
    return 2 * precision * recall / (precision + recall)


@pytest.mark.parametrize("seed", range(20))
def test_scores_are_those_of_the_official_script(seed: int) -> None:
    draw = np.random.default_rng(seed)

    def text() -> str:
        return " ".join(draw.choice(WORDS, size=draw.integers(0, 6)))

    for _ in range(30):
        said, golds = text(), [text() for _ in range(draw.integers(1, 4))]
        assert squad.f1(said, golds) == pytest.approx(max(official_f1(gold, said) for gold in golds), abs=1e-12)
        official = max(official_normal(gold) == official_normal(said) for gold in golds)
        assert squad.exact(said, golds) == float(official)


def test_languages_without_blanks_are_compared_by_character() -> None:
    assert squad.normalised("《北京》大学，2008年") == "北 京 大 学 2008 年"
    assert squad.exact("北京。", ["北京"]) == 1
    assert squad.f1("在北京", ["北京市"]) == pytest.approx(2 * 2 / 6)
    assert squad.f1("上海", ["北京"]) == 0
    assert squad.f1("", ["北京"]) == 0
    assert squad.f1("", [""]) == squad.exact("", [""]) == 1


def test_cells_that_hold_lists() -> None:
    assert squad.parsed('{"text": ["a"], "answer_start": [1]}') == {"text": ["a"], "answer_start": [1]}
    assert squad.parsed("['a', 'b']") == ["a", "b"]
    assert squad.parsed("[sic] as it is") == "[sic] as it is"
    assert squad.parsed("plain") == "plain"
