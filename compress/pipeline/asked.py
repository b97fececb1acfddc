"""What the clients of users are asked, and what is right: a chat or a prompt for models that go on, texts or a sound
for those that read and write, texts for those that read.

Servers are asked over HTTP, runtimes without one by their own client in their own process.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compress.pipeline.probe import end_tokens
from export import judge
from export.client import RuntimeProcess
from export.judge import Bounds, Line
from export.reference import Reference
from export.runtimes._kind import Arithmetic
from export.runtimes._rules import rules
from export.serving import Server
from export.source import Source

PLAIN = "The three most common fruits are"
CHAT = [{"role": "user", "content": "Tell a long story about a fox."}]
TEXTS = ("The keeper waits for the ferry.", "A storm.")
QUESTIONS = ("Who waits for the ferry?", "What comes?")
SECONDS, PITCH, VOICES, SYLLABLES = 1.5, 130.0, 12, 4.0


@dataclass(frozen=True)
class Asked:
    """What a model is asked, and what the reference says to it, up to the first end token.

    said: messages, a prompt or a text, or a sound {"raw", "sampling_rate"}. tokens: of the question, none of a sound.
    answer: ids; logits (n, V) they were chosen from. ends: ids that end an answer. decode: ids -> text.
    """

    said: Any
    tokens: list[int]
    answer: list[int]
    logits: Tensor
    ends: Collection[int]
    decode: Callable[[Sequence[int]], str]


@dataclass(frozen=True)
class Reading:
    """What the reference makes of each of `texts` ([text] or [text, second text]), by itself.

    tokens: of all of them. rounded: the same by arithmetic. shaken: the same with other last bits, in every draw.
    """

    texts: list[list[str]]
    tokens: int
    exact: list[Tensor]
    rounded: dict[Arithmetic, list[Tensor]]
    shaken: list[list[Tensor]]


def asked_of(source: Source, reference: Reference, tokenizer: Any, chat: list[int] | None) -> tuple[Asked, ...]:
    """The question to a model that goes on. chat: ids of CHAT, None without a template."""
    tokens = chat if chat is not None else list(tokenizer(PLAIN)["input_ids"])
    written, logits = reference.greedy(tokens, judge.GREEDY)
    said = CHAT if chat is not None else PLAIN
    return (_asked(said, tokens, (written, logits), end_tokens(source, tokenizer), tokenizer),)


def asked_to_write(source: Source, reference: Reference, tokenizer: Any, trusted: bool) -> tuple[Asked, ...]:
    """The questions to a model that reads and writes: TEXTS, or a sound where it hears; none without what makes
    features of a sound."""
    said = rules(source.folder)
    found = []
    if reference.model.main_input_name == "input_ids":
        for text in TEXTS:
            made = tokenizer([text], return_tensors="pt")
            inputs = {name: made[name] for name in ("input_ids", "attention_mask")}
            answer = reference.writes(inputs, said, judge.GREEDY)
            found.append(_asked(text, made["input_ids"][0].tolist(), answer, said.ends, tokenizer))
        return tuple(found)
    from transformers import AutoFeatureExtractor

    if not (source.folder / "preprocessor_config.json").is_file():
        return ()
    extractor = AutoFeatureExtractor.from_pretrained(source.folder, local_files_only=True, trust_remote_code=trusted)
    rate = int(extractor.sampling_rate)
    wave = sound(rate)
    features = extractor(np.asarray(wave, np.float32), sampling_rate=rate, return_tensors="pt")["input_features"]
    answer = reference.writes({"input_features": features}, said, judge.GREEDY)
    return (_asked({"raw": wave, "sampling_rate": rate}, [], answer, said.ends, tokenizer),)


def _asked(
    said: Any, tokens: list[int], answer: tuple[list[int], Tensor], ends: Collection[int], tokenizer: Any
) -> Asked:
    written, logits = answer
    stop = next((n + 1 for n, token in enumerate(written) if token in ends), len(written))

    def decode(ids: Sequence[int]) -> str:
        return str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    return Asked(said, tokens, written[:stop], logits[:stop], ends, decode)


def sound(rate: int) -> list[float]:
    """Something like speech, the same each time: harmonics of a voice that rises and falls, in syllables."""
    time = np.arange(int(SECONDS * rate)) / rate
    phase = 2 * np.pi * PITCH * (time + 0.02 * np.sin(2 * np.pi * 1.3 * time))
    number = np.arange(1, VOICES + 1)[:, None]
    shares = (1 + np.cos(number * (1 + np.sin(2 * np.pi * SYLLABLES / 2 * time)))) / number
    wave = (shares * np.sin(number * phase)).sum(0) * np.sin(np.pi * SYLLABLES * time) ** 2
    return [round(float(value), 4) for value in 0.5 * wave / np.abs(wave).max()]


def reading_of(
    reference: Reference, tokenizer: Any, kinds: Sequence[Arithmetic], seeds: Sequence[int] = ()
) -> Reading | None:
    """What is right for a model that reads; None where it does not read one text at a time, or has no mask to fill.

    seeds: of the draws.
    """
    name = type(reference.model).__name__
    texts = [[text] for text in TEXTS]
    if name.endswith("ForQuestionAnswering"):
        texts = [[question, text] for question, text in zip(QUESTIONS, TEXTS, strict=True)]
    elif name.endswith("ForMaskedLM"):
        if tokenizer.mask_token is None:
            return None
        texts = [[text.replace(text.split()[-1], f"{tokenizer.mask_token}.")] for text in TEXTS]
    elif name.endswith("ForMultipleChoice"):
        return None
    given = [{**tokenizer(*text, return_tensors="pt")} for text in texts]
    exact = [reference.run(inputs) for inputs in given]
    tokens = sum(int(inputs["input_ids"].numel()) for inputs in given)
    rounded = {kind: [reference.run(inputs, kind) for inputs in given] for kind in kinds}
    shaken = [[reference.shaken(inputs, seed) for inputs in given] for seed in seeds]
    return Reading(texts, tokens, exact, rounded, shaken)


def by_server(where: Path, name: str, asked: Asked, allowed: Bounds, settings: Mapping[str, Any]) -> list[Line]:
    """The runtime's server, asked by a client. settings: of `Server.of`."""
    with Server.of(name, where, **settings) as server:
        plain = isinstance(asked.said, str)
        answer = server.complete(asked.said, judge.GREEDY) if plain else server.chat(asked.said, judge.GREEDY)
        line = judge.served(answer.text, asked.answer, asked.logits, asked.decode, allowed)
        who = {"runtime": f"{name} server", "client": answer.client}
        lines = [{**line, **who, "text": answer.text, "seconds_to_ready": round(server.seconds, 1)}]
    return [*lines, *_question(answer.prompt_tokens, len(asked.tokens), who)]


def embedded_by_server(
    where: Path, name: str, reading: Reading, pooling: str, allowed: Bounds, settings: Mapping[str, Any]
) -> list[Line]:
    """The same of an embedder. pooling: of the file: `none`, `mean`, `cls`, `lasttoken`."""
    with Server.of(name, where, **settings) as server:
        found = [server.embed(text) for text, *_ in reading.texts]
    who = {"runtime": f"{name} server", "client": found[0].client}
    exact = [_pooled(hidden, pooling) for hidden in reading.exact]
    vectors = [torch.tensor(each.vector)[None] for each in found]
    lines = [{**line, **who} for line in judge.values(exact, vectors, allowed, "served values")]
    lines[0]["seconds_to_ready"] = round(server.seconds, 1)
    counts = [each.prompt_tokens for each in found if each.prompt_tokens is not None]
    return [*lines, *_question(sum(counts) if len(counts) == len(found) else None, reading.tokens, who)]


def _pooled(hidden: Tensor, pooling: str) -> Tensor:
    """hidden (1, L, H) as one vector (1, H); as it is where nothing is pooled."""
    if pooling == "none":
        return hidden
    return hidden.mean(1) if pooling == "mean" else hidden[:, 0 if pooling == "cls" else -1]


def _question(found: int | None, tokens: int, who: Mapping[str, str]) -> list[Line]:
    """A line on how many tokens a server made of what it was asked, where it says so."""
    if found is None:
        return []
    said = f"the server made {found} tokens of the question, the reference {tokens}"
    equal = found == tokens
    return [{"check": "served question", **who, "passed": equal, **({} if equal else {"said": said})}]


def by_client(process: RuntimeProcess, asked: Sequence[Asked], reading: Reading | None, allowed: Bounds) -> list[Line]:
    """The client of a runtime that has no server; no line where it has none for such a model."""
    lines = []
    for question in asked:
        answer = process.answer(question.said, judge.GREEDY)
        if answer is None:
            return []
        if "ids" in answer:
            line = judge.served_ids(answer["ids"], question.answer, question.logits, question.ends, allowed)
        else:
            line = judge.served(answer["text"], question.answer, question.logits, question.decode, allowed)
        text = answer["text"] if "text" in answer else question.decode(answer["ids"])
        lines.append({**line, "text": text, "client": answer["client"]})
    found = process.read(reading.texts) if reading is not None else None
    if found is None or reading is None:
        return lines
    if "labels" in found:
        line = judge.labels([output[0] for output in reading.exact], found["labels"], allowed, "served labels")
        return [{**line, "client": found["client"]}]
    values = [torch.tensor(value)[None] for value in found["values"]]
    return [
        {**line, "client": found["client"]} for line in judge.values(reading.exact, values, allowed, "served values")
    ]
