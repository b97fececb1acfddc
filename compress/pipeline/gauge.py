"""What is seen of plans on text: divergence from the original, changed answers, what the text itself loses."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from compress.pipeline.judge import kind_of
from compress.pipeline.likelihood import Answers
from compress.pipeline.replay import Trace


@dataclass
class Seen:
    """Of one plan, by text. losses: divergence, all answers of a text together. changed: whether its first answer is
    another one anywhere, where there are answers to rank. nats: of the text itself, original and plan, where there is a
    next token."""

    losses: list[float] = field(default_factory=list)
    changed: list[bool] = field(default_factory=list)
    nats: list[tuple[float, float]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """For the journal."""
        return asdict(self)


class Gauge:
    """Fills `seen`, a Seen for each plan, and `counts`, the answers of each text."""

    def __init__(self, answers: Answers, plans: int) -> None:
        self.answers = answers
        self.seen = [Seen() for _ in range(plans)]
        self._before: Tensor | None = None
        self._predicts = kind_of(answers.model) != "encoder"

    def __call__(self, plan: int, number: int, trace: Trace, output: Any) -> None:
        """One text through one plan; -1 is the original, which comes first."""
        values = self.answers.outputs(number, trace, output)
        if plan < 0:
            self._before = values
            return
        before, seen = self._before, self.seen[plan]
        assert before is not None
        loss = self.answers.divergence(before, values)
        seen.losses.append(loss if math.isfinite(loss) else 1e9)
        if values.shape[-1] > 1 and self.answers.ranks:
            seen.changed.append(bool((before.argmax(-1) != values.argmax(-1)).any()))
        if self._predicts:
            truth = _next_tokens(trace).reshape(-1, 1).to(values.device)
            seen.nats.append(
                (-float(before.gather(1, truth).double().sum()), -float(values.gather(1, truth).double().sum()))
            )


def _next_tokens(trace: Trace) -> Tensor:
    return trace.inputs["decoder_input_ids" if "decoder_input_ids" in trace.inputs else "input_ids"][:, 1:]
