"""Words -> one BIO tag each: names, places, parts of speech. Entity F1 as seqeval counts it, and accuracy of words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from compress.core.errors import DataError, ModelError
from compress.core.task import IGNORED, Context, Feature, Field, Flaw, Metric, Row, Task

if TYPE_CHECKING:
    from torch import Tensor

    from compress.core.numerics.bootstrap import Array

Entity = tuple[str, int, int]  # type, first word, one past the last


class TokenClassification(Task):
    """A row is a list of words and a list of tags; a word is judged by its first sub-word."""

    name = "token-classification"
    auto = "AutoModelForTokenClassification"
    peft = "TOKEN_CLS"
    architecture = "ForTokenClassification"
    words = True
    fields = (
        Field("words", ("words", "tokens", "text", "sentence")),
        Field("tags", ("tags", "ner_tags", "labels", "bio", "iob", "pos_tags"), answer=True),
    )
    metrics = (Metric("entity_f1"), Metric("accuracy"))
    flaws: ClassVar = {
        "i": (
            "{count} I- tags without a B- before them were read as B-.",
            "has an I- tag that no B- tag begins; mend it, or leave out --strict to have it read as B-",
        )
    }

    def texts(self, rows: Sequence[Row], columns: Mapping[str, str], source: str) -> list[str]:
        """The words with blanks between."""
        return [" ".join(words_of(row, columns["words"], number, source)) for number, row in enumerate(rows)]

    def sound(self, rows: Sequence[Row], columns: Mapping[str, str]) -> tuple[list[Row], list[Flaw]]:
        """Rows where every entity begins with B-."""
        found: list[Row] = []
        mended: list[Flaw] = []
        for number, row in enumerate(rows):
            tags, count = repair(tags_of(row, columns, number))
            found.append({**row, columns["tags"]: tags})
            mended += [Flaw(number, "i", count)] if count else []
        return found, mended

    def labels(self, rows: Sequence[Row], columns: Mapping[str, str], source: str) -> tuple[str, ...]:
        """Tag names: O first, then by type, B before I; the I of a type that only begins is added."""
        names = {tag for number, row in enumerate(rows) for tag in tags_of(row, columns, number, source)}
        if len(names) < 2:
            raise DataError(f"{source} holds the tag {next(iter(names), None)!r} only; nothing can be learned from it")
        names |= {f"I-{name[2:]}" for name in names if name.startswith("B-")}
        return tuple(sorted(names, key=lambda name: (name != "O", name[2:], name[:1])))

    def features(self, rows: Sequence[Row], context: Context) -> list[Feature]:
        """One feature a row, cut to max_length. Sub-words after the first of a word are IGNORED."""
        if not getattr(context.tokenizer, "is_fast", False):
            raise ModelError("words need a fast tokenizer (tokenizer.json), which tells the word of each sub-word")
        known = {name: number for number, name in enumerate(context.labels)}
        tagged = "tags" in context.columns
        found = []
        for number, row in enumerate(rows):
            words = words_of(row, context.columns["words"], number)
            full = context.tokenizer(words, is_split_into_words=True, truncation=True, max_length=context.max_length)
            inputs = {name: list(ids) for name, ids in full.items()}
            firsts = firsts_of(full.word_ids())
            tags = tags_of(row, context.columns, number) if tagged else []
            if unknown := next((tag for tag in tags if tag not in known), None):
                raise DataError(f"row {number + 1} has the tag {unknown!r}, which the model does not know; "
                                f"it knows {', '.join(context.labels[:12])}")  # fmt: skip
            truth = [known[tag] for tag in tags] if tagged else [0] * len(words)
            inputs["labels"] = [IGNORED if word is None else truth[word] for word in firsts]
            units = tuple(word for word in firsts if word is not None)
            found.append(Feature(inputs, number, units, len(firsts) >= context.max_length))
        return found

    def examples(self, rows: Sequence[Row], context: Context) -> list[tuple[Feature, ...]]:
        """The rows that have a scored word: the loss of a batch without any is not a number."""
        return [(feature,) for feature in self.features(rows, context) if feature.units]

    def unread(self, rows: Sequence[Row], features: Sequence[Feature], context: Context) -> list[str]:
        """Words that the tokenizer makes nothing of (control characters, emoji it does not know)."""
        found = []
        for feature in features:
            if not feature.truncated:
                words, seen = words_of(rows[feature.row], context.columns["words"], feature.row), set(feature.units)
                found += [word for number, word in enumerate(words) if number not in seen]
        return found

    def collate(self, features: Sequence[Feature], context: Context) -> dict[str, Tensor]:
        """Padded by the tokenizer to the longest; labels to the same side with IGNORED."""
        import torch

        plain = [{name: ids for name, ids in f.inputs.items() if name != "labels"} for f in features]
        batch = dict(context.tokenizer.pad(plain, return_tensors="pt"))
        width = batch["input_ids"].shape[1]
        labels = torch.full((len(features), width), IGNORED)
        left = context.tokenizer.padding_side == "left"
        for number, feature in enumerate(features):
            ids = torch.tensor(feature.inputs["labels"])
            labels[number, width - len(ids) if left else 0 :][: len(ids)] = ids
        return {**batch, "labels": labels}

    def answers(self, outputs: Sequence[Tensor], features: Sequence[Feature], context: Context) -> list[dict[int, int]]:
        """Word -> tag number of each row, for the words that the model could read. outputs: (L, C) without padding."""
        found = []
        for logits, feature in zip(outputs, features, strict=True):
            firsts = [n for n, truth in enumerate(feature.inputs["labels"]) if truth != IGNORED]
            scores = logits[firsts]
            tags = context.decode(scores) if context.decode is not None else scores.argmax(-1).tolist()
            found.append(dict(zip(feature.units, tags, strict=True)))
        return found

    def counts(self, answers: Sequence[Any], rows: Sequence[Row], context: Context) -> Array:
        """(rows, 5): entities found right, claimed and true; words right and all. Words that were cut off, or
        that the tokenizer makes nothing of, count as O."""
        counts = np.zeros((len(rows), 5))
        for number, (answer, row) in enumerate(zip(answers, rows, strict=True)):
            truth = tags_of(row, context.columns, number)
            said = [context.labels[answer[word]] if word in answer else "O" for word in range(len(truth))]
            claimed, true = entities(said), entities(truth)
            right = sum(a == b for a, b in zip(said, truth, strict=True))
            counts[number] = len(claimed & true), len(claimed), len(true), right, len(truth)
        return counts

    def figures(self, totals: Array) -> Array:
        """Micro F1 over entities, share of words with the right tag."""
        found, claimed, true, right, words = totals.T
        both = claimed + true
        return np.stack([2 * found / np.where(both > 0, both, 1), right / np.where(words > 0, words, 1)], axis=1)

    def wrong(self, totals: Array) -> Array:
        """As many entities claimed as there are, none of them and no word right."""
        _, _, true, _, words = totals.T
        none = np.zeros_like(true)
        return np.stack([none, true, true, none, words], axis=1)

    def balance(self, rows: Sequence[Row], columns: Mapping[str, str]) -> dict[str, int]:
        """Entities of each type, most frequent first."""
        counted = Counter(e[0] for n, row in enumerate(rows) for e in entities(tags_of(row, columns, n)))
        return dict(counted.most_common())


def firsts_of(word_ids: Sequence[int | None]) -> list[int | None]:
    """The word of each sub-word that begins one, None for the others and for special tokens."""
    found: list[int | None] = []
    before: int | None = None
    for word in word_ids:
        found.append(word if word is not None and word != before else None)
        before = word
    return found


def words_of(row: Row, column: str, number: int, source: str = "the data") -> list[str]:
    """The words of a row: a list, or text cut at white space. Raises DataError for anything else."""
    value = row.get(column)
    if isinstance(value, str):
        return value.split()
    if isinstance(value, list) and all(isinstance(word, str) for word in value):
        return value
    raise DataError(f"row {number + 1} of {source} has {value!r} in column {column!r} where words should be")


def tags_of(row: Row, columns: Mapping[str, str], number: int, source: str = "the data") -> list[str]:
    """The tags of a row, one a word. Raises DataError when there are more or fewer."""
    value = row.get(columns["tags"])
    tags = value.split() if isinstance(value, str) else value
    words = words_of(row, columns["words"], number, source)
    if not isinstance(tags, list) or len(tags) != len(words):
        count = len(tags) if isinstance(tags, list) else repr(value)
        raise DataError(f"row {number + 1} of {source} has {len(words)} words and {count} tags; there must be one each")
    return [str(tag) for tag in tags]


def entities(tags: Sequence[str]) -> set[Entity]:
    """The entities of a BIO sequence, by conlleval's lenient reading: an I- after another type begins a new one.

    Tags without a prefix (parts of speech) are entities of one word.
    """
    found: set[Entity] = set()
    start, kind = 0, ""
    for number, tag in enumerate([*tags, "O"]):
        prefix, _, rest = tag.partition("-") if tag[:2] in ("B-", "I-") else ("O", "", "")
        begins = prefix == "B" or (prefix == "I" and rest != kind)
        if kind and (begins or prefix == "O"):
            found.add((kind, start, number))
            kind = ""
        if begins:
            start, kind = number, rest
        elif prefix == "O" and tag != "O":
            found.add((tag, number, number + 1))
    return found


def repair(tags: Sequence[str]) -> tuple[list[str], int]:
    """Tags where every entity begins with B-, and how many had to be changed: an I- after O or another type."""
    fixed: list[str] = []
    changed, before = 0, ""
    for tag in tags:
        if tag.startswith("I-") and before != tag[2:]:
            fixed.append(f"B-{tag[2:]}")
            changed += 1
        else:
            fixed.append(tag)
        before = tag[2:] if tag[:2] in ("B-", "I-") else ""
    return fixed, changed


TASK = TokenClassification()
