"""Prompt tuning: learned embeddings before the text (Lester et al. 2021), through peft."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from compress.train.tuning import Ground, Tuning, one_text, peft_model


@dataclass(frozen=True)
class Options:
    """Settings of the adapter."""

    tokens: int = 20  # learned positions


def apply(model: Any, ground: Ground, options: Options) -> Any:
    """The model with learned embeddings before every text."""
    one_text(model, ground, "prompt")
    return peft_model(
        model, lambda peft: peft.PromptTuningConfig(task_type=ground.task, num_virtual_tokens=options.tokens)
    )


TUNING = Tuning(apply, Options, 3e-2, "arXiv:2104.08691", "learned embeddings before the text", merges=False)
