"""Which of llama.cpp's architectures a model is, and its hyperparameters under llama.cpp's names.

The table architectures.json is by transformers' model_type. interleaved_rope: llama.cpp rotates neighbouring rows of q
and k, so the rows of each head are put in that order. norm_shift: what norms add to their weight. windows: layers of
the config's `layer_types` see a window only. acts: activations that it computes so. biases: of any linear layer are
read, not only those of q, k and v. square: heads together are as wide as the model. Source: llama.cpp, conversion/*.py
and src/models/*.cpp (load_arch_hparams, load_arch_tensors).
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compress.core.errors import RecipeError

TABLE = Path(__file__).with_name("architectures.json")
POOLING = {"mean": "MEAN", "cls": "CLS", "lasttoken": "LAST"}
ROPE_KINDS = ("default", "linear", "llama3", "yarn")
DEEPEST = 62
"""Blocks of gemma3 27B, the only one whose attention llama.cpp divides by hidden size over heads (gemma3.cpp)."""


@dataclass(frozen=True)
class Architecture:
    """A row of the table."""

    arch: str
    acts: tuple[str, ...]
    interleaved_rope: bool = False
    norm_shift: float = 0.0
    windows: bool = False
    biases: bool = False
    square: bool = False
    embedder: bool = False
    strip: str = ""
    skip: tuple[str, ...] = ()


def architecture_of(config: Any) -> Architecture:
    """The architecture of a transformers config. Raises RecipeError for one that is not in the table."""
    table = json.loads(TABLE.read_text(encoding="utf-8"))
    if config.model_type not in table:
        raise RecipeError(f"model type {config.model_type!r} has no GGUF layout here; there is {', '.join(table)}")
    row = table[config.model_type]
    return Architecture(**{**row, "acts": tuple(row["acts"]), "skip": tuple(row.get("skip", ()))})


def refuses(config: Any, model_class: str) -> str | None:
    """What of a model llama.cpp computes otherwise, in a sentence; None when nothing is known."""
    try:
        found = architecture_of(config)
    except RecipeError as error:
        return str(error)
    if not model_class.endswith(("Model",) if found.embedder else ("ForCausalLM", "LMHeadModel")):
        return f"llama.cpp serves text and embeddings, not {model_class}; use onnx"
    if (because := _refused_rope(config, found)) is not None:
        return because
    names = ("hidden_activation", "hidden_act", "activation_function")
    act = next(filter(None, (getattr(config, name, None) for name in names)))
    if act not in found.acts:
        return f"activation {act} is not what llama.cpp's {found.arch} has ({', '.join(found.acts)})"
    width = head_size(config)
    if found.square and width * config.num_attention_heads != config.hidden_size:
        return f"llama.cpp's {found.arch} has heads that are {config.hidden_size} wide together, and these have {width}"
    if getattr(config, "attention_bias", False) and not found.biases:
        return f"llama.cpp's {found.arch} has no bias in attention"
    if getattr(config, "scale_attn_by_inverse_layer_idx", False) or not getattr(config, "scale_attn_weights", True):
        return "llama.cpp scales attention by the size of a head, and this model does otherwise"
    scalar = getattr(config, "query_pre_attn_scalar", None)
    divisor = config.hidden_size // config.num_attention_heads if config.num_hidden_layers == DEEPEST else width
    if found.arch == "gemma3" and scalar is not None and scalar != divisor:
        return f"query_pre_attn_scalar {scalar} is not the size of a head ({divisor}), which llama.cpp divides by"
    return None


def _refused_rope(config: Any, found: Architecture) -> str | None:
    told = rope(config)
    kind = told.get("rope_type", "default")
    if kind not in ROPE_KINDS:
        return f"rope scaling {kind!r} is not written here; {', '.join(ROPE_KINDS)} are"
    if kind == "llama3" and found.arch != "llama":
        return f"llama.cpp's {found.arch} has no rope scaling {kind!r}"
    if kind == "yarn" and found.windows:
        return f"llama.cpp scales the windows of {found.arch} by {kind} too"
    given = {"beta_fast": 32, "beta_slow": 1, "truncate": True}
    if kind == "yarn" and (other := [name for name, usual in given.items() if told.get(name) not in (None, usual)]):
        return f"llama.cpp's {found.arch} reads no {other[0]} of yarn, and it is {told[other[0]]} here"
    window = (getattr(config, "rope_parameters", None) or {}).get("sliding_attention") or {}
    if window.get("rope_type", "default") != "default":
        return f"llama.cpp scales no rope of windows, and theirs is {window['rope_type']!r}"
    return None


def same_up_to(config: Any) -> int | None:
    """Tokens up to which llama.cpp's model is transformers'; None for all the model takes."""
    window = getattr(config, "sliding_window", None)
    if architecture_of(config).windows or not window or not getattr(config, "use_sliding_window", True):
        return None
    return int(window) if window < getattr(config, "max_position_embeddings", 0) else None


def rope(config: Any) -> dict[str, Any]:
    """The rope parameters of layers that see everything; empty for models without."""
    found = getattr(config, "rope_parameters", None) or {}
    whole: dict[str, Any] = found.get("full_attention", found)
    return whole


def head_size(config: Any) -> int:
    """Values a head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def write_parameters(writer: Any, config: Any, folder: Path) -> None:
    """Hyperparameters into a GGUFWriter, and the pooling of an embedder."""
    found = architecture_of(config)
    width = config.hidden_size
    writer.add_context_length(int(getattr(config, "max_position_embeddings", 0) or config.n_positions))
    writer.add_embedding_length(width)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(int(getattr(config, "intermediate_size", None) or config.n_inner or 4 * width))
    writer.add_head_count(config.num_attention_heads)
    if (shared := getattr(config, "num_key_value_heads", None)) is not None:
        writer.add_head_count_kv(shared)
    if getattr(config, "head_dim", None) is not None:
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    if (eps := getattr(config, "rms_norm_eps", None)) is not None:
        writer.add_layer_norm_rms_eps(eps)
    else:
        writer.add_layer_norm_eps(float(getattr(config, "layer_norm_eps", None) or config.layer_norm_epsilon))
    _write_rope(writer, config, found)
    if found.windows and getattr(config, "sliding_window", None):
        writer.add_sliding_window(config.sliding_window)
        writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in config.layer_types])
    if (cap := getattr(config, "final_logit_softcapping", None)) is not None:
        writer.add_final_logit_softcapping(cap)
    if found.embedder:
        _write_embedder(writer, config, folder)


def _write_rope(writer: Any, config: Any, found: Architecture) -> None:
    told = rope(config)
    if not told:
        return
    writer.add_rope_freq_base(float(told["rope_theta"]))
    if found.windows and (local := config.rope_parameters.get("sliding_attention")):
        writer.add_rope_freq_base_swa(float(local["rope_theta"]))
    if found.interleaved_rope:
        writer.add_rope_dimension_count(head_size(config))
    import gguf

    kind = told.get("rope_type", "default")
    if kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(told["factor"]))
    elif kind == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(float(told["factor"]))
        writer.add_rope_scaling_orig_ctx_len(int(told["original_max_position_embeddings"]))
        if (scale := yarn_scale(config)) != 1.0:
            writer.add_rope_scaling_attn_factors(scale)


def yarn_scale(config: Any) -> float:
    """What yarn multiplies by, over 0.1 ln(factor) + 1, which llama.cpp does by itself (llama-context.cpp)."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    _, attention = ROPE_INIT_FUNCTIONS["yarn"](config, torch.device("cpu"))
    return round(float(attention) / (0.1 * math.log(max(1.0, float(rope(config)["factor"]))) + 1.0), 9)


def _write_embedder(writer: Any, config: Any, folder: Path) -> None:
    import gguf

    writer.add_causal_attention(False)
    writer.add_token_type_count(int(getattr(config, "type_vocab_size", 1)))
    if (mode := pooling(folder)) != "none":
        writer.add_pooling_type(getattr(gguf.PoolingType, POOLING[mode]))


def pooling(folder: Path) -> str:
    """How an embedder of sentence-transformers makes one vector of many, a key of POOLING; `none` when nothing says.

    Raises RecipeError for what llama.cpp does not do.
    """
    modules = folder / "modules.json"
    listed = json.loads(modules.read_text(encoding="utf-8")) if modules.is_file() else []
    if any(module["type"].endswith("Dense") for module in listed):
        raise RecipeError("its vectors go through a Dense layer, which llama.cpp's bert has not; export onnx")
    path = next((module["path"] for module in listed if module["type"].endswith("Pooling")), None)
    if path is None:
        return "none"
    told = json.loads((folder / path / "config.json").read_text(encoding="utf-8"))
    mode = told.get("pooling_mode") or next((m for m in POOLING if told.get(f"pooling_mode_{m}")), None)
    mode = mode or (
        "mean" if told.get("pooling_mode_mean_tokens") else "cls" if told.get("pooling_mode_cls_token") else ""
    )
    if mode not in POOLING:
        raise RecipeError(f"pooling {mode or told} is not in llama.cpp; mean, cls and lasttoken are")
    return str(mode)


def rope_factors(config: Any) -> Tensor | None:
    """What llama 3's rope divides its frequencies by, (head size / 2,) float32; None for other kinds.

    Source: llama.cpp, conversion/llama.py, generate_extra_tensors; Llama 3.1's apply_scaling.
    """
    told = rope(config)
    if told.get("rope_type") != "llama3":
        return None
    size, factor = head_size(config), float(told["factor"])
    low, high = float(told["low_freq_factor"]), float(told["high_freq_factor"])
    longest = float(told["original_max_position_embeddings"])
    waves = 2 * math.pi * float(told["rope_theta"]) ** (torch.arange(0, size, 2, dtype=torch.float64) / size)
    smooth = (longest / waves - low) / (high - low)
    between = 1 / ((1 - smooth) / factor + smooth)
    factors = torch.where(waves < longest / high, 1.0, torch.where(waves > longest / low, factor, between))
    return factors.float()
