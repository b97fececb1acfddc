"""What a model says of a text, as a likelihood: its own answers at random weights, and how many there are.

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
    """Log-likelihoods of a model's answers. unit: of the divergence that they stand for.

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

    def __call__(self, number: int, trace: Trace, output: Any, draw: int = 0) -> Tensor:
        """A scalar with its graph whose gradient g has E[g g^T] = Fisher's information, by signs that only `number`,
        `draw` and the seed decide.

        Of every answer c there is, log p_c counts with sqrt(p_c) and a random sign: sum over c of p_c (dl_c)^2 in
        expectation, as with one answer drawn from p, but unlikely answers, of which a sure model has nothing else to
        lose by, are seen each time and not once in 1 / p_c texts.
        """
        random = torch.Generator().manual_seed(self.seed * 1_000_003 + number + draw * 10_000_019)
        values = self.outputs(number, trace, output)
        if self.unit in (COSINE, SQUARE):
            return (values * torch.randn(values.shape, generator=random)).sum()
        signs = torch.randint(0, 2, values.shape, generator=random, dtype=torch.int8) * 2 - 1
        return (values * (values.detach() / 2).exp_().mul_(signs)).sum()

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
        return float(self.loss(before.double(), after.double()))

    def loss(self, before: Tensor, after: Tensor) -> Tensor:
        """The same as a scalar, in the dtype that is given."""
        if self.unit in (COSINE, SQUARE):
            return (before - after).square().sum() / 2
        return (before.exp() * (before - after)).sum()

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
