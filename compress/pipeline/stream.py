"""The streaming loop: one block in memory, its inputs as the compressed model makes them, a journal line per block.

Memory: one block in float32 (its original weights, then its compressed ones, and one stack of layers at a time in the
solver) + the statistics of one step of that block + the activations of calibration and held-out text (both twice,
original and compressed, and calibration once more after attention) + one shard being written; where blocks are tuned,
five numbers more for each weight of the block and the graph of one batch. Not the model: twelve blocks or forty-eight
take the same.

A block is solved in steps (what feeds attention, what attention feeds, ...), each on the inputs that the steps before
it, compressed already, leave; layers that write to the residual stream are solved for the stream of the original model.

Work, in passes of the calibration tokens through the matrices of a llama block: 1 of the original, 0.15 + 0.25 + 0.5
for what the steps read, 0.25 for the outputs of the compressed block (finished.py keeps what it can); second moments
and drift cost 0.9 more. Without `correct`: 1 for all statistics, 1 for the outputs, 0.5 for second moments. Held-out
tokens pass twice (original, compressed).
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from compress.core.blocks import read_weight, steps_of
from compress.core.checkpoint import Checkpoint, empty
from compress.core.device import release_memory, trim_memory
from compress.core.journal import Journal
from compress.core.registry import load
from compress.core.types import BlockRef, BlockResult, LayerPlan, LayerRef, LayerResult, Plan, Structure
from compress.pipeline.acting import Acting
from compress.pipeline.blockwise import Sides, Tuner
from compress.pipeline.collect import Collecting, MakeCollector, collecting
from compress.pipeline.finished import Finished
from compress.pipeline.folding import Reparam
from compress.pipeline.importance import Importance
from compress.pipeline.outside import Outside
from compress.pipeline.replay import Replay, Trace, text_mask
from compress.pipeline.solve import Job, Solved, kept_row, solve
from compress.pipeline.store import Store
from compress.pipeline.writers import Drift, Writers

Report = Callable[[str, int, int], None]  # stage, done, total


@dataclass
class Streams:
    """The text on its way, batch by batch: calibration and held-out, each through both models.

    reference: calibration through the original model; empty when nothing asks for it.
    """

    calibration: list[Trace]
    reference: list[Trace]
    original: list[Trace]
    compressed: list[Trace]

    @property
    def all(self) -> list[Trace]:
        """Every trace, in the order they are stored."""
        return [*self.calibration, *self.reference, *self.original, *self.compressed]


@dataclass(frozen=True)
class Solving:
    """One block being solved. around: installs the compressed model's parameters around the blocks; the vocabulary,
    which the first block needs, is so in memory while text runs and not while codes are solved. energies: of each
    batch, layer -> what compress.pipeline.importance knows of its tokens; None where it is not asked."""

    block: BlockRef
    calibration: Sequence[Trace]
    writers: Writers | None
    finished: Finished
    replay: Replay
    acting: Acting
    around: Callable[[], AbstractContextManager[None]]
    energies: Sequence[Mapping[str, Tensor]] | None


@dataclass(frozen=True)
class Stream:
    """Everything the loop works with. make, drift: make the collectors of one layer input, and of a writer's drift.

    reparams: what is done to each block's weights before they are solved. tuner: of whole blocks, after their layers
    are solved. seen: is shown every layer as it is solved, before it is tuned. importance: what tokens count.
    """

    checkpoint: Checkpoint
    structure: Structure
    plan: Plan
    store: Store
    journal: Journal
    make: MakeCollector
    drift: Callable[[int, int], Drift]
    report: Report
    reparams: tuple[Reparam, ...] = ()
    tuner: Tuner | None = None
    seen: Callable[[Job, Solved], None] | None = None
    importance: Importance | None = None

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
        writers = Writers(block, self.drift) if streams.reference and corrects(self.plan) else None
        with outside.installed("original", vocabulary=first and bool(streams.original or streams.reference)):
            for trace in streams.original:
                replay.advance(trace, block.index)
            for trace in streams.reference:
                forward = partial(replay.advance, trace, block.index)
                if writers is None:
                    forward()
                else:
                    writers.original(self.checkpoint.model, forward)
        finished = Finished(self.checkpoint.model, block, steps_of(block) if writers is not None else (block,))
        around = partial(outside.installed, "compressed", vocabulary=first)
        changed: dict[str, list[str]] = {}
        if self.reparams and streams.calibration:
            with around():
                for reparam in self.reparams:
                    for name in reparam.change(block, replay, streams.calibration):
                        changed.setdefault(name, []).append(reparam.name)
        acting = Acting(self.checkpoint.model)
        originals = self._weights(block) if self.tuner is not None else {}
        energies = self._energies(block, streams.calibration)
        solved = self._solve(Solving(block, streams.calibration, writers, finished, replay, acting, around, energies))
        tuned = None
        if self.tuner is not None:
            with around():
                sides = Sides(replay, streams.calibration, streams.reference)
                solved, tuned = self.tuner.tune(block, solved, originals, sides)
            originals.clear()
            for item in solved:
                self.store.apply(item, self.checkpoint.model)
        with around() if streams.calibration or streams.compressed else nullcontext():
            with finished.playing() if tuned is None else nullcontext():  # what it kept is of the weights before
                for number, trace in enumerate(streams.calibration):
                    finished.batch = number
                    replay.advance(trace, block.index)
            for trace in streams.compressed:
                replay.advance(trace, block.index)
        acting.end()
        self.store.write_block(block, solved)
        error, cosine = hidden_error(streams, block.stack)
        empty(self.checkpoint.model.get_submodule(block.name))
        if streams.all:
            self.store.write_state(block, streams.all)
        gain = (None, None) if tuned is None else (tuned.before, tuned.after)
        result = BlockResult(block.index, block.name, error, cosine, time.perf_counter() - started, *gain)
        rows = {item.layer.name: item.result for item in solved}
        results = [rows.get(layer.name) or self._kept(layer) for layer in block.layers]
        layers = [asdict(row) | {"reparams": ",".join(changed.get(row.layer, ()))} for row in results]
        self.journal.append("block", block=block.index, layers=layers, result=asdict(result))
        self._forget(block)
        release_memory()

    def _energies(self, block: BlockRef, calibration: Sequence[Trace]) -> Sequence[Mapping[str, Tensor]] | None:
        if self.importance is None:
            return None
        return self.importance.of(block, [len(next(iter(trace.inputs.values()))) for trace in calibration])

    def _kept(self, layer: LayerRef) -> LayerResult:
        before = self.checkpoint.dtype_of(layer.param).itemsize
        return kept_row(layer, self.plan.layers[layer.name], before, self.store.dtype.itemsize)

    def _weights(self, block: BlockRef) -> dict[str, Tensor]:
        """The matrices of the block as they are now, by layer."""
        model = self.checkpoint.model
        return {layer.name: read_weight(layer, model.get_parameter(layer.param)) for layer in block.layers}

    def _forget(self, block: BlockRef) -> None:
        """The state before this block is needed no longer, unless it is the end of a stack."""
        if block.position > 0:
            self.store.state_path(block.index - 1).unlink(missing_ok=True)

    def _solve(self, work: Solving) -> list[Solved]:
        """Solve the block step by step and put the compressed weights into the model."""
        self.store.round_kept(work.block)
        solved: list[Solved] = []
        for step in work.finished.steps:
            needed = any(reads_text(self.plan.layers[layer.name]) for layer in step.layers)
            gathered = self._gather(work, step) if work.calibration and needed else None
            for item in self._solve_step(step, gathered):
                self.store.apply(item, self.checkpoint.model)
                work.acting.begin(item, self.plan.layers[item.layer.name].activation)
                solved.append(item)
            if work.writers is not None:
                work.writers.forget(step)
            work.finished.solved()
        return solved

    def _gather(self, work: Solving, step: BlockRef) -> Collecting:
        """The statistics of one step, with the steps before it compressed."""
        model, writers, finished = self.checkpoint.model, work.writers, work.finished
        trim_memory()
        collector = collecting(model, step, self.make, writers, apart=work.energies is not None)
        with work.around(), collector as gathered, finished.playing():
            for number, trace in enumerate(work.calibration):
                finished.batch = number
                gathered.mask = text_mask(trace)
                gathered.energies = work.energies[number] if work.energies is not None else None
                if writers is not None:
                    writers.batch(number, gathered.mask)
                work.replay.visit(trace, step.index)
        return gathered

    def _solve_step(self, step: BlockRef, gathered: Collecting | None) -> list[Solved]:
        solved: list[Solved] = []
        trim_memory()
        for stack in gathered.inputs() if gathered is not None else [[layer] for layer in step.layers]:
            stats = gathered.take(stack[0]) if gathered is not None else None
            jobs = [
                Job(
                    layer,
                    self.plan.layers[layer.name],
                    read_weight(layer, self.checkpoint.model.get_parameter(layer.param)),
                    stats,
                    self.checkpoint.dtype_of(layer.param).itemsize * layer.shape[0] * layer.shape[1],
                    self.store.dtype.itemsize * 8,
                )
                for layer in stack
                if self.plan.layers[layer.name].scheme.kind != "dense"
            ]
            found = solve(jobs)
            solved += found
            if self.seen is not None:
                by_name = {job.layer.name: job for job in jobs}
                for item in found:
                    self.seen(by_name[item.layer.name], item)
            if gathered is not None:
                gathered.drop(stack[0])
        return solved


def needs_of(plan: LayerPlan) -> tuple[str, ...]:
    """The statistics that a layer's method asks for, with its options; none for layers that are kept."""
    if plan.scheme.kind == "dense":
        return ()
    method = load("method", plan.method)
    return tuple(method.needs(method.options(**plan.options)))


def corrects(plan: Plan) -> bool:
    """Whether layers are solved for the original model's stream, so that its text has to run beside."""
    return any("drift" in needs_of(layer) for layer in plan.layers.values())


def reads_text(plan: LayerPlan) -> bool:
    """Whether the layer's codes or the grid of its input come from calibration text."""
    static = plan.activation is not None and not plan.activation.dynamic
    return static or "hessian" in needs_of(plan)


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
        if (mask := text_mask(original)) is not None and mask.shape == a.shape[:2]:
            a, b = a[mask], b[mask]
        off += float((a - b).square().sum(dtype=torch.float64))
        norm += float(a.square().sum(dtype=torch.float64))
        cosine += float(torch.nn.functional.cosine_similarity(a, b, dim=-1).sum(dtype=torch.float64))
        tokens += a.numel() // a.shape[-1]
    return (off / norm, cosine / tokens) if tokens and norm else (float("nan"), float("nan"))


def text_inputs(sequences: Sequence[Tensor], encoder_decoder: bool) -> list[dict[str, Tensor]]:
    """Model inputs from token ids, equal lengths batched up to 1,024 tokens, order kept.

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


BATCH_TOKENS = 1024


def remove_work(path: Path) -> None:
    """Delete the files of the loop once the artifact is whole."""
    for file in path.glob("*"):
        file.unlink()
    path.rmdir()
