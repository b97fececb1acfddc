"""Which tensor of a GGUF file a parameter becomes: its name, the order of its rows, what is added to it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from compress.core.errors import RecipeError
from export.ggml.architecture import Architecture, architecture_of, head_size
from export.source import Source

ALWAYS_FLOAT = ("position_embd", "token_types")


@dataclass(frozen=True)
class Named:
    """param: of the model. name: in the file. order: of its rows, None as they are. layer: its name where it has codes.

    shift: added to every value. turned: stored (in, out) by the model, (out, in) in the file.
    """

    param: str
    name: str
    order: Tensor | None
    layer: str | None
    shift: float
    turned: bool


def named(source: Source) -> Iterator[Named]:
    """Every parameter that llama.cpp reads, ties once, in the model's order.

    Raises RecipeError for one without a name.
    """
    import gguf

    config = source.checkpoint.config
    found = architecture_of(config)
    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == found.arch)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    for param, parameter in source.model.named_parameters():
        plain = param.removeprefix(found.strip)
        if plain.startswith(found.skip) and found.skip:
            continue
        name = names.get_name(plain, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise RecipeError(f"{param} has no name in llama.cpp's {found.arch}; the model is another than it looks")
        coded = source.by_param.get(param)
        container = coded.layer.container if coded is not None else ""
        turned = container == "conv1d" or (found.arch == "gpt2" and parameter.dim() == 2 and ".c_" in param)
        shift = found.norm_shift if param.endswith("norm.weight") else 0.0
        layer = coded.layer.name if coded is not None else None
        yield Named(param, name, _order(param, config, found), layer, shift, turned)


def _order(param: str, config: Any, found: Architecture) -> Tensor | None:
    """The model's rows in the order llama.cpp rotates them: pairs side by side instead of half a head apart."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": getattr(config, "num_key_value_heads", None)}
    module = param.split(".")[-2] if "." in param else ""
    if not found.interleaved_rope or module not in heads:
        return None
    count = heads[module] or config.num_attention_heads
    size = head_size(config)
    return torch.arange(count * size).reshape(count, 2, size // 2).swapaxes(1, 2).reshape(-1)
