"""Rows of any kind as documents for language models: read as calibration text is, with the rows' own splits kept."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Any

from calibrate import columns, split, tokens
from calibrate.divide import LEAST
from calibrate.rows import Table
from compress.core.errors import DataError

FEW = 2 * LEAST  # a source with fewer documents is cut into sections first
SECTION = 1000  # characters of one, at most


def documents_of(table: Table, wanted: str | None, tokenizer: Any) -> Table:
    """The documents of `table`, one a row, in a column that is named after those they were made from.

    wanted: the column, or what an earlier call named it. A source of few documents is cut into sections, as
    calibration text is; a chat goes through the tokenizer's template. Raises DataError.
    """
    reading = None
    with suppress(DataError):
        reading = columns.choose(table.rows, None, table.source)
    if reading is None or (wanted is not None and wanted != reading.label):
        reading = columns.choose(table.rows, wanted, table.source)
    bos = _added_bos(tokenizer)
    rows: list[dict[str, Any]] = []
    given: list[str] = []
    notes: list[str] = list(table.notes)
    for part in dict.fromkeys(table.given):
        mine = [row for row, name in zip(table.rows, table.given, strict=True) if name == part]
        texts, said = columns.documents(mine, reading, tokenizer)
        notes += said
        if len(texts) < FEW and not part:
            texts, said = _sections(texts)
            notes += said
        rows += [{reading.label: text.removeprefix(bos)} for text in texts]
        given += [part] * len(texts)
    if not rows:
        raise DataError(f"{table.source} holds no text in {reading.label}; give rows with text")
    return replace(table, rows=rows, given=given, notes=tuple(notes))


def _added_bos(tokenizer: Any) -> str:
    """The text of the token that the tokenizer puts first by itself, which chat templates write too."""
    prefix = tokens.frame(tokenizer).prefix if tokenizer is not None else ()
    return str(tokenizer.bos_token) if prefix and prefix[0] == tokenizer.bos_token_id else ""


def _sections(texts: list[str]) -> tuple[list[str], list[str]]:
    total = sum(map(len, texts))
    target = max(64, min(SECTION, total // (4 * FEW)))
    parts = split.unique([part for text in texts for part in split.sections(text, target, False)[0]])
    if len(parts) <= len(texts):
        return texts, []
    plural = "s" * (len(texts) > 1)
    return parts, [
        f"The source has {len(texts)} document{plural}, cut into {len(parts)} sections of about {target} characters; "
        "training and held-out text come from the same documents."
    ]
