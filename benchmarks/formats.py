"""What every export format does with every kind of model at every scheme, on tiny models: the table in README.

Made with the functions of tests/conformance/test_formats.py: an artifact, `compress export`, then `compress verify` in
the runtimes that are installed here (those of our own environment in this process). vLLM, slow to start, is given one
artifact of each layout that it opens. Nothing in README between the two markers is written by hand.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.shared import REPORTS, line
from compress.core.errors import CompressError, RecipeError
from compress.core.registry import load, names
from export import environments
from tests.exporting import SCHEMES, Bench, Subject, in_process, static, subject, verified, wrong

README = REPORTS.parent / "README.md"
BEGIN, END = "<!-- formats:begin -->", "<!-- formats:end -->"
MODELS = {
    "decoder": {"decoder": "qwen2-wide"},
    "classifier, tagger, embedder": {
        "classifier": "bert-classifier",
        "tagger": "bert-tagger",
        "embedder": "bert-embedder",
    },
    "encoder-decoder (text, speech)": {"text": "bart", "speech": "whisper"},
}
"""Columns: what a person calls a model -> its name in tests.tiny."""
SLOW = {"vllm": {("compressed-tensors", "4 bit"), ("compressed-tensors", "W8A8 dynamic"), ("gptq", "4 bit symmetric")}}
LEGEND = """verified: agrees with the compressed model in the runtimes named, on the machine that made this table.
written: its codes were read back bit by bit, and no runtime there opens it. –: refused before any work."""
VERIFIED, WRITTEN, REFUSED, FAILED = "verified", "written", "refused", "failed"


def judged(bench: Bench, form: str, of: Subject) -> dict[str, Any]:
    """What comes of a subject in a format: state, runtimes that agree, and why it is no more than that."""
    try:
        if (because := bench.refusal(form, of)) is not None:
            return {"state": REFUSED, "runtimes": [], "why": because}
    except CompressError as error:  # a converter that is not there, or a scheme that the model cannot have
        return {"state": REFUSED, "runtimes": [], "why": str(error)}
    try:
        where, out = bench.export(form, of), bench.artifact(of)
    except CompressError as error:
        return {"state": FAILED, "runtimes": [], "why": str(error)}
    asked, why = [], []
    for name in load("format", form).runtimes:
        if (because := environments.refuses(name, where)) is not None:
            why.append(f"{name}: {because}")
        elif environments.place(name).interpreter is None:
            why.append(f"{name} was not installed")
        elif name not in SLOW or (form, of.scheme) in SLOW[name]:
            asked.append(name)
    try:
        lines = list(verified(where, out, *asked).lines) if asked else static(where, out)
    except Exception as error:  # a fault of ours, to be seen in the table and not to end it
        return {"state": FAILED, "runtimes": asked, "why": f"{type(error).__name__}: {error}"}
    if failed := wrong(lines):
        return {"state": FAILED, "runtimes": asked, "why": failed[0]}
    return {"state": VERIFIED if asked else WRITTEN, "runtimes": asked, "why": "" if asked else "; ".join(why)}


def rows(base: Path, chosen: Iterable[str]) -> list[dict[str, Any]]:
    """Every format with every model at every scheme."""
    found = []
    with in_process():
        bench = Bench(base)
        for form in chosen:
            for scheme in SCHEMES:
                for column, models in MODELS.items():
                    for kind, model in models.items():
                        try:
                            bench.artifact(of := subject(model, scheme))
                        except RecipeError as error:
                            told = {"state": REFUSED, "runtimes": [], "why": f"compress quantize: {error}"}
                        else:
                            told = judged(bench, form, of)
                        found.append({"format": form, "scheme": scheme, "column": column, "kind": kind, **told})
                        print(f"   {form}, {scheme}, {kind}: {told['state']} {told['why']}", flush=True)
    return found


# ---- the table


def plainly(why: str) -> str:
    """A reason without the names of one model's layers and classes."""
    why = re.sub(r"\b[a-z_]\w*(\.\w+)+ (is|has|takes|have)\b", r"a layer \2", why)
    why = re.sub(r"\b(cannot hold|has no) (int\d-\w+-a?sym|nf4|q\d_\d)\b", r"\1 this scheme", why)
    why = re.sub(r"\bis (int\d-\w+-a?sym|nf4|q\d_\d)\b", "is of this scheme", why)
    why = re.sub(r"\b(an? )?[A-Z]\w+(For[A-Z]\w+|Model)\b", "such a model", why)
    why = re.sub(r"/\S*/(\S+)", r"\1", why).replace("|", "/")
    return why if len(why) <= 200 else why[:197].rsplit(" ", 1)[0] + " ..."


class Notes:
    """Footnotes, numbered as they are first needed."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def number(self, why: str) -> str:
        """The mark of a reason."""
        if (text := plainly(why)) not in self.texts:
            self.texts.append(text)
        return f"[{self.texts.index(text) + 1}]"


def shown(told: dict[str, Any], notes: Notes) -> str:
    """What a cell says of one model."""
    if told["state"] == VERIFIED:
        return f"verified: {', '.join(told['runtimes'])}"
    mark = notes.number(told["why"]) if told["why"] else ""
    words = {REFUSED: "–", FAILED: "**fails**"}
    return f"{words.get(told['state'], told['state'])} {mark}".strip()


def cell(told: Sequence[dict[str, Any]], notes: Notes) -> str:
    """A cell, of one model or of several that may differ."""
    kinds: dict[str, list[str]] = {}
    for each in told:
        kinds.setdefault(shown(each, notes), []).append(each["kind"])
    if len(kinds) == 1:
        return next(iter(kinds))
    return "; ".join(f"{', '.join(names)}: {said}" for said, names in kinds.items())


def table(found: Sequence[dict[str, Any]]) -> str:
    """The Markdown between the markers: schemes that fare alike are one row."""
    notes = Notes()
    lines = [f"| format | scheme | {' | '.join(MODELS)} |", "|" + "---|" * (2 + len(MODELS))]
    for form in dict.fromkeys(told["format"] for told in found):
        alike: dict[tuple[str, ...], list[str]] = {}
        for scheme in SCHEMES:
            mine = [told for told in found if (told["format"], told["scheme"]) == (form, scheme)]
            cells = tuple(cell([told for told in mine if told["column"] == column], notes) for column in MODELS)
            alike.setdefault(cells, []).append(scheme)
        lines += [f"| {form} | {', '.join(schemes)} | {' | '.join(cells)} |" for cells, schemes in alike.items()]
    texts = [f"[{number}] {text}  " for number, text in enumerate(notes.texts, 1)]
    return "\n".join([*lines, "", LEGEND, "", *texts]).rstrip()


def section(text: str) -> str:
    """What lies between the markers."""
    return text.split(BEGIN)[1].split(END)[0].strip()


def write_readme(found: Sequence[dict[str, Any]]) -> None:
    """Put the table where README has the markers."""
    text = README.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    README.write_text(f"{before}{BEGIN}\n{table(found)}\n{END}{after}", encoding="utf-8")


def run() -> dict[str, Any]:
    """Every format; its line says that nothing failed."""
    with tempfile.TemporaryDirectory() as base:
        found = rows(Path(base), names("format"))
    write_readme(found)
    lines = []
    for form in names("format"):
        states = [told["state"] for told in found if told["format"] == form]
        counts = ", ".join(f"{states.count(state)} {state}" for state in (VERIFIED, WRITTEN, REFUSED, FAILED))
        lines.append(line(f"{form}: models and schemes", counts, "none fails", FAILED not in states))
    return {"lines": lines, "rows": found}
