"""LoRA: a product of two thin matrices is learned beside every matrix of the blocks (Hu et al. 2021), through peft."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from compress.train.tuning import Ground, Tuning, block_linears, peft_model


@dataclass(frozen=True)
class Options:
    """Settings of the adapter."""

    rank: int = 16  # columns of the thin matrices
    alpha: int = 32  # the product is scaled by alpha / rank
    dropout: float = 0.05  # of the adapter's input while training


def apply(model: Any, ground: Ground, options: Options) -> Any:
    """The model with adapters on all matrices of its blocks, as QLoRA found best (Dettmers et al. 2023)."""
    return wrap(model, ground, options, dora=False)


def wrap(model: Any, ground: Ground, options: Options, dora: bool) -> Any:
    """The same for LoRA and DoRA."""
    return peft_model(
        model,
        lambda peft: peft.LoraConfig(
            task_type=ground.task or None,
            r=options.rank,
            lora_alpha=options.alpha,
            lora_dropout=options.dropout,
            target_modules=block_linears(model),
            modules_to_save=list(ground.fresh) or None,
            use_dora=dora,
        ),
    )


TUNING = Tuning(apply, Options, 5e-4, "arXiv:2106.09685", "thin matrices beside every matrix of the blocks")
