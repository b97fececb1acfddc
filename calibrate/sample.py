"""A sample of text as a model reads it in use: whole documents, one sequence each, as the tokenizer frames them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from calibrate import split, tokens
from calibrate.data import CHARS_PER_TOKEN, FEW, plain
from calibrate.sources import Request, load
from calibrate.split import Document
from compress.core.errors import DataError

MOST = 1 << 18  # tokens of a sample: more change no figure
LONGEST = 1 << 16  # tokens of one text
SECTION = 1000  # characters of a section, where a source has few documents


@dataclass(frozen=True)
class Sample:
    """sequences: (L,) int64 each. whole: they are the documents of the source, not sections of a few.

    card: source, format, column. notes: sentences.
    """

    sequences: tuple[Tensor, ...]
    whole: bool
    card: dict[str, Any]
    notes: tuple[str, ...] = ()


def sample(source: str, column: str | None, tokenizer: Any, vocab_size: int, longest: int, seed: int) -> Sample:
    """Documents of `source` (anything that --data takes) in the order of `seed`, each cut to `longest` tokens.

    column: of the text, as far as the source has it; else it is guessed. Raises DataError when there is no text, and
    ModelError for text that the tokenizer does not know.
    """
    request = Request(source, column, 4 * CHARS_PER_TOKEN * MOST)
    try:
        corpus = load(request, tokenizer)
    except DataError:
        if column is None:
            raise
        corpus = load(replace(request, text_column=None), tokenizer)
    framing = tokens.frame(tokenizer)
    texts = split.unique(plain(text, framing, tokenizer) for text in corpus.documents)
    whole = len(texts) >= FEW
    if not whole:
        target = max(64, min(SECTION, sum(map(len, texts)) // (4 * FEW)))
        texts = split.unique(part for text in texts for part in split.sections(text, target, False)[0])
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(seed)).tolist() if whole else []
    order = order or list(range(len(texts)))  # sections of one document stay together
    most = min(longest, LONGEST)
    documents: list[Document] = []
    count = 0
    for number, ids in zip(
        order, tokens.encode(tokenizer, [texts[n] for n in order], CHARS_PER_TOKEN * most), strict=True
    ):
        if count >= MOST:
            break
        if ids:
            documents.append(Document(number, tuple(ids[: max(1, most - framing.size)])))
            count += len(documents[-1].ids)
    if not documents:
        raise DataError(f"{corpus.source} holds no text that the tokenizer makes a token of; give text in it")
    tokens.check(documents, framing, tokenizer, vocab_size)
    sequences = tuple(torch.tensor((*framing.prefix, *d.ids, *framing.suffix)) for d in documents)
    return Sample(
        sequences,
        whole,
        {"source": corpus.source, "format": corpus.format, "column": corpus.column},
        corpus.warnings,
    )
