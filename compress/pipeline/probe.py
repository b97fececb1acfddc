"""The text that exports are verified on: what the run held out, kept with the artifact, or else the built-in text."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from calibrate.data import DataSettings, prepare
from compress.core.files import write_json
from compress.core.types import TokenSet
from compress.pipeline.inputs import load_tokenizer
from export.ggml.vocabulary import LEADING
from export.source import Source

PROBE = Path("compress") / "probe.json"
SEQUENCES, TOKENS = 4, 96
TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "It's 2026: prices rose by 3.5% (about $1,234,567.89)!",
    "深度学习模型的压缩，测试一下中文。",
    "Ärger über Öl, naïve café, Ελληνικά, русский текст",
    "def f(x):\n    return x ** 2  # squares\n\n\tif not x:",
    "  two  spaces, and a trailing one ",
    "🙂 emoji and 日本語",
    "한국어 문장",
)
"""Texts that tokenizers of runtimes get wrong, by our experience: digits, blanks, other scripts, code."""


def write_probe(out: Path, heldout: TokenSet) -> None:
    """Keep the beginnings of the held-out documents as ids."""
    ids = [sequence[:TOKENS].tolist() for sequence in heldout.sequences[:SEQUENCES]]
    write_json(out / PROBE, {"source": heldout.source, "ids": ids})


def read_probe(out: Path, limit: int) -> list[Tensor]:
    """Sequences of ids (L,), none longer than `limit`; of the built-in text where the run kept none."""
    file = out / PROBE
    if file.is_file():
        found = json.loads(file.read_text(encoding="utf-8"))["ids"]
    else:
        tokenizer = load_tokenizer(out)
        settings = DataSettings(None, None, 1, min(TOKENS, limit), SEQUENCES, 0)
        prepared = prepare(settings, tokenizer, len(tokenizer))
        found = [sequence[:TOKENS].tolist() for sequence in prepared.heldout.sequences[:SEQUENCES]]
    return [torch.tensor(ids[:limit]) for ids in found if ids]


def texts_of(tokenizer: Any, sequences: list[Tensor], unlike: Sequence[str] = ()) -> list[str]:
    """Texts to try tokenizers on: those above, and the probe's own.

    unlike: what the runtime is known, and said, to cut otherwise: scripts, as Unicode names begin (`HANGUL`), LEADING.
    """
    scripts = tuple(name for name in unlike if name != LEADING)
    texts = [*TEXTS, *(tokenizer.decode(ids, skip_special_tokens=True) for ids in sequences)]
    if LEADING in unlike:
        texts = [text.lstrip(" ") for text in texts]
    tried = [text for text in texts[: len(TEXTS)] if not any(_named(c).startswith(scripts) for c in text)]
    return [*(tried if scripts else texts[: len(TEXTS)]), *texts[len(TEXTS) :]]


def _named(character: str) -> str:
    return unicodedata.name(character, "")


def end_tokens(source: Source, tokenizer: Any) -> set[int]:
    """Ids at which servers stop: by generation_config.json, else by config.json, and by the tokenizer."""
    file = source.folder / "generation_config.json"
    said = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id") if file.is_file() else None
    told = said if said is not None else source.config.get("eos_token_id")
    several = told if isinstance(told, list) else [told]
    return {int(token) for token in (*several, tokenizer.eos_token_id) if token is not None}
