"""Question and context -> the words of the context that answer it. Exact match and F1 as SQuAD counts them.

A context that is too long is read in windows that overlap. Rows without an answer make the model say so: its score of
"no answer" is that of the window's first token (the null span of SQuAD 2, Devlin et al. 2018). In languages without
blanks between words F1 is over characters (compress.core.squad).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from compress.core import squad
from compress.core.errors import DataError, ModelError
from compress.core.task import IGNORED, Context, Feature, Field, Flaw, Metric, Row, Task, text_of

if TYPE_CHECKING:
    from torch import Tensor, nn

    from compress.core.numerics.bootstrap import Array

BEST = 20  # starts and ends of a window that are tried with each other
LONGEST = 30  # tokens of an answer, unless the data has longer ones
LOST = "lost"  # the key of a row whose answer is not in its context
Span = tuple[int, int]  # first character, one past the last


@dataclass(frozen=True)
class Best:
    """What a row's windows say. span: None where no window reads a word of the context."""

    span: Span | None
    score: float
    null: float


class QuestionAnswering(Task):
    """Answers are {"text": [...], "answer_start": [...]}, a list, or one text with its start in another column."""

    name = "question-answering"
    auto = "AutoModelForQuestionAnswering"
    peft = "QUESTION_ANS"
    architecture = "ForQuestionAnswering"
    classes = False
    fields = (
        Field("question", ("question", "query", "questions")),
        Field("context", ("context", "passage", "paragraph", "document", "article", "text", "story")),
        Field("answers", ("answers", "answer", "answer_text", "final_answers"), answer=True),
        Field("start", ("answer_start", "start", "start_index", "char_start"), required=False, answer=True),
    )
    metrics = (Metric("f1"), Metric("exact_match"))
    config: ClassVar = {"num_labels": 2}  # start and end, whatever the checkpoint was before
    flaws: ClassVar = {
        "lost": (
            "The answers of {count} rows are not in their context: not trained on, they count where they are held out.",
            "has an answer that is not in its context; mend it, or leave out --strict to go on without it",
        ),
        "start": (
            "{count} answers do not begin where answer_start says; they were found elsewhere in the context.",
            "has an answer_start where its answer does not begin; mend it, or leave out --strict to have it found",
        ),
    }

    def labels(self, rows: Sequence[Row], columns: Mapping[str, str], source: str) -> tuple[str, ...]:
        """None. Raises DataError for a blank question or context, and for answers that are no text."""
        for number, row in enumerate(rows):
            for role in ("question", "context"):
                if not text_of(row, columns[role], number, source).strip():
                    raise DataError(f"row {number + 1} of {source} has an empty {role} in column {columns[role]!r}; "
                                    "fill it or leave the row out")  # fmt: skip
            golds_of(row, columns, number, source)
        return ()

    def documents(self, rows: Sequence[Row], columns: Mapping[str, str]) -> list[str]:
        """The contexts."""
        return [text_of(row, columns["context"], number) for number, row in enumerate(rows)]

    def strata(self, rows: Sequence[Row], columns: Mapping[str, str]) -> list[str]:
        """Rows with an answer, rows without."""
        return ["answer" if golds_of(row, columns, n) else "none" for n, row in enumerate(rows)]

    def sound(self, rows: Sequence[Row], columns: Mapping[str, str]) -> tuple[list[Row], list[Flaw]]:
        """Rows with answers in SQuAD's shape, each start one where the answer is; an answer that is nowhere has none.

        Raises DataError when no answer is in its context.
        """
        found: list[Row] = []
        flaws: list[Flaw] = []
        lost, answered = 0, 0
        for number, row in enumerate(rows):
            golds = golds_of(row, columns, number)
            context = text_of(row, columns["context"], number)
            places = [place(context, text, start) for text, start in golds]
            kept = [(text, at) for (text, _), at in zip(golds, places, strict=True) if at is not None]
            moved = sum(s is not None and at is not None and s != at for (_, s), at in zip(golds, places, strict=True))
            answered += bool(golds)
            lost += bool(golds) and not kept
            if golds and not kept:
                flaws.append(Flaw(number, "lost"))
            if moved:
                flaws.append(Flaw(number, "start", moved))
            texts = [text for text, _ in kept] or [text for text, _ in golds]
            answers = {"text": texts, "answer_start": [at for _, at in kept]}
            rest = {name: value for name, value in row.items() if name != columns.get("start")}
            found.append({**rest, columns["answers"]: answers})
        if answered and lost == answered:
            raise DataError("no answer is in the context of its row; question-answering finds words of the context, so "
                            "name the columns with --columns context=COLUMN and answers=COLUMN")  # fmt: skip
        return found, flaws

    def survey(self, rows: Sequence[Row], columns: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
        """Whether there are rows without an answer, and the longest answer's characters."""
        golds = [golds_of(row, columns, n) for n, row in enumerate(rows)]
        empty = sum(not found for found in golds)
        longest = max((len(text) for found in golds for text, _ in found), default=0)
        said = [f"{empty} of {len(rows)} rows have no answer: the model learns to say so."] if empty else []
        return {"unanswerable": empty > 0, "longest": longest}, said

    def features(self, rows: Sequence[Row], context: Context) -> list[Feature]:
        """A feature for each window, with the truth as `start_positions` and `end_positions`.

        A window without the answer has its null position as truth; a row whose answer is not in its context IGNORED. A
        question of more than half of max_length is cut. Raises ModelError for slow tokenizers.
        """
        if not getattr(context.tokenizer, "is_fast", False):
            raise ModelError("answers need a fast tokenizer (tokenizer.json), which tells the characters of each token")
        found: list[Feature] = []
        for number, row in enumerate(rows):
            text = text_of(row, context.columns["context"], number)
            truth = _truth(row, text, context, number) if "answers" in context.columns else ()
            found += _windows(text_of(row, context.columns["question"], number), text, truth, context, number)
        return found

    def collate(self, features: Sequence[Feature], context: Context) -> dict[str, Tensor]:
        """Padded by the tokenizer to the longest; positions moved by what is padded on the left."""
        import torch

        truths = ("start_positions", "end_positions")
        plain = [{name: ids for name, ids in f.inputs.items() if name not in truths} for f in features]
        batch = dict(context.tokenizer.pad(plain, return_tensors="pt"))
        width = batch["input_ids"].shape[1] if context.tokenizer.padding_side == "left" else 0
        for name in truths:
            if all(name in f.inputs for f in features):
                moved = [at + max(0, width - f.shape[0]) if (at := f.inputs[name]) != IGNORED else at for f in features]
                batch[name] = torch.tensor(moved)
        return batch

    def outputs(self, output: Any, inputs: Mapping[str, Tensor]) -> Tensor:
        """(B, L, 2): logits of being the start, of being the end."""
        import torch

        del inputs
        return torch.stack([output.start_logits, output.end_logits], -1)

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor], context: Context) -> Tensor:
        """Cross entropy of start and end, their mean; 0 where no window of the batch has a truth.

        Ours, because peft does not move the positions by the prompts that it puts before the text.
        """
        from torch.nn.functional import cross_entropy

        del context
        scores = self.run(model, batch).masked_fill(batch["attention_mask"][..., None] == 0, float("-inf"))
        known = (batch["start_positions"] != IGNORED).sum().clamp_min(1)
        both = ((scores[..., 0], batch["start_positions"]), (scores[..., 1], batch["end_positions"]))
        return sum(cross_entropy(s, at, ignore_index=IGNORED, reduction="sum") for s, at in both) / (2 * known)

    def compared(self, output: Tensor, feature: Feature) -> Tensor:
        """(2, L): the distributions of start and end."""
        del feature
        return output.T

    def answers(self, outputs: Sequence[Tensor], features: Sequence[Feature], context: Context) -> list[Best]:
        """The best span over all windows of each row; the null score is the lowest of its windows. outputs: (L, 2).

        Differs from the official script: a token that several windows hold is not left to the one that sees most
        around it.
        """
        longest = int(context.settings.get("longest", 0))
        found: dict[int, Best] = {}
        for output, feature in zip(outputs, features, strict=True):
            span, score = best_span(output.double().numpy(), feature.spans, longest)
            at = feature.units[0]
            null = float(output[at, 0] + output[at, 1])
            before = found.get(feature.row)
            if before is not None:
                null = min(null, before.null)
                span, score = (span, score) if score > before.score else (before.span, before.score)
            found[feature.row] = Best(span, score, null)
        return [best for _, best in sorted(found.items())]

    def counts(self, answers: Sequence[Any], rows: Sequence[Row], context: Context) -> Array:
        """(rows, 3): F1, exact match, 1."""
        counts = np.ones((len(rows), 3))
        for number, (best, row) in enumerate(zip(answers, rows, strict=True)):
            said = said_of(best, text_of(row, context.columns["context"], number), context)
            golds = [text for text, _ in golds_of(row, context.columns, number)] or [""]
            counts[number, :2] = squad.f1(said, golds), squad.exact(said, golds)
        return counts

    def figures(self, totals: Array) -> Array:
        """Means over the rows."""
        return totals[:, :2] / totals[:, 2:]

    def wrong(self, totals: Array) -> Array:
        """None right."""
        return totals * (0, 0, 1)


def said_of(best: Best, text: str, context: Context) -> str:
    """The answer as text; empty where the data has rows without one and "no answer" scores higher."""
    if best.span is None or (context.settings.get("unanswerable", False) and best.null > best.score):
        return ""
    return text[slice(*best.span)].strip()


def best_span(scores: Array, spans: Sequence[Span | None], longest: int) -> tuple[Span | None, float]:
    """The characters and the score (start + end) of a window's best answer, (None, -inf) without one.

    scores: (L, 2). At most LONGEST tokens, or `longest` characters.
    """
    inside = [n for n, span in enumerate(spans) if span is not None]
    starts, ends = (sorted(inside, key=lambda n, k=k: -scores[n, k])[:BEST] for k in (0, 1))  # type: ignore[misc]
    found: tuple[Span | None, float] = (None, -np.inf)
    for start in starts:
        for end in ends:
            first, last = spans[start], spans[end]
            if end < start or first is None or last is None:
                continue
            fits = end - start < LONGEST or last[1] - first[0] <= longest
            if fits and (score := float(scores[start, 0] + scores[end, 1])) > found[1]:
                found = ((first[0], last[1]), score)
    return found


def _windows(question: str, text: str, truth: tuple[Span, ...] | None, context: Context, number: int) -> list[Feature]:
    """Windows of one row. truth: None: the answer is not there; (): none is known or there is none; else its span."""
    tokenizer, length = context.tokenizer, context.max_length
    asked = tokenizer(question, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    cut = len(asked["input_ids"]) > length // 2
    if cut:
        question = question[: asked["offset_mapping"][length // 2 - 1][1]]
    room = length - min(len(asked["input_ids"]), length // 2) - tokenizer.num_special_tokens_to_add(pair=True)
    full = tokenizer(
        question,
        text,
        truncation="only_second",
        max_length=length,
        stride=min(length // 4, max(0, room // 2)),
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    found = []
    for window in range(len(full["input_ids"])):
        names = [name for name in full if name in tokenizer.model_input_names]
        inputs: dict[str, Any] = {name: list(full[name][window]) for name in names}
        parts = full.sequence_ids(window)
        spans = tuple(
            (int(a), int(b)) if part == 1 and b > a else None
            for part, (a, b) in zip(parts, full["offset_mapping"][window], strict=True)
        )
        null = null_position(inputs["input_ids"], tokenizer)
        if "answers" in context.columns:
            start, end = positions(spans, truth, null)
            inputs |= {"start_positions": start, "end_positions": end}
        found.append(Feature(inputs, number, (null,), cut, spans))
    return found


def null_position(ids: Sequence[int], tokenizer: Any) -> int:
    """Where a window says that it has no answer: its [CLS], else its BOS, else its first token."""
    for token in (tokenizer.cls_token_id, tokenizer.bos_token_id):
        if token is not None and token in ids:
            return list(ids).index(token)
    return 0


def positions(spans: Sequence[Span | None], truth: tuple[Span, ...] | None, null: int) -> tuple[int, int]:
    """First and last token of the answer in a window; its null position where the answer is not wholly in it."""
    if truth is None:
        return IGNORED, IGNORED
    inside = [(n, span) for n, span in enumerate(spans) if span is not None]
    if not truth or not inside:
        return null, null
    start, end = truth[0]
    if inside[0][1][0] > start or inside[-1][1][1] < end:
        return null, null
    covered = [n for n, (a, b) in inside if a < end and b > start]
    return (covered[0], covered[-1]) if covered else (null, null)


def _truth(row: Row, text: str, context: Context, number: int) -> tuple[Span, ...] | None:
    """The first answer's characters; () without an answer, None where it is not in the context."""
    golds = golds_of(row, context.columns, number)
    for answer, start in golds:
        if (at := place(text, answer, start)) is not None:
            return ((at, at + len(answer)),)
    return None if golds else ()


def golds_of(
    row: Row, columns: Mapping[str, str], number: int, source: str = "the data"
) -> list[tuple[str, int | None]]:
    """(answer, its first character where one is given) of a row; [] where it has no answer. Raises DataError."""
    value: Any = squad.parsed(row.get(columns["answers"]))
    starts: Any = row.get(columns["start"]) if "start" in columns else None
    if isinstance(value, Mapping):
        value, starts = value.get("text"), value.get("answer_start")
    elif isinstance(value, Sequence) and value and all(isinstance(one, Mapping) for one in value):
        starts, value = [one.get("answer_start") for one in value], [one.get("text") for one in value]
    texts = [] if value is None or value != value else [value] if isinstance(value, str) else value
    if not isinstance(texts, Sequence) or not all(isinstance(text, str) for text in texts):
        raise DataError(f"row {number + 1} of {source} has {value!r} in column {columns['answers']!r} where an answer "
                        'should be: a text, or {"text": [...], "answer_start": [...]}')  # fmt: skip
    given = squad.parsed(starts)
    given = list(given) if isinstance(given, Sequence) and not isinstance(given, str) else [given]
    given += [None] * (len(texts) - len(given))
    return [(text, _whole(at)) for text, at in zip(texts, given, strict=False) if text.strip()]


def _whole(value: Any) -> int | None:
    """A start as a number; None for what is none, -1 included."""
    try:
        found = int(float(value))
    except (TypeError, ValueError, OverflowError):
        return None
    return found if found >= 0 else None


def place(context: str, answer: str, start: int | None) -> int | None:
    """Where `answer` begins in `context`: at `start` if it is there, else at the place nearest to it, else nowhere."""
    if start is not None and context.startswith(answer, start):
        return start
    places = [found.start() for found in re.finditer(f"(?={re.escape(answer)})", context)]
    return min(places, key=lambda at: abs(at - (start or 0)), default=None)


TASK = QuestionAnswering()
