"""How pipelines of transformers are asked to read, and what they say: for every runtime whose models they take. Only
the standard library; the pipelines are their callers'."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

TASKS = {
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForMaskedLM": "fill-mask",
}
"""The end of a model class's name -> its pipeline. question-answering had one until transformers 5."""
EMBEDS, HEARS = "feature-extraction", "automatic-speech-recognition"
ASKED: dict[str, dict[str, Any]] = {
    "text-classification": {"top_k": None, "function_to_apply": "none"},
    "token-classification": {"aggregation_strategy": "none", "ignore_labels": []},
    "fill-mask": {"top_k": 1},
}


def task_of(name: str) -> str | None:
    """The pipeline of a model's class by its name; None where there is none."""
    found = next((task for ending, task in TASKS.items() if name.endswith(ending)), None)
    return found or (None if "For" in name else EMBEDS)


def read(pipeline: Any, task: str, config: Any, texts: Sequence[Sequence[str]]) -> dict[str, Any]:
    """{"values": the first output of each text} or {"labels": [position, class, probability] of its tokens}."""
    found = [pipeline(text[0], **ASKED.get(task, {})) for text in texts]
    if task == EMBEDS:
        return {"values": [said[0] for said in found]}
    if task == "fill-mask":
        tokenizer = pipeline.tokenizer
        at = [list(tokenizer(text[0])["input_ids"]).index(tokenizer.mask_token_id) for text in texts]
        told = zip(at, found, strict=True)
        return {"labels": [[[place, int(said[0]["token"]), float(said[0]["score"])]] for place, said in told]}
    numbers = {label: int(number) for label, number in config.label2id.items()}
    if task == "token-classification":
        return {"labels": [[[t["index"], numbers[t["entity"]], float(t["score"])] for t in said] for said in found]}
    scores = [{numbers[t["label"]]: float(t["score"]) for t in said} for said in found]
    return {"values": [[row[number] for number in sorted(row)] for row in scores]}


def read_by_class(
    model: Any, tokenizer: Any, first: Callable[[Any], Any], texts: Sequence[Sequence[str]]
) -> dict[str, Any]:
    """{"values"}: the same for models without a pipeline, called with what their tokenizer makes. first: output -> the
    array that is compared."""
    return {"values": [first(model(**tokenizer(*text, return_tensors="pt")))[0].tolist() for text in texts]}
