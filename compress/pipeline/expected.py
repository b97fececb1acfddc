"""What the compressed model in memory gives for the probe: what a runtime is compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from compress.core import device
from compress.core.registry import load
from compress.pipeline import heard, served
from compress.pipeline.asked import CHAT, Asked, Reading, asked_of, asked_to_write, reading_of
from compress.pipeline.inputs import load_tokenizer, longest_sequence
from compress.pipeline.judge import kind_of
from compress.pipeline.probe import read_probe, texts_of
from export import environments, judge
from export.judge import Bounds
from export.reference import Reference
from export.runtimes._kind import Arithmetic
from export.source import Source

PROMPT = 16
ACTED = Arithmetic(integers=True)
"""The reference without the artifact's own rounding of inputs: what that does, others may do elsewhere."""


@dataclass(frozen=True)
class VerifySettings:
    """runtimes: which to judge in; empty: the format's first, and others that are installed. threads 0: the cores.

    serve: also ask them as their users do: their servers, or their clients where they have none. port: of servers; 0: a
    free one.
    """

    runtimes: tuple[str, ...] = ()
    threads: int = 0
    trust_remote_code: bool = False
    serve: bool = False
    port: int = 0


@dataclass(frozen=True)
class Expected:
    """What the reference gives on the probe. rounded: the same by arithmetic, where that is not float32.

    shaken: the same with other last bits, drawn several times; of int8 inputs that a runtime rounds by itself.
    """

    inputs: list[dict[str, Tensor]]
    exact: list[Tensor]
    rounded: dict[Arithmetic, list[Tensor]]
    prompt: list[int]
    written: list[int]
    chosen: Tensor
    decoder: bool
    texts: list[str]
    ids: list[list[int]]
    chat: list[int] | None
    follow: heard.Follow | None = None
    rows: served.Rows | None = None
    note: str = ""
    config: Any = None
    asked: tuple[Asked, ...] = ()
    reading: Reading | None = None
    shaken: list[list[Tensor]] = field(default_factory=list)

    @property
    def over_tokens(self) -> bool:
        """Whether outputs are distributions over tokens."""
        return self.decoder or self.follow is not None

    def normalised(self) -> Expected:
        """With log-probabilities in place of logits, for runtimes that give no others."""
        rounded = {kind: [output.log_softmax(-1) for output in outputs] for kind, outputs in self.rounded.items()}
        shaken = [[output.log_softmax(-1) for output in drawn] for drawn in self.shaken]
        exact = [output.log_softmax(-1) for output in self.exact]
        return replace(self, exact=exact, rounded=rounded, shaken=shaken)

    def allowed(self, arithmetic: Arithmetic) -> Bounds:
        """What a runtime that computes like that may differ by.

        Where inputs are rounded to int8, a cache is enough to change which token is preferred: sums of another order
        put values on the other side of ties, and that moves as much as rounding itself does.
        """
        shaken = self.shaken if arithmetic.integers else ()
        found = judge.bounds(self.exact, self.rounded.get(arithmetic), arithmetic, shaken)
        if ACTED not in self.rounded:
            return found
        return replace(found, gap=max(found.gap, judge.bounds(self.exact, self.rounded[ACTED], ACTED).gap))

    def allowed_reading(self, arithmetic: Arithmetic) -> Bounds:
        """The same with the texts that clients are asked to read."""
        if self.reading is None:
            return self.allowed(arithmetic)
        rounded = {kind: [*outputs, *self.reading.rounded[kind]] for kind, outputs in self.rounded.items()}
        shaken = [[*a, *b] for a, b in zip(self.shaken, self.reading.shaken, strict=True)]
        exact = [*self.exact, *self.reading.exact]
        return replace(self, exact=exact, rounded=rounded, shaken=shaken).allowed(arithmetic)


def expected(source: Source, told: dict[str, Any], runtimes: Sequence[str], settings: VerifySettings) -> Expected:
    """Run the reference: the whole model in memory, for as long as this takes."""
    device.set_threads(settings.threads)
    limit = min(longest_sequence(source.checkpoint.config), told["facts"].get("longest", 1 << 20))
    sequences = read_probe(source.folder, limit)
    kind = kind_of(source.model)
    decoder = kind == "causal"
    inputs = [{"input_ids": ids[None]} for ids in sequences]
    if kind == "seq2seq":
        inputs = heard.inputs_of(source.folder, source.checkpoint.config, sequences)
    elif not decoder:
        inputs = [{**given, "attention_mask": torch.ones_like(given["input_ids"])} for given in inputs]
        inputs.append(_padded(sequences[:2]))
    tokenizer = load_tokenizer(source.folder, settings.trust_remote_code)
    texts = texts_of(tokenizer, sequences, told["facts"].get("unlike", ()))
    reference = Reference(source, told["packed"], load("format", told["format"]).acts)
    exact = [reference.run(given) for given in inputs]
    acts = reference.acts is not None and any(coded.activation for coded in source.coded.values())
    kinds = {arithmetic_of(name, told) for name in runtimes}
    if decoder and acts:
        kinds.add(ACTED)
    rounded = {kind: [reference.run(given, kind) for given in inputs] for kind in kinds if _rounds(kind)}
    seeds = range(judge.DRAWS) if acts and any(arithmetic_of(name, told).integers for name in runtimes) else ()
    shaken = [[reference.shaken(given, seed) for given in inputs] for seed in seeds]
    prompt = sequences[0][:PROMPT].tolist()
    written, chosen = reference.greedy(prompt, judge.GREEDY) if decoder else ([], torch.empty(0))
    ids = [list(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
    chat = None
    if getattr(tokenizer, "chat_template", None):
        filled = tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, tokenize=False)
        chat = list(tokenizer(filled, add_special_tokens=False)["input_ids"])
    follow = heard.follower(reference, inputs[0], source.folder) if kind == "seq2seq" else None
    rows, note = (None, "") if decoder else served.rows_of(source, reference)
    scored: dict[str, Any] = {"follow": follow, "rows": rows, "note": note, "config": source.checkpoint.config}
    if settings.serve and decoder:
        scored["asked"] = asked_of(source, reference, tokenizer, chat)
    elif settings.serve and kind == "seq2seq":
        scored["asked"] = asked_to_write(source, reference, tokenizer, settings.trust_remote_code)
    elif settings.serve:
        scored["reading"] = reading_of(reference, tokenizer, list(rounded), seeds)
    scored["shaken"] = shaken
    return Expected(inputs, exact, rounded, prompt, written, chosen, decoder, texts, ids, chat, **scored)


def arithmetic_of(runtime: str, told: Mapping[str, Any]) -> Arithmetic:
    """How a runtime computes this export; what the file itself decides is among its facts."""
    kind = environments.runtime(runtime).formats[told["format"]]
    return replace(kind, **told["facts"].get("arithmetic", {}))


def _rounds(kind: Arithmetic) -> bool:
    return kind.dtype != "float32" or bool(kind.coded or kind.dense or kind.integers)


def _padded(sequences: Sequence[Tensor]) -> dict[str, Tensor]:
    """Sequences of different lengths as one batch: whether the mask is heeded shows only here."""
    ids = [sequences[0], sequences[-1][: max(1, len(sequences[-1]) // 2)]]
    batch = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(s) for s in ids], batch_first=True)
    return {"input_ids": batch, "attention_mask": mask}
