"""Error rates against jiwer and a textbook table, ROUGE against rouge-score, BLEU against sacrebleu."""

from __future__ import annotations

import random

import jiwer
import numpy as np
import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

from compress.core.errors import MissingExtraError
from compress.core.text_scores import (
    bleu,
    bleu_counts,
    distance,
    error_counts,
    need_scores,
    rouge_counts,
    unspaced,
    words,
)

WORDS = ("the", "cat", "sat", "on", "a", "mat", "while", "some", "dog", "ran", "past", "it", "nobody", "saw", "them")


def texts(count: int, seed: int) -> list[tuple[str, str]]:
    """Pairs that have much in common: words dropped, doubled, replaced."""
    draw = random.Random(seed)
    found = []
    for _ in range(count):
        truth = draw.choices(WORDS, k=draw.randint(1, 14))
        said = [draw.choice(WORDS) if draw.random() < 0.2 else word for word in truth if draw.random() > 0.1]
        found.append((" ".join(said + said[:1]), " ".join(truth)))
    return found


def table(a: str, b: str) -> int:
    """Wagner and Fischer 1974, cell by cell."""
    rows = [[i + j if i * j == 0 else 0 for j in range(len(b) + 1)] for i in range(len(a) + 1)]
    for i in range(1, len(a) + 1):
        for j in range(1, len(b) + 1):
            rows[i][j] = min(rows[i - 1][j] + 1, rows[i][j - 1] + 1, rows[i - 1][j - 1] + (a[i - 1] != b[j - 1]))
    return rows[-1][-1]


def test_distance_is_that_of_the_textbook() -> None:
    draw = random.Random(0)
    for _ in range(300):
        a, b = ("".join(draw.choices("abcd", k=draw.randint(0, 9))) for _ in range(2))
        assert distance(a, b) == table(a, b), (a, b)


def test_error_rates_are_those_of_jiwer() -> None:
    pairs = texts(60, 1)
    said, truths = ([pair[n] for pair in pairs] for n in (0, 1))
    totals = np.sum([error_counts(*pair) for pair in pairs], axis=0)
    assert totals[0] / totals[1] == pytest.approx(jiwer.wer(truths, said), abs=1e-12)
    whole = ([text.replace(" ", "") for text in found] for found in (truths, said))
    assert totals[2] / totals[3] == pytest.approx(jiwer.cer(*whole), abs=1e-12)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don\u2019t stop, Dr. O'Neil!", ["don't", "stop", "dr", "o'neil"]),
        ("Grüße aus Köln \N{EN DASH} 3.5 km", ["grüsse", "aus", "köln", "3", "5", "km"]),
        ("我们用GPU训练。", ["我", "们", "用", "gpu", "训", "练"]),
        ("snake_case 'quoted'", ["snake", "case", "quoted"]),
        ("\uff21\uff22\uff23 カタカナ", ["abc", "カ", "タ", "カ", "ナ"]),
        ("\U0001f642 ...", []),
    ],
)
def test_words_as_they_are_compared(text: str, expected: list[str]) -> None:
    assert words(text) == expected


def test_a_wrong_character_of_chinese_is_a_wrong_word() -> None:
    assert error_counts("今天天汽很好", "今天天气很好。").tolist() == [1, 6, 1, 6]


def test_nothing_written_is_all_wrong_and_too_much_is_worse() -> None:
    assert error_counts("", "one two").tolist() == [2, 2, 6, 6]
    assert error_counts("one two three four five", "one two")[0] == 3


def test_rouge_is_that_of_rouge_score_on_plain_english() -> None:
    theirs = RougeScorer(["rougeL", "rouge1", "rouge2"])
    for said, truth in texts(40, 2):
        scores = theirs.score(truth.capitalize() + ".", said)
        expected = [scores[name].fmeasure for name in ("rougeL", "rouge1", "rouge2")]
        assert rouge_counts(said, truth.capitalize() + ".") == pytest.approx(expected, abs=1e-12)


def test_rouge_reads_letters_that_rouge_score_drops() -> None:
    assert rouge_counts("今天天气好", "今天天气好") == pytest.approx([1, 1, 1])
    assert rouge_counts("äöü", "äöü")[1] == 1


@pytest.mark.parametrize("seed", [3, 4, 5])
def test_bleu_is_that_of_sacrebleu(seed: int) -> None:
    pairs = [(said.capitalize() + ".", truth.capitalize() + ", yes.") for said, truth in texts(30, seed)]
    totals = np.sum([bleu_counts(*pair) for pair in pairs], axis=0, keepdims=True)
    expected = sacrebleu.corpus_bleu([pair[0] for pair in pairs], [[pair[1] for pair in pairs]]).score
    assert expected > 5
    assert bleu(totals)[0] == pytest.approx(expected / 100, abs=1e-11)


@pytest.mark.parametrize("said", ["the dog", "the mat was not seen by any cat at all", "nothing alike", "", "the"])
def test_bleu_of_little_is_smoothed_as_sacrebleu_does(said: str) -> None:
    truth = "the cat sat on a mat"
    expected = sacrebleu.corpus_bleu([said], [[truth]]).score
    assert bleu(bleu_counts(said, truth)[None])[0] == pytest.approx(expected / 100, abs=1e-11)


def test_bleu_of_chinese_is_by_character() -> None:
    said, truth = "今天天气很好我们去公园", "今天天气很好我们一起去公园散步"
    assert unspaced(truth)
    assert not unspaced("a word 好")
    expected = sacrebleu.corpus_bleu([said], [[truth]], tokenize="char").score
    assert bleu(bleu_counts(said, truth)[None])[0] == pytest.approx(expected / 100, abs=1e-11)


def test_a_missing_scorer_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "rouge_score.rouge_scorer", None)
    with pytest.raises(MissingExtraError, match=r"rouge-score.*\[train\]"):
        need_scores()
