"""Words with tags, one word a line: CoNLL, BIO and IOB files."""

from __future__ import annotations

from collections.abc import Iterator

from calibrate.formats import Row
from compress.core.errors import DataError

NAMED = (".conll", ".bio", ".iob", ".iob2")
SUFFIXES = (*NAMED, ".txt", ".tsv")  # the last two where a tagger asks


def parse(text: str, name: str) -> Iterator[Row]:
    """Rows {"words", "tags"} of `text`; an empty line ends a sentence.

    A line is a word first and its tag last, cut at tabs, or at white space where there are none. Lines of
    -DOCSTART- and comments of conllu (`# text = ...`) are left out. Raises DataError naming the line without a tag.
    """
    words: list[str] = []
    tags: list[str] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip() or line.startswith("-DOCSTART-"):
            if words:
                yield {"words": words, "tags": tags}
            words, tags = [], []
            continue
        if line.startswith("# ") and " = " in line and not words:
            continue
        cells = [cell.strip() for cell in line.split("\t")] if "\t" in line else line.split()
        if len(cells) < 2 or not cells[-1]:
            raise DataError(
                f"line {number} of {name} is {line.strip()[:60]!r}; it must hold a word and its tag, "
                "and an empty line must end a sentence"
            )
        words.append(cells[0])
        tags.append(cells[-1])
    if words:
        yield {"words": words, "tags": tags}
