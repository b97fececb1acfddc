"""Calibration data: from whatever text the user has to two token sets that do not overlap."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Any

import torch

from calibrate import split, tokens
from calibrate.sources import Corpus, Request, load
from calibrate.split import Document, Partition, Wanted
from compress.core.errors import DataError
from compress.core.types import TokenSet

CHARS_PER_TOKEN = 16  # far above any language: a document of this many characters is long enough
FEW = 8  # a source with fewer documents is cut into sections first
SPARE = 1.25  # tokens encoded beyond those needed, for documents that turn out to be copies
THIN = 2048  # held-out tokens below which intervals are wide
SURROGATES = re.compile("[\ud800-\udfff]")  # legal in JSON escapes, refused by every tokenizer
WIDE = re.compile("[\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff]")  # scripts of about 1.5 characters a token


@dataclass(frozen=True)
class DataSettings:
    """The data settings of a recipe. data: file, folder, hub name, or None for the built-in text. judging: sequences
    beside those of `samples` by which plans are judged."""

    data: str | None
    text_column: str | None
    samples: int
    seq_len: int
    eval_samples: int
    seed: int
    judging: int = 0

    @property
    def tokens(self) -> int:
        """Calibration tokens asked for."""
        return self.samples * self.seq_len


@dataclass(frozen=True)
class PreparedData:
    """Token sets made from disjoint documents, and a card of plain JSON values for the report.

    card: source, kind, format, encoding, column, files, rows, documents, duplicates, sections, seed,
    seq_len, text_digest, unknown_share, warnings (sentences); under `calibration` and `heldout`:
    documents, sequences, tokens, digest. judging: of documents that neither has; None where text is too scarce for as
    much as was asked for, or nothing was.
    """

    calibration: TokenSet
    heldout: TokenSet
    card: dict[str, Any]
    judging: TokenSet | None = None


def prepare(settings: DataSettings, tokenizer: Any, vocab_size: int) -> PreparedData:
    """Reads, deduplicates, splits by document, tokenizes. The same settings give the same ids everywhere.

    vocab_size: rows of the model's embedding. eval_samples 0 gives an empty held-out set. Raises DataError
    (nothing to read, no text, too little text) and ModelError (a tokenizer that does not fit).
    """
    chars = CHARS_PER_TOKEN * (settings.tokens + settings.eval_samples * settings.seq_len)
    corpus = load(Request(settings.data, settings.text_column, 4 * chars), tokenizer)
    framing = tokens.frame(tokenizer)
    found = split.unique(plain(text, framing, tokenizer) for text in corpus.documents)
    if not found:
        raise DataError(f"{corpus.source} holds no text; give a file with text in it")
    texts, cut = _sections(found, settings)
    documents, spare = _documents(texts, settings, tokenizer)
    if not documents:
        raise DataError(f"the tokenizer finds no token in {corpus.source}; give text in a language it knows")
    unknown = tokens.check(documents, framing, tokenizer, vocab_size)
    tokens.check(spare, framing, tokenizer, vocab_size)
    halves = split.partition(documents, _wanted(settings, corpus.source))
    windows = tokens.Windows(settings.samples, settings.seq_len, settings.seed, corpus.source)
    calibration = tokens.calibration_set(halves, framing, windows)
    judging = tokens.judging_set(halves, spare, framing, windows, settings.judging)
    judged = tokens.Windows(settings.eval_samples, settings.seq_len, settings.seed, corpus.source)
    heldout = tokens.heldout_set(halves, framing, judged)
    warnings = [
        *corpus.warnings,
        *_reductions(corpus, found, cut),
        *_shortage(settings, calibration, heldout),
        *_doubts(settings, halves, unknown, tokenizer),
    ]
    card = _card(corpus, settings, found) | {
        "sections": len(texts) if cut else 0,
        "unknown_share": round(unknown, 4),
        "calibration": _half(calibration, len(halves.calibration)),
        "heldout": _half(heldout, len(halves.heldout)),
        "warnings": warnings,
    }
    if judging is not None:
        card["judging"] = _half(judging, len(set(judging.documents)))
    return PreparedData(calibration, heldout, card, judging)


def plain(text: str, framing: tokens.Frame, tokenizer: Any) -> str:
    """Without lone surrogates, and without the BOS that chat templates write and the frame adds again."""
    text = SURROGATES.sub("\ufffd", text)
    bos = getattr(tokenizer, "bos_token_id", None)
    return text.removeprefix(tokenizer.bos_token) if bos is not None and bos in framing.prefix else text


def _wanted(settings: DataSettings, source: str) -> Wanted:
    return Wanted(settings.tokens, settings.eval_samples, _minimum(settings), source)


def _minimum(settings: DataSettings) -> int:
    return min(split.MIN_TOKENS, settings.seq_len)


def _sections(texts: list[str], settings: DataSettings) -> tuple[list[str], str]:
    """Few documents are cut into sections, so that some can be held out; and the card's sentence."""
    if len(texts) >= FEW:
        return texts, ""
    total = sum(map(len, texts))
    wide = sum(len(WIDE.findall(text)) for text in texts) / max(total, 1)
    window = int(settings.seq_len * (4 - 2.5 * wide))
    least = min(window // 4, total // 16)  # shorter ones would be judged without context
    target = max(64, least, min(window, total // (4 * max(settings.eval_samples, 4))))
    plenty = total > 2 * window * (settings.samples + settings.eval_samples)
    parts, gaps = [], False
    for text in texts:
        sections, gapped = split.sections(text, target, plenty)
        parts += sections
        gaps = gaps or gapped
    parts = split.unique(parts)
    how = "with a gap between neighbours" if gaps else "without gaps, because text is scarce"
    plural = "s" * (len(texts) > 1)
    return parts, (
        f"The source has {len(texts)} document{plural}, cut into {len(parts)} sections "
        f"of about {target} characters, {how}; held-out and calibration text come from the same documents."
    )


def _documents(texts: list[str], settings: DataSettings, tokenizer: Any) -> tuple[list[Document], list[Document]]:
    """Texts in the order of the seed as tokens, until both halves have plenty; and those that follow, for judging."""
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(settings.seed)).tolist()
    need, more = SPARE * settings.tokens, SPARE * settings.judging * settings.seq_len
    minimum = _minimum(settings)
    judged, pool, beside = 0, 0, 0
    documents: list[Document] = []
    spare: list[Document] = []
    stream = tokens.encode(tokenizer, [texts[i] for i in order], CHARS_PER_TOKEN * settings.tokens)
    for number, ids in zip(order, stream, strict=True):
        plenty = judged >= settings.eval_samples and pool >= need
        if plenty and beside >= more:
            break
        if not ids:
            continue
        size = min(len(ids), tokens.PIECE * settings.seq_len)
        (spare if plenty else documents).append(Document(number, tuple(ids)))
        if plenty:
            beside += size
        elif judged < settings.eval_samples and len(ids) >= minimum:
            judged += 1
        else:
            pool += size
    return documents, spare


def _reductions(corpus: Corpus, found: list[str], cut: str) -> list[str]:
    given = len(corpus.documents)
    copies = f"{given - len(found)} of {given} documents were copies or blank and were left out."
    return [*([copies] if len(found) < given else []), *([cut] if cut else [])]


def _shortage(settings: DataSettings, calibration: TokenSet, heldout: TokenSet) -> list[str]:
    said = []
    if (count := len(calibration.sequences)) < settings.samples:
        said.append(
            f"The text gives {count} calibration sequences of {settings.seq_len} tokens, "
            f"{settings.samples} were asked for."
        )
    if (count := len(heldout.sequences)) < settings.eval_samples:
        said.append(f"The text gives {count} held-out documents, {settings.eval_samples} were asked for.")
    if settings.eval_samples and heldout.n_tokens < THIN:
        said.append(f"Held-out text has only {heldout.n_tokens} tokens; expect wide intervals.")
    return said


def _doubts(settings: DataSettings, halves: Partition, unknown: float, tokenizer: Any) -> list[str]:
    said = []
    if halves.boilerplate:
        said.append(f"Some runs of {split.RUN} tokens are in many documents and may be in both halves.")
    if unknown > 0.05:
        said.append(f"The tokenizer does not know {unknown:.0%} of the tokens; is this the model's language?")
    longest = getattr(tokenizer, "model_max_length", settings.seq_len)
    if settings.seq_len > longest:
        said.append(f"Sequences of {settings.seq_len} tokens exceed the tokenizer's maximum of {longest}.")
    return said


def _card(corpus: Corpus, settings: DataSettings, found: list[str]) -> dict[str, Any]:
    state = hashlib.sha256()
    for text in found:
        state.update(text.encode() + b"\0")
    return {
        "source": corpus.source,
        "kind": corpus.kind,
        "format": corpus.format,
        "encoding": corpus.encoding,
        "column": corpus.column,
        "files": corpus.files,
        "rows": corpus.rows,
        "documents": len(found),
        "duplicates": len(corpus.documents) - len(found),
        "seed": settings.seed,
        "seq_len": settings.seq_len,
        "text_digest": state.hexdigest(),
    }


def _half(half: TokenSet, documents: int) -> dict[str, Any]:
    return {
        "documents": documents,
        "sequences": len(half.sequences),
        "tokens": half.n_tokens,
        "digest": half.digest,
    }
