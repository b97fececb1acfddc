"""LLaMA-Adapter: learned positions that every query also attends to, through a gate that starts at zero (Zhang et al.
2023), through peft.

peft has no bottleneck adapter between layers (Houlsby et al. 2019); this is the one it calls an adapter. It knows three
architectures, and it keeps the positions and gates only, so a head with new weights cannot go with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from compress.core.blocks import find_structure
from compress.core.errors import ModelError
from compress.train.tuning import Ground, Tuning, peft_model

KNOWN = ("llama", "mistral", "gpt2")


@dataclass(frozen=True)
class Options:
    """Settings of the adapter."""

    tokens: int = 10  # learned positions
    layers: int = 0  # blocks that have them, from the last one down; 0: all


def apply(model: Any, ground: Ground, options: Options) -> Any:
    """The model with learned positions in its attention. Raises ModelError for other architectures and new heads."""
    kind = str(model.config.model_type)
    if kind not in KNOWN:
        raise ModelError(f"--method adapter is peft's LLaMA-Adapter, which knows {', '.join(KNOWN)} and not {kind}; "
                         "use --method lora")  # fmt: skip
    if ground.fresh:
        raise ModelError(f"the checkpoint has no {ground.fresh[0]}, whose new weights adapter would not keep; "
                         "use --method lora, or tune the whole model first")  # fmt: skip
    layers = options.layers or len(find_structure(model, model.config).blocks)
    return peft_model(
        model,
        lambda peft: peft.AdaptionPromptConfig(
            # peft's classes of other tasks look for a head that would be saved with it
            task_type=ground.task if ground.task == "CAUSAL_LM" else None,
            adapter_len=options.tokens,
            adapter_layers=layers,
        ),
    )


TUNING = Tuning(apply, Options, 1e-2, "arXiv:2303.16199", "learned positions behind a gate (llama, mistral, gpt2)",
                merges=False)  # fmt: skip
