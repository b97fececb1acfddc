"""What a tuning method is: which parameters of a model are trained, and whether they can be merged into it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from compress.core.blocks import find_structure
from compress.core.errors import MissingExtraError, ModelError


@dataclass(frozen=True)
class Ground:
    """What a method finds. task: peft's name of it, "" where it has none.

    fresh: modules that the checkpoint did not have, with new weights.
    They are trained and kept whatever the method is: nobody could make the same random weights again.
    """

    task: str
    fresh: tuple[str, ...] = ()


@dataclass(frozen=True)
class Tuning:
    """A file of compress.train.methods.

    apply: (model, Ground, options) -> the model to train, `requires_grad` set. options: a frozen dataclass.
    rate: the highest step size, where the user gives none. merges: what was learned can become part of the weights.
    adapter: it is saved as a peft adapter. reopened: what is done to the model that peft opens. note: a sentence for
    whoever opens it.
    """

    apply: Callable[[Any, Ground, Any], Any]
    options: type
    rate: float
    paper: str
    summary: str
    merges: bool = True
    adapter: bool = True
    reopened: Callable[[Any], Any] = lambda model: model
    note: str = ""


def peft_model(model: Any, config: Callable[[Any], Any]) -> Any:
    """`model` wrapped by peft with what `config` makes of the module. Raises MissingExtraError, ModelError."""
    try:
        import peft
    except ImportError:
        raise MissingExtraError("peft", "train") from None
    try:
        return peft.get_peft_model(model, config(peft))
    except (ValueError, KeyError, NotImplementedError) as error:
        said = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise ModelError(f"peft cannot adapt {type(model).__name__} this way: {said}") from None


def without_fresh_body(model: Any, ground: Ground, name: str) -> None:
    """Raises ModelError when a new module is not the head: prompt methods keep the head and the prompt only."""
    body = [module for module in ground.fresh if module.startswith(f"{model.base_model_prefix}.")]
    if body:
        raise ModelError(
            f"the checkpoint has no {body[0]}, whose new weights {name} would not keep; use --method lora, or full"
        )


def one_text(model: Any, ground: Ground, name: str) -> None:
    """Raises ModelError where peft has no way to put something before the text, and as without_fresh_body does."""
    if not ground.task:
        raise ModelError(
            f"{type(model).__name__} reads no single text that a {name} could stand before; use --method lora"
        )
    without_fresh_body(model, ground, name)


def stored_transposed(model: Any) -> bool:
    """Whether the matrices of the blocks are stored (I, O), as gpt2's are; peft warns where it is not told."""
    return any(layer.container == "conv1d" for layer in find_structure(model, model.config).layers)


def block_linears(model: Any, roles: Sequence[str] = ()) -> list[str]:
    """Module paths of the matrices inside the blocks of `model`, those of `roles` or all.

    Found by structure, so that no list of names for each architecture is needed. Raises ModelError when there is none.
    """
    layers = find_structure(model, model.config).layers
    found = [layer.name for layer in layers if layer.expert is None and (not roles or layer.role in roles)]
    if not found:
        raise ModelError(
            f"{type(model).__name__} has no layer of the kind {' or '.join(roles) or 'linear'} in its blocks; "
            "use --method lora, or full"
        )
    return list(dict.fromkeys(found))
