"""Which of the rows are used: splits by name, rows by the value of a column, so many of them.

`--split` says which split of the source is which part, `--filter` and `--select` are applied in that order, before rows
are divided. Nothing of what the user writes is evaluated.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from calibrate.formats import Row
from compress.core.errors import DataError, RecipeError

PARTS = ("train", "validation", "test")
CONDITION = re.compile(r"(.+?)(!=|=|~)(.*)", re.DOTALL)
SLICE = re.compile(r"(\d*):(\d*)")


@dataclass(frozen=True)
class Choice:
    """What the user asked for. split: `NAME`, or `train=NAME,test=NAME`. filters: `column=value`, `column!=value` or
    `column~text`, all of which must hold. select: `500` drawn by the seed, or a slice `100:600`. Empty: everything.
    """

    split: str = ""
    filters: tuple[str, ...] = ()
    select: str = ""

    def card(self) -> dict[str, Any]:
        """What was given, for the report and for `compress/task.json`."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items() if v}


def splits_of(split: str) -> list[tuple[str, str]]:
    """(part, name of a split) of `--split`; part "" where rows are divided by us. Raises RecipeError."""
    if not split:
        return []
    if "=" not in split:
        return [("", split.strip())]
    found = []
    for item in split.split(","):
        part, _, name = (piece.strip() for piece in item.partition("="))
        if part not in PARTS or not name:
            raise RecipeError(f"--split {split!r} must be the name of a split, or like train=NAME,test=NAME with "
                              f"{', '.join(PARTS)} on the left")  # fmt: skip
        found.append((part, name))
    parts = [part for part, _ in found]
    if "train" not in parts or len(set(parts)) < len(parts):
        raise RecipeError(f"--split {split!r} must name train, and each of {', '.join(PARTS)} once at most")
    return found


def chosen(rows: Sequence[Row], choice: Choice, seed: int, source: str) -> list[int]:
    """The numbers of the rows that pass every filter, of those the ones that `select` takes, ascending.

    Raises DataError for a column that is not there and when nothing is left, RecipeError for what is not understood.
    """
    there = list(dict.fromkeys(str(key) for row in rows[:1000] for key in row))
    kept = list(range(len(rows)))
    for condition in choice.filters:
        column, operator, value = _parsed(condition)
        if column not in there:
            listed = ", ".join(there[:20])
            raise DataError(f"{source} has no column {column!r} for --filter {condition!r}; the columns are: {listed}")
        kept = [n for n in kept if _holds(rows[n].get(column), operator, value)]
        if not kept:
            raise DataError(f"--filter {condition!r} leaves none of the {len(rows)} rows of {source}; loosen it")
    if choice.select:
        kept = _selected(kept, choice.select, seed, source)
    return kept


def _parsed(condition: str) -> tuple[str, str, str]:
    match = CONDITION.fullmatch(condition)
    if match is None:
        raise RecipeError(f"--filter {condition!r} must look like column=value, column!=value or column~text")
    return match[1].strip(), match[2], match[3].strip()


def _holds(cell: Any, operator: str, value: str) -> bool:
    """Whether a cell is, is not, or contains (whatever the case) a value; empty cells are equal to nothing written."""
    text = _text(cell)
    if operator == "~":
        return value.casefold() in text.casefold()
    same = text.strip() == value or _numbers_equal(cell, value)
    return same if operator == "=" else not same


def _text(cell: Any) -> str:
    if cell is None or cell != cell:
        return ""
    if isinstance(cell, bool):
        return str(cell).lower()
    if isinstance(cell, list) and all(isinstance(part, str) for part in cell):
        return " ".join(cell)
    return str(cell)


def _numbers_equal(cell: Any, value: str) -> bool:
    if isinstance(cell, bool) or not isinstance(cell, int | float):
        return False
    try:
        return float(cell) == float(value)
    except ValueError:
        return False


def _selected(kept: list[int], select: str, seed: int, source: str) -> list[int]:
    """The rows of a slice, or so many drawn by the seed."""
    if (cut := SLICE.fullmatch(select.strip())) is not None:
        found = kept[int(cut[1] or 0) : int(cut[2]) if cut[2] else None]
    elif select.strip().isdecimal():
        drawn = np.random.default_rng(seed).permutation(len(kept))[: int(select)]
        found = [kept[n] for n in sorted(drawn.tolist())]
    else:
        raise RecipeError(f"--select {select!r} must be a number of rows like 500, or a slice like :500 or 100:600")
    if not found:
        raise DataError(f"--select {select} leaves none of the {len(kept)} rows of {source}; select others")
    return found
