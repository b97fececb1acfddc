"""Greedy search by logits alone, in runtimes that write with `generate` of transformers; read where those live."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

RULES = (
    "forced_bos_token_id", "forced_eos_token_id", "min_length", "min_new_tokens", "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size", "repetition_penalty", "encoder_repetition_penalty", "bad_words_ids",
    "sequence_bias", "exponential_decay_length_penalty",
)  # fmt: skip
"""What generation_config.json may ask of a greedy search beside the best token; bart-large-cnn asks for some."""


@contextmanager
def without_rules(model: Any) -> Iterator[None]:
    """Inside, the model's `generate` heeds none of RULES: what it writes is compared with the reference's logits, and
    not every runtime knows such rules."""
    from transformers import GenerationConfig

    heeded, usual = model.generation_config, GenerationConfig()
    plain = copy.deepcopy(heeded)
    for name in RULES:
        setattr(plain, name, getattr(usual, name, None))
    model.generation_config = plain
    try:
        yield
    finally:
        model.generation_config = heeded
