"""What generation_config.json says of how an encoder-decoder's text begins and of what is never said: for the reference
and for runtimes whose loop is ours. Only the standard library, and whatever arrays its callers have.

Sources: transformers 5.24, generation/utils.py (`_get_logits_processor`), models/whisper/generation_whisper.py
(`_retrieve_init_tokens`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

IDS = ("decoder_start_token_id", "bos_token_id", "eos_token_id")
"""What config.json is asked for where generation_config.json does not say."""
MORE = ("forced_bos_token_id", "suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "forced_decoder_ids")
"""What config.json says where there is no generation_config.json: both were one file once."""

GREEDY: Mapping[str, Any] = {
    "do_sample": False,
    "num_beams": 1,
    "min_length": 0,
    "min_new_tokens": 0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "repetition_penalty": 1.0,
    "forced_eos_token_id": None,
}
"""Arguments of `generate` by which the most likely token is written each time, whatever generation_config.json says."""


@dataclass(frozen=True)
class Rules:
    """ends: ids that end a text. never: said nowhere. first: not said first. forced: said first, None for no such."""

    said: Mapping[str, Any]
    ends: frozenset[int]
    never: tuple[int, ...]
    first: tuple[int, ...]
    forced: int | None

    def heed(self, logits: Any, turn: int) -> None:
        """Set those of tokens that cannot come at `turn`, counted from 0 behind the beginning, to -inf; logits (..., V)
        of numpy or torch, in place."""
        if turn == 0 and self.forced is not None:
            logits[...] = float("-inf")
            logits[..., self.forced] = 0.0
            return
        begins = turn == (0 if self.forced is None else 1)
        if without := [*self.never, *(self.first if begins else ())]:
            logits[..., without] = float("-inf")

    @property
    def start(self) -> int:
        """The token that decoding starts with."""
        found = self.said.get("decoder_start_token_id")
        return int(found if found is not None else self.said.get("bos_token_id") or 0)

    def beginning(self, prefers: Callable[[Sequence[int]], int]) -> list[int]:
        """What a text begins with: the start token; of a multilingual Whisper also language, task, no timestamps.

        prefers: of the languages' tokens the likeliest after the start token; asked where no language is said.
        """
        said, told = self.said, [self.start]
        language, task, known = said.get("language"), said.get("task"), said.get("lang_to_id") or {}
        if language is None and task is None:
            told += [token for _, token in said.get("forced_decoder_ids") or []]
        spoken = None
        if language is not None:
            spoken = known[_token(language, known)]
        elif known and told[1:2] in ([], [None]):
            spoken = prefers([int(token) for token in known.values()])
        if spoken is not None:
            told[1:2] = [int(spoken)]
        tasks = said.get("task_to_id") or {}
        if task is not None or (language is not None and tasks):
            told.append(int(tasks[task or "transcribe"]))
        silent = said.get("no_timestamps_token_id")
        if silent is not None and not said.get("return_timestamps") and told[-1] != silent:
            told.append(int(silent))
        return [int(token) for token in told if token is not None]


def rules(folder: Path) -> Rules:
    """Those of the files in a model's folder."""
    config, file = _json(folder / "config.json"), folder / "generation_config.json"
    known = IDS if file.is_file() else (*IDS, *MORE)
    said = {key: config[key] for key in known if config.get(key) is not None}
    said |= {key: value for key, value in _json(file).items() if value is not None}
    ends = said.get("eos_token_id")
    several = ends if isinstance(ends, list) else [ends]
    bad = [words[0] for words in said.get("bad_words_ids") or [] if len(words) == 1]
    never = dict.fromkeys([*(said.get("suppress_tokens") or []), *bad])
    return Rules(
        said=said,
        ends=frozenset(int(token) for token in several if token is not None),
        never=tuple(int(token) for token in never),
        first=tuple(int(token) for token in said.get("begin_suppress_tokens") or []),
        forced=said.get("forced_bos_token_id"),
    )


def _token(language: str, known: Mapping[str, int]) -> str:
    """`<|en|>`, however the language is called."""
    if language in known:
        return language
    from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

    return f"<|{TO_LANGUAGE_CODE.get(language.lower(), language.lower())}|>"


def _json(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found
