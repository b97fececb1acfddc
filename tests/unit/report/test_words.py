"""Units as people read them."""

from __future__ import annotations

import math

import pytest

from compress.core.types import Measurement
from compress.report import words


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (128_400_000, "128.4 MB"),
        (999_999, "1.00 MB"),
        (5_370_000_000, "5.37 GB"),
        (None, "–"),
        (math.nan, "–"),
        (math.inf, "–"),
    ],
)
def test_size(value: float | None, said: str) -> None:
    assert words.size(value) == said


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0.0371, "37 ms"),
        (4.21, "4.2 s"),
        (59.97, "1 min 00 s"),
        (151, "2 min 31 s"),
        (3661, "1 h 01 min"),
        (math.nan, "–"),
    ],
)
def test_duration(value: float, said: str) -> None:
    assert words.duration(value) == said


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (20.606, "20.61"),
        (0.127, "0.1270"),
        (0.0, "0"),
        (12345.6, "12,346"),
        (9.99996, "10.000"),
        (2.1e-05, "2.10e-05"),
        (-3.5, "-3.500"),
        (math.inf, "infinite"),
        (math.nan, "–"),
        (None, "–"),
    ],
)
def test_number(value: float | None, said: str) -> None:
    assert words.number(value) == said


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0.843, "84.3 %"),
        (0.0433, "4.33 %"),
        (0.00018, "0.018 %"),
        (0.0, "0.00 %"),
        (1.0, "100.0 %"),
        (math.nan, "–"),
    ],
)
def test_percent(value: float, said: str) -> None:
    assert words.percent(value) == said


@pytest.mark.parametrize(
    ("value", "said"), [(134_515_008, "135 M"), (1_240_000_000, "1.24 B"), (7, "7"), ("7", "–"), (True, "–")]
)
def test_count(value: object, said: str) -> None:
    assert words.count(value) == said


@pytest.mark.parametrize(
    ("measurement", "value", "interval"),
    [
        (Measurement("a", "top1_agreement", "fraction", 0.843, 0.835, 0.851), "84.3 %", "[83.5, 85.1]"),
        (Measurement("a", "kl", "nats/token", 0.127, 0.118, 0.137), "0.127 nats/token", "[0.118, 0.137]"),
        (Measurement("a", "bytes", "bytes", 1.2e9, 1.1e9, 1.3e9), "1.20 GB", "[1.10, 1.30 GB]"),
        (Measurement("a", "latency_ms", "ms", 25.77, 25.0, None), "25.77 ms", ""),
        (Measurement("a", "perplexity", "", math.nan), "–", ""),
        (Measurement("a", "hidden_cosine", "cosine", 0.98621, 0.985, 0.987), "0.9862", "[0.9850, 0.9870]"),
        (Measurement("a", "seconds", "s", 151.0), "2 min 31 s", ""),
    ],
)
def test_measurements_with_unit_and_interval(measurement: Measurement, value: str, interval: str) -> None:
    assert words.shown(measurement) == value
    assert words.interval(measurement) == interval


def test_clean_takes_escape_sequences_whole() -> None:
    text = "\x1b[31mred\x1b[0m\x1b]0;title\x07\x1b]8;;http://evil.invalid\x1b\\link\x1b]8;;\x1b\\ \x9b1m\x00end"
    assert words.clean(text) == "redlink 1mend"


def test_clean_keeps_lines_only_where_asked_and_marks_a_cut() -> None:
    assert words.clean("a\r\nb\u2028c\td", lines=True) == "a\nb\nc\td"
    assert words.clean("a\r\nb\u2028c\td") == "a b c d"
    assert words.clean("x" * 50, limit=10) == "x" * 9 + "…"
    assert words.clean("模型 👩\u200d🔬") == "模型 👩\u200d🔬"


def test_subjects_with_the_same_folder_name_stay_apart() -> None:
    names = ["fp32/model", "int4/model", "original"]
    assert words.distinct(names, 20) == {
        "fp32/model": "fp32/model",
        "int4/model": "int4/model",
        "original": "original",
    }
    assert words.distinct(["out/a", "out/b"], 20) == {"out/a": "a", "out/b": "b"}


def test_cards_show_flags_lists_and_numbers() -> None:
    assert words.plain_value({"avx2": True, "amx": False}) == "avx2"
    assert words.plain_value({"torch": "2.13", "n": 32768}) == "torch 2.13, n 32,768"
    assert words.plain_value([1, 0.01, None, True]) == "1, 0.01, –, yes"
