"""What other choices would do to a plan, asked at the plan: the loss itself backward, and its curvature, in one pass.

What layers cost was asked at the original, one by one. Below four bits that adds up badly: errors of layers have to do
with each other, and a model that is off already loses more by the next error. Of a plan with weights W and another
choice W + D of one layer the loss changes by

    dKL/dW . D + E[(dl/dW . D)^2] / 2,

the first term with all that the layers' errors have to do with each other, the second by Fisher's information of the
plan's own answers (compress.pipeline.gradient). Text: what layers' costs were asked on, at most TOKENS of it; what
comes of it is judged on other text. On disk meanwhile: the text's activations after each block.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from compress.core.types import BlockRef
from compress.pipeline.at_weights import Loss, products
from compress.pipeline.draws import Draws, Picks
from compress.pipeline.gradient import Backward, Point
from compress.pipeline.likelihood import Answers
from compress.pipeline.replay import Trace
from compress.pipeline.store import Store
from compress.pipeline.stream import Report

TOKENS = 16384
DRAWS = 2
"""The loss, and one draw of the answers."""

Moves = dict[tuple[str, str], float]
"""(layer, treatment) -> change of the loss, an answer, where the plan treats the layer so instead."""


@dataclass(frozen=True)
class Marginal:
    """Asks. draws: over the model and its bank. store: whose folder the activations wait in."""

    draws: Draws
    store: Store
    report: Report

    def moves(self, picks: Picks, originals: Sequence[Trace], answers: Answers) -> Moves:
        """What each layer's other choices would do to the plan `picks`.

        originals: each text as the original model has it, at the last blocks' outputs; answers: of these texts.
        """
        ready = self.draws.ready
        loss = Loss(answers, originals)
        point = Point(lambda vocabulary: self._around(picks, loss, vocabulary), lambda block: self._fill(block, picks))
        walk = Backward(ready.checkpoint, ready.structure, point, self.draws.bank, draws=DRAWS)
        found = products(walk, loss, self.store, "marginal", self.report)
        total = sum(answers.counts[number] for number in range(len(originals)))
        return {key: (sum(dots[::DRAWS]) + sum(d * d for d in dots[1::DRAWS]) / 2) / total
                for key, dots in found.items()}  # fmt: skip

    def _fill(self, block: BlockRef, picks: Picks) -> None:
        self.draws.ready.checkpoint.fill(block.name)
        self.draws.putting(block)(picks)

    @contextmanager
    def _around(self, picks: Picks, loss: Loss, vocabulary: bool) -> Iterator[None]:
        with self.draws.outside.installed("original", vocabulary), self.draws.ends(vocabulary) as use:
            use(picks)
            loss.plain, loss.planned = (lambda: use({})), (lambda: use(picks))
            yield
