"""Which column is the text, and how chats become documents."""

from __future__ import annotations

from typing import Any

import pytest

from calibrate.columns import Reading, choose, documents
from compress.core.errors import DataError

TURNS = [{"role": "user", "content": "why?"}, {"role": "assistant", "content": "because."}]
SHARE = [{"from": "human", "value": "why?"}, {"from": "gpt", "value": "because."}]


@pytest.mark.parametrize(
    ("row", "kind", "names"),
    [
        ({"id": "x" * 99, "text": "short"}, "text", ("text",)),
        ({"Title": "a longer title", "Content": "body"}, "text", ("Content",)),
        ({"prompt": "why?", "messages": TURNS}, "chat", ("messages",)),
        ({"conversations": SHARE}, "chat", ("conversations",)),
        ({"odd name": TURNS}, "chat", ("odd name",)),
        ({"prompt": "why?", "response": "because."}, "pair", ("prompt", "response")),
        ({"instruction": "add", "input": "1 1", "output": "2"}, "pair", ("instruction", "input", "output")),
        ({"instruction": "add", "input": "", "output": "2"}, "pair", ("instruction", "output")),
        ({"prompt": "why?", "chosen": TURNS, "rejected": TURNS}, "chat", ("chosen",)),
        ({"a": "short", "b": "the longest string", "n": 3}, "text", ("b",)),
        ({"tokens": ["EU", "rejects"], "tags": [1, 2]}, "text", ("tokens",)),
    ],
)
def test_the_column_is_guessed(row: dict[str, Any], kind: str, names: tuple[str, ...]) -> None:
    assert choose([row], None, "data") == Reading(kind, names)  # type: ignore[arg-type]


def test_a_named_column_wins() -> None:
    assert choose([{"text": "x", "title": "y"}], "title", "data").columns == ("title",)
    assert choose([{"text": "x", "talk": TURNS}], "talk", "data").kind == "chat"


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ("txt", "data has no column 'txt'; --text-column can be one of: id, text"),
        ("id", "column 'id' of data holds no text; the columns are: id, text"),
    ],
)
def test_a_wrong_column_lists_those_that_are_there(wanted: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        choose([{"id": 1}, {"id": 2, "text": "x"}], wanted, "data")


@pytest.mark.parametrize(
    "value",
    [
        TURNS,
        SHARE,
        {"role": ["user", "assistant"], "content": ["why?", "because."]},
        [{"role": t["role"], "content": [{"type": "text", "text": t["content"]}]} for t in TURNS],
    ],
)
def test_chat_shapes_reach_the_template_alike(value: Any, chat_tokenizer: Any) -> None:
    found, warnings = documents([{"messages": value}], Reading("chat", ("messages",)), chat_tokenizer)
    assert found == ["<s>[user] why?\n[assistant] because.\n"]
    assert warnings == []


def test_prompt_context_and_reply_are_two_turns(chat_tokenizer: Any) -> None:
    row = {"instruction": "add", "input": "1 1", "output": "2"}
    found, _ = documents([row], choose([row], None, "data"), chat_tokenizer)
    assert found == ["<s>[user] add\n\n1 1\n[assistant] 2\n"]


def test_without_a_template_turns_are_joined_and_said(byte_tokenizer: Any) -> None:
    found, warnings = documents([{"m": TURNS}], Reading("chat", ("m",)), byte_tokenizer)
    assert found == ["why?\nbecause."]
    assert warnings == ["1 of 1 chats were joined as plain text, because the tokenizer has no chat template."]


def test_a_chat_that_the_template_refuses_is_joined_and_said(chat_tokenizer: Any) -> None:
    rows = [{"m": TURNS}, {"m": TURNS[::-1]}]
    found, warnings = documents(rows, Reading("chat", ("m",)), chat_tokenizer)
    assert found[1] == "because.\nwhy?"
    assert warnings == ["1 of 2 chats were joined as plain text, because the chat template refused them."]


def test_rows_without_text_are_counted(byte_tokenizer: Any) -> None:
    rows = [{"text": "x"}, {"text": None}, {"text": "  "}, {"text": 5}, {}]
    found, warnings = documents(rows, Reading("text", ("text",)), byte_tokenizer)
    assert found == ["x"]
    assert warnings == ["4 of 5 rows had no text in text and were left out."]
