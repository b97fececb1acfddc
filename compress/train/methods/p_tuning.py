"""P-tuning: learned embeddings before the text, made by a small network (Liu et al. 2021), through peft."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from compress.train.tuning import Ground, Tuning, one_text, peft_model


@dataclass(frozen=True)
class Options:
    """Settings of the adapter."""

    tokens: int = 20  # learned positions
    hidden: int = 128  # width of the network that makes them


def apply(model: Any, ground: Ground, options: Options) -> Any:
    """The model with learned embeddings before every text."""
    one_text(model, ground, "p-tuning")
    return peft_model(
        model,
        lambda peft: peft.PromptEncoderConfig(
            task_type=ground.task, num_virtual_tokens=options.tokens, encoder_hidden_size=options.hidden
        ),
    )


TUNING = Tuning(apply, Options, 1e-2, "arXiv:2103.10385", "embeddings before the text, made by a network", merges=False)
