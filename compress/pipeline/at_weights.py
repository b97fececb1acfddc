"""The loss of a compressed model backward, at its own weights: forward first, a block at a time, then the blocks back.

On disk meanwhile: the text's activations after each block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from typing import Any

import torch
from torch import Tensor

from compress.core.checkpoint import empty
from compress.pipeline.gradient import Backward, Dots, add_dots
from compress.pipeline.likelihood import Answers
from compress.pipeline.replay import Replay, Trace
from compress.pipeline.store import Store
from compress.pipeline.stream import Report, old_objects_left_alone


class Loss:
    """The scalars that `Backward` asks for: draw 0 is the divergence from the original, others as `answers` draws them.

    plain, planned: install the original's and the compressed model's parameters around the blocks. losses: of draw 0,
    text by text.
    """

    def __init__(self, answers: Answers, originals: Sequence[Trace]) -> None:
        """originals: each text as the original model has it, at the last blocks' outputs; answers: of these texts."""
        self.answers, self.originals = answers, originals
        self.replay: Replay | None = None
        self.plain: Callable[[], None] = _nothing
        self.planned: Callable[[], None] = _nothing
        self.losses: list[float] = []

    def __call__(self, number: int, trace: Trace, output: Any, draw: int) -> Tensor:
        if draw:
            return self.answers(number, trace, output, draw)
        assert self.replay is not None
        self.plain()
        with torch.no_grad():
            before = self.answers.outputs(number, trace, self.replay.finish(self.originals[number]))
        self.planned()
        loss = self.answers.loss(before, self.answers.outputs(number, trace, output))
        self.losses.append(float(loss.detach()))
        return loss


def products(walk: Backward, loss: Loss, store: Store, folder: str, report: Report) -> Dots:
    """What `walk` finds at its point, of the texts of `loss`. folder: of `store`, for activations; empty afterwards."""
    checkpoint, blocks = walk.checkpoint, walk.structure.blocks
    store = copy(store)
    store.work = store.work / folder
    store.work.mkdir(exist_ok=True)
    traces = [Trace(trace.inputs) for trace in loss.originals]
    found: Dots = {}
    with Replay(checkpoint.model, blocks) as replay, old_objects_left_alone():
        loss.replay = replay
        for block in blocks:
            report("running the plan", block.index, len(blocks))
            walk.point.fill(block)
            with walk.point.around(block.position == 0):
                for trace in traces:
                    replay.advance(trace, block.index)
            store.write_state(block, traces)
            empty(checkpoint.model.get_submodule(block.name))
        add_dots(found, walk.ends(replay, traces, loss))
        for turn, block in enumerate(reversed(blocks)):
            report("asking what would help", turn, len(blocks))
            if block.position > 0:
                store.read_state(blocks[block.index - 1], traces)
            add_dots(found, walk.block(replay, block, traces))
    report("asking what would help", len(blocks), len(blocks))
    for path in store.work.iterdir():
        path.unlink()
    return found


def _nothing() -> None:
    """Before anything is installed."""
