"""DoRA: LoRA that learns direction and length of the weights apart (Liu et al. 2024), through peft."""

from __future__ import annotations

from typing import Any

from compress.train.methods.lora import Options, wrap
from compress.train.tuning import Ground, Tuning


def apply(model: Any, ground: Ground, options: Options) -> Any:
    """The model with adapters on all matrices of its blocks."""
    return wrap(model, ground, options, dora=True)


TUNING = Tuning(apply, Options, 5e-4, "arXiv:2402.09353", "lora with the length of the weights learned apart")
