"""Which layers round their inputs to int8 as well, and what of the model stays in float, each with its reason."""

from __future__ import annotations

from collections.abc import Iterable

from compress.core.errors import RecipeError
from compress.core.types import ActScheme, LayerPlan, LayerRef, Structure
from compress.recipe import Recipe

IN_FLOAT = {
    "attention scores, softmax and their product with the values": "no weight is in them; int8 there costs "
    "accuracy and no served format has it",
    "norms, residual sums and activation functions": "a few operations a value: int8 would save nothing",
}
"""What stays in float in every model whose linear layers run in int8."""


def choose_activation(recipe: Recipe, structure: Structure, encoder: bool) -> ActScheme | None:
    """The scheme of the inputs of linear layers; None for weight-only.

    encoder: the model reads whole texts and writes none. `auto` rounds the inputs of encoders at 8 bits, where servers
    are bound by arithmetic; models that write token by token are bound by reading weights.
    Raises RecipeError for settings that no server has.
    """
    wanted = "none" if recipe.scheme else recipe.activations
    if wanted == "auto":
        plain = recipe.bits == 8 and recipe.group_size in ("auto", -1) and recipe.symmetric is not False
        wanted = "dynamic" if encoder and plain and not _experts(structure) else "none"
    if wanted == "none":
        if recipe.smooth:
            raise RecipeError(f"--smooth {recipe.smooth:g} is for int8 inputs; give --activations dynamic or static")
        for name, value in (("act-strategy", recipe.act_strategy), ("act-observer", recipe.act_observer)):
            if value != "auto" and recipe.activations == "none":
                raise RecipeError(f"--{name} {value} is about int8 activations, and --activations none has none")
        return None
    if recipe.symmetric is False:
        raise RecipeError("--asymmetric weights have no int8 kernel; leave it out, or use --activations none")
    if recipe.group_size not in ("auto", -1) and recipe.bits == 8:
        raise RecipeError(
            f"--group-size {recipe.group_size} has no int8 kernel: sums over the whole row are scaled once; use -1, or "
            "--activations none"
        )
    if _experts(structure):
        raise RecipeError(
            f"--activations {wanted} is not possible for mixtures of experts: transformers decodes packed experts on "
            "loading and rounds no inputs then; use --activations none"
        )
    return _scheme(recipe, wanted)


def in_float(plans: Iterable[LayerPlan]) -> dict[str, str]:
    """What stays in float -> why, where any layer rounds its inputs."""
    return dict(IN_FLOAT) if any(plan.activation for plan in plans) else {}


def _scheme(recipe: Recipe, wanted: str) -> ActScheme:
    if wanted == "dynamic":
        if recipe.act_observer != "auto":
            raise RecipeError(
                f"--act-observer {recipe.act_observer} is for --activations static; dynamic ranges are exact"
            )
        strategy = "token" if recipe.act_strategy == "auto" else recipe.act_strategy
        symmetric = strategy == "token" if recipe.act_symmetric is None else recipe.act_symmetric
        return ActScheme(strategy, True, symmetric)
    if recipe.act_strategy == "token":
        raise RecipeError("--act-strategy token is for --activations dynamic: tokens are not known beforehand")
    observer = "minmax" if recipe.act_observer == "auto" else recipe.act_observer
    return ActScheme("tensor", False, bool(recipe.act_symmetric), observer)


def _experts(structure: Structure) -> bool:
    return any(layer.expert is not None for layer in structure.layers)


def takes_int8(layer: LayerRef) -> bool:
    """Whether servers can round the input of `layer`: a plain linear layer."""
    return layer.container == "linear"
