"""The loop behind `compress sensitivity`: forward with a bank of codes, backward with dots, a journal line per block.

Where a build will count tokens by gradients (compress.pipeline.importance), codes are solved so, too: at the block's
turn backward, with one pass forward and back before it.

Memory: as the quantizing loop, with one layer's codes at every scheme; backward as compress.pipeline.gradient says.
On disk until the end: what goes into each block, (texts, L, D) float32, and the bank.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from compress.core.blocks import read_weight
from compress.core.checkpoint import empty
from compress.core.device import pick_device, release_memory
from compress.core.errors import OutputError
from compress.core.journal import Journal
from compress.core.numerics.bootstrap import Array, bootstrap
from compress.core.safetensors_file import pending, read_header, read_tensor, write_file
from compress.core.task import Feature
from compress.core.types import BlockRef, LayerPlan, LayerRef, LayerStats, Sensitivity, Structure
from compress.pipeline.bank import Bank
from compress.pipeline.collect import Collecting, collecting
from compress.pipeline.gradient import Backward, Dots, Point, add_dots
from compress.pipeline.importance import Importance, Watched
from compress.pipeline.likelihood import Answers
from compress.pipeline.outside import Outside
from compress.pipeline.prepare import Prepared, collectors_of
from compress.pipeline.replay import Replay, Trace
from compress.pipeline.solve import Job, Solved, solve
from compress.pipeline.store import Store
from compress.pipeline.stream import Report, old_objects_left_alone
from compress.pipeline.swapped import Swapped
from compress.plan.pooling import pooled
from compress.plan.uniform import all_layers

MOST_TEXTS = 256
"""Texts that are judged one by one; of more, those of one batch are taken together."""
ENOUGH, MOST_DRAWS = 96, 4
"""Squares that a score is a mean of: of fewer texts each has several draws of its likelihood, so many at most."""

Chosen = Mapping[str, tuple[LayerPlan, ...]]
Row = dict[str, Any]


@dataclass(frozen=True)
class Profiling:
    """Everything the loop works with. chosen: the plans that may be chosen for each layer. importance: where to write
    what tokens count, None: all alike."""

    ready: Prepared
    chosen: Chosen
    store: Store
    outside: Outside
    bank: Bank
    journal: Journal
    report: Report
    importance: Path | None = None

    def sensitivities(self, traces: Sequence[Trace], answers: Answers, metric: str) -> tuple[list[Sensitivity], Row]:
        """What each layer costs at each scheme, and the line that says in what unit and over how many answers."""
        self.forward(traces)
        if metric == "kl":
            self.swapped(traces, answers)
        else:
            self.backward(traces, answers)
        losses, said = recorded(self.journal)
        rows = self._by_treatment([row for line in self.journal.of("banked") for row in line["rows"]])
        return costs(rows, losses, np.array(said["counts"], np.float64), roles_of(self.ready, self.journal)), said

    def forward(self, traces: Sequence[Trace]) -> None:
        """Fill the bank, or with `importance` only the folder of what goes into blocks. Traces end at the last blocks'
        outputs."""
        blocks, weighed = self.ready.structure.blocks, self.importance is not None
        passed = self.journal.of("passed" if weighed else "banked")
        done = len([line for line in passed if line["block"] >= 0])
        self._check(blocks[:done])
        for block in {block.stack: block for block in blocks[:done]}.values():
            self.store.read_state(block, list(traces))
        with Replay(self.ready.checkpoint.model, blocks) as replay, old_objects_left_alone():
            for block in blocks[done:]:
                self.report("solving", block.index, len(blocks))
                self.ready.checkpoint.fill(block.name)
                with (
                    self.outside.installed("original", vocabulary=block.position == 0),
                    nullcontext() if weighed else self._collecting(block) as gathered,
                ):
                    for trace in traces:
                        replay.advance(trace, block.index)
                self.store.write_state(block, list(traces))
                if gathered is not None:
                    self._bank(block.index, self._solved(gathered))
                else:
                    self.journal.append("passed", block=block.index)
                empty(self.ready.checkpoint.model.get_submodule(block.name))
                release_memory()
        if not any(line["block"] < 0 for line in self.journal.of("banked")):
            self._bank(-1, self._ends())
        self.report("solving", len(blocks), len(blocks))

    def _collecting(self, block: BlockRef) -> AbstractContextManager[Collecting]:
        make = collectors_of(self.ready.plan, pick_device(self.ready.recipe.device))
        return collecting(self.ready.checkpoint.model, block, make, apart=self.importance is not None)

    def _weighed(self, walk: Backward, replay: Replay, block: BlockRef, traces: Sequence[Trace]) -> None:
        """Fill the bank with codes of a block whose tokens count by gradients."""
        assert walk.watched is not None
        assert self.importance is not None
        if any(line["block"] == block.index for line in self.journal.of("banked")):
            return
        walk.watch(replay, block, traces)
        walk.watched.write(self.importance, block)
        rows = [len(next(iter(trace.inputs.values()))) for trace in traces]
        energies = Importance(self.importance, len(traces), range(len(traces))).of(block, rows)
        walk.point.fill(block)
        with walk.point.around(block.position == 0), self._collecting(block) as gathered:
            for trace, known in zip(traces, energies, strict=True):
                gathered.energies = known
                replay.visit(trace, block.index)
        self._bank(block.index, self._solved(gathered))
        empty(self.ready.checkpoint.model.get_submodule(block.name))
        release_memory()

    def backward(self, traces: Sequence[Trace], answers: Answers) -> None:
        """The dots of every layer and scheme with each text, into the journal."""
        ready, blocks = self.ready, self.ready.structure.blocks
        draws = min(MOST_DRAWS, -(-ENOUGH // max(1, len(traces))))
        watched = Watched() if self.importance is not None else None
        walk = Backward(
            ready.checkpoint, ready.structure, Point.original(ready.checkpoint, self.outside), self.bank, self.chosen,
            draws,
        )  # fmt: skip
        walk.watched = watched
        done = len(self.journal.of("scored"))
        if done:
            walk.upstream = self._upstream(done, len(traces), draws)
        with Replay(ready.checkpoint.model, blocks) as replay, old_objects_left_alone():
            if not done:
                dots = walk.ends(replay, traces, answers)
                counts = [answers.counts[n] for n in range(len(traces))]
                self._scored(0, dots, walk, {"unit": answers.unit, "counts": counts, "draws": draws})
            for turn, block in enumerate(reversed(blocks), 1):
                self.report("judging", turn - 1, len(blocks))
                if turn <= done - 1:
                    continue
                if block.position > 0:
                    self.store.read_state(blocks[block.index - 1], list(traces))
                if watched is not None:
                    self._weighed(walk, replay, block, traces)
                dots = walk.block(replay, block, traces)
                if watched is not None and self.importance is not None:
                    watched.write(self.importance, block)
                self._scored(turn, dots, walk, {})
        self.report("judging", len(blocks), len(blocks))

    def swapped(self, traces: Sequence[Trace], answers: Answers) -> None:
        """The divergence of every layer and scheme on each text, measured, into the journal."""
        trial = Swapped(self.ready.checkpoint, self.ready.structure, self.outside, self.bank)
        done = {line["block"] for line in self.journal.of("swapped")}
        with trial.whole():
            for block in (-1, *(block.index for block in self.ready.structure.blocks)):
                if block not in done:
                    found = trial.divergences(block, traces, answers, self.report)
                    rows = [[layer, scheme, values] for (layer, scheme), values in found.items()]
                    said = {"unit": answers.unit, "counts": [answers.counts[n] for n in range(len(traces))]}
                    self.journal.append("swapped", block=block, rows=rows, **said)

    def _check(self, blocks: Iterable[BlockRef]) -> None:
        """Raises OutputError when files that the journal speaks of are gone."""
        scored = len(self.journal.of("scored"))
        needed = [self.store.state_path(block.index) for block in blocks]
        needed += [self.bank.path(line["block"]) for line in self.journal.of("banked")]
        needed += [self._gradients(scored - 1)] if scored else []
        if missing := [path for path in needed if not path.is_file()]:
            raise OutputError(f"{missing[0]} of the interrupted run is gone; pass --overwrite to start over")

    def _solved(self, gathered: Collecting) -> list[Solved]:
        found: list[Solved] = []
        for stack in gathered.inputs():
            stats = gathered.take(stack[0])
            coded = {layer.name: _codes(self.chosen[layer.name]) for layer in stack}
            for way in range(max(map(len, coded.values()), default=0)):
                found += solve(self._job(la, coded[la.name][way], stats) for la in stack if way < len(coded[la.name]))
            gathered.drop(stack[0])
        return found

    def _ends(self) -> list[Solved]:
        """The embedding and the head, read as they are in the file."""
        asked = [layer for layer in all_layers(self.ready.structure) if layer.block < 0 and layer.name in self.chosen]
        return [
            item
            for layer in asked
            for plan in self.chosen[layer.name]
            if plan.scheme.kind != "dense"  # kept as it is
            for item in solve([self._job(layer, plan, None)])
        ]

    def _by_treatment(self, rows: list[Row]) -> list[Row]:
        """The rows of the bank, which are by scheme, one for each treatment that has those codes."""
        return [
            {**row, "scheme": plan.treatment}
            for row in rows
            for plan in self.chosen[row["layer"]]
            if plan.scheme.name == row["scheme"]
        ]

    def _job(self, layer: LayerRef, plan: LayerPlan, stats: LayerStats | None) -> Job:
        parameter = self.ready.checkpoint.model.get_parameter(layer.param)
        weight = read_weight(layer, self.ready.checkpoint.load(layer.param) if parameter.is_meta else parameter)
        before = self.ready.checkpoint.dtype_of(layer.param).itemsize * weight.numel()
        return Job(layer, plan, weight, stats, before)

    def _bank(self, block: int, solved: list[Solved]) -> None:
        self.bank.write(block, solved)
        rows = [
            {
                "layer": item.layer.name,
                "scheme": item.result.scheme,
                "bits": item.q.scheme.bits_per_weight(item.layer.shape),
                "error": item.result.output_error,
            }
            for item in solved
        ]
        self.journal.append("banked", block=block, rows=rows)

    def _gradients(self, turn: int) -> Any:
        return self.store.work / f"gradients-{turn:05d}.safetensors"

    def _scored(self, turn: int, dots: Dots, walk: Backward, more: dict[str, Any]) -> None:
        tensors = {
            f"{number}.{draw}.{stack}": pending(gradient)
            for number, draws in enumerate(walk.upstream)
            for draw, held in enumerate(draws)
            for stack, gradient in held.items()
        }
        write_file(self._gradients(turn), tensors)
        rows = [[layer, scheme, values] for (layer, scheme), values in dots.items()]
        self.journal.append("scored", turn=turn, dots=rows, **more)
        self._gradients(turn - 1).unlink(missing_ok=True)

    def _upstream(self, done: int, texts: int, draws: int) -> list[list[dict[str, Tensor]]]:
        entries = read_header(self._gradients(done - 1))
        found: list[list[dict[str, Tensor]]] = [[{} for _ in range(draws)] for _ in range(texts)]
        for name, entry in entries.items():
            number, draw, stack = name.split(".", 2)
            found[int(number)][int(draw)][stack] = read_tensor(entry)
        return found


def _codes(plans: Sequence[LayerPlan]) -> list[LayerPlan]:
    """Those of `plans` that differ in codes: the first of each scheme that has any."""
    return list({plan.scheme: plan for plan in reversed(plans) if plan.scheme.kind != "dense"}.values())[::-1]


def _summed(lines: list[Row]) -> Dots:
    """The dots of all lines."""
    found: Dots = {}
    for line in lines:
        add_dots(found, {(layer, scheme): values for layer, scheme, values in line["dots"]})
    return found


Losses = dict[tuple[str, str], list[float]]
"""(layer, scheme) -> divergence of each text, all its answers together."""


def recorded(journal: Journal) -> tuple[Losses, Row]:
    """What the journal of a finished profile says of each text, and the line with their unit and counts."""
    if lines := journal.of("swapped"):
        return {(layer, scheme): values for line in lines for layer, scheme, values in line["rows"]}, lines[0]
    lines = journal.of("scored")
    draws = lines[0]["draws"]
    return {key: [sum(dot * dot for dot in found[n : n + draws]) / (2 * draws) for n in range(0, len(found), draws)]
            for key, found in _summed(lines).items()}, lines[0]  # fmt: skip


def roles_of(ready: Prepared, journal: Journal) -> Mapping[str, str] | None:
    """Layer -> its role; None where losses were measured, and are not to be pooled."""
    return None if journal.of("swapped") else {layer.name: layer.role for layer in all_layers(ready.structure)}


def costs(rows: list[Row], losses: Losses, counts: Array, roles: Mapping[str, str] | None) -> list[Sensitivity]:
    """Divergence by layer and scheme, with 95 % intervals over texts. rows: of the bank. counts: answers of each text
    (D,). roles: of layers, by which scores are pooled; None: they stay as they are. A layer that no text reaches loses
    nothing."""
    none = [0.0] * len(counts)
    sums = np.array([losses.get((row["layer"], row["scheme"]), none) for row in rows], np.float64).T  # (D, rows)

    def figures(totals: Array) -> Array:
        means: Array = totals[:, :-1] / totals[:, -1:]
        return means

    values, bounds = bootstrap(np.concatenate([sums, counts[:, None]], 1), figures, 0)
    found = [
        Sensitivity(row["layer"], row["scheme"], float(v), low or 0.0, high or float(v), row["bits"], row["error"])
        for row, v, (low, high) in zip(rows, values, bounds, strict=True)
    ]
    return found if roles is None else pooled(found, roles, sums, counts)


def texts_of(ready: Prepared, traces: Sequence[Trace]) -> tuple[list[Trace], list[tuple[Feature, ...]]]:
    """Traces of one text each, with its feature where it is a row of a task; of more than MOST_TEXTS, as they are."""
    numbers: Sequence[tuple[int, ...]] = ready.text.calibration_batches if ready.text is not None else ()
    features = [tuple(ready.text.calibration[n] for n in batch) for batch in numbers] if ready.text is not None else []
    rows = [len(next(iter(trace.inputs.values()))) for trace in traces]
    if sum(rows) > MOST_TEXTS:
        return list(traces), features
    one = [
        Trace({name: tensor[n : n + 1] for name, tensor in trace.inputs.items()})
        for trace, count in zip(traces, rows, strict=True)
        for n in range(count)
    ]
    return one, [(feature,) for batch in features for feature in batch]


def listed(found: Iterable[Sensitivity], structure: Structure) -> list[Row]:
    """Rows for the record: each with the block and role of its layer."""
    layers = {layer.name: layer for layer in all_layers(structure)}
    return [
        {name: value for name, value in asdict(one).items() if name != "error"}
        | {"block": layers[one.layer].block, "role": layers[one.layer].role}
        for one in found
    ]
