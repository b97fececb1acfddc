"""The stage behind `compress tune`: labelled rows in, a task model, its scores and a report out."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from compress.core import artifact, device
from compress.core.crf import FILE as CRF_FILE
from compress.core.crf import Crf
from compress.core.errors import ModelError, OutputError, UsageError
from compress.core.files import atomic_write
from compress.core.fingerprint import Fingerprint
from compress.core.journal import WORK, Journal
from compress.core.opening import Opened, resolve
from compress.core.registry import load
from compress.core.task import Context
from compress.core.types import RunRecord
from compress.pipeline import finish, identity, inputs, settle
from compress.pipeline.hooks import Hooks, Stages
from compress.pipeline.labelled import TASK_FILE, Labelled, Wanted, choice_of, labels_of_head, read_labelled, task_bytes
from compress.pipeline.reopen import Opener, examined, probe
from compress.recipe import TuneRecipe
from compress.train import loop
from compress.train.freeze import freeze
from compress.train.score import Part
from compress.train.tuning import Ground, Tuning


@dataclass(frozen=True)
class Prepared:
    """Everything known before the first step."""

    recipe: TuneRecipe
    tuning: Tuning
    opened: Opened
    config: Any
    labelled: Labelled
    context: Context
    environment: dict[str, Any]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Run:
    """One run in one output folder, which `journal` holds."""

    ready: Prepared
    out: Path
    journal: Journal
    fingerprint: Fingerprint


def tune(recipe: TuneRecipe, overwrite: bool = False, hooks: Hooks | None = None) -> RunRecord:
    """Make or adapt a task model in `recipe.out` and return the record of the run; resumes what a kill left.

    overwrite: start over in a folder of an earlier run; only that run's files are deleted.
    Raises the errors of compress.core.errors.
    """
    hooks = hooks or Hooks()
    stages = Stages()
    threads = device.set_threads(recipe.threads)
    inputs.quiet_libraries()
    ready = _prepare(recipe, hooks)
    stages.done("read and divide")
    out = Path(recipe.out or identity.default_out(ready.opened.name, ready.labelled.task.name))
    mark = _fingerprint(ready, threads)
    with Journal.open(out, mark, overwrite) as journal:
        record = finish.finished_record(out, journal)
        if record is None:
            record = _run(Run(ready, out, journal, mark), stages, hooks)
            record = finish.write_record(out, record)
            journal.append("finished")
        shutil.rmtree(out / WORK, ignore_errors=True)
    finish.raise_if_unverified(record)
    return record


def _prepare(recipe: TuneRecipe, hooks: Hooks) -> Prepared:
    from transformers import AutoConfig

    tuning: Tuning = load("tuning", recipe.method)
    if recipe.freeze and recipe.method != "full":
        raise UsageError(f"--freeze is for --method full; {recipe.method} leaves the model's own layers as they are")
    recipe = recipe.model_copy(update={"options": inputs.method_options(tuning, recipe)})
    opened = resolve(recipe.model, recipe.allow_pickle, hooks.say)
    config = AutoConfig.from_pretrained(
        opened.folder, local_files_only=True, trust_remote_code=recipe.trust_remote_code
    )
    tokenizer = inputs.load_tokenizer(opened.folder, recipe.trust_remote_code)
    wanted = Wanted(
        *(recipe.data, recipe.task, recipe.columns, recipe.seed, recipe.strict),
        choice=choice_of(recipe),
        head=labels_of_head(recipe.task, config),
        tokenizer=tokenizer,
    )
    labelled = read_labelled(wanted, config.architectures or [])
    if not labelled.task.tunable:
        raise UsageError(f"{labelled.task.name} models are measured and quantized here, not tuned")
    if recipe.resample != "none" and not (labelled.task.classes and "label" in labelled.columns):
        raise UsageError(f"--resample {recipe.resample} is for classes of rows; {labelled.task.name} has none")
    if recipe.crf and not labelled.task.words:
        raise UsageError(f"--crf is for tags of words; {labelled.task.name} has none")
    length = min(recipe.max_length, inputs.longest_sequence(config))
    settings = {**labelled.task.settings(opened.folder), **labelled.settings}
    context = Context(tokenizer, labelled.columns, labelled.labels, length, settings=settings)
    context = labelled.task.surveyed([labelled.rows[n] for n in labelled.division.train], context)
    return Prepared(
        recipe, tuning, opened, config, labelled, context, device.environment(), (*opened.notes, *labelled.notes)
    )


def _fingerprint(ready: Prepared, threads: int) -> Fingerprint:
    """Every input that can change a byte of the result."""
    folder = ready.opened.folder
    files = identity.model_files(folder, folder.glob("*.safetensors"), ready.recipe.trust_remote_code)
    found = identity.fingerprint(ready.recipe, files, threads, ready.environment)
    found["rows"] = ready.labelled.card["digest"]
    found["task"] = dict(ready.context.settings)
    return found


def _run(run: Run, stages: Stages, hooks: Hooks) -> RunRecord:
    ready, out = run.ready, run.out
    labelled, context = ready.labelled, ready.context
    hooks.report("tokenizing", 0, 3)
    parts = []
    for number, name in enumerate(("train", "validation", "test")):
        parts.append(labelled.part(name, context))
        hooks.report("tokenizing", number + 1, 3)
    notes = [*ready.notes, *_cut(ready, parts)]
    parts[0], drawn = settle.balanced(labelled, parts[0], ready.recipe)
    notes += drawn
    model, size = _adapted(ready)
    if (crf := loop.crf_of(model)) is not None:
        context = replace(context, decode=crf.decode)
    stages.done("tokenize and build")
    weights = settle.class_weights(labelled) if ready.recipe.resample == "weights" else None
    settings = loop.Settings(ready.recipe, settle.rate_of(ready.recipe, ready.tuning), out / WORK / "training", weights)
    settings, said = settle.settled(model, labelled, context, parts[0], settings, run.journal)
    history = loop.train(model, labelled.task, context, (parts[0], parts[1]), settings, hooks.report)
    stages.done("train")
    trained = probe(model, labelled.task, context, parts[2])
    _write(run, model)
    del model, crf
    stages.done("write")
    hooks.report("testing", 0, 1)
    opener = Opener(labelled.task, ready.tuning, ready.opened.folder, head_of(labelled), ready.recipe.trust_remote_code)
    measurements, verified = examined(opener, out, context, parts[2], trained)
    hooks.report("testing", 1, 1)
    stages.done("test")
    return RunRecord(
        command="tune",
        model={"name": ready.opened.name, **size},
        artifact=str(out),
        recipe=ready.recipe.model_dump(),
        data=labelled.card,
        measurements=tuple(measurements),
        verified=tuple(verified),
        training=asdict(history),
        notes=(*notes, *said, *filter(None, [ready.tuning.note])),
        stages=stages.seconds,
        environment=ready.environment,
        reproduce=finish.command_line(ready.recipe, out),
    )


def _cut(ready: Prepared, parts: Sequence[Part]) -> list[str]:
    """What the model will not see of the rows, as sentences."""
    task, length = ready.labelled.task, ready.context.max_length
    said = []
    if cut := sum(len({feature.row for feature in part.features if feature.truncated}) for part in parts):
        why = "see --max-length" if length == ready.recipe.max_length else "which is all that the model takes"
        total = sum(len(part.rows) for part in parts)
        said.append(f"{cut} of {total} rows are longer than {length} tokens and were cut; {why}.")
    if lost := [piece for part in parts for piece in task.unread(part.rows, part.features, ready.context)]:
        said.append(f"The tokenizer makes nothing of {len(lost)} words, {lost[0]!r} the first; they are taken for O.")
    return said


def _adapted(ready: Prepared) -> tuple[Any, dict[str, Any]]:
    """The model to train, and its class and how many parameters it has and trains."""
    recipe, labelled = ready.recipe, ready.labelled
    model, fresh = build_model(ready)
    size = {"architecture": type(model).__name__, "parameters": sum(p.numel() for p in model.parameters())}
    torch.manual_seed(recipe.seed)  # of what the method adds
    model = ready.tuning.apply(model, Ground(labelled.task.peft, fresh), ready.tuning.options(**recipe.options))
    if recipe.freeze:
        freeze(model, recipe.freeze, fresh)
    if recipe.crf:
        model.add_module("crf", Crf(labelled.labels))  # after the method, which would freeze it
    return model, {**size, "trained": sum(p.numel() for p in model.parameters() if p.requires_grad)}


def head_of(labelled: Labelled) -> dict[str, Any]:
    """Settings of the task's head for `from_pretrained`."""
    labels = labelled.labels
    heads = {"id2label": dict(enumerate(labels)), "label2id": {name: n for n, name in enumerate(labels)}}
    return {**labelled.task.config, **(heads if labels else {})}


def build_model(ready: Prepared) -> tuple[Any, tuple[str, ...]]:
    """The model with the head of the task, and the modules that the checkpoint did not have. Raises ModelError."""
    import transformers

    task, labels = ready.labelled.task, ready.labelled.labels
    torch.manual_seed(ready.recipe.seed)  # of the new head
    try:
        model, info = getattr(transformers, task.auto).from_pretrained(
            ready.opened.folder,
            local_files_only=True,
            trust_remote_code=ready.recipe.trust_remote_code,
            dtype=torch.float32,
            output_loading_info=True,
            **head_of(ready.labelled),
        )
    except RuntimeError as error:
        raise ModelError(
            f"{ready.opened.name} has a head for another number of classes than the {len(labels)} of the data: "
            f"{str(error).splitlines()[0][:200]}"
        ) from None
    except ValueError as error:
        raise ModelError(
            f"{ready.opened.name} cannot be opened for {task.name}: {str(error).splitlines()[0][:200]}"
        ) from None
    return model, tuple(sorted({name.rpartition(".")[0] for name in info["missing_keys"]}))


def _write(run: Run, model: Any) -> None:
    """The model as transformers writes it, with the tokenizer's files as they were; an adapter as peft writes it.

    Where an adapter can be merged, the folder holds the merged model and `adapter/` the adapter.
    """
    ready, out, journal = run.ready, run.out, run.journal
    source = ready.opened.folder
    beside = artifact.companions(source, out)
    staged = out / WORK / "model"
    shutil.rmtree(staged, ignore_errors=True)
    crf = loop.crf_of(model)
    if crf is not None:
        del model.crf
    if ready.tuning.adapter:
        model.save_pretrained(staged / "adapter" if ready.tuning.merges else staged)
        model = model.merge_and_unload() if ready.tuning.merges else None
    if model is not None:
        model.save_pretrained(staged, max_shard_size="5GB")
    if crf is not None:
        (staged / CRF_FILE).write_bytes(crf.dumps())
    made = sorted(path.relative_to(staged).as_posix() for path in staged.rglob("*") if path.is_file())
    if journal.last("writing") is None:
        journal.append("writing", files=[*(name.as_posix() for name in beside), *made, str(TASK_FILE)])
    try:
        for name in made:
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            (staged / name).replace(out / name)
    except OSError as error:
        raise OutputError(f"{out} cannot be written: {error.strerror}; run the same command again") from None
    artifact.copy_companions(source, out, [name for name in beside if name.as_posix() not in made])
    atomic_write(out / TASK_FILE, [task_bytes(ready.labelled, ready.context.max_length)])
    identity.write_manifest(out, "safetensors", ready.opened.name, ready.recipe, run.fingerprint, ready.environment)
