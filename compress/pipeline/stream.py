"""The streaming loop: one block in memory, its inputs as the compressed model makes them, a journal line per block.

Memory: one block in float32 (its original weights, then its compressed ones, and one stack of layers at a time in the
solver) + the statistics of that block + the activations of calibration and held-out text (one buffer each; held-out
twice, original and compressed) + one shard being written. Not the model: twelve blocks or forty-eight take the same.

Work: calibration tokens pass each block twice (statistics, then outputs of the compressed block), held-out tokens
twice (original, compressed); the second moments cost about one more pass.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from compress.core.blocks import read_weight
from compress.core.checkpoint import Checkpoint, empty
from compress.core.device import release_memory
from compress.core.journal import Journal
from compress.core.registry import load
from compress.core.types import BlockRef, BlockResult, LayerResult, Plan, Structure
from compress.pipeline.collect import MakeCollector, collecting
from compress.pipeline.outside import Outside
from compress.pipeline.replay import Replay, Trace
from compress.pipeline.solve import Job, Solved, solve
from compress.pipeline.store import Store

Report = Callable[[str, int, int], None]  # stage, done, total


@dataclass
class Streams:
    """The text on its way: calibration (compressed model only), held-out through both models, batch by batch."""

    calibration: list[Trace]
    original: list[Trace]
    compressed: list[Trace]

    @property
    def all(self) -> list[Trace]:
        """Every trace, in the order they are stored."""
        return [*self.calibration, *self.original, *self.compressed]


@dataclass(frozen=True)
class Stream:
    """Everything the loop works with. `make` makes the collector of one layer input."""

    checkpoint: Checkpoint
    structure: Structure
    plan: Plan
    store: Store
    journal: Journal
    make: MakeCollector
    report: Report

    def run(self, streams: Streams, outside: Outside) -> tuple[list[LayerResult], list[BlockResult]]:
        """Compress every block that the journal does not have yet; the traces end at the last block's outputs."""
        blocks = self.structure.blocks
        done = len(self.journal.of("block"))
        self._restore(streams, done)
        with Replay(self.checkpoint.model, blocks) as replay, old_objects_left_alone():
            for block in blocks[done:]:
                self.report("compressing", block.index, len(blocks))
                self._one(block, streams, outside, replay)
        self.report("compressing", len(blocks), len(blocks))
        return self.results()

    def results(self) -> tuple[list[LayerResult], list[BlockResult]]:
        """What the journal has of the finished blocks."""
        lines = self.journal.of("block")
        layers = [LayerResult(**{**r, "shape": tuple(r["shape"])}) for line in lines for r in line["layers"]]
        return layers, [BlockResult(**line["result"]) for line in lines]

    def _restore(self, streams: Streams, done: int) -> None:
        if not done or not streams.all:
            return
        blocks = self.structure.blocks[:done]
        lasts = {block.stack: block for block in blocks}
        for block in lasts.values():
            self.store.read_state(block, streams.all)

    def _one(self, block: BlockRef, streams: Streams, outside: Outside, replay: Replay) -> None:
        started = time.perf_counter()
        self.checkpoint.fill(block.name)
        first = block.position == 0
        with outside.installed("original", vocabulary=first and bool(streams.original)):
            for trace in streams.original:
                replay.advance(trace, block.index)
        with outside.installed("compressed", vocabulary=first and bool(streams.calibration or streams.compressed)):
            solved = self._solve(block, streams.calibration, replay)
            for trace in [*streams.calibration, *streams.compressed]:
                replay.advance(trace, block.index)
        self.store.write_block(block, solved)
        error, cosine = hidden_error(streams, block.stack)
        empty(self.checkpoint.model.get_submodule(block.name))
        if streams.all:
            self.store.write_state(block, streams.all)
        result = BlockResult(block.index, block.name, error, cosine, time.perf_counter() - started)
        self.journal.append(
            "block", block=block.index, layers=[asdict(s.result) for s in solved], result=asdict(result)
        )
        self._forget(block)
        release_memory()

    def _forget(self, block: BlockRef) -> None:
        """The state before this block is needed no longer, unless it is the end of a stack."""
        if block.position > 0:
            self.store.state_path(block.index - 1).unlink(missing_ok=True)

    def _solve(self, block: BlockRef, calibration: Sequence[Trace], replay: Replay) -> list[Solved]:
        model = self.checkpoint.model
        needed = any("hessian" in load("method", self.plan.layers[la.name].method).needs for la in block.layers)
        gathered = None
        if calibration and needed:
            with collecting(model, block, self.make) as gathered:
                for trace in calibration:
                    replay.run(trace, block.index)
        solved: list[Solved] = []
        for stack in gathered.inputs() if gathered is not None else [[layer] for layer in block.layers]:
            stats = gathered.take(stack[0]) if gathered is not None else None
            jobs = [
                Job(
                    layer,
                    self.plan.layers[layer.name],
                    read_weight(layer, model.get_parameter(layer.param)),
                    stats,
                    self.checkpoint.dtype_of(layer.param).itemsize * layer.shape[0] * layer.shape[1],
                    self.store.dtype.itemsize * 8,
                )
                for layer in stack
            ]
            solved += solve(jobs)
            if gathered is not None:
                gathered.drop(stack[0])
        for item in solved:
            self.store.apply(item, model)
        self.store.round_kept(block)
        return solved


@contextmanager
def old_objects_left_alone() -> Iterator[None]:
    """Inside, the garbage collector looks only at objects made since: the libraries' hundreds of thousands, which
    each block's collection would walk through, take 0.3 seconds a time. Nothing happens if the caller froze some."""
    ours = gc.get_freeze_count() == 0
    if ours:
        gc.freeze()
    try:
        yield
    finally:
        if ours:
            gc.unfreeze()


def hidden_error(streams: Streams, stack: str) -> tuple[float, float]:
    """Held-out |h - h'|^2 / |h|^2 and mean cosine of tokens at the newest block's output; nan without held-out text."""
    off = norm = cosine = 0.0
    tokens = 0
    for original, compressed in zip(streams.original, streams.compressed, strict=True):
        a, b = original.hidden[stack], compressed.hidden[stack]
        off += float((a - b).square().sum(dtype=torch.float64))
        norm += float(a.square().sum(dtype=torch.float64))
        cosine += float(torch.nn.functional.cosine_similarity(a, b, dim=-1).sum(dtype=torch.float64))
        tokens += a.shape[0] * a.shape[1]
    return (off / norm, cosine / tokens) if tokens and norm else (float("nan"), float("nan"))


def text_inputs(sequences: Sequence[Tensor], encoder_decoder: bool) -> list[dict[str, Tensor]]:
    """Model inputs from token ids, equal lengths batched up to 2,048 tokens, order kept.

    An encoder-decoder gets the first half of a sequence to read and the second half to predict.
    """
    batches: list[list[Tensor]] = []
    for ids in sequences:
        if batches and batches[-1][0].numel() == ids.numel() and len(batches[-1]) * ids.numel() < BATCH_TOKENS:
            batches[-1].append(ids)
        else:
            batches.append([ids])
    stacked = [torch.stack(batch) for batch in batches]
    if not encoder_decoder:
        return [{"input_ids": ids} for ids in stacked]
    half = [ids.shape[1] // 2 for ids in stacked]
    return [{"input_ids": i[:, :h], "decoder_input_ids": i[:, h:]} for i, h in zip(stacked, half, strict=True)]


BATCH_TOKENS = 2048


def remove_work(path: Path) -> None:
    """Delete the files of the loop once the artifact is whole."""
    for file in path.glob("*"):
        file.unlink()
    path.rmdir()
