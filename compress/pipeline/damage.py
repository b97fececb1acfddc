"""What rounding each group of layers does to its block's output, measured with the method that will round it.

One pass of the original model over the calibration text. In every block each group is solved on its own and put into
the block, a few batches run through it, and the original weights return. Memory: as the loop that follows, plus the
weights of one group.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from compress.core.blocks import read_weight, write_weight
from compress.core.checkpoint import Checkpoint, empty
from compress.core.device import release_memory
from compress.core.types import BlockRef, LayerRef, Plan, Structure
from compress.pipeline.collect import Collecting, MakeCollector, collecting
from compress.pipeline.outside import Outside
from compress.pipeline.replay import Replay, Trace
from compress.pipeline.solve import Job, solve
from compress.pipeline.store import Store
from compress.pipeline.stream import old_objects_left_alone
from compress.plan.mixed import groups_of

TRIAL_TOKENS = 4096
Report = Callable[[str, int, int], None]


class Trials:
    """Tries groups of layers of one model. `damage` is a function of model, plan and text alone."""

    def __init__(
        self, checkpoint: Checkpoint, structure: Structure, plan: Plan, store: Store, make: MakeCollector
    ) -> None:
        self.checkpoint, self.structure, self.plan, self.store, self.make = checkpoint, structure, plan, store, make

    def damage(self, traces: list[Trace], outside: Outside, report: Report) -> dict[str, float]:
        """Name of each group's first layer -> sum |h - h'|^2 / sum |h|^2 at its block's output; traces end at the
        original's last block."""
        blocks = self.structure.blocks
        groups = groups_of(self.structure)
        found: dict[str, float] = {}
        with Replay(self.checkpoint.model, blocks) as replay, old_objects_left_alone():
            for block in blocks:
                report("measuring damage", block.index, len(blocks))
                self.checkpoint.fill(block.name)
                before = [trace.copy() for trace in _few(traces)]
                with outside.installed("original", vocabulary=block.position == 0):
                    with collecting(self.checkpoint.model, block, self.make) as gathered:
                        for trace in traces:
                            replay.advance(trace, block.index)
                    mine = {name: layers for name, layers in groups.items() if layers[0].block == block.index}
                    gathered.inputs()
                    for name, layers in mine.items():
                        outputs = [trace.hidden[block.stack] for trace in traces[: len(before)]]
                        found[name] = self._try(replay, block, layers, gathered, before, outputs)
                empty(self.checkpoint.model.get_submodule(block.name))
                release_memory()
        report("measuring damage", len(blocks), len(blocks))
        return found

    def _try(
        self,
        replay: Replay,
        block: BlockRef,
        layers: tuple[LayerRef, ...],
        gathered: Collecting,
        before: list[Trace],
        outputs: list[Tensor],
    ) -> float:
        model = self.checkpoint.model
        kept = {layer.name: read_weight(layer, model.get_parameter(layer.param)).clone() for layer in layers}
        jobs = [Job(la, self.plan.layers[la.name], kept[la.name], gathered.take(la), 0) for la in layers]
        for item in solve(jobs):
            self.store.apply(item, model)
        off = norm = 0.0
        for trace, wanted in zip(before, outputs, strict=True):
            got = replay.run(trace, block.index)
            off += float((got - wanted).square().sum(dtype=torch.float64))
            norm += float(wanted.square().sum(dtype=torch.float64))
        for layer in layers:
            write_weight(layer, model.get_parameter(layer.param), kept[layer.name])
        return off / norm if norm else 0.0


def _few(traces: list[Trace]) -> list[Trace]:
    """The first batches that hold TRIAL_TOKENS."""
    found, tokens = [], 0
    for trace in traces:
        if tokens >= TRIAL_TOKENS:
            break
        found.append(trace)
        tokens += next(iter(trace.inputs.values())).numel()
    return found
