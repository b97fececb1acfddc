"""From a recipe to everything known before the first block is touched: model, structure, plan, token sets."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from calibrate.data import DataSettings, PreparedData, prepare
from compress.core import artifact, device
from compress.core.blocks import find_structure
from compress.core.checkpoint import Checkpoint
from compress.core.crf import read_crf
from compress.core.fingerprint import Fingerprint
from compress.core.opening import Opened, resolve
from compress.core.registry import load
from compress.core.task import Context
from compress.core.types import Plan, Structure, TokenSet
from compress.core.writing import WritingTask
from compress.pipeline import effort, fitness, identity, inputs, judge, like, limits
from compress.pipeline.collect import Collector, Counted, MakeCollector
from compress.pipeline.hooks import Hooks
from compress.pipeline.labelled import find_labelled, has_rows, hears
from compress.pipeline.pairs import prepared_pairs
from compress.pipeline.replay import Trace
from compress.pipeline.stream import Streams, corrects, reads_text, text_inputs
from compress.pipeline.task_text import TaskText, prepared, task_text, with_all_held_out
from compress.plan import edited, profile, uniform
from compress.plan.activations import choose_activation
from compress.plan.mixed import is_mixed
from compress.recipe import AUTO, EVAL_DOCUMENTS, EVAL_ROWS, JUDGING_TOKENS, NONE, PROOF_DOCUMENTS, Recipe, names_of
from export.formats.compressed_tensors import FORMAT


@dataclass(frozen=True)
class Prepared:
    """Everything known before the first block is touched. mixed: the plan is finished by measuring damage. reparams:
    what is done to blocks before they are solved, by name."""

    recipe: Recipe
    opened: Opened
    checkpoint: Checkpoint
    structure: Structure
    plan: Plan
    data: PreparedData | None
    text: TaskText | None
    dtype: str
    environment: dict[str, Any]
    notes: tuple[str, ...]
    mixed: bool = False
    reparams: tuple[str, ...] = ()


def open_and_plan(recipe: Recipe, hooks: Hooks) -> Prepared:
    """Open the model, find its structure, make the plan and the token sets. Nothing is written."""
    method = load("method", recipe.method)
    solving = recipe.model_copy(update={"options": effort.own_options(recipe)})
    options = inputs.method_options(method, solving)
    artifact.parse_size(recipe.max_shard_size)  # wrong settings are refused before anything is written
    device.pick_device(recipe.device)
    opened = resolve(recipe.model, recipe.allow_pickle, hooks.say)
    like.check(recipe, opened.folder)
    checkpoint = Checkpoint(opened.folder, recipe.trust_remote_code)
    structure = find_structure(checkpoint.model, checkpoint.config)
    first = structure.layers[0].param if structure.layers else next(iter(checkpoint.sources))
    dtype = uniform.storage_dtype(recipe, checkpoint.dtype_of(first))
    recipe = effort.settled(recipe, options)
    rules = rules_of(recipe, checkpoint, structure)
    encoder = judge.reads_only(checkpoint.model)
    activation = choose_activation(recipe, structure, encoder)
    lines = edited.read(recipe.plan) if recipe.plan else {}
    mixed = not recipe.has_budget and not lines and is_mixed(recipe, structure, encoder, activation)
    limits.check_latency(recipe, checkpoint)
    if mixed or recipe.has_budget or lines:
        structure = replace(structure, alike=limits.one_scheme(checkpoint, structure))
    structure = replace(structure, apart=not mixed and limits.apart(recipe.schemes, rules.caps, recipe.max_latency))
    uneven = limits.not_mixed(structure, recipe) if mixed and structure.alike else ""
    mixed = mixed and not uneven
    several = mixed or recipe.has_budget or edited.symmetric(lines)
    settings: dict[str, Any] = {"options": options}
    if several and structure.alike and recipe.symmetric is None:
        settings["symmetric"] = True  # one of several that may be chosen, but not beside another
    plan = uniform.make_plan(
        recipe.model_copy(update=settings),
        structure,
        rules,
        dtype,
        uniform.Wishes(activation, several and not structure.alike, encoder),
    )
    if lines:
        plan = edited.applied(plan, lines, structure, rules, dtype)
    limits.check_exports(recipe, opened, checkpoint, structure, plan)
    notes = [*opened.notes, *plan.notes, *([structure.generic] if structure.generic else [])]
    notes += [uneven] if uneven else []
    notes += [edited.OTHERWISE] if lines and edited.by_gradients(recipe.plan) else []
    notes += limits.of_choices(structure) if recipe.has_budget else []
    data, text = None, None
    reparams = _reparams(recipe)
    reads = mixed or recipe.effort == "best" or bool(reparams) or any(map(reads_text, plan.layers.values()))
    heard = hears(recipe, checkpoint.config) and has_rows(recipe, opened.folder)
    if (reads or recipe.eval_samples != 0) and (because := limits.cannot_stream(checkpoint, structure, heard)):
        notes.append(f"{because}, so that no layer was chosen for eight bits" if mixed else because)
        mixed = False
    elif reads or recipe.eval_samples != 0:
        data, text = read_data(recipe, opened, checkpoint)
        use = fitness.use_of(checkpoint, structure, text, reads or recipe.has_budget)
        data = fitness.assessed(recipe, opened, use, data, text)
        fitness.say(data.card, hooks.say)
        notes += data.card["warnings"]
    elif recipe.like is not None:
        notes.append(f"--like {recipe.like} was not read: this run calibrates and measures on no text.")
    environment = device.environment()
    return Prepared(
        *(recipe, opened, checkpoint, structure, plan, data, text, dtype, environment, tuple(notes), mixed, reparams)
    )


def _reparams(recipe: Recipe) -> tuple[str, ...]:
    """What is done to blocks before they are solved, by name: as asked, or as the plan of --plan says."""
    if recipe.reparam != AUTO:
        return () if recipe.reparam == NONE else names_of(recipe.reparam)
    return edited.reparams(recipe.plan) if recipe.plan else ()


def rules_of(recipe: Recipe, checkpoint: Checkpoint, structure: Structure) -> uniform.Rules:
    """What the artifact's format and those of --to ask of a plan for this model."""
    return uniform.Rules(limits.caps_of(recipe), FORMAT.scale_grid, limits.refuses(checkpoint, structure))


def read_data(recipe: Recipe, opened: Opened, checkpoint: Checkpoint) -> tuple[PreparedData, TaskText | None]:
    """Token sets, and the same as rows of a task where the model has one and the data has labels for it."""
    tokenizer = inputs.load_tokenizer(opened.folder, recipe.trust_remote_code)
    limit = inputs.longest_sequence(checkpoint.config)
    found = find_labelled(recipe, opened.folder, checkpoint.config, tokenizer)
    if (labelled := found.labelled) is not None:
        crf = read_crf(opened.folder, labelled.labels) if labelled.task.words else None
        context = Context(
            tokenizer,
            labelled.columns,
            labelled.labels,
            min(found.max_length, limit),
            crf.decode if crf is not None else None,
            {**labelled.task.settings(opened.folder), **labelled.settings},
        )
        if isinstance(labelled.task, WritingTask):
            return prepared_pairs(labelled, context, recipe)
        held = EVAL_DOCUMENTS if labelled.task.text else EVAL_ROWS
        if recipe.max_drop and not labelled.task.text:
            labelled = with_all_held_out(labelled)
            held = len(labelled.division.test)
        held = held if recipe.eval_samples is None else recipe.eval_samples
        text = task_text(labelled, context, recipe.samples * recipe.seq_len, held, recipe.seed)
        made = prepared(text, labelled, context.max_length)
        return made, None if labelled.task.text else text  # language models are judged by their text
    documents = PROOF_DOCUMENTS if recipe.max_drop else EVAL_DOCUMENTS
    settings = DataSettings(
        data=recipe.data,
        text_column=recipe.text_column,
        samples=recipe.samples,
        seq_len=min(recipe.seq_len, limit),
        eval_samples=documents if recipe.eval_samples is None else recipe.eval_samples,
        seed=recipe.seed,
        judging=-(-JUDGING_TOKENS // min(recipe.seq_len, limit)) if recipe.has_budget and not recipe.profile else 0,
    )
    embedding = checkpoint.model.get_input_embeddings()
    made = prepare(settings, tokenizer, int(embedding.weight.shape[0]))
    if found.note:
        made.card["warnings"] = [found.note, *made.card.get("warnings", [])]
    return made, None


def make_streams(ready: Prepared) -> Streams:
    """Traces of calibration and held-out text; empty when the model cannot read text."""
    if ready.data is None:
        return Streams([], [], [], [])

    def traces(calibration: bool) -> list[Trace]:
        assert ready.data is not None
        if ready.text is not None:
            return [Trace(inputs) for inputs in ready.text.inputs(calibration)]
        return traces_of(ready, ready.data.calibration if calibration else ready.data.heldout)

    compared = corrects(ready.plan) or ready.recipe.effort == "best"
    return Streams(traces(True), traces(True) if compared else [], traces(False), traces(False))


def traces_of(ready: Prepared, tokens: TokenSet) -> list[Trace]:
    """Text that is no rows of a task, as the model reads it."""
    pairs = bool(getattr(ready.checkpoint.config, "is_encoder_decoder", False))
    return [Trace(inputs) for inputs in text_inputs(tokens.sequences, pairs)]


def fingerprint(ready: Prepared, threads: int) -> Fingerprint:
    """Every input that can change a byte of the artifact."""
    weights = (entry.path for entry in ready.checkpoint.entries.values())
    files = identity.model_files(ready.opened.folder, weights, ready.recipe.trust_remote_code)
    found = identity.fingerprint(ready.recipe, files, threads, ready.environment)
    if ready.recipe.profile:
        path = Path(ready.recipe.profile).expanduser()
        found["--profile"] = profile.mark(path / profile.PLACE if path.is_dir() else path)
    if ready.recipe.plan:
        found["--plan"] = {name: dict(line) for name, line in edited.read(ready.recipe.plan).items()}
    found["what is done to blocks"] = list(ready.reparams)
    found["calibration text"] = ready.data.calibration.digest if ready.data else None
    found["--like text"] = ready.data.card.get("like", {}).get("digest") if ready.data else None
    found["judging text"] = ready.data.judging.digest if ready.data and ready.data.judging else None
    found["held-out text"] = ready.data.heldout.digest if ready.data else None
    return found


def collectors_of(plan: Plan, chosen: torch.device) -> MakeCollector:
    """Makes the collector of one layer input: second moments, and values where a grid is chosen from them."""
    hessian, values = load("collector", "hessian"), load("collector", "values")
    static = any(p.activation is not None and not p.activation.dynamic for p in plan.layers.values())

    def make(width: int) -> Collector:
        moments: Collector = hessian(width, chosen)
        return Counted(moments, values(chosen)) if static else moments

    return make


def describe(ready: Prepared) -> dict[str, Any]:
    """What the report says of the original model."""
    checkpoint = ready.checkpoint
    return {
        "name": ready.opened.name,
        "architecture": ready.structure.architecture,
        "parameters": checkpoint.parameters,
        "bytes": checkpoint.nbytes,
        "blocks": len(ready.structure.blocks),
        "layers": len(ready.structure.layers),
        "dtype": str(checkpoint.dtype_of(next(iter(checkpoint.sources)))).removeprefix("torch."),
        "tied": ready.structure.tied,
    }
