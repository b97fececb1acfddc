"""What a model says of a text, as a likelihood: answers drawn from its own outputs, and how many there are.

Language models and those that write: the next token at every position. Models with classes: an answer for every scored
position. Everything else is compared by the direction of its outputs: of a normal distribution of unit variance around
h / |h| the divergence of two is 1 - cosine; a single number by half the square of its change.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from compress.core.task import Feature
from compress.core.writing import WritingTask
from compress.pipeline.judge import kind_of
from compress.pipeline.replay import Trace, text_mask
from compress.pipeline.task_text import TaskText

TOKENS, ANSWERS, COSINE, SQUARE = "nats per token", "nats per answer", "1 - cosine per token", "half a square per row"


class Answers:
    """Log-likelihoods of answers drawn from a model. unit: of the divergence that they stand for.

    counts: answers of each text seen so far, by its number.
    """

    def __init__(
        self, model: nn.Module, text: TaskText | None, features: Sequence[tuple[Feature, ...]], seed: int
    ) -> None:
        """features: of each text, where `text` is rows of a task."""
        self.model, self.text, self.features, self.seed = model, text, features, seed
        self.counts: dict[int, int] = {}
        self.unit = ""
        self._scored = text is not None and not isinstance(text.task, WritingTask) and not text.task.text

    def __call__(self, number: int, trace: Trace, output: Any) -> Tensor:
        """The log-likelihood, a scalar with its graph, of answers that only `number` and the seed decide."""
        draw = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
        values = self.outputs(number, trace, output)
        if self.unit in (COSINE, SQUARE):
            return (values * torch.randn(values.shape, generator=draw)).sum()
        drawn = torch.multinomial(values.detach().exp(), 1, generator=draw)
        return values.gather(-1, drawn).sum()

    def outputs(self, number: int, trace: Trace, output: Any) -> Tensor:
        """What is compared: log-probabilities (n, C), directions (n, D) or numbers (n, 1), by `unit`."""
        logits = self._logits(number, trace, output)
        if logits is None:
            self.unit, values = COSINE, self._directions(trace, output)
        elif logits.shape[-1] == 1:
            self.unit, values = SQUARE, logits.float().reshape(-1, 1)
        else:
            self.unit = TOKENS if logits.ndim == 3 and not self._scored else ANSWERS
            values = torch.log_softmax(logits.float().reshape(-1, logits.shape[-1]), -1)
        self.counts[number] = len(values)
        return values

    @property
    def ranks(self) -> bool:
        """Whether outputs, once seen, are classes or tokens, of which one is first."""
        return self.unit in (TOKENS, ANSWERS)

    def divergence(self, before: Tensor, after: Tensor) -> float:
        """What one text's `outputs` lose, all answers together: KL(before || after), or what `unit` says."""
        if self.unit in (COSINE, SQUARE):
            return float((before.double() - after.double()).square().sum()) / 2
        p, q = before.double(), after.double()
        return float((p.exp() * (p - q)).sum())

    def _logits(self, number: int, trace: Trace, output: Any) -> Tensor | None:
        """(..., C), as many as there are answers; None: the model has no classes."""
        if self._scored and self.text is not None:
            made = self.text.task.outputs(output, trace.inputs)
            parts = [self.text.task.compared(made[i], f) for i, f in enumerate(self.features[number])]
            found = [part.reshape(-1, part.shape[-1]) for part in parts if part is not None]
            return torch.cat(found) if len(found) == len(parts) else None
        if kind_of(self.model) != "encoder":
            return output.logits[:, :-1]  # type: ignore[no-any-return]
        if hasattr(output, "start_logits"):
            return torch.cat([output.start_logits, output.end_logits])
        logits: Tensor | None = getattr(output, "logits", None)
        mask = text_mask(trace)
        if logits is not None and mask is not None and logits.shape[:2] == mask.shape:
            return logits[mask][None]
        return logits

    def _directions(self, trace: Trace, output: Any) -> Tensor:
        hidden = output[0].float()
        if (mask := text_mask(trace)) is not None and mask.shape == hidden.shape[:2]:
            hidden = hidden[mask]
        return torch.nn.functional.normalize(hidden.reshape(-1, hidden.shape[-1]), dim=-1)
