"""One scheme for the whole body: the plan when the user gives bits and no budget."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from compress.core.errors import RecipeError
from compress.core.types import ActScheme, FormatCaps, LayerPlan, LayerRef, Plan, Scheme, Structure
from compress.plan.activations import IN_FLOAT, takes_int8
from compress.recipe import Recipe

Uses = frozenset[tuple[str, Scheme]]
"""Every (container, scheme) with codes that a model has."""
Refuses = Callable[[LayerRef, Scheme, Uses], str | None]


def storage_dtype(recipe: Recipe, stored: torch.dtype) -> str:
    """The dtype of weights that are kept: as stored when that is 16-bit, bfloat16 for float32 sources."""
    if recipe.dtype != "auto":
        return recipe.dtype
    return "float16" if stored == torch.float16 else "bfloat16"


@dataclass(frozen=True)
class Rules:
    """What the artifact's format asks of a plan: its caps, the grid of its scales, and which layers it refuses."""

    caps: FormatCaps
    scale_grid: Callable[[int, str], tuple[str, int]]
    refuses: Refuses

    def scheme(self, bits: int, group: int, symmetric: bool, container: str = "linear") -> Scheme:
        """An integer scheme with scales as the format stores them for weights of `container`."""
        return Scheme("int", bits, group, symmetric, *self.scale_grid(bits, container))


@dataclass(frozen=True)
class Wishes:
    """What was decided before the plan. activation: how inputs are rounded. mixed: some layers get eight bits later, so
    that one scheme must be symmetric. encoder: the model reads whole texts and writes none."""

    activation: ActScheme | None = None
    mixed: bool = False
    encoder: bool = False


def make_plan(recipe: Recipe, structure: Structure, rules: Rules, dtype: str, wishes: Wishes | None = None) -> Plan:
    """A plan for every weight matrix of the model; kept ones in `dtype`.

    Raises RecipeError for a scheme that its layers cannot hold.
    """
    wishes = wishes or Wishes()
    activation, mixed = wishes.activation, wishes.mixed
    layers = structure.layers
    if not layers:
        raise RecipeError(f"{structure.architecture} has no linear layer inside blocks; there is nothing to quantize")
    notes = []
    symmetric = recipe.bits == 8 or activation is not None or mixed if recipe.symmetric is None else recipe.symmetric
    if (
        not symmetric
        and any(layer.container == "experts" for layer in layers)
        and "experts" in rules.caps.symmetric_only
    ):
        symmetric = True
        notes.append("symmetric codes: servers decode packed experts without zero points only")
    kinds, why = _body(recipe, layers, rules, symmetric, wishes)
    eight = [("linear", rules.scheme(8, kinds[layers[0].container].group_size, True))] if mixed else []
    body = frozenset([*kinds.items(), *eight])
    plans: dict[str, LayerPlan] = {}
    for layer in layers:
        rounded = activation if takes_int8(layer) else None
        said = why if rounded == activation else f"its inputs stay in float: servers have no int8 {layer.container}"
        plans[layer.name] = LayerPlan(
            layer.name, kinds[layer.container], recipe.method, said, dict(recipe.options), activation=rounded
        )
    table = _embeddings(recipe, structure, symmetric, wishes)
    for plan in _outside(recipe, structure, dtype, rules.scheme(8, -1, True), table):
        plans[plan.layer] = plan
    ends = {(layer.container, plans[layer.name].scheme) for layer in all_layers(structure) if layer.block < 0}
    uses = body | {(container, scheme) for container, scheme in ends if scheme.kind != "dense"}
    refused: dict[str, list[str]] = {}
    for layer in all_layers(structure):
        because = rules.refuses(layer, plans[layer.name].scheme, uses if layer.block < 0 else body)
        if because:
            refused.setdefault(because, []).append(layer.name)
            plans[layer.name] = _beside(plans[layer.name], because)
    for because, names in refused.items():
        notes.append(f"{because}: {_few(names)} stored dense in {dtype}, codes kept in compress/ for other formats")
    in_float = dict(IN_FLOAT) if any(plan.activation for plan in plans.values()) else {}
    return Plan(plans, predicted_bytes(plans, structure, dtype), tuple(notes), in_float)


def _body(
    recipe: Recipe, layers: tuple[LayerRef, ...], rules: Rules, symmetric: bool, wishes: Wishes
) -> tuple[dict[str, Scheme], str]:
    """The scheme of the layers of each container, and why its groups are what they are."""
    containers = {layer.container for layer in layers}
    if recipe.scheme:
        asked = Scheme.parse(recipe.scheme)
        size = asked.group_size
        if size != -1 and (wide := next((layer for layer in layers if layer.shape[1] % size), None)) is not None:
            raise RecipeError(  # blocks never cross rows
                f"{asked.name} is blocks of {size} inputs, and {wide.name} has {wide.shape[1]}; use --bits "
                f"{asked.bits} --group-size auto"
            )
        return dict.fromkeys(containers, asked), f"{asked.name}, as asked"
    if wishes.activation is not None and recipe.bits == 8:
        group, why = -1, f"int8 weights by row, inputs rounded to int8 by {wishes.activation.strategy}"
    else:
        fine = wishes.encoder and recipe.bits < 8
        group, why = choose_group(recipe.group_size, layers, rules.caps, fine)
    return {name: rules.scheme(recipe.bits, group, symmetric, name) for name in containers}, why


def _beside(plan: LayerPlan, because: str) -> LayerPlan:
    return replace(plan, reason=f"{plan.reason}; {because}", packed=False, activation=None)


def _few(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def choose_group(
    wanted: int | str, layers: tuple[LayerRef, ...], caps: FormatCaps, fine: bool = False
) -> tuple[int, str]:
    """The group size and the sentence that explains it; fine: the smallest one, for encoders.

    Their blocks are small beside their embedding, so that more scales cost little of the file, and in MiniLM groups of
    32 instead of 128 halve what retrieval loses. Raises RecipeError when a given size does not divide.
    """
    widths = sorted({layer.shape[1] for layer in layers})
    shown = ", ".join(map(str, widths))
    if isinstance(wanted, int):
        for layer in layers:
            if wanted != -1 and layer.shape[1] % wanted:
                fit = [str(g) for g in range(256, 15, -1) if all(w % g == 0 for w in widths)][:3]
                raise RecipeError(
                    f"group_size {wanted} does not divide in_features {layer.shape[1]} of {layer.name}; "
                    f"use {', '.join(fit)}, or --group-size auto" if fit else
                    f"group_size {wanted} does not divide in_features {layer.shape[1]} of {layer.name}; "
                    "use -1 (whole row) or --group-size auto"
                )  # fmt: skip
        return wanted, "whole rows, as asked" if wanted == -1 else f"group size {wanted}, as asked"
    for size in sorted(caps.auto_groups, reverse=not fine):
        if all(width % size == 0 for width in widths):
            which = "smallest (scales are a small part of an encoder)" if fine else "largest"
            return size, f"{size} is the {which} group that divides every input ({shown}) and that servers take"
    return -1, f"no group of {', '.join(map(str, caps.auto_groups))} divides every input ({shown}): whole rows"


def _embeddings(recipe: Recipe, structure: Structure, symmetric: bool, wishes: Wishes) -> str:
    """Why the embedding is int8, empty when it is kept.

    By default it is where it weighs most and costs least, in encoders; and only where servers open it.
    """
    if recipe.embeddings == "int8":
        return "int8 rows, as asked"
    opens = symmetric and not structure.tied and (wishes.activation is not None or wishes.mixed)
    if recipe.embeddings == "auto" and wishes.encoder and opens:
        return "int8 rows: much of an encoder is its embedding (--embeddings keep for servers that want it in 16 bits)"
    return ""


def _outside(recipe: Recipe, structure: Structure, dtype: str, int8: Scheme, table: str) -> list[LayerPlan]:
    dense = Scheme("dense", torch.finfo(getattr(torch, dtype)).bits, -1, True, dtype)
    plans = []
    for layer in structure.outside:
        plans.append(LayerPlan(layer.name, dense, "keep", "outside the blocks: kept"))
    if structure.embedding:
        chosen = bool(table)
        reason = table or "embedding kept (--embeddings int8 shrinks it)"
        plans.append(
            LayerPlan(structure.embedding.name, int8 if chosen else dense, "rtn" if chosen else "keep", reason)
        )
    if structure.head and structure.head.tied_to and not structure.tied:  # marian with two vocabularies
        plans.append(LayerPlan(structure.head.name, dense, "keep", f"tied to {structure.head.tied_to}, which is kept"))
    elif structure.head:
        chosen = bool(table) if structure.tied else recipe.head == "int8"
        reason = "tied to the embedding" if structure.tied else "int8 rows, as asked" if chosen else "head kept"
        plans.append(LayerPlan(structure.head.name, int8 if chosen else dense, "rtn" if chosen else "keep", reason))
    return plans


def all_layers(structure: Structure) -> list[LayerRef]:
    """Every weight matrix that a plan speaks of: body, other linears, embedding, head."""
    ends = [layer for layer in (structure.embedding, structure.head) if layer is not None]
    return [*structure.layers, *structure.outside, *ends]


def predicted_bytes(plans: dict[str, LayerPlan], structure: Structure, dtype: str) -> int:
    """Bytes of the matrices in the file, scales and zeros included; tied weights once; norms and biases are extra."""
    dense = torch.finfo(getattr(torch, dtype)).bits
    total = 0.0
    for layer in all_layers(structure):
        if layer.tied_to is not None:
            continue
        plan = plans[layer.name]
        bits = plan.scheme.bits_per_weight(layer.shape) if plan.packed else dense
        total += bits * layer.shape[0] * layer.shape[1] / 8
    return round(total)


def to_json(plan: Plan) -> dict[str, Any]:
    """The plan as plan.json: one readable line per layer, each with its reason."""
    layers = {
        name: {"scheme": p.scheme.name, "method": p.method, "packed": p.packed, "reason": p.reason}
        | ({"activation": p.activation.name} if p.activation else {})
        | ({"options": p.options} if p.options else {})
        for name, p in plan.layers.items()
    }
    found: dict[str, Any] = {"predicted_bytes": plan.predicted_bytes}
    found |= {"predicted_ms": round(plan.predicted_ms, 4)} if plan.predicted_ms is not None else {}
    found |= {"notes": list(plan.notes), "layers": layers}
    return found | ({"in_float": plan.in_float} if plan.in_float else {})
