"""(IA)3: keys, values and the FFN's inner activations are scaled by learned vectors (Liu et al. 2022), through peft."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from compress.train.tuning import Ground, Tuning, block_linears, peft_model

SCALED = ("k_proj", "v_proj", "qkv_proj")
INNER = ("down_proj", "fc2")


@dataclass(frozen=True)
class Options:
    """None."""


def apply(model: Any, ground: Ground, options: Options) -> Any:
    """The model with a vector on the outputs of keys and values and on the inputs of the FFN's last matrix."""
    del options
    inner = block_linears(model, INNER)
    targets = [*block_linears(model, SCALED), *inner]
    return peft_model(
        model,
        lambda peft: peft.IA3Config(
            task_type=ground.task or None,
            target_modules=targets,
            feedforward_modules=inner,
            modules_to_save=list(ground.fresh) or None,
        ),
    )


TUNING = Tuning(apply, Options, 5e-3, "arXiv:2205.05638", "vectors that scale keys, values and the FFN")
