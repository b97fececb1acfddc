"""Prefix tuning: learned keys and values before the text in every block (Li and Liang 2021), through peft."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from compress.core.errors import ModelError
from compress.train.tuning import Ground, Tuning, one_text, peft_model


@dataclass(frozen=True)
class Options:
    """Settings of the adapter."""

    tokens: int = 20  # learned positions


def apply(model: Any, ground: Ground, options: Options) -> Any:
    """The model with learned keys and values. Raises ModelError for an encoder-decoder, which peft 0.21 cannot have
    write so: it knows the cache by the name that transformers 5.24 has given up."""
    if getattr(model.config, "is_encoder_decoder", False):
        raise ModelError(f"peft cannot put a prefix before what {type(model).__name__} writes; use --method lora")
    one_text(model, ground, "prefix")
    made = peft_model(
        model, lambda peft: peft.PrefixTuningConfig(task_type=ground.task, num_virtual_tokens=options.tokens)
    )
    return taking_past(made)


def taking_past(model: Any) -> Any:
    """The peft model, what it hands the prefix to taking `past_key_values`, peft's name for it: the body, or the whole.

    transformers 5.24 calls it `cache` and still takes the old name, with a warning in whole models, but peft 0.21 looks
    for that in the body's signature.
    """
    body = model.base_model.get_submodule(model.transformer_backbone_name)
    for module in dict.fromkeys((body, model.base_model)):
        if {"cache", "past_key_values"} & inspect.signature(module.forward).parameters.keys() == {"cache"}:
            module.forward = _renaming(module.forward)
    return model


def _renaming(real: Callable[..., Any]) -> Callable[..., Any]:
    def forward(*args: Any, past_key_values: Any = None, **kwargs: Any) -> Any:
        if past_key_values is not None:  # a whole model hands it on to its body by the new name
            kwargs["cache"] = past_key_values
        return real(*args, **kwargs)

    return forward


NOTE = (
    "peft 0.21 opens this adapter by itself up to transformers 5.23; 5.24 calls past_key_values of encoders cache, "
    "which peft does not know: there, pass what peft opens through compress.train.methods.prefix.taking_past."
)
TUNING = Tuning(apply, Options, 1e-2, "arXiv:2101.00190", "learned keys and values in every block", merges=False,
                reopened=taking_past, note=NOTE)  # fmt: skip
