"""`compress sensitivity`: what each layer costs at each scheme, from one pass forward and one backward.

Forward: every block is run on the original's activations, its layers are solved at every candidate scheme with the
method that will be used, and the codes go to the bank. Backward: the gradient of the model's own likelihood meets what
each of them changes (compress.pipeline.gradient). Both a block at a time; killed anywhere, the rerun goes on there.

Work, in passes of the calibration tokens through the matrices: 1 forward, 0.5 for second moments, 3 for the graph and
its gradients; the solver runs once a scheme.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from compress.core import device
from compress.core.errors import ModelError
from compress.core.fingerprint import Fingerprint
from compress.core.journal import Journal
from compress.core.types import RunRecord, torch_dtype
from compress.pipeline import finish, identity, inputs, judge, limits, scaling
from compress.pipeline.bank import Bank
from compress.pipeline.halves import steadiness
from compress.pipeline.hooks import Hooks, Stages
from compress.pipeline.likelihood import Answers
from compress.pipeline.outside import Outside
from compress.pipeline.prepare import Prepared, describe, fingerprint, make_streams, open_and_plan, rules_of
from compress.pipeline.profiling import Chosen, Profiling, listed, texts_of
from compress.pipeline.store import Store
from compress.plan import profile
from compress.plan.candidates import candidates
from compress.recipe import SensitivityRecipe
from compress.report import record as records


def sensitivity(recipe: SensitivityRecipe, overwrite: bool = False, hooks: Hooks | None = None) -> RunRecord:
    """Profile a model into `recipe.out`: compress/profile.json and a report; resumes what an earlier call left.

    Raises the errors of compress.core.errors; ModelError for a model that no text can run through.
    """
    hooks = hooks or Hooks()
    stages = Stages()
    device.tune_allocator()
    threads = device.set_threads(recipe.threads)
    inputs.quiet_libraries()
    ready = open_and_plan(recipe.quantizing(), hooks)
    if ready.data is None:
        raise ModelError(f"{ready.opened.name} cannot be asked what its layers cost: {ready.notes[-1]}")
    apart = limits.apart(recipe.schemes, limits.caps_of(ready.recipe))
    ready = replace(ready, structure=replace(ready.structure, apart=apart))
    chosen = _chosen(recipe, ready)
    stages.done("open")
    out = Path(recipe.out or identity.default_out(ready.opened.name, "sensitivity"))
    mark = {
        "command": "sensitivity",
        **fingerprint(ready, threads),
        "--schemes": recipe.schemes,
        "--metric": recipe.metric,
    }
    with Journal.open(out, mark, overwrite) as journal:
        if journal.last("finished") is not None:
            record = records.read(out / "compress" / "record.json")
        else:
            record = _run(_Run(recipe, ready, chosen, out, journal), stages, hooks, mark)
            record = finish.write_record(out, record)
            journal.append("finished")
        finish.clean(out)
    return record


@dataclass(frozen=True)
class _Run:
    recipe: SensitivityRecipe
    ready: Prepared
    chosen: Chosen
    out: Path
    journal: Journal


def _chosen(recipe: SensitivityRecipe, ready: Prepared) -> Chosen:
    rules = rules_of(ready.recipe, ready.checkpoint, ready.structure)
    method = ready.plan.layers[ready.structure.layers[0].name]
    return candidates(recipe.schemes, ready.structure, rules, method, judge.reads_only(ready.checkpoint.model))


def _run(run: _Run, stages: Stages, hooks: Hooks, mark: Fingerprint) -> RunRecord:
    ready, journal = run.ready, run.journal
    scaling.scaled(ready, run.out, journal, hooks.report)
    store = Store(ready.checkpoint, ready.plan, run.out, torch_dtype(ready.dtype))
    store.work.mkdir(parents=True, exist_ok=True)
    outside = Outside(ready.checkpoint, ready.structure, ready.plan, store)
    if journal.last("outside") is None:
        outside.compress(store.block_path(-1))
        journal.append("outside", layers=[])
    outside.load_small(store.block_path(-1))
    bank = Bank(store.work, {plan.scheme for plans in run.chosen.values() for plan in plans})
    traces, features = texts_of(ready, make_streams(ready).calibration)
    loop = Profiling(ready, run.chosen, store, outside, bank, journal, hooks.report)
    answers = Answers(ready.checkpoint.model, ready.text, features, ready.recipe.seed)
    found, said = loop.sensitivities(traces, answers, run.recipe.metric)
    stages.done("profile")
    profile.write(run.out / profile.PLACE, profile.Profile(said["unit"], tuple(found), mark))
    steady = steadiness(ready, journal, found)
    return RunRecord(
        command="sensitivity",
        model=describe(ready),
        artifact=str(run.out),
        recipe=run.recipe.model_dump(),
        data=ready.data.card if ready.data else {},
        sensitivity={
            "unit": said["unit"],
            "texts": len(traces),
            "answers": int(sum(said["counts"])),
            "layers": listed(found, ready.structure),
            "stability": steady,
        },
        notes=(steady["said"], *ready.notes),
        environment=ready.environment,
        reproduce=finish.command_line(run.recipe, run.out),
        stages=stages.seconds,
    )
