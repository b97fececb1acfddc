"""BitFit: only biases, and the new head, are trained (Ben Zaken et al. 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from compress.core.errors import ModelError
from compress.train.tuning import Ground, Tuning


@dataclass(frozen=True)
class Options:
    """None."""


def apply(model: Any, ground: Ground, options: Options) -> Any:
    """The model with everything frozen but its biases and what lies beside its body. Raises ModelError without biases.

    Norms of llama-like models have no bias: there is then nothing to train but the head.
    """
    del options
    body = "" if model.base_model is model else f"{model.base_model_prefix}."  # an embedder has no head
    found = 0
    for name, parameter in model.named_parameters():
        bias = name.rpartition(".")[2] == "bias"
        new = name.rpartition(".")[0] in ground.fresh
        parameter.requires_grad_(bias or new or not name.startswith(body))
        found += bias and name.startswith(body)
    if not found:
        raise ModelError(f"{type(model).__name__} has no biases; use --method lora")
    return model


TUNING = Tuning(apply, Options, 1e-3, "arXiv:2106.10199", "biases and the head", adapter=False)
