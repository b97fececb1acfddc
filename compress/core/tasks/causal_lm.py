"""Text -> the next token. Perplexity, lower is better.

Documents are cut, not packed: a window holds one document, so that each has its own score and nothing is read across.
Windows overlap by the one token that the next one is predicted from; every token but the first is predicted once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from compress.core.task import IGNORED, Context, Feature, Field, Metric, Row, Task, text_of

if TYPE_CHECKING:
    from torch import Tensor

    from compress.core.numerics.bootstrap import Array

HIGHEST = 700.0  # nats a token: exp of more is no number


class CausalLM(Task):
    """A row is a document; conversations and prompts with their response are written out before (pipeline.written)."""

    name = "causal-lm"
    auto = "AutoModelForCausalLM"
    peft = "CAUSAL_LM"
    architecture = ("ForCausalLM", "LMHeadModel")
    classes = False
    text = True
    score_batch: ClassVar[int] = 4  # logits of a whole vocabulary
    fields = (Field("text", ("text", "content", "document", "article", "body", "passage", "story")),)
    metrics = (Metric("perplexity", "", lower_is_better=True),)

    def columns(self, rows: Sequence[Row], given: Mapping[str, str], source: str) -> dict[str, str]:
        """The usual; rows of one column have no other, whatever it is called."""
        only = {str(key) for row in rows[:1000] for key in row}
        return {"text": next(iter(only))} if len(only) == 1 else super().columns(rows, given, source)

    def labels(self, rows: Sequence[Row], columns: Mapping[str, str], source: str) -> tuple[str, ...]:
        """None."""
        del rows, columns, source
        return ()

    def features(self, rows: Sequence[Row], context: Context) -> list[Feature]:
        """A feature for each window of max_length tokens, `labels` its ids; the end-of-text token ends a document."""
        found = []
        end = context.tokenizer.eos_token_id
        for number, row in enumerate(rows):
            text = text_of(row, context.columns["text"], number)
            ids = list(context.tokenizer(text, verbose=False)["input_ids"])
            if end is not None and end not in ids[-2:]:  # a templated chat ends with it already
                ids.append(int(end))
            for start in range(0, max(1, len(ids) - 1), context.max_length - 1):
                window = ids[start : start + context.max_length]
                inputs = {"input_ids": window, "attention_mask": [1] * len(window), "labels": list(window)}
                found.append(Feature(inputs, number))
        return found

    def collate(self, features: Sequence[Feature], context: Context) -> dict[str, Tensor]:
        """Padded to the longest on the tokenizer's side, with any token where it has none to pad with."""
        import torch

        pad = context.tokenizer.pad_token_id
        fills = {"input_ids": 0 if pad is None else int(pad), "attention_mask": 0, "labels": IGNORED}
        width = max(f.shape[0] for f in features)
        left = context.tokenizer.padding_side == "left"
        batch = {name: torch.full((len(features), width), fill) for name, fill in fills.items()}
        for number, feature in enumerate(features):
            place = slice(width - feature.shape[0], width) if left else slice(feature.shape[0])
            for name, values in batch.items():
                values[number, place] = torch.tensor(feature.inputs[name])
        return batch

    def outputs(self, output: Any, inputs: Mapping[str, Tensor]) -> Tensor:
        """(B, L, 2): the nats of each token, given those before it, and whether it is counted: not the first, not
        padding. Learned positions before the text, which have logits too, are left out."""
        import torch

        ids = inputs["input_ids"]
        mask = inputs.get("attention_mask", torch.ones_like(ids))
        found = torch.zeros(*ids.shape, 2)
        for row, logits in enumerate(output.logits[:, -ids.shape[1] :]):  # one text's vocabulary at a time
            chances = torch.log_softmax(logits[:-1].float(), -1)
            counted = (mask[row, 1:] * mask[row, :-1]).float()
            nats = -chances.gather(-1, ids[row, 1:, None])[:, 0]
            found[row, 1:] = torch.stack([nats * counted, counted], -1)
        return found

    def answers(
        self, outputs: Sequence[Tensor], features: Sequence[Feature], context: Context
    ) -> list[tuple[float, float]]:
        """(nats, tokens) of each row. outputs: (L, 2)."""
        del context
        found: dict[int, tuple[float, float]] = {}
        for output, feature in zip(outputs, features, strict=True):
            nats, tokens = output.double().sum(0).tolist()
            before = found.get(feature.row, (0.0, 0.0))
            found[feature.row] = (before[0] + nats, before[1] + tokens)
        return [pair for _, pair in sorted(found.items())]

    def counts(self, answers: Sequence[Any], rows: Sequence[Row], context: Context) -> Array:
        """(rows, 2): nats, tokens."""
        del rows, context
        return np.asarray(answers, dtype=np.float64).reshape(-1, 2)

    def figures(self, totals: Array) -> Array:
        """exp(nats / tokens)."""
        nats, tokens = totals.T
        return np.asarray(np.exp(np.minimum(nats / np.maximum(tokens, 1), HIGHEST)), dtype=np.float64)[:, None]


TASK = CausalLM()
