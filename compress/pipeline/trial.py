"""A trial build: one even plan is built as the run will build its own, and asked which layers its loss comes from.

Of the built model's weights with rounding errors E (codes against what was to be rounded, which is the original's
weight or the one that makes good what earlier layers lost), dKL/dE . E / 2 is a layer's part in the loss: of a loss
that is quadratic, the parts and those of the corrections add up to it (Euler). Asked on judging text: on the text that
codes were solved on, next to nothing is left of the loss. What that makes of costs: compress.plan.shares.
Cost: one build with the text that says what layers cost, one pass of the judging text forward and backward.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compress.core.blocks import write_weight
from compress.core.device import pick_device
from compress.core.errors import BudgetError
from compress.core.journal import Journal
from compress.core.numerics.affine import dequantize
from compress.core.numerics.correct import corrected
from compress.core.registry import load
from compress.core.safetensors_file import Pending, pending, read_header, read_tensor, write_file
from compress.core.types import BlockRef, LayerPlan, Sensitivity, torch_dtype
from compress.pipeline.at_weights import Loss, products
from compress.pipeline.bank import Bank
from compress.pipeline.gradient import Backward, Point
from compress.pipeline.importance import Importance
from compress.pipeline.likelihood import Answers
from compress.pipeline.outside import Outside
from compress.pipeline.planning import Judged, Planning, mean_of
from compress.pipeline.prepare import collectors_of
from compress.pipeline.replay import Trace
from compress.pipeline.solve import Job, Solved
from compress.pipeline.store import Store
from compress.pipeline.stream import Stream, Streams
from compress.plan import budget
from compress.plan.budget import Planned
from compress.plan.shares import Shares, shares
from compress.plan.variants import expected
from compress.recipe import JUDGING_TOKENS

FOLDER, NAME = "trial", "even, built"
MOST_BITS = 6
"""Even plans of so many bits or more lose too little to tell anything by."""


def asked(planning: Planning, found: Sequence[Sensitivity]) -> tuple[Shares, Judged | None]:
    """Which shares of costs are left in a built model, and the trial that says so with what it lost; all of them
    without one."""
    planned = even(planning, found) if planning.builds else None
    if planned is None:
        return Shares({}, 1.0), None
    line = planning.journal.last("tried")
    if line is None:
        planning.journal.append("tried", **Trial(planning, planned).run())
        line = planning.journal.lines[-1]
    roles = {layer.name: layer.role for layer in planning.ready.structure.layers}
    parts, counts, losses = dict(line["parts"]), line["counts"], line["losses"]
    costs = {one.layer: one.value for one in found if planned.plan.layers[one.layer].treatment == one.scheme}
    left = shares(parts, costs, roles, counts, sum(losses) / sum(counts))
    loss, low, high = expected(planned, planning.chosen, left.of(found, roles))
    return left, Judged(NAME, replace(planned, loss=loss, low=low, high=high), *mean_of(losses, counts))


def even(planning: Planning, found: Sequence[Sensitivity]) -> Planned | None:
    """The plan of most bits within the limits that gives all layers of the blocks as many; None where that is
    MOST_BITS or more."""
    bits = sorted({plan.scheme.bits for plans in planning.chosen.values() for plan in plans}, reverse=True)
    for most in bits:
        chosen = {name: (_at_most(plans, most),) for name, plans in planning.chosen.items()}
        try:
            made = budget.within(planning.limits, planning.ready.plan, planning.ready.structure, chosen, found)
        except BudgetError:
            continue
        return made if most < MOST_BITS else None
    return None


def _at_most(plans: Sequence[LayerPlan], bits: int) -> LayerPlan:
    """The plan of most bits that are not more than `bits`; the first where all are."""
    fits = [plan for plan in plans if plan.scheme.bits <= bits]
    return fits[-1] if fits else plans[0]


@dataclass
class Trial:
    """Builds and asks. planned: weights alone."""

    planning: Planning
    planned: Planned
    _errors: dict[str, Tensor] = field(default_factory=dict)

    def run(self) -> dict[str, Any]:
        """parts: [layer, its part in the loss of each text]; losses: of the trial, of each text; counts: answers."""
        ready = replace(self.planning.ready, plan=self.planned.plan)
        place = self.planning.store.work / FOLDER
        mark = self.planning.journal.lines[0].get("fingerprint", {}) if self.planning.journal.lines else {}
        with Journal.open(place, mark, False) as journal:
            store = _TrialStore(ready.checkpoint, ready.plan, place, torch_dtype(ready.dtype), self._errors)
            outside = Outside(ready.checkpoint, ready.structure, ready.plan, store)
            outside.compress(store.block_path(-1))
            outside.load_small(store.block_path(-1))
            calibration, _ = self.planning.texts(judging=False)
            judging, answers = self.planning.texts(judging=True, most=JUDGING_TOKENS)
            streams = Streams(
                calibration, *([trace.copy() for trace in some] for some in (calibration, judging, judging))
            )
            importance = Importance(self.planning.store.work.parent, len(calibration), range(len(calibration)))
            self._stream(store, journal, importance).run(streams, outside)
            found = self._parts(store, outside, streams.original, answers)
        shutil.rmtree(place)
        return found

    def _stream(self, store: Store, journal: Journal, importance: Importance) -> Stream:
        ready, drift = self.planning.ready, load("collector", "drift")
        device = pick_device(ready.recipe.device)
        return Stream(
            *(ready.checkpoint, ready.structure, self.planned.plan, store, journal),
            make=collectors_of(self.planned.plan, device),
            drift=lambda rows, columns: drift(rows, columns, device),
            report=lambda _, done, total: self.planning.report("building a trial", done, total),
            seen=self._seen,
            importance=importance,
        )

    def _seen(self, job: Job, item: Solved) -> None:
        """Keep the rounding error of a layer until its block is written."""
        target = corrected(job.weight, job.stats) if job.stats is not None else job.weight
        self._errors[job.layer.name] = dequantize(item.q) - target

    def _parts(
        self, store: _TrialStore, outside: Outside, originals: Sequence[Trace], answers: Answers
    ) -> dict[str, Any]:
        ready = self.planning.ready
        loss = Loss(answers, originals)
        point = Point(partial(_around, outside, loss), partial(_fill, store))
        walk = Backward(ready.checkpoint, ready.structure, point, store)
        found = products(walk, loss, store, "asked", self.planning.report)
        counts = [answers.counts[number] for number in range(len(originals))]
        parts = [[layer, [value / 2 for value in values]] for (layer, _), values in found.items()]
        return {"parts": parts, "losses": loss.losses, "counts": counts}


class _TrialStore(Store):
    """Writes codes and rounding errors of a block in place of what a server reads, and gives them back."""

    def __init__(self, checkpoint: Any, plan: Any, out: Path, dtype: torch.dtype, errors: dict[str, Tensor]) -> None:
        super().__init__(checkpoint, plan, out, dtype)
        self.errors = errors
        self.bank = Bank(self.work, {row.scheme for row in plan.layers.values()})

    def write_block(self, block: BlockRef, solved: Iterable[Solved]) -> None:
        """Codes, and errors in half of their bytes."""
        self.bank.write(block.index, solved)
        tensors: dict[str, Pending] = {name: pending(error.bfloat16()) for name, error in self.errors.items()}
        write_file(self._path(block.index), tensors)
        self.errors.clear()

    def _path(self, block: int) -> Path:
        return self.work / f"errors-{block:05d}.safetensors"

    def names(self, block: int) -> set[str]:
        """The layers of a block that were rounded."""
        return set(read_header(self._path(block))) if block >= 0 else set()

    def changes(self, block: int, weights: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        """Layer -> "" -> its rounding error (O, I), float32."""
        entries = read_header(self._path(block))
        return {name: {"": read_tensor(entries[name], torch.float32)} for name in weights}


def _fill(store: _TrialStore, block: BlockRef) -> None:
    """The block as the trial has it."""
    store.checkpoint.fill(block.name)
    store.round_kept(block)
    layers = {layer.name: layer for layer in block.layers}
    for (name, _), q in store.bank.read(block.index).items():
        write_weight(layers[name], store.checkpoint.model.get_parameter(layers[name].param), dequantize(q))


@contextmanager
def _around(outside: Outside, loss: Loss, vocabulary: bool) -> Iterator[None]:
    if not vocabulary:
        with outside.installed("compressed", False):
            yield
        return
    with outside.vocabularies(("original", "compressed")) as use:
        use("compressed")
        loss.plain, loss.planned = (lambda: use("original")), (lambda: use("compressed"))
        yield
