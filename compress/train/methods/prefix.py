"""Prefix tuning: learned keys and values before the text in every block (Li and Liang 2021), through peft."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

from compress.core.errors import ModelError
from compress.train.tuning import Ground, Tuning, peft_model, without_fresh_body


@dataclass(frozen=True)
class Options:
    """Settings of the adapter."""

    tokens: int = 20  # learned positions


def apply(model: Any, ground: Ground, options: Options) -> Any:
    """The model with learned keys and values. Raises ModelError for an encoder-decoder, which peft 0.21 cannot have
    write so: it knows the cache by the name that transformers 5.24 has given up."""
    if getattr(model.config, "is_encoder_decoder", False):
        raise ModelError(f"peft cannot put a prefix before what {type(model).__name__} writes; use --method lora")
    without_fresh_body(model, ground, "prefix")
    made = peft_model(
        model, lambda peft: peft.PrefixTuningConfig(task_type=ground.task, num_virtual_tokens=options.tokens)
    )
    return taking_past(made)


def taking_past(model: Any) -> Any:
    """The peft model, its body taking `past_key_values`, the name under which peft hands over the prefix.

    transformers 5.24 calls it `cache` and still takes the old name, but peft 0.21 looks for that in the signature.
    """
    body = model.base_model.get_submodule(model.transformer_backbone_name)
    real = body.forward
    if {"cache", "past_key_values"} & inspect.signature(real).parameters.keys() != {"cache"}:
        return model

    def forward(*args: Any, past_key_values: Any = None, **kwargs: Any) -> Any:
        return real(*args, cache=past_key_values, **kwargs)

    body.forward = forward
    return model


TUNING = Tuning(apply, Options, 1e-2, "arXiv:2101.00190", "learned keys and values in every block", merges=False)
