"""`quantize --max-latency`: what operators take in the runtime here, before the plan; what the export takes, after."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from compress.core.device import load_average, set_threads, usable_cores
from compress.core.errors import RecipeError
from compress.core.journal import Journal
from compress.core.types import ActScheme, LayerPlan, LayerRef, Measurement, Plan, RunRecord, Scheme
from compress.core.writing import read_config
from compress.measure.latency import BUSY
from compress.measure.operators import Request, Timing, in_rounds, quiet
from compress.measure.quality import median_interval
from compress.pipeline.hooks import Hooks
from compress.pipeline.prepare import Prepared
from compress.pipeline.profiling import Chosen
from compress.plan import latency
from compress.plan.activations import takes_int8
from compress.plan.budget import common
from compress.plan.mixed import groups_of
from compress.plan.uniform import to_json
from compress.recipe import Recipe
from export import folder
from export.client import RuntimeProcess
from export.onnxfile.trial import Drawn, traced, write_alone, write_whole

RUNTIME, FORMAT = "onnxruntime", "onnx"
WORK = "timing"
SLOWER = 1.25
"""A treatment that makes the whole model so much slower than none is not looked at any closer, where time is all."""


def with_fast(ready: Prepared, found: Mapping[str, tuple[LayerPlan, ...]]) -> Chosen:
    """`found` with what saves time or costs none: int8 with inputs in int8 by token, and the layer as it is."""
    dense, rounded = Scheme.parse(ready.dtype), ActScheme()
    made: dict[str, tuple[LayerPlan, ...]] = dict(found)
    for layer in ready.structure.layers:
        plans = list(found[layer.name])
        rows = next((p for p in plans if p.scheme.bits == 8 and p.scheme.group_size == -1 and p.scheme.symmetric), None)
        if rows is not None and takes_int8(layer):
            plans.append(replace(rows, activation=rounded))
        if layer.expert is None:
            plans.append(LayerPlan(layer.name, dense, "keep", "a candidate"))
        made[layer.name] = tuple(plans)
    return made


def measured(ready: Prepared, chosen: Chosen, work: Path, hooks: Hooks) -> latency.Table:
    """What a request takes, by kind and treatment of layers. work: a folder for files that are deleted again.

    Memory and disk: as an export of the model in float32; on disk once more in each scheme, and all layers once more.
    """
    place, recipe = work / WORK, ready.recipe
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    request, loud = _request(ready), _loud(set_threads(recipe.threads))
    kinds = latency.kinds_of(ready.structure)
    ways = {kind: [p.treatment for p in common(groups[0], chosen)] for kind, groups in kinds.items()}
    treatments = list(dict.fromkeys(name for names in ways.values() for name in names))
    hooks.report("timing", 0, 1)
    graph = traced(Drawn(*_about(ready, ready.plan)))
    plans = {name: _all(ready, chosen, name) for name in treatments}
    whole = {name: place / f"whole-{number}.onnx" for number, name in enumerate(treatments)}
    for name, path in whole.items():
        write_whole(path, graph, Drawn(*_about(ready, plans[name])))
    with RuntimeProcess(RUNTIME, set_threads(recipe.threads)) as process:

        def timed(files: Mapping[str, Path], timing: Timing) -> dict[str, float]:
            found = in_rounds(process, files, request, timing, lambda done, of: hooks.report("timing", done, of))
            return {name: quiet(by_round) for name, by_round in found.items()}

        if not (recipe.max_bytes or recipe.bpw or recipe.max_drop):
            first = timed(whole, Timing(rounds=2))
            whole = {name: path for name, path in whole.items() if first[name] <= SLOWER * first[ready.dtype]}
        files = dict(whole)
        for number, (kind, groups) in enumerate(kinds.items()):
            for name in (name for name in ways[kind] if name in whole):
                path = place / f"alone-{number}-{treatments.index(name)}.onnx"
                write_alone(path, Drawn(*_about(ready, plans[name])), groups)
                files[f"{kind}|{name}"] = path
        found = timed(files, Timing())
        about = {"batch": request.batch, "tokens": request.tokens, "threads": process.threads, "runtime": RUNTIME}
        about |= {"version": process.version, "loud": loud}
    shutil.rmtree(place)
    alone = {
        kind: {name: found[f"{kind}|{name}"] / len(groups) for name in ways[kind] if name in whole}
        for kind, groups in kinds.items()
    }
    return latency.Table(ready.dtype, {name: found[name] for name in whole}, alone, about)


def worth(ready: Prepared, table: latency.Table, chosen: Chosen) -> Chosen:
    """What may be chosen, now that times are known. Raises RecipeError when the model is within the budget as it is."""
    recipe, fastest = ready.recipe, table.whole[table.dense]
    only = not (recipe.max_bytes or recipe.bpw or recipe.max_drop)
    assert recipe.latency_ms is not None
    if only and recipe.latency_ms >= fastest:
        raise RecipeError(f"the model takes {fastest:.3g} ms as it is, which is within {recipe.latency_ms:g} ms; "
                          "give less, or --max-bytes too")  # fmt: skip
    return latency.useful(table, ready.structure, chosen, only)


def keep(journal: Journal, table: latency.Table) -> None:
    """So that a rerun plans by the same times."""
    if journal.last("timed") is None:
        journal.append("timed", **table.to_json())


def known(journal: Journal) -> latency.Table | None:
    """The times that the journal has."""
    line = journal.last("timed")
    return None if line is None else latency.Table(line["dense"], line["whole"], line["alone"], line["about"])


def _request(ready: Prepared) -> Request:
    batch, tokens = ready.recipe.request_shape
    return Request(batch, tokens, int(getattr(ready.checkpoint.config, "vocab_size", None) or 1))


def _about(ready: Prepared, plan: Plan) -> tuple[Any, ...]:
    """What a source is made of: the original's weights, treated as `plan` says."""
    return ready.opened.folder, ready.opened.name, ready.checkpoint, ready.structure, to_json(plan)


def _all(ready: Prepared, chosen: Chosen, treatment: str) -> Plan:
    """The plan whose layers are all treated so; those that cannot be are kept."""
    layers = dict(ready.plan.layers)
    for group in groups_of(ready.structure).values():
        able = any(plan.treatment == treatment for plan in common(group, chosen))
        for layer in group:
            layers[layer.name] = _named(chosen, layer, treatment if able else ready.dtype)
    return replace(ready.plan, layers=layers)


def _named(chosen: Chosen, layer: LayerRef, treatment: str) -> LayerPlan:
    return next(plan for plan in chosen[layer.name] if plan.treatment == treatment)


def expected(table: latency.Table, recipe: Recipe, ms: float) -> str:
    """A sentence on what was planned."""
    asked = f"{table.about['batch']} x {table.about['tokens']} tokens"
    where = f"{table.about['runtime']} {table.about['version']}, threads: {table.about['threads']}"
    return (
        f"Budget {recipe.latency_ms:g} ms for {asked}: {ms:.3g} ms expected ({where}); "
        f"nothing in codes takes {table.whole[table.dense]:.3g} ms{table.about.get('loud', '')}"
    )


def _loud(threads: int) -> str:
    """What is to be said where others work here, beside `threads` of this run."""
    load, cores = load_average(), usable_cores()
    if load is None or load <= threads + BUSY * cores:
        return ""
    return f"; the load average was {load} on {cores} cores: the machine was not quiet"


def with_latency(record: RunRecord, recipe: Recipe, hooks: Hooks) -> RunRecord:
    """The record of a run with exports, with how long the ONNX one takes beside what was expected."""
    ms = record.plan.get("predicted_ms")
    place = folder.home(Path(record.artifact or ""), FORMAT)
    if not recipe.max_latency or ms is None or not (place / folder.EXPORT).is_file():
        return record
    found, about = timed_export(place, recipe, hooks)
    median, low, high = median_interval(found)
    subject = next((m.subject for m in record.measurements if m.detail.get("export") == str(place)), str(place))
    row = Measurement(subject, "latency_ms", "ms", median, low, high, len(found), {**about, "expected_ms": ms})
    said = f"onnx takes {median:.3g} ms"
    said += f" [{low:.3g}, {high:.3g}]" if low is not None and high is not None else ""
    said += f" in onnxruntime where {ms:.3g} ms were expected ({median / ms - 1:+.1%})"
    assert recipe.latency_ms is not None
    said += f", which is over the budget of {recipe.latency_ms:g} ms" if median > recipe.latency_ms else ""
    said += _loud(about["threads"])
    return replace(record, measurements=(*record.measurements, row), notes=(*record.notes, said))


def timed_export(place: Path, recipe: Recipe, hooks: Hooks) -> tuple[list[float], dict[str, Any]]:
    """Milliseconds of each run of the ONNX export in `place`, and of what request."""
    path = place / "model.onnx"
    batch, tokens = recipe.request_shape
    with RuntimeProcess(RUNTIME, set_threads(recipe.threads)) as process:
        request = Request(batch, tokens, int(read_config(place).get("vocab_size") or 1))
        rounds = in_rounds(process, {FORMAT: path}, request, Timing(), lambda a, b: hooks.report("timing onnx", a, b))
        threads = process.threads
    return [ms for part in rounds[FORMAT] for ms in part], {"batch": batch, "tokens": tokens, "threads": threads}
