"""The stage behind `compress quantize`: open, plan, stream, judge, assemble, verify, report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from compress.core import artifact, device
from compress.core.files import write_json
from compress.core.fingerprint import Fingerprint
from compress.core.journal import Journal
from compress.core.numerics.paired import Pair
from compress.core.registry import load
from compress.core.types import (
    BlockResult,
    LayerResult,
    Measurement,
    RunRecord,
    Scheme,
    torch_dtype,
)
from compress.core.writing import WritingTask
from compress.measure.size import bits_per_weight, weight_bytes
from compress.pipeline import budgeted, effort, finish, identity, inputs, judge, reparams, scaling
from compress.pipeline.answered import with_answers
from compress.pipeline.collect import MakeCollector
from compress.pipeline.damage import Trials
from compress.pipeline.hooks import Hooks, Stages
from compress.pipeline.outside import Outside
from compress.pipeline.prepare import Prepared, collectors_of, describe, fingerprint, make_streams, open_and_plan
from compress.pipeline.probe import write_probe
from compress.pipeline.store import Store
from compress.pipeline.stream import Stream, Streams
from compress.plan import edited, uniform
from compress.plan.mixed import with_eight_bits
from compress.recipe import Recipe
from export.formats.compressed_tensors import FORMAT


def quantize(recipe: Recipe, overwrite: bool = False, hooks: Hooks | None = None) -> RunRecord:
    """Quantize a model into `recipe.out` and return the record of the run; resumes what an earlier call left.

    overwrite: start over in a folder of an earlier run; only that run's files are deleted.

    Raises the errors of compress.core.errors; VerificationError after the artifact is written when transformers
    does not open it to the same outputs.
    """
    hooks = hooks or Hooks()
    stages = Stages()
    device.tune_allocator()
    threads = device.set_threads(recipe.threads)
    inputs.quiet_libraries()
    ready = open_and_plan(recipe, hooks)
    budgeted.check(ready)
    stages.done("open and plan")
    out = Path(recipe.out or identity.default_out(ready.opened.name, budgeted.suffix(recipe)))
    mark = fingerprint(ready, threads)
    with Journal.open(out, mark, overwrite) as journal:
        record = finish.finished_record(out, journal)
        if record is None:
            record = _run(Run(ready, out, journal, mark), stages, hooks)
            record = finish.write_record(out, record)
            journal.append("finished")
        finish.clean(out)
    finish.raise_if_unverified(record)
    return record


@dataclass(frozen=True)
class Run:
    """One run in one output folder, which `journal` holds. scaled: block -> layers whose inputs have scales."""

    ready: Prepared
    out: Path
    journal: Journal
    fingerprint: Fingerprint
    scaled: Mapping[int, Sequence[str]] = field(default_factory=dict)


def _run(run: Run, stages: Stages, hooks: Hooks) -> RunRecord:
    """Everything from the first block to the record, taking up what the journal has already."""
    journal = run.journal
    run = replace(run, scaled=scaling.scaled(run.ready, run.out, journal, hooks.report))
    if run.scaled:
        stages.done("scale")
    planned = run.ready.recipe.has_budget
    built = _build(_planned(run, stages, hooks) if planned else run, stages, hooks)
    while (found := budgeted.worse_than_allowed(run.ready, journal)) is not None:
        budgeted.give_up(journal, found)
        built = _build(_planned(run, stages, hooks), stages, hooks)
    ready, out, store = built.run.ready, run.out, built.store
    hooks.report("writing", 0, 1)
    plan = effort.with_gains(uniform.to_json(ready.plan), built.layers, built.blocks)
    if budgeted.importance_of(out, journal) is not None:
        plan[edited.TOKENS] = edited.BY_GRADIENTS
    if ready.reparams:
        plan[edited.REPARAM] = ",".join(ready.reparams)
    _write_artifact(built.run, store, plan)
    hooks.report("writing", 1, 1)
    stages.done("write")
    record = RunRecord(
        command="quantize",
        model=describe(ready),
        artifact=str(out),
        recipe=ready.recipe.model_dump(),
        plan=plan,
        data=ready.data.card if ready.data else {},
        layers=(*built.layers, *built.extra),
        blocks=tuple(built.blocks),
        measurements=(*_sizes(ready, out), *built.measurements),
        sensitivity=budgeted.profiled(ready, journal),
        notes=(
            *budgeted.outcome(ready, journal, built.measurements, weight_bytes(out)),
            *ready.notes,
            *reparams.sentences(ready, built.layers),
            *effort.outcome(ready.recipe, built.layers, built.blocks),
        ),
        environment=ready.environment,
        reproduce=finish.command_line(ready.recipe, out),
    )
    record = finish.verify_and_sample(record, store, ready.data.heldout if ready.data else None, hooks.report)
    stages.done("verify and sample")
    if ready.text is not None:
        record = with_answers(record, ready.text, store, journal, hooks.report)
        stages.done("write answers")
    return replace(record, stages=stages.seconds)


def _planned(run: Run, stages: Stages, hooks: Hooks) -> Run:
    """The run with the plan that its budget allows."""
    run = replace(run, ready=budgeted.within_budget(run.ready, run.out, run.journal, hooks))
    stages.done("plan")
    return run


@dataclass(frozen=True)
class _Built:
    """Every block compressed and measured; nothing of it is in its place yet. run: with the plan that was built."""

    run: Run
    store: Store
    layers: list[LayerResult]
    extra: list[LayerResult]
    blocks: list[BlockResult]
    measurements: list[Measurement]


def _build(run: Run, stages: Stages, hooks: Hooks) -> _Built:
    """Solve every block of the plan and judge the result on held-out text."""
    ready, out, journal = run.ready, run.out, run.journal
    store = Store(ready.checkpoint, ready.plan, out, torch_dtype(ready.dtype))
    finish.check_work(store, ready.structure, journal)
    outside = Outside(ready.checkpoint, ready.structure, ready.plan, store)
    extra = _outside_results(outside, store, journal)
    outside.load_small(store.block_path(-1))
    chosen = device.pick_device(ready.recipe.device)
    stages.done("prepare")
    if ready.mixed:
        ready = _with_damage(run, store, outside, collectors_of(ready.plan, chosen), hooks)
        run = replace(run, ready=ready)
        store.plan = outside.plan = ready.plan
        stages.done("plan")
    streams = make_streams(ready)
    drift = load("collector", "drift")
    stream = Stream(
        *(ready.checkpoint, ready.structure, ready.plan, store, journal),
        make=collectors_of(ready.plan, chosen),
        drift=lambda rows, columns: drift(rows, columns, chosen),
        report=effort.report_of(ready.recipe, hooks.report),
        tuner=effort.tuner_of(ready.recipe, ready.plan, len(ready.structure.blocks), hooks.report),
        reparams=reparams.reparams_of(ready, run.scaled),
        importance=budgeted.importance_of(out, journal),
    )
    layers, blocks = stream.run(streams, outside)
    streams.calibration.clear()  # measuring needs the memory for two vocabularies
    streams.reference.clear()
    device.release_memory()
    stages.done("compress")
    measurements = _measure(ready, streams, outside, store, journal, hooks)
    stages.done("measure")
    return _Built(run, store, layers, extra, blocks, measurements)


def _with_damage(run: Run, store: Store, outside: Outside, make: MakeCollector, hooks: Hooks) -> Prepared:
    """The run with its plan finished: eight bits where the planned bits do most damage."""
    ready, journal = run.ready, run.journal
    line = journal.last("damage")
    if line is None:
        trials = Trials(ready.checkpoint, ready.structure, ready.plan, store, make)
        found = trials.damage(make_streams(ready).calibration, outside, hooks.report)
        journal.append("damage", groups=found)
    else:
        found = line["groups"]
    first = ready.plan.layers[ready.structure.layers[0].name].scheme
    eight = Scheme("int", 8, first.group_size, True, *FORMAT.scale_grid(8))
    plan = with_eight_bits(ready.plan, ready.structure, found, eight, ready.recipe.mixed_share)
    return replace(ready, plan=plan)


def _outside_results(outside: Outside, store: Store, journal: Journal) -> list[LayerResult]:
    line = journal.last("outside")
    if line is None:
        results = outside.compress(store.block_path(-1))
        journal.append("outside", layers=[asdict(result) for result in results])
        return results
    return [LayerResult(**{**r, "shape": tuple(r["shape"])}) for r in line["layers"]]


def _measure(
    ready: Prepared, streams: Streams, outside: Outside, store: Store, journal: Journal, hooks: Hooks
) -> list[Measurement]:
    line = journal.last("measured")
    if line is not None:
        return [Measurement(**m) for m in line["measurements"]]
    found: list[Measurement] = []
    pair: Pair | None = None
    if ready.data is not None and streams.original:
        hooks.report("measuring", 0, 1)
        name = str(store.work.parent.parent)
        found, pair = judge.judge(ready.checkpoint, ready.structure, streams, outside, name, ready.data.heldout)
        if ready.text is not None and not isinstance(ready.text.task, WritingTask):
            rows, pair = judge.judge_task(ready.checkpoint, ready.structure, streams, outside, ready.text, name)
            found = [*rows, *found]
        rounded = [plan.activation for plan in ready.plan.layers.values() if plan.activation]
        alone = any(a.dynamic and a.strategy == "tensor" for a in rounded)
        probe = store.work / "probe.safetensors"
        judge.write_probe(probe, ready.checkpoint, ready.structure, streams, outside, alone)
        hooks.report("measuring", 1, 1)
    shown = budgeted.certificate(ready, journal, pair)
    more = {} if shown is None else {"certificate": shown.to_json()}
    journal.append("measured", measurements=[asdict(m) for m in found], **more)
    return found


def _write_artifact(run: Run, store: Store, plan: dict[str, Any]) -> None:
    ready, out = run.ready, run.out
    source = ready.opened.folder
    beside = artifact.companions(source, out)
    if run.journal.last("writing") is None:
        run.journal.append("writing", files=[name.as_posix() for name in beside] + ["config.json", "README.md"])
    blocks = ready.structure.blocks
    paths = [store.block_path(-1), *(store.block_path(block.index) for block in blocks)]
    artifact.assemble(out, paths, artifact.parse_size(ready.recipe.max_shard_size))
    artifact.copy_companions(source, out, beside)
    quantization = finish.quantization_config(ready.checkpoint, ready.structure, ready.plan, store)
    artifact.write_config(source, out, ready.dtype, quantization)
    if ready.data is not None and ready.data.heldout.sequences:
        write_probe(out, ready.data.heldout)
    write_json(out / "compress" / "plan.json", plan)
    finish.write_readme(out, ready.opened.name, ready.plan, ready.notes, ready.structure.architecture)
    identity.write_manifest(
        out, "compressed-tensors", ready.opened.name, ready.recipe, run.fingerprint, ready.environment
    )


def _sizes(ready: Prepared, out: Path) -> list[Measurement]:
    parameters = ready.checkpoint.parameters
    found = []
    for subject, size in (("original", ready.checkpoint.nbytes), (str(out), weight_bytes(out))):
        found.append(Measurement(subject, "bytes", "bytes", size))
        found.append(Measurement(subject, "bits_per_weight", "bits", bits_per_weight(size, parameters)))
    return found
