"""A few rows of every task for tests/conformance/test_tasks.py: different in length, the last longer than the model."""

from __future__ import annotations

from typing import Any

STORY = (
    "The lighthouse keeper climbed the stairs every evening at six and lit the lamp. Ships passed far out, and on "
    "clear nights he could count their lights. He wrote the number in a ledger, with the weather. 今天天气很好。 "
)
LONG = STORY * 3

ROWS: dict[str, list[dict[str, Any]]] = {
    "text-classification": [
        {"text": "A lamp.", "label": "sea"},
        {"text": "Scale and zero point.", "label": "code"},
        {"text": STORY, "label": "sea"},
        {"text": "def add(left, right)", "label": "code"},
        {"text": LONG, "label": "sea"},
    ],
    "token-classification": [
        {"words": ["Ships", "passed", "Oslo"], "tags": ["O", "O", "B-place"]},
        {"words": ["New", "York"], "tags": ["B-place", "I-place"]},
        {"words": ["count", "the", "lights", "of", "Rome"], "tags": ["O", "O", "O", "O", "B-place"]},
        {"words": LONG.split(), "tags": ["O"] * len(LONG.split())},
    ],
    "feature-extraction": [
        {"query": "Who lit the lamp?", "passage": STORY},
        {"query": "scale", "passage": "A scale says how far apart the integers lie."},
        {"query": "今天天气", "passage": "我们一起去公园散步。"},
        {"query": "ships", "passage": LONG},
    ],
    "question-answering": [
        {
            "question": "What did he light?",
            "context": "He lit the lamp.",
            "answers": {"text": ["the lamp", "lamp"], "answer_start": [7, 11]},
        },
        {"question": "When?", "context": "At six, in the evening.", "answers": {"text": ["six"], "answer_start": [3]}},
        {
            "question": "谁在下棋？",
            "context": "老人们坐在长椅上下棋。",
            "answers": {"text": ["老人们"], "answer_start": [0]},
        },
        {"question": "Who sank?", "context": "Ships passed far out.", "answers": {"text": [], "answer_start": []}},
        {
            "question": "What was at the end?",
            "context": LONG + "A violin.",
            "answers": {"text": ["A violin"], "answer_start": [len(LONG)]},
        },
    ],
    "multiple-choice": [
        {"question": "He lit the", "choices": ["lamp", "sea"], "label": 0},
        {"question": "Ships passed", "choices": ["far out", "in a ledger, with the weather", "six"], "label": 0},
        {"question": "A scale says", "choices": ["no", "how far apart the integers lie"], "label": 1},
        {"question": LONG, "choices": ["He wrote the number", "今天", "coffee", "the coast"], "label": 3},
    ],
    "causal-lm": [
        {"text": "He lit the lamp."},
        {"text": "A scale says how far apart the integers lie."},
        {"text": STORY},
        {"text": LONG},
    ],
}
