"""plan.json, read back: what a person, or another run, decided for each layer."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from compress.core.errors import InputError, RecipeError
from compress.core.registry import load
from compress.core.types import ActScheme, LayerPlan, LayerRef, Plan, Scheme, Structure
from compress.plan.activations import in_float
from compress.plan.mixed import groups_of
from compress.plan.uniform import Rules, all_layers, predicted_bytes
from compress.recipe import REPARAMS, names_of

Lines = Mapping[str, Mapping[str, Any]]
REPARAM = "reparam"
"""Where plan.json says what was done to blocks before they were solved."""
TOKENS, BY_GRADIENTS = "tokens", "by gradients"
"""What plan.json says where the run's codes were solved with tokens counted so."""
OTHERWISE = (
    "The run that made this plan counted tokens by gradients; --plan makes no pass backward, so its codes lose a "
    "little more. The budget again gives the same bytes"
)


def read(path: str | Path) -> Lines:
    """Layer -> its line in the plan.json at `path`.

    Raises InputError when there is no file, RecipeError when it is no plan.
    """
    try:
        layers = json.loads(Path(path).read_text(encoding="utf-8"))["layers"]
        if not layers or not all(isinstance(line.get("scheme"), str) for line in layers.values()):
            raise KeyError("scheme")
    except OSError as error:
        raise InputError(
            f"plan {path} cannot be read: {error.strerror}; give the compress/plan.json of a run"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecipeError(
            f"{path} is no plan ({type(error).__name__}: {error}); it must hold layers by name, each with a scheme, as "
            "the compress/plan.json of a run does"
        ) from None
    found: Lines = layers
    return found


def by_gradients(path: str | Path) -> bool:
    """Whether the run that made a plan, which `read` can read, had what a plan does not hold."""
    found: bool = json.loads(Path(path).read_text(encoding="utf-8")).get(TOKENS) == BY_GRADIENTS
    return found


def reparams(path: str | Path) -> tuple[str, ...]:
    """What the run that made a plan, which `read` can read, did to blocks before it solved them, by name. Raises
    RecipeError for names that nothing has."""
    names = names_of(str(json.loads(Path(path).read_text(encoding="utf-8")).get(REPARAM, "")))
    if wrong := [name for name in names if name not in REPARAMS]:
        raise RecipeError(f"{path} says {REPARAM} {wrong[0]}; use {', '.join(REPARAMS)}, or take the line out")
    return names


def symmetric(lines: Lines) -> bool:
    """Whether layers that are not named get codes without zero points, as most of those that are."""
    named = [bool(line["scheme"].endswith("-sym")) for line in lines.values() if line["scheme"].startswith("int")]
    return bool(sum(named) * 2 > len(named))


def applied(plan: Plan, lines: Lines, structure: Structure, rules: Rules, dtype: str = "bfloat16") -> Plan:
    """`plan` with what `lines` say of layers; those that are not named stay as planned. dtype: of kept ones.

    Raises RecipeError for a layer that is not there, a scheme or method that does not exist or that the format cannot
    hold, and fused layers that differ.
    """
    layers = {layer.name: layer for layer in all_layers(structure)}
    plans, dense = dict(plan.layers), Scheme.parse(dtype)
    for name, line in lines.items():
        if name not in layers:
            near = difflib.get_close_matches(name, layers, 1)
            meant = f"; is {near[0]} meant?" if near else ""
            raise RecipeError(f"the plan names {name}, and {structure.architecture} has no such layer{meant}")
        if layers[name].tied_to is None:
            plans[name] = _line(layers[name], line, plan, rules, dense)
    for layer in layers.values():
        if layer.tied_to is not None and (owner := _owner(layer, layers)) is not None and owner in plans:
            reason = str(lines.get(layer.name, {}).get("reason") or plans[layer.name].reason)
            plans[layer.name] = replace(plans[owner], layer=layer.name, reason=reason)
    coded = [plan.scheme for plan in (plans[layer.name] for layer in structure.layers) if plan.scheme.kind != "dense"]
    apart = any(scheme.bits not in rules.caps.fusing for scheme in coded)
    for members in groups_of(replace(structure, apart=apart)).values():
        mine = [plans[layer.name].scheme for layer in members]
        different = sorted({scheme.name for scheme in mine if scheme.kind != "dense" or not structure.alike})
        if len(different) > 1:
            names = ", ".join(layer.name for layer in members)
            said = " and ".join(different)
            if structure.alike:
                raise RecipeError(f"the plan gives layers {said}; {structure.alike}: give them one scheme")
            raise RecipeError(f"{names} are fused by servers, and the plan gives them {said}; give them one scheme")
    packed = [la for la in layers.values() if plans[la.name].packed and plans[la.name].scheme.kind != "dense"]
    uses = frozenset((la.container, plans[la.name].scheme) for la in packed)
    for layer in layers.values():
        because = rules.refuses(layer, plans[layer.name].scheme, uses)
        if because and plans[layer.name].packed and layer.name in lines:
            raise RecipeError(f"the plan gives {layer.name} {plans[layer.name].scheme.name}: {because}")
    total = predicted_bytes(plans, structure, dtype)
    return replace(plan, layers=plans, predicted_bytes=total, in_float=in_float(plans.values()))


def _owner(layer: LayerRef, layers: Mapping[str, LayerRef]) -> str | None:
    return next((other.name for other in layers.values() if other.param == layer.tied_to and other is not layer), None)


def _line(layer: LayerRef, line: Mapping[str, Any], plan: Plan, rules: Rules, dense: Scheme) -> LayerPlan:
    before = plan.layers[layer.name]
    scheme = Scheme.parse(line["scheme"])
    reason = str(line.get("reason") or "as the plan says")
    if scheme.kind == "dense" and layer.expert is not None:
        raise RecipeError(f"the plan keeps {layer.name} in {scheme.name}; experts have codes: int8-row-sym loses least")
    if scheme.kind == "dense":
        kept = before.scheme if before.scheme.kind == "dense" else scheme if layer.block < 0 else dense
        return replace(before, scheme=kept, method="keep", reason=reason, options={}, packed=True, activation=None)
    if scheme.kind == "int":
        container = layer.container if layer.block >= 0 else "linear"
        scheme = rules.scheme(scheme.bits, scheme.group_size, scheme.symmetric, container)
    if scheme.group_size != -1 and layer.shape[1] % scheme.group_size:
        raise RecipeError(
            f"the plan gives {layer.name} {scheme.name}, whose groups do not divide its {layer.shape[1]} inputs"
        )
    method = str(line.get("method") or before.method)
    if method == "keep":
        method = "rtn"
    found = load("method", method)
    given = line.get("options")
    options = dict(given) if given is not None else dict(before.options) if before.method == method else {}
    found.options(**options)  # refuses what it cannot hold
    asked = line.get("activation")
    activation = before.activation if asked is None else ActScheme.parse(str(asked))
    if activation is not None and before.activation is not None and not activation.dynamic:
        activation = replace(activation, observer=before.activation.observer)
    return LayerPlan(layer.name, scheme, method, reason, options, bool(line.get("packed", True)), activation)


def differences(one: Lines, other: Lines) -> list[tuple[str, str, str]]:
    """(layer, what `one` says, what `other` says) where schemes, methods or inputs differ; '' where it says nothing."""

    def said(line: Mapping[str, Any] | None) -> str:
        if line is None:
            return ""
        return " ".join(str(line[name]) for name in ("scheme", "method", "activation") if line.get(name))

    names = [*one, *(name for name in other if name not in one)]
    pairs = [(name, said(one.get(name)), said(other.get(name))) for name in names]
    return [(name, a, b) for name, a, b in pairs if a != b]
