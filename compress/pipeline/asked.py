"""What the clients of users are asked, and what is right: a chat or a prompt for models that write, texts for those
that read. Servers are asked over HTTP, runtimes without one by their own client in their own process."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compress.pipeline.probe import end_tokens
from export import judge
from export.client import RuntimeProcess
from export.judge import Bounds, Line
from export.reference import Reference
from export.runtimes._kind import Arithmetic
from export.serving import Server
from export.source import Source

PLAIN = "The three most common fruits are"
CHAT = [{"role": "user", "content": "Tell a long story about a fox."}]
TEXTS = ("The keeper waits for the ferry.", "A storm.")


@dataclass(frozen=True)
class Asked:
    """What a model is asked, the chat or a prompt, and what the reference says to it, up to the first end token.

    tokens: of the question. answer: ids; logits (n, V) they were chosen from. decode: ids -> text.
    """

    prompt: str
    tokens: list[int]
    answer: list[int]
    logits: Tensor
    decode: Callable[[Sequence[int]], str]


@dataclass(frozen=True)
class Reading:
    """What the reference makes of each of TEXTS, by itself.

    rounded: the same by arithmetic. shaken: the same with other last bits, in every draw.
    """

    exact: list[Tensor]
    rounded: dict[Arithmetic, list[Tensor]]
    shaken: list[list[Tensor]]


def asked_of(source: Source, reference: Reference, tokenizer: Any, chat: list[int] | None) -> Asked:
    """The question to a model that writes. chat: ids of CHAT, None without a template."""
    tokens = chat if chat is not None else list(tokenizer(PLAIN)["input_ids"])
    written, logits = reference.greedy(tokens, judge.GREEDY)
    ends = end_tokens(source, tokenizer)
    stop = next((n + 1 for n, token in enumerate(written) if token in ends), len(written))

    def decode(ids: Sequence[int]) -> str:
        return str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    return Asked("" if chat is not None else PLAIN, tokens, written[:stop], logits[:stop], decode)


def reading_of(
    reference: Reference, tokenizer: Any, kinds: Sequence[Arithmetic], seeds: Sequence[int] = ()
) -> Reading | None:
    """What is right for a model that reads; None where it does not read one text at a time. seeds: of the draws."""
    if type(reference.model).__name__.endswith("ForMultipleChoice"):
        return None
    given = [{**tokenizer(text, return_tensors="pt")} for text in TEXTS]
    exact = [reference.run(inputs) for inputs in given]
    rounded = {kind: [reference.run(inputs, kind) for inputs in given] for kind in kinds}
    return Reading(exact, rounded, [[reference.shaken(inputs, seed) for inputs in given] for seed in seeds])


def by_server(where: Path, name: str, asked: Asked, allowed: Bounds, settings: Mapping[str, Any]) -> list[Line]:
    """The runtime's server, asked by a client. settings: of `Server.of`."""
    with Server.of(name, where, **settings) as server:
        answer = server.complete(asked.prompt, judge.GREEDY) if asked.prompt else server.chat(CHAT, judge.GREEDY)
        line = judge.served(answer.text, asked.answer, asked.logits, asked.decode, allowed)
        who = {"runtime": f"{name} server", "client": answer.client}
        lines = [{**line, **who, "text": answer.text, "seconds_to_ready": round(server.seconds, 1)}]
    if answer.prompt_tokens is not None:
        equal = answer.prompt_tokens == len(asked.tokens)
        said = f"the server made {answer.prompt_tokens} tokens of the question, the reference {len(asked.tokens)}"
        lines.append({"check": "served question", **who, "passed": equal, **({} if equal else {"said": said})})
    return lines


def by_client(process: RuntimeProcess, asked: Asked | None, reading: Reading | None, allowed: Bounds) -> list[Line]:
    """The client of a runtime that has no server; no line where it has none for such a model."""
    if asked is not None:
        answer = process.answer(asked.prompt or CHAT, judge.GREEDY)
        if answer is None:
            return []
        line = judge.served(answer["text"], asked.answer, asked.logits, asked.decode, allowed)
        return [{**line, **answer}]
    found = process.read(TEXTS) if reading is not None else None
    if found is None or reading is None:
        return []
    if "labels" in found:
        line = judge.labels([output[0] for output in reading.exact], found["labels"], allowed, "served labels")
        return [{**line, "client": found["client"]}]
    values = [torch.tensor(value)[None] for value in found["values"]]
    return [
        {**line, "client": found["client"]} for line in judge.values(reading.exact, values, allowed, "served values")
    ]
