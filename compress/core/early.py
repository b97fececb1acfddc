"""Whether a model's own initialisation looks at the weights of its linear layers while transformers opens it.

transformers calls `_init_weights` of every module that a checkpoint does not fill by itself. Most models only touch the
module they are given; t5 and ModernBERT reach into its linear layers, whose `weight` a packed checkpoint does not have
until it is decoded.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from compress.core.types import Structure


def reads_weights(model: Any, structure: Structure) -> bool:
    """Tried out on a copy without data (meta device), whose packed layers have no weight. `model` is left alone."""
    with torch.device("meta"), torch.no_grad():
        bare = type(model)(model.config)
        linear = [layer.param.rpartition(".")[0] for layer in structure.layers if layer.container == "linear"]
        packed = {bare.get_submodule(path) for path in linear}
        for layer in packed:
            del layer.weight
        return any(_misses_weight(bare, module) for module in bare.modules() if module not in packed)


def _misses_weight(model: Any, module: nn.Module) -> bool:
    try:
        model._init_weights(module)
    except AttributeError as error:
        return "'weight'" in str(error)
    except Exception:  # what only fails without data says nothing of weights
        return False
    return False
