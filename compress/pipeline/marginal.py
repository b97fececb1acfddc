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

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from compress.core.checkpoint import empty
from compress.core.types import BlockRef
from compress.pipeline.draws import Draws, Picks
from compress.pipeline.gradient import Backward, Dots, Point, add_dots
from compress.pipeline.likelihood import Answers
from compress.pipeline.replay import Replay, Trace
from compress.pipeline.store import Store
from compress.pipeline.stream import Report, old_objects_left_alone

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
        checkpoint, blocks = ready.checkpoint, ready.structure.blocks
        store = copy(self.store)
        store.work = self.store.work / "marginal"
        store.work.mkdir(exist_ok=True)
        traces = [Trace(trace.inputs) for trace in originals]
        loss = _Loss(answers, originals)
        point = Point(lambda vocabulary: self._around(picks, loss, vocabulary), lambda block: self._fill(block, picks))
        walk = Backward(checkpoint, ready.structure, point, self.draws.bank, draws=DRAWS)
        found: Dots = {}
        with Replay(checkpoint.model, blocks) as replay, old_objects_left_alone():
            loss.replay = replay
            for block in blocks:
                self.report("running the plan", block.index, len(blocks))
                point.fill(block)
                with point.around(block.position == 0):
                    for trace in traces:
                        replay.advance(trace, block.index)
                store.write_state(block, traces)
                empty(checkpoint.model.get_submodule(block.name))
            add_dots(found, walk.ends(replay, traces, loss))
            for turn, block in enumerate(reversed(blocks)):
                self.report("asking what would help", turn, len(blocks))
                if block.position > 0:
                    store.read_state(blocks[block.index - 1], traces)
                add_dots(found, walk.block(replay, block, traces))
        self.report("asking what would help", len(blocks), len(blocks))
        for path in store.work.iterdir():
            path.unlink()
        total = sum(answers.counts[number] for number in range(len(traces)))
        return {key: (sum(dots[::DRAWS]) + sum(d * d for d in dots[1::DRAWS]) / 2) / total
                for key, dots in found.items()}  # fmt: skip

    def _fill(self, block: BlockRef, picks: Picks) -> None:
        self.draws.ready.checkpoint.fill(block.name)
        self.draws.putting(block)(picks)

    @contextmanager
    def _around(self, picks: Picks, loss: _Loss, vocabulary: bool) -> Iterator[None]:
        with self.draws.outside.installed("original", vocabulary), self.draws.ends(vocabulary) as use:
            use(picks)
            loss.plain, loss.planned = (lambda: use({})), (lambda: use(picks))
            yield


class _Loss:
    """The likelihood that `Backward` asks for: draw 0 is the plan's divergence from the original, others as drawn."""

    def __init__(self, answers: Answers, originals: Sequence[Trace]) -> None:
        self.answers, self.originals = answers, originals
        self.replay: Replay | None = None
        self.plain: Callable[[], None] = _nothing
        self.planned: Callable[[], None] = _nothing

    def __call__(self, number: int, trace: Trace, output: Any, draw: int) -> Tensor:
        if draw:
            return self.answers(number, trace, output, draw)
        assert self.replay is not None
        self.plain()
        with torch.no_grad():
            before = self.answers.outputs(number, trace, self.replay.finish(self.originals[number]))
        self.planned()
        return self.answers.loss(before, self.answers.outputs(number, trace, output))


def _nothing() -> None:
    """Before anything is installed."""
