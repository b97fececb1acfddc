"""Budgets of `quantize`: the plan chosen by what layers cost, inside the run that applies it, and what came of it."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compress.core.artifact import parse_size
from compress.core.checkpoint import disk_parts
from compress.core.errors import BudgetError, RecipeError
from compress.core.journal import WORK as PLACE
from compress.core.journal import Journal
from compress.core.numerics.paired import Pair
from compress.core.registry import load
from compress.core.types import LayerPlan, LayerRef, Measurement, Scheme, Sensitivity, torch_dtype
from compress.pipeline import allowed, given, judge, timed, trial
from compress.pipeline.allowed import Certificate
from compress.pipeline.halves import steadiness
from compress.pipeline.hooks import Hooks
from compress.pipeline.importance import Importance
from compress.pipeline.limits import formats_of
from compress.pipeline.outside import Outside
from compress.pipeline.planning import Judged, Planning, as_planned, treated
from compress.pipeline.prepare import Prepared, rules_of
from compress.pipeline.profiling import Chosen, listed
from compress.pipeline.store import Store
from compress.plan import budget, latency, profile
from compress.plan.budget import Planned
from compress.plan.candidates import candidates
from compress.plan.uniform import Uses, all_layers, to_json
from compress.recipe import Recipe
from export.formats.compressed_tensors import FORMAT
from export.kinds import Sizes
from export.source import Planned as Coming

WORK = "profile"
ENTRY, HEADER = 84, 1024
"""Bytes of a tensor's line in a safetensors header beside its name, and of a header beside its lines, at most."""
TENSORS, SHAPE = 3, 16
"""Tensors of a layer with codes, and bytes of the one that holds its shape."""
BUILT = ("outside", "block", "measured")
"""Journal lines of a plan that was built; they are void when it loses more than allowed."""


def suffix(recipe: Recipe) -> str:
    """What the folder of such a run is called after the model."""
    if recipe.has_budget:
        size = recipe.max_bytes.lower() or (f"{recipe.bpw:g}bpw" if recipe.bpw else "")
        drop = f"drop{recipe.max_drop}".replace("%", "pc") if recipe.max_drop else ""
        return "-".join(part.replace(" ", "") for part in (size, recipe.max_latency, drop) if part)
    return recipe.scheme or f"{recipe.bits}bit"


def limit_of(ready: Prepared) -> float:
    """The budget in bytes, inf without one. Raises RecipeError for a size that is not understood."""
    if ready.recipe.max_bytes:
        return parse_size(ready.recipe.max_bytes)
    return math.inf if ready.recipe.bpw is None else int(ready.recipe.bpw * ready.checkpoint.parameters / 8)


def limits_of(ready: Prepared, chosen: Chosen, table: latency.Table | None = None) -> list[budget.Limit]:
    """What sums over the model may be. table: of times, once they are known."""
    fixed, kept = _fixed_bytes(ready, chosen), torch_dtype(ready.dtype).itemsize

    def size(layers: Sequence[LayerRef], plan: LayerPlan) -> float:
        if plan.scheme.kind == "dense":
            return sum(math.prod(layer.shape) * kept for layer in layers)
        own = ((la, p.scheme) for la in layers for p in chosen[la.name] if p.treatment == plan.treatment)
        return sum(FORMAT.stored_bytes(layer, scheme) for layer, scheme in own)  # scales of experts are wider

    found = [budget.Limit(budget.BYTES, limit_of(ready), fixed, size)]
    if ready.recipe.max_bytes:
        found += _exports(ready, chosen)
    if table is not None and ready.recipe.latency_ms is not None:
        found.append(latency.limit(table, ready.structure, ready.recipe.latency_ms))
    return found


def _exports(ready: Prepared, chosen: Chosen) -> list[budget.Limit]:
    """The same budget for the files of --to, which store codes otherwise than OUT; of formats that know their sizes."""
    source = Coming(ready.opened.folder, ready.opened.name, ready.checkpoint, ready.structure, to_json(ready.plan))

    def limit(name: str, sizes: Sizes) -> budget.Limit:
        def size(layers: Sequence[LayerRef], plan: LayerPlan) -> float:
            return sum(sizes.layer(layer, plan.scheme) for layer in layers)

        return budget.Limit(f"{budget.BYTES}{budget.OF}{name}", limit_of(ready), sizes.fixed, size)

    forms = {name: load("format", name) for name in formats_of(ready.recipe)}
    return [
        limit(name, form.sizes(source, form.options(), torch_dtype(ready.dtype), chosen.keys()))
        for name, form in forms.items()
        if form.sizes is not None
    ]


def check(ready: Prepared) -> None:
    """Before any work: raises BudgetError for a budget below the smallest file, RecipeError for a size that is not
    understood and for a model whose layers cannot be packed."""
    if not ready.recipe.has_budget:
        return
    if ready.data is None:
        raise RecipeError(f"a budget is spent by what layers cost, and that cannot be asked of {ready.opened.name}: "
                          f"{ready.notes[-1]}; give --bits")  # fmt: skip
    if ready.recipe.max_drop:
        allowed.check_rows(ready)
    chosen = choices(ready)
    if ready.recipe.profile:
        _, chosen = given.read(ready, chosen)
    budget.check(limits_of(ready, chosen), ready.structure, chosen)


def within_budget(ready: Prepared, out: Path, journal: Journal, hooks: Hooks) -> Prepared:
    """The run with its plan finished: schemes by layer, within the budget; `compress/profile.json` in OUT.

    What `check` let pass. Of a run whose first plan was found to lose too much, the next one.
    Raises BudgetError when the search does not end.
    """
    chosen = choices(ready)
    place = out / PLACE / WORK
    line = journal.last("planned")
    if line is None:
        journal.append("planned", **_planned(ready, chosen, out, journal, hooks))
        line = journal.lines[-1]
    shutil.rmtree(place, ignore_errors=True)
    turn = line["tries"][len(journal.of("void"))]
    return as_planned(ready, chosen, turn["layers"], turn["totals"])


def importance_of(out: Path, journal: Journal) -> Importance | None:
    """What calibration tokens count in the build; None where nobody asked, as `Planning.builds` says."""
    line = (journal.last("planned") or {}).get("importance")
    return None if line is None else Importance(out / PLACE, *line)


def _checked(ready: Prepared, table: latency.Table, chosen: Chosen, journal: Journal) -> Chosen:
    """What may be chosen, with times known. Raises BudgetError where no plan is as fast as that, RecipeError where none
    is needed; nothing is left of the run then."""
    try:
        worth = timed.worth(ready, table, chosen)
        budget.check(limits_of(ready, worth, table), ready.structure, worth)
    except (BudgetError, RecipeError):
        journal.abandon()
        raise
    timed.keep(journal, table)
    return worth


def choices(ready: Prepared) -> Chosen:
    """What may be chosen for each layer, as far as the format holds it among the others."""
    structure = ready.structure
    rules = rules_of(ready.recipe, ready.checkpoint, structure)
    method = ready.plan.layers[structure.layers[0].name]
    encoder, few = judge.reads_only(ready.checkpoint.model), bool(ready.recipe.max_latency)
    found = candidates(ready.recipe.schemes, structure, rules, method, encoder, few)
    inside = {layer.name: layer for layer in structure.layers}
    containers = {layer.container for layer in structure.layers}
    every = {p.scheme for name, plans in found.items() if name in inside for p in plans}

    def uses(scheme: Scheme) -> Uses:
        """What a model with that scheme may have beside it."""
        return frozenset((c, s) for c in containers for s in ([scheme] if structure.alike else every))

    kept: Chosen = timed.with_fast(ready, found) if ready.recipe.max_latency else dict(found)
    for name, layer in inside.items():
        refused = [because for p in found[name] if (because := rules.refuses(layer, p.scheme, uses(p.scheme)))]
        if refused:
            raise RecipeError(f"{layer.name} cannot be chosen for: {refused[0]}; leave out the budget")
    made = {name: kept[name] for name in inside}
    table = structure.embedding
    if table is not None and ready.plan.layers[table.name].scheme.kind != "dense" and ready.recipe.embeddings == "auto":
        stays = Scheme("dense", torch_dtype(ready.dtype).itemsize * 8, -1, True, ready.dtype)
        made[table.name] = (*found[table.name], LayerPlan(table.name, stays, "keep", "a candidate"))
    return made


def _planned(ready: Prepared, chosen: Chosen, out: Path, journal: Journal, hooks: Hooks) -> dict[str, Any]:
    """The journal's line: the plans to be tried, the frontier, and what single changes of the first plan would do."""
    table = timed.known(journal)
    if table is None and ready.recipe.max_latency:
        table = timed.measured(ready, chosen, out / PLACE, hooks)
    if table is not None:
        chosen = _checked(ready, table, chosen, journal)
    if ready.recipe.profile:
        told, chosen = given.read(ready, chosen)
        profile.write(out / profile.PLACE, told)
        limits = limits_of(ready, chosen, table)
        made = budget.within(limits, ready.plan, ready.structure, chosen, told.sensitivities)
        turn = {"layers": treated(made, chosen), "totals": made.totals, **_losses(made)}
        return {"tries": [turn], "readings": [], "trial": None, "importance": None, "frontier": [], "changes": []}
    store = Store(ready.checkpoint, ready.plan, out, torch_dtype(ready.dtype))
    store.work = out / PLACE / WORK
    store.work.mkdir(parents=True, exist_ok=True)
    outside = Outside(ready.checkpoint, ready.structure, ready.plan, store)
    outside.compress(store.block_path(-1))
    outside.load_small(store.block_path(-1))
    planning = Planning(ready, chosen, limits_of(ready, chosen, table), store, outside, journal, hooks.report)
    alone, said = planning.profile()
    shares, tried = trial.asked(planning, alone)
    roles = {layer.name: layer.role for layer in ready.structure.layers}
    found = shares.of(alone, roles)
    mark = journal.lines[0]["fingerprint"]
    profile.write(out / profile.PLACE, profile.Profile(said["unit"], tuple(found), mark))
    readings: list[Judged] = []
    if ready.recipe.max_drop:
        tries, shown = planning.smallest(found)
    else:
        readings = planning.best(found) if tried is None else []
        tries = [readings[0].planned if readings else planning.within(found)]
        points = planning.frontier(found)
        shown = planning.measured("frontier", points, [""] * len(points))
    size = tries[0].totals[budget.BYTES]

    def planned(costs: Sequence[Sensitivity]) -> dict[str, str]:
        made = planning.at(costs, size)
        return {name: made.plan.layers[name].treatment for name in chosen}

    if journal.last("stable") is None:
        journal.append("stable", **steadiness(ready, journal, found, planned, planning.share, shares))
    changes = planning.changes(tries[0], found)
    return {
        "tries": [{"layers": treated(one, chosen), "totals": one.totals, **_losses(one)} for one in tries],
        "readings": [{"name": one.name, **_point(one)} for one in readings],
        "importance": planning.importance() if planning.builds else None,
        "trial": {"shares": dict(shares.by_role), **_point(tried)} if tried is not None else None,
        "frontier": [_point(one) for one in shown],
        "changes": [{"name": one.name, **_point(one)} for one in changes],
    }


def _losses(planned: Planned) -> dict[str, Any]:
    return {"loss": [planned.loss, planned.low, planned.high]}


def _point(one: Judged) -> dict[str, Any]:
    """A plan for charts: what it takes, is expected to lose, and lost on the judging text."""
    return {"totals": one.planned.totals, "expected": one.planned.loss, "measured": [one.loss, one.low, one.high]}


def _fixed_bytes(ready: Prepared, chosen: Chosen) -> int:
    """What is in OUT's weights whatever is chosen: norms, biases, headers; vocabularies without a choice."""
    checkpoint, model = ready.checkpoint, ready.checkpoint.model
    plans = {layer.param: ready.plan.layers[layer.name] for layer in all_layers(ready.structure)}
    coded = [layer for layer in all_layers(ready.structure) if layer.block >= 0 or layer.name in chosen]
    inside = {layer.param for layer in coded}
    names = [*checkpoint.outside(block.name for block in ready.structure.blocks)]
    names += [
        f"{b.prefix}{n}" for b in ready.structure.blocks for n, _ in model.get_submodule(b.name).named_parameters()
    ]
    fixed, kept = HEADER, torch_dtype(ready.dtype).itemsize
    for layer in coded:
        keys = [key for key, *_ in disk_parts(layer, checkpoint.sources[layer.param]) or [(layer.param, 0, 0)]]
        fixed += sum(TENSORS * (ENTRY + len(key) + len("_packed")) for key in keys) + SHAPE * (len(keys) - 1)
    for name in (name for name in names if name not in inside):
        shape = tuple(model.get_parameter(name).shape)
        plan = plans.get(name)
        fixed += ENTRY + len(name)
        if name in checkpoint.computed:
            continue
        int8 = plan is not None and plan.scheme.kind == "int" and plan.packed
        fixed += math.prod(shape) * (1 if int8 else kept) + (4 * shape[0] if int8 else 0)
    return fixed


def profiled(ready: Prepared, journal: Journal) -> dict[str, Any]:
    """What the plan was chosen by and what came of it, for the record; nothing without a budget."""
    line = journal.last("planned")
    if line is None:
        return {}
    found = profile.read(journal.out / profile.PLACE)
    counts = journal.of("scored")[0]["counts"] if not ready.recipe.profile else []
    answers = {"texts": len(counts), "answers": sum(counts)} if counts else {}
    judged = {name: line[name] for name in ("readings", "trial", "frontier", "changes")}
    steady = {name: value for name, value in (journal.last("stable") or {}).items() if name != "kind"}
    layers = listed(found.sensitivities, ready.structure)
    return {"unit": found.unit, **answers, "layers": layers, "stability": steady, **judged}


def worse_than_allowed(ready: Prepared, journal: Journal) -> Certificate | None:
    """What the built model was found to lose, if more than allowed; None if it is not, or nothing is asked."""
    line = journal.last("measured")
    if not ready.recipe.max_drop or line is None:
        return None
    found = Certificate(**line["certificate"])
    return None if found.holds else found


def give_up(journal: Journal, found: Certificate) -> None:
    """Void the plan that was built, so that the next one is. Raises BudgetError when it was the last one."""
    tries = journal.of("planned")[0]["tries"]
    failed = len(journal.of("void"))
    if failed + 1 == len(tries):
        size = round(tries[failed]["totals"][budget.BYTES])
        raise BudgetError(f"{found.sentence}; the nearest plan that was built takes {size:,} bytes")
    journal.append("void", kinds=list(BUILT), certificate=found.to_json())


def certificate(ready: Prepared, journal: Journal, pair: Pair | None) -> Certificate | None:
    """What the built model shows on held-out rows; None without --max-drop."""
    if not ready.recipe.max_drop:
        return None
    tries, failed = journal.of("planned")[0]["tries"], len(journal.of("void"))
    return allowed.certified(ready, pair, failed, failed + 1 == len(tries))


def outcome(ready: Prepared, journal: Journal, measured: Sequence[Measurement], size: int) -> list[str]:
    """Sentences on what was planned and what came of it. Raises BudgetError when the file is larger than allowed."""
    line = journal.last("planned")
    if line is None:
        return []
    limit, turn = limit_of(ready), line["tries"][len(journal.of("void"))]
    table = timed.known(journal)
    if size > limit:
        raise BudgetError(f"the weights take {size:,} bytes, {size - limit:,.0f} more than the budget; allow that much")
    unit = profile.read(journal.out / profile.PLACE).unit
    kl = next((m for m in measured if m.name == "kl"), None)
    said = [f"Budget {limit:,.0f} bytes: {size:,} used." if math.isfinite(limit) else f"{size:,} bytes."]
    others = {name: value for name, value in turn["totals"].items() if budget.OF in name}
    said[0] += "".join(f" {value:,.0f} {name.replace(budget.OF, ' as ')}." for name, value in others.items())
    if table is not None:
        said[0] += f" {timed.expected(table, ready.recipe, turn['totals'][budget.MS])}."
    said[0] += f" {_expected(turn, unit)}"
    said[0] += f"; measured on held-out text {kl.median:.3g}" if kl is not None else ""
    if ready.recipe.max_drop:
        found = Certificate(**journal.of("measured")[0]["certificate"])
        said.append(found.sentence)
        said += [
            f"A smaller plan was built first: {Certificate(**v['certificate']).sentence}" for v in journal.of("void")
        ]
    said += [_left(line["trial"], unit)] if line["trial"] else []
    said += [str(line["said"]) for line in journal.of("stable")]
    return [*said, *_change(line["changes"], unit), *_relaxed(line["frontier"], turn, limit, unit)]


def _expected(turn: dict[str, Any], unit: str) -> str:
    loss, low, high = turn["loss"]
    return f"Expected loss {loss:.3g} {unit} [{low:.3g}, {high:.3g}]"


def _left(tried: dict[str, Any], unit: str) -> str:
    """What the trial build said."""
    shares = sorted(tried["shares"].items(), key=lambda pair: pair[1])
    named = ", ".join(f"{role} {100 * share:.0f} %" for role, share in shares)
    size, loss = tried["totals"][budget.BYTES], tried["measured"][0]
    return (
        f"Built with as many bits everywhere, {size:,.0f} bytes lose {loss:.3g} {unit} on the judging text. Of what "
        f"layers lose alone that leaves, corrections with their own losses: {named}"
    )


def _change(changes: list[dict[str, Any]], unit: str) -> list[str]:
    """The one change that would help most, by what it did on the judging text."""
    if len(changes) < 2:
        return []
    own, *others = changes
    best = min(others, key=lambda one: one["measured"][0])
    gain = own["measured"][0] - best["measured"][0]
    more = best["totals"][budget.BYTES] - own["totals"][budget.BYTES]
    if gain <= 0:
        return [f"None of the {len(others)} changes that promised most gained anything"]
    return [
        f"What would help most: {best['name']}, {gain:.2g} of {own['measured'][0]:.2g} {unit} less as measured "
        f"({own['expected'] - best['expected']:.2g} expected), for {more / 1e3:,.0f} kB more"
    ]


def _relaxed(frontier: list[dict[str, Any]], turn: dict[str, Any], limit: float, unit: str) -> list[str]:
    """What the next larger budget of the frontier would save."""
    more = [one for one in frontier if one["totals"][budget.BYTES] > turn["totals"][budget.BYTES] * 1.001]
    if not math.isfinite(limit) or not more:
        return []
    step = more[0]
    return [
        f"{step['totals'][budget.BYTES]:,.0f} bytes would lose {step['measured'][0]:.2g} {unit} on the judging text; "
        f"see the frontier"
    ]
