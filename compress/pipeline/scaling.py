"""Scales of inputs, chosen block by block before anything is planned or solved: the model is read with them then.

What costs are found with, what trials and the artifact are built from and what all of them are compared with is one
model afterwards, whose function is the original's up to rounding of floats (compress.core.checkpoint.Factor).
Cost: two passes of TOKENS tokens, second moments of every input once, the candidates of compress.pipeline.awq.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from compress.core.checkpoint import Factor, empty
from compress.core.device import pick_device, release_memory
from compress.core.errors import OutputError
from compress.core.journal import WORK, Journal
from compress.core.safetensors_file import Pending, pending, read_header, read_tensor, write_file
from compress.core.types import BlockRef, torch_dtype
from compress.pipeline.awq import Awq, Wanted
from compress.pipeline.folding import Candidate
from compress.pipeline.outside import Outside
from compress.pipeline.prepare import Prepared, collectors_of, make_streams
from compress.pipeline.replay import Replay, Trace
from compress.pipeline.store import Store
from compress.pipeline.stream import Report, old_objects_left_alone

TOKENS = 8192
"""Of calibration text, evenly taken, that scales are chosen by: what they gain is in the weights more than in these."""
PLACE = "scales"
ROWS, COLUMNS = "rows", "columns"


def _asked(ready: Prepared) -> bool:
    """Whether inputs are scaled: where that is asked for, or a layer's method is AWQ."""
    return "awq" in ready.reparams or any(plan.method == "awq" for plan in ready.plan.layers.values())


def scaled(ready: Prepared, out: Path, journal: Journal, report: Report) -> dict[int, list[str]]:
    """From here on the checkpoint of `ready` reads its weights with scales; block -> names of the layers whose inputs
    are scaled. Nothing where none are to be, or no text calibrates. Raises OutputError when a file is gone."""
    if not _asked(ready) or ready.data is None or not ready.data.calibration.sequences:
        return {}
    scaling = _Scaling(ready, out / WORK, journal, report)
    if len(journal.of("scaled")) < len(ready.structure.blocks):
        scaling.run()
    shutil.rmtree(out / WORK / PLACE, ignore_errors=True)
    found = {line["block"]: line["layers"] for line in journal.of("scaled")}
    for block, layers in found.items():
        if layers:
            scaling.read(block)
    return found


class _Scaling:
    def __init__(self, ready: Prepared, work: Path, journal: Journal, report: Report) -> None:
        self._ready, self._work, self._journal, self._report = ready, work, journal, report
        self._dtype = torch_dtype(ready.dtype)

    def run(self) -> None:
        """Choose what the journal does not have yet."""
        ready, checkpoint, blocks = self._ready, self._ready.checkpoint, self._ready.structure.blocks
        store = self._store()
        outside = Outside(checkpoint, ready.structure, ready.plan, store)
        outside.compress(store.block_path(-1))
        outside.load_small(store.block_path(-1))
        asked = ready.reparams
        make = collectors_of(ready.plan, pick_device(ready.recipe.device))
        awq = Awq(checkpoint.model, ready.plan, make, Wanted("awq" in asked, "rotate" not in asked, self._dtype))
        traces = _some(make_streams(ready).calibration)
        done = len(self._journal.of("scaled"))
        for block in {block.stack: block for block in blocks[:done]}.values():
            store.read_state(block, traces)
        with Replay(checkpoint.model, blocks) as replay, old_objects_left_alone():
            for block in blocks[done:]:
                self._report("scaling inputs", block.index, len(blocks))
                checkpoint.fill(block.name)
                with outside.installed("original", vocabulary=block.position == 0):
                    found = awq.change(block, replay, traces)
                    for trace in traces:
                        replay.advance(trace, block.index)
                if found:
                    self._write(block, found)
                store.write_state(block, traces)
                layers = [layer.name for candidate, _ in found for layer in candidate.layers]
                self._journal.append("scaled", block=block.index, layers=layers)
                if block.position > 0:
                    store.state_path(block.index - 1).unlink(missing_ok=True)
                empty(checkpoint.model.get_submodule(block.name))
                release_memory()
        self._report("scaling inputs", len(blocks), len(blocks))

    def _store(self) -> Store:
        """With a folder of its own, which `scaled` deletes."""
        store = Store(self._ready.checkpoint, self._ready.plan, self._work, self._dtype)
        store.work = self._work / PLACE
        store.work.mkdir(parents=True, exist_ok=True)
        return store

    def read(self, block: int) -> None:
        """Have the checkpoint read the block with what was chosen for it."""
        path = self._path(block)
        if not path.is_file():
            raise OutputError(f"{path} of the interrupted run is gone; pass --overwrite to start over")
        factors: dict[str, list[Factor]] = {}
        for name, entry in sorted(read_header(path).items()):
            _, side, param = name.split(" ", 2)
            factors.setdefault(param, []).append(Factor(side == ROWS, read_tensor(entry)))
        self._ready.checkpoint.factors |= factors

    def _write(self, block: BlockRef, found: Sequence[tuple[Candidate, Tensor]]) -> None:
        """Factors under names that sort as they were applied."""
        tensors: dict[str, Pending] = {}
        for number, (candidate, scale) in enumerate(found):
            source = self._ready.checkpoint.model.get_submodule(candidate.source)
            for name, _ in source.named_parameters(recurse=False):
                tensors[f"{number:05d} {ROWS} {candidate.source}.{name}"] = pending(scale)
            for layer in candidate.layers:
                tensors[f"{number:05d} {COLUMNS} {layer.param}"] = pending(candidate.of_layers(scale).contiguous())
        write_file(self._path(block.index), tensors)

    def _path(self, block: int) -> Path:
        return self._work / f"{PLACE}-{block:05d}.safetensors"


def _some(traces: Sequence[Trace]) -> list[Trace]:
    """Batches from all over the text that hold about TOKENS; of sound and what is said in it, so many of the latter."""
    tokens = 0
    for trace in traces:
        sizes = [tensor.numel() for tensor in trace.inputs.values() if not tensor.is_floating_point()]
        tokens += min(sizes, default=len(next(iter(trace.inputs.values()))))
    return list(traces[:: max(1, tokens // TOKENS)])
