"""What to type after a run, with names quoted for the shell and for Python."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from compress.core.types import RunRecord
from compress.report import summary, words


@dataclass(frozen=True)
class Step:
    """A command or a line of Python to type next."""

    what: str
    line: str


def next_steps(record: RunRecord) -> list[Step]:
    """What to type after this, with the names quoted for the shell."""
    model = str(record.recipe.get("model") or record.model.get("path") or record.model.get("name") or "MODEL")
    if record.command in ("export", "verify"):
        where = next((str(m.detail["export"]) for m in record.measurements if "export" in m.detail), "EXPORT")
        found = []
        if not any("client" in line for line in record.verified):
            found.append(Step("ask it as your clients will", f"compress verify {_quoted(where)} --serve"))
        if record.artifact:
            found.append(Step("compare in its runtime", f"compress bench {_quoted(record.artifact)} {_quoted(where)}"))
        return found
    if record.command == "sensitivity":
        return [Step("make it smaller", f"compress quantize {_quoted(model)} --bits 4")]
    if record.artifact:
        loader = auto_class(str(record.model.get("architecture") or ""))
        out = words.clean(record.artifact)
        opened = f"from transformers import {loader}\nmodel = {loader}.from_pretrained({out!r})"
        steps = [Step("open it in Python", opened)]
        if record.command != "bench":
            steps.insert(0, Step("measure quality and speed", f"compress bench {_quoted(model)} {_quoted(out)}"))
        return steps
    names = summary.subjects(record)
    source = names[0] if names and names[0] != summary.ORIGINAL else model
    if len(names) > 1:
        return [Step("try fewer bits", f"compress quantize {_quoted(source)} --bits 3")]
    return [Step("make it smaller", f"compress quantize {_quoted(source)} --bits 4")]


def auto_class(architecture: str) -> str:
    """The transformers Auto class that opens `architecture`, by its suffix."""
    if architecture.startswith("Whisper"):
        return "AutoModelForSpeechSeq2Seq"
    for suffix, name in (
        ("ForCausalLM", "AutoModelForCausalLM"),
        ("LMHeadModel", "AutoModelForCausalLM"),
        ("ForConditionalGeneration", "AutoModelForSeq2SeqLM"),
        ("MTModel", "AutoModelForSeq2SeqLM"),
        ("ForMaskedLM", "AutoModelForMaskedLM"),
        ("ForSequenceClassification", "AutoModelForSequenceClassification"),
        ("ForTokenClassification", "AutoModelForTokenClassification"),
        ("ForQuestionAnswering", "AutoModelForQuestionAnswering"),
        ("ForMultipleChoice", "AutoModelForMultipleChoice"),
    ):
        if architecture.endswith(suffix):
            return name
    return "AutoModel"


def _quoted(text: str) -> str:
    return shlex.quote(words.clean(text))
