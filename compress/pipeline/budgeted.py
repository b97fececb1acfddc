"""`quantize --max-bytes` and `--bpw`: the plan finished by what each layer costs, inside the run that applies it."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from compress.core.artifact import parse_size
from compress.core.errors import BudgetError, RecipeError
from compress.core.journal import Journal
from compress.core.types import LayerPlan, LayerRef, Measurement, Sensitivity, torch_dtype
from compress.pipeline import judge, timed
from compress.pipeline.bank import Bank
from compress.pipeline.hooks import Hooks
from compress.pipeline.likelihood import Answers
from compress.pipeline.outside import Outside
from compress.pipeline.prepare import Prepared, make_streams, rules_of
from compress.pipeline.profiling import Chosen, Profiling, listed, texts_of
from compress.pipeline.store import Store
from compress.plan import budget, latency, profile
from compress.plan.activations import in_float
from compress.plan.candidates import candidates
from compress.plan.uniform import all_layers
from compress.recipe import Recipe
from export.formats.compressed_tensors import FORMAT

WORK = "profile"
ENTRY, HEADER = 84, 1024
"""Bytes of a tensor's line in a safetensors header beside its name, and of a header beside its lines, at most."""


def suffix(recipe: Recipe) -> str:
    """What the folder of such a run is called after the model."""
    if recipe.has_budget:
        size = recipe.max_bytes.lower() or (f"{recipe.bpw:g}bpw" if recipe.bpw else "")
        return "-".join(part for part in (size, recipe.max_latency.replace(" ", "")) if part)
    return recipe.scheme or f"{recipe.bits}bit"


def limit_of(ready: Prepared) -> float:
    """The budget in bytes, inf without one. Raises RecipeError for a size that is not understood."""
    if ready.recipe.max_bytes:
        return parse_size(ready.recipe.max_bytes)
    return math.inf if ready.recipe.bpw is None else int(ready.recipe.bpw * ready.checkpoint.parameters / 8)


def limits_of(ready: Prepared, table: latency.Table | None = None) -> list[budget.Limit]:
    """What sums over the model may be. table: of times, once they are known."""
    fixed, kept = _fixed_bytes(ready), torch_dtype(ready.dtype).itemsize

    def size(layers: Sequence[LayerRef], plan: LayerPlan) -> float:
        if plan.scheme.kind == "dense":
            return sum(math.prod(layer.shape) * kept for layer in layers)
        return sum(FORMAT.stored_bytes(layer, plan.scheme) for layer in layers)

    found = [budget.Limit(budget.BYTES, limit_of(ready), fixed, size)]
    if table is not None and ready.recipe.latency_ms is not None:
        found.append(latency.limit(table, ready.structure, ready.recipe.latency_ms))
    return found


def check(ready: Prepared) -> None:
    """Before any work: raises BudgetError for a budget below the smallest file, RecipeError for a size that is not
    understood and for a model whose layers must all have one scheme."""
    if not ready.recipe.has_budget:
        return
    if ready.data is None:
        raise RecipeError(f"a budget is spent by what layers cost, and that cannot be asked of {ready.opened.name}: "
                          f"{ready.notes[-1]}; give --bits")  # fmt: skip
    budget.check(limits_of(ready), ready.structure, _chosen(ready))


def within_budget(ready: Prepared, store: Store, outside: Outside, journal: Journal, hooks: Hooks) -> Prepared:
    """The run with its plan finished: bits by layer, within the budget; `compress/profile.json` in OUT.

    What `check` let pass. Raises BudgetError when the search does not end.
    """
    chosen = _chosen(ready)
    place = store.work / WORK
    line = journal.last("planned")
    if line is None:
        table = timed.known(journal)
        if table is None and ready.recipe.max_latency:
            table = timed.measured(ready, chosen, store.work, hooks)
        if table is not None:
            chosen = _checked(ready, table, chosen, journal)
        costs = _costs(ready, chosen, store, outside, journal, hooks)
        found = budget.within(limits_of(ready, table), ready.plan, ready.structure, chosen, costs)
        rows = {name: [p.treatment, p.reason] for name, p in found.plan.layers.items() if name in chosen}
        journal.append("planned", layers=rows, totals=found.totals, loss=[found.loss, found.low, found.high])
        line = journal.lines[-1]
    shutil.rmtree(place, ignore_errors=True)
    layers = dict(ready.plan.layers)
    for name, (treatment, reason) in line["layers"].items():
        layers[name] = replace(next(p for p in chosen[name] if p.treatment == treatment), reason=reason)
    totals = line["totals"]
    predicted = {"predicted_bytes": round(totals[budget.BYTES]), "predicted_ms": totals.get(budget.MS)}
    made = replace(ready.plan, layers=layers, in_float=in_float(layers.values()), **predicted)
    return replace(ready, plan=made)


def _checked(ready: Prepared, table: latency.Table, chosen: Chosen, journal: Journal) -> Chosen:
    """What may be chosen, with times known. Raises BudgetError where no plan is as fast as that, RecipeError where none
    is needed; nothing is left of the run then."""
    try:
        worth = timed.worth(ready, table, chosen)
        budget.check(limits_of(ready, table), ready.structure, worth)
    except (BudgetError, RecipeError):
        journal.abandon()
        raise
    timed.keep(journal, table)
    return worth


def _chosen(ready: Prepared) -> Chosen:
    """What may be chosen for each layer of the blocks, as far as the format holds it among the others."""
    structure = ready.structure
    rules = rules_of(ready.recipe, ready.checkpoint, structure)
    method = ready.plan.layers[structure.layers[0].name]
    found = candidates((), structure, rules, method, judge.reads_only(ready.checkpoint.model))
    inside = {layer.name: layer for layer in structure.layers}
    uses = frozenset(
        (inside[name].container, p.scheme) for name, plans in found.items() if name in inside for p in plans
    )
    kept: Chosen = timed.with_fast(ready, found) if ready.recipe.max_latency else dict(found)
    for name, layer in inside.items():
        refused = [because for p in found[name] if (because := rules.refuses(layer, p.scheme, uses))]
        if refused:
            raise RecipeError(f"{layer.name} cannot be chosen for: {refused[0]}; leave out the budget")
    return {name: kept[name] for name in inside}


def _costs(
    ready: Prepared, chosen: Chosen, store: Store, outside: Outside, journal: Journal, hooks: Hooks
) -> list[Sensitivity]:
    """What layers cost, for those that may be chosen for; compress/profile.json says it too."""
    own = Store(ready.checkpoint, ready.plan, store.work, store.dtype)
    own.work = store.work / WORK
    own.work.mkdir(parents=True, exist_ok=True)
    bank = Bank(own.work, {p.scheme for plans in chosen.values() for p in plans if p.scheme.kind != "dense"})
    traces, features = texts_of(ready, make_streams(ready).calibration)
    loop = Profiling(ready, chosen, own, outside, bank, journal, hooks.report)
    answers = Answers(ready.checkpoint.model, ready.text, features, ready.recipe.seed)
    found, said = loop.sensitivities(traces, answers, "gradient")
    mark = journal.lines[0]["fingerprint"]
    profile.write(store.work.parent.parent / profile.PLACE, profile.Profile(said["unit"], tuple(found), mark))
    return found


def _fixed_bytes(ready: Prepared) -> int:
    """What is in OUT's weights whatever is chosen: vocabulary, norms, biases, the lines of headers."""
    checkpoint, model = ready.checkpoint, ready.checkpoint.model
    plans = {layer.param: ready.plan.layers[layer.name] for layer in all_layers(ready.structure)}
    inside = {layer.param for layer in ready.structure.layers}
    names = [*checkpoint.outside(block.name for block in ready.structure.blocks)]
    names += [
        f"{b.prefix}{n}" for b in ready.structure.blocks for n, _ in model.get_submodule(b.name).named_parameters()
    ]
    fixed, kept = HEADER, torch_dtype(ready.dtype).itemsize
    for name in names:
        shape = tuple(model.get_parameter(name).shape)
        plan = plans.get(name)
        fixed += (3 if name in inside else 1) * (ENTRY + len(name) + len("_packed"))
        if name in inside or name in checkpoint.computed:
            continue
        int8 = plan is not None and plan.scheme.kind == "int" and plan.packed
        fixed += math.prod(shape) * (1 if int8 else kept) + (4 * shape[0] if int8 else 0)
    return fixed


def profiled(ready: Prepared, journal: Journal) -> dict[str, Any]:
    """What the layers cost that the plan was chosen by, for the record; nothing without a budget."""
    if journal.last("planned") is None:
        return {}
    found, first = profile.read(journal.out / profile.PLACE), journal.of("scored")[0]
    answers = {"texts": len(first["counts"]), "answers": sum(first["counts"])}
    return {"unit": found.unit, **answers, "layers": listed(found.sensitivities, ready.structure)}


def outcome(ready: Prepared, journal: Journal, measured: Sequence[Measurement], size: int) -> list[str]:
    """Sentences on what was planned and what came of it. Raises BudgetError when the file is larger than allowed."""
    line = journal.last("planned")
    if line is None:
        return []
    limit, (loss, low, high), table = limit_of(ready), line["loss"], timed.known(journal)
    if size > limit:
        raise BudgetError(f"the weights take {size:,} bytes, {size - limit:,.0f} more than the budget; allow that much")
    kl = next((m for m in measured if m.name == "kl"), None)
    unit = profile.read(journal.out / profile.PLACE).unit
    said = "" if math.isinf(limit) else f"Budget {limit:,.0f} bytes: {size:,} used. "
    if table is not None:
        said += f"{timed.expected(table, ready.recipe, line['totals'][budget.MS])}. "
    said += f"Expected loss {loss:.3g} {unit} [{low:.3g}, {high:.3g}]"
    return [f"{said}; measured on held-out text {kl.median:.3g}" if kl is not None else said]
