"""Rows to documents: which column holds the text, and what a chat looks like."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

from calibrate.formats import Row
from compress.core.errors import DataError

LOOK = 1000  # rows looked at to choose a column
TEXT_NAMES = ("text", "content", "document", "article", "body", "passage", "sentence", "story", "dialogue")
CHAT_NAMES = ("messages", "conversations", "conversation", "chat", "turns")
PROMPT_NAMES = ("prompt", "instruction", "question", "query")
CONTEXT_NAMES = ("input", "context")  # goes under the prompt, as in alpaca
REPLY_NAMES = ("response", "completion", "output", "answer", "chosen")
ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}


@dataclass(frozen=True)
class Reading:
    """How a row becomes a document: one text column, one chat column, or prompt and response columns."""

    kind: Literal["text", "chat", "pair"]
    columns: tuple[str, ...]

    @property
    def label(self) -> str:
        """What the card says."""
        return " + ".join(self.columns)


def choose(rows: Sequence[Row], wanted: str | None, source: str) -> Reading:
    """The reading of `rows`; `wanted` is the column the user named.

    Without a name: a column called like text, then a chat, then prompt and response, then the string column
    with the longest mean length. Raises DataError listing the columns when `wanted` is not there or holds
    no text, and when no column does.
    """
    sample = rows[:LOOK]
    columns = list(dict.fromkeys(str(key) for row in sample for key in row))
    listed = ", ".join(name if name.isprintable() else repr(name) for name in columns[:20])
    if wanted is not None:
        if wanted not in columns:
            raise DataError(f"{source} has no column {wanted!r}; --text-column can be one of: {listed}")
        kind = _kind(sample, wanted)
        if kind is None:
            raise DataError(f"column {wanted!r} of {source} holds no text; the columns are: {listed}")
        return Reading(kind, (wanted,))
    kinds = {name: _kind(sample, name) for name in columns}
    return _guess(sample, kinds) or _refuse(source, listed)


def _refuse(source: str, listed: str) -> Reading:
    raise DataError(f"no column of {source} holds text (there is: {listed or 'none'}); give data with a text column")


def _guess(sample: Sequence[Row], kinds: dict[str, Literal["text", "chat"] | None]) -> Reading | None:
    by_name = {name.lower(): name for name in reversed(kinds)}
    named = [by_name[n] for n in (*TEXT_NAMES, *CHAT_NAMES) if kinds.get(by_name.get(n, "")) is not None]
    if named:
        kind = kinds[named[0]]
        return Reading(kind, (named[0],)) if kind else None
    prompt = next((by_name[n] for n in PROMPT_NAMES if kinds.get(by_name.get(n, "")) == "text"), None)
    reply = next((by_name[n] for n in REPLY_NAMES if kinds.get(by_name.get(n, "")) is not None), None)
    if reply is not None and kinds[reply] == "chat":  # preference data: `chosen` is a whole conversation
        return Reading("chat", (reply,))
    if prompt is not None and reply is not None:
        context = [by_name[n] for n in CONTEXT_NAMES if kinds.get(by_name.get(n, "")) == "text"][:1]
        return Reading("pair", (prompt, *context, reply))
    chats = [name for name, kind in kinds.items() if kind == "chat"]
    if chats:
        return Reading("chat", (chats[0],))
    texts = [name for name, kind in kinds.items() if kind == "text"]
    return Reading("text", (max(texts, key=lambda c: _mean_length(sample, c)),)) if texts else None


def _mean_length(sample: Sequence[Row], column: str) -> float:
    return fmean(len(_text(row.get(column)) or "") for row in sample)


def _kind(sample: Sequence[Row], column: str) -> Literal["text", "chat"] | None:
    for row in sample:
        value = row.get(column)
        if _turns(value) is not None:
            return "chat"
        if _text(value):
            return "text"
    return None


def _text(value: Any) -> str | None:
    """A string, or a list of strings (words, sentences, turns) joined; None for anything else or blank."""
    if isinstance(value, list) and value and all(isinstance(part, str) for part in value):
        value = ("\n" if any(" " in part for part in value) else " ").join(value)
    return value if isinstance(value, str) and value.strip() else None


def _turns(value: Any) -> list[dict[str, str]] | None:
    """`[{role, content}, ...]` from the shapes chats come in, or None when it is not a chat."""
    if isinstance(value, dict) and all(isinstance(v, list) for v in value.values()):  # columns inside a row
        value = [dict(zip(value, cells, strict=False)) for cells in zip(*value.values(), strict=False)]
    if not isinstance(value, list) or not value:
        return None
    turns = []
    for turn in value:
        if not isinstance(turn, dict):
            return None
        role = turn.get("role", turn.get("from"))
        content = turn.get("content", turn.get("value"))
        if isinstance(content, list):  # [{"type": "text", "text": ...}, ...]
            content = "".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
        if not isinstance(role, str) or not isinstance(content, str | None):
            return None
        turns.append({"role": ROLES.get(role, role), "content": content or ""})
    return turns if any(turn["content"].strip() for turn in turns) else None


def documents(rows: Sequence[Row], reading: Reading, tokenizer: Any) -> tuple[list[str], list[str]]:
    """`(documents, warnings)`: one document a row; rows without text are left out and counted.

    Chats go through the tokenizer's chat template; where there is none, or it refuses a conversation, turns
    are joined by line breaks and a warning says how many.
    """
    found, joined, template = [], 0, bool(getattr(tokenizer, "chat_template", None))
    for row in rows:
        if reading.kind == "text":
            text = _text(row.get(reading.columns[0]))
        else:
            turns = _row_turns(row, reading)
            text = _templated(turns, tokenizer) if turns and template else None
            if turns and text is None:
                joined += 1
                text = "\n".join(turn["content"] for turn in turns)
        if text is not None:
            found.append(text)
    warnings = []
    if joined:
        why = "the chat template refused them" if template else "the tokenizer has no chat template"
        warnings.append(f"{joined} of {len(rows)} chats were joined as plain text, because {why}.")
    if len(found) < len(rows):
        left = f"{len(rows) - len(found)} of {len(rows)} rows"
        warnings.append(f"{left} had no text in {reading.label} and were left out.")
    return found, warnings


def _row_turns(row: Row, reading: Reading) -> list[dict[str, str]] | None:
    if reading.kind == "chat":
        return _turns(row.get(reading.columns[0]))
    *asked, answered = (_text(row.get(column)) for column in reading.columns)
    if asked[0] is None or answered is None:
        return None
    question = "\n\n".join(part for part in asked if part)
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answered}]


def _templated(turns: list[dict[str, str]], tokenizer: Any) -> str | None:
    from jinja2.exceptions import TemplateError

    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False)
    except (TemplateError, ValueError, KeyError, TypeError):
        return None
    return text if isinstance(text, str) and text.strip() else None
