"""Documents to token sets: how a tokenizer frames text, what it may not do, windows, digests."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from calibrate.split import Document, Partition, strangers
from compress.core.errors import DataError, ModelError
from compress.core.types import TokenSet

BATCH_TEXTS = 256
BATCH_CHARS = 1_000_000
MAX_UNKNOWN = 0.5  # above this share of unknown tokens the tokenizer does not fit the text
PIECE = 4  # windows that one document gives before the next document has its turn


@dataclass(frozen=True)
class Frame:
    """What the tokenizer puts before and after a text, and what ends a document inside a window."""

    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    separator: tuple[int, ...]

    @property
    def size(self) -> int:
        """Tokens of every sequence that are not text."""
        return len(self.prefix) + len(self.suffix)


@dataclass(frozen=True)
class Windows:
    """The sequences asked for. samples: at most; seq_len: tokens of each, frame included."""

    samples: int
    seq_len: int
    seed: int
    source: str


def frame(tokenizer: Any) -> Frame:
    """The frame, found by comparing one text with and without special tokens.

    [BOS] for llama, [CLS] and [SEP] for bert, </s> behind for t5, nothing for gpt2. The separator is the
    end-of-text token, else the suffix.
    """
    prefix: tuple[int, ...] = ()
    suffix: tuple[int, ...] = ()
    for probe in ("a", "the", "1", "的"):
        bare = _ids(tokenizer, [probe], special=False)[0]
        full = _ids(tokenizer, [probe], special=True)[0]
        starts = [i for i in range(len(full) - len(bare) + 1) if full[i : i + len(bare)] == bare]
        if bare and starts:
            prefix, suffix = tuple(full[: starts[0]]), tuple(full[starts[0] + len(bare) :])
            break
    end = getattr(tokenizer, "eos_token_id", None)
    return Frame(prefix, suffix, (int(end),) if end is not None else suffix)


def _ids(tokenizer: Any, texts: list[str], special: bool) -> list[list[int]]:
    # verbose=False is the documented way to silence "sequence longer than the model's maximum": windows
    # are cut afterwards, so the length of a document does not matter.
    encoded = tokenizer(
        texts,
        add_special_tokens=special,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )
    return [list(ids) for ids in encoded["input_ids"]]


def encode(tokenizer: Any, texts: Sequence[str], max_chars: int) -> Iterator[list[int]]:
    """Ids of each text without special tokens, in batches; of a text at most `max_chars` characters."""
    batch: list[str] = []
    chars = 0
    for text in texts:
        batch.append(text[:max_chars])
        chars += len(batch[-1])
        if len(batch) == BATCH_TEXTS or chars >= BATCH_CHARS:
            yield from _ids(tokenizer, batch, special=False)
            batch, chars = [], 0
    if batch:
        yield from _ids(tokenizer, batch, special=False)


def check(documents: Sequence[Document], framing: Frame, tokenizer: Any, vocab_size: int) -> float:
    """The share of unknown tokens in `documents`.

    Raises ModelError when an id is outside the vocabulary or more than half of the tokens are unknown.
    """
    extra = (*framing.prefix, *framing.suffix, *framing.separator)
    largest = max((max(d.ids) for d in documents), default=0)
    wrong = max(largest, *extra, 0)
    if wrong >= vocab_size:
        raise ModelError(
            f"the tokenizer does not match the vocabulary (id {wrong}, vocabulary {vocab_size}); "
            "use the tokenizer files that came with this model"
        )
    unknown = getattr(tokenizer, "unk_token_id", None)
    total = sum(len(d.ids) for d in documents)
    share = sum(d.ids.count(unknown) for d in documents) / total if total and unknown is not None else 0.0
    if share > MAX_UNKNOWN:
        raise ModelError(
            f"the tokenizer maps {share:.0%} of the text to its unknown token; it may be at most "
            f"{MAX_UNKNOWN:.0%}: use this model's own tokenizer files, or text in a language it knows"
        )
    return share


def calibration_set(halves: Partition, framing: Frame, windows: Windows) -> TokenSet:
    """At most `samples` windows of exactly `seq_len` tokens from the calibration half.

    Documents follow each other in their shuffled order with the separator between, a long one giving way
    after PIECE windows and continuing when all had their turn, so that one book cannot fill the set. Every
    window has the tokenizer's frame, as texts have in use. `documents`: where each window starts.
    Raises DataError when the text does not fill one window.
    """
    stream, origin = _stream(halves.calibration, framing, windows)
    sequences, documents = _windows(stream, origin, framing, windows)
    if not sequences:
        fits = len(stream) + framing.size
        remedy = f"--seq-len {2 ** (fits.bit_length() - 1)} or more text" if fits >= 8 else "more text"
        raise DataError(
            f"{windows.source} leaves {len(stream)} tokens for calibration, too few for one sequence of "
            f"{windows.seq_len}; give {remedy}"
        )
    return _token_set(sequences, documents, "calibration", windows)


def judging_set(
    halves: Partition, spare: Sequence[Document], framing: Frame, windows: Windows, samples: int
) -> TokenSet | None:
    """`samples` windows more, of documents in neither set, from the calibration half and from `spare`; None where there
    are none asked for or not as many. windows: of `calibration_set`."""
    if not samples:
        return None
    more = replace(windows, samples=samples)
    numbers = set(_stream(halves.calibration, framing, windows)[1])
    used = [*halves.heldout, *(document for document in halves.calibration if document.number in numbers)]
    left = [*(document for document in halves.calibration if document.number not in numbers), *spare]
    sequences, documents = _windows(*_stream(strangers(left, used), framing, more), framing, more)
    return _token_set(sequences, documents, "judging", more) if len(sequences) == samples else None


def _stream(documents: Sequence[Document], framing: Frame, windows: Windows) -> tuple[list[int], list[int]]:
    """What windows are cut from, at least as much as they take if there is, and of which document each token is."""
    stream: list[int] = []
    origin: list[int] = []
    for document, ids in _pieces(documents, PIECE * windows.seq_len):
        if len(stream) >= windows.samples * (windows.seq_len - framing.size):
            break
        # a templated chat ends with the separator already, give or take a line break
        ended = bool(framing.separator) and framing.separator[-1] in ids[-2:]
        piece = ids if ended else (*ids, *framing.separator)
        stream += piece
        origin += [document.number] * len(piece)
    return stream, origin


def _windows(
    stream: list[int], origin: list[int], framing: Frame, windows: Windows
) -> tuple[list[tuple[int, ...]], list[int]]:
    """Framed sequences of `stream`, and the document that each begins in."""
    body = windows.seq_len - framing.size
    count = min(windows.samples, len(stream) // body) if body > 0 else 0
    starts = [i * body for i in range(count)]
    return [(*framing.prefix, *stream[i : i + body], *framing.suffix) for i in starts], [origin[i] for i in starts]


def heldout_set(halves: Partition, framing: Frame, windows: Windows) -> TokenSet:
    """One sequence for each held-out document: its beginning, framed, at most `seq_len` tokens."""
    body = max(1, windows.seq_len - framing.size)
    sequences = [(*framing.prefix, *d.ids[:body], *framing.suffix) for d in halves.heldout[: windows.samples]]
    return _token_set(sequences, [d.number for d in halves.heldout[: windows.samples]], "held-out", windows)


def _pieces(documents: Sequence[Document], size: int) -> Iterator[tuple[Document, tuple[int, ...]]]:
    """The first `size` tokens of every document, then the next of those that have more, and so on."""
    start, left = 0, list(documents)
    while left:
        for document in left:
            yield document, document.ids[start : start + size]
        start += size
        left = [document for document in left if len(document.ids) > start]


def _token_set(sequences: list[tuple[int, ...]], documents: list[int], use: str, windows: Windows) -> TokenSet:
    settings = {"use": use, "samples": windows.samples, "seq_len": windows.seq_len, "seed": windows.seed}
    tensors = tuple(torch.tensor(ids, dtype=torch.int64) for ids in sequences)
    return TokenSet(tensors, tuple(documents), digest(tensors, settings), windows.source)


def digest(sequences: Sequence[torch.Tensor], settings: dict[str, Any]) -> str:
    """sha256 over the settings, then length and ids of every sequence as little-endian int32."""
    state = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for ids in sequences:
        state.update(len(ids).to_bytes(4, "little"))
        state.update(ids.numpy().astype("<i4").tobytes())
    return state.hexdigest()
