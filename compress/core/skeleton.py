"""A model without weights: its config, checked, and its modules with parameters on the meta device."""

from __future__ import annotations

import json
import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compress.core.errors import ModelError


def read_config(folder: Path, trust_remote_code: bool = False, packed: bool = False) -> Any:
    """The transformers config of a folder. Raises ModelError when it is unusable, and for a quantized model unless it
    may be `packed`."""
    from transformers import AutoConfig

    path = folder / "config.json"
    if not path.is_file():
        raise ModelError(f"{folder} has no config.json; give a folder saved by save_pretrained")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ModelError(f"{path} is not valid JSON; download it again") from None
    if not isinstance(raw, dict):
        raise ModelError(f"{path} must hold an object; download it again")
    if raw.get("quantization_config") and not packed:
        method = raw["quantization_config"].get("quant_method", "an unknown method")
        raise ModelError(f"{folder} is already quantized ({method}); start from the original weights")
    if "auto_map" in raw and not trust_remote_code:
        raise ModelError(f"{folder} needs code of its own ({path}: auto_map); pass --trust-remote-code if you trust it")
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
    except (ValueError, KeyError, OSError, TypeError) as error:
        said = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"{path} cannot be used: {said}") from None


def build_skeleton(config: Any, folder: Path, trust_remote_code: bool = False, base: bool = False) -> Any:
    """The model with parameters on the meta device and real buffers, in eval mode, its ties in place.

    base: without a head, whatever class the config names.
    """
    from accelerate import init_empty_weights
    from transformers import MODEL_MAPPING

    config.use_cache = False
    made = MODEL_MAPPING[type(config)] if base else _model_class(config, folder, trust_remote_code)
    with init_empty_weights(include_buffers=False):
        model = made(config)
    model.tie_weights()
    model.requires_grad_(False)
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")  # a loop over experts: their inputs can be seen
    return model.eval()


def _model_class(config: Any, folder: Path, trust_remote_code: bool) -> Any:
    import transformers

    name = (getattr(config, "architectures", None) or [None])[0]
    if trust_remote_code and getattr(config, "auto_map", None):
        from transformers.dynamic_module_utils import get_class_from_dynamic_module

        auto = next((k for k in ("AutoModelForCausalLM", "AutoModel") if k in config.auto_map), None)
        if auto:
            return get_class_from_dynamic_module(config.auto_map[auto], str(folder))
    if name and hasattr(transformers, name):
        return getattr(transformers, name)
    mapping = transformers.MODEL_FOR_CAUSAL_LM_MAPPING
    for mapping in (transformers.MODEL_FOR_CAUSAL_LM_MAPPING, transformers.MODEL_MAPPING):
        if type(config) in mapping:
            found = mapping[type(config)]
            return found[0] if isinstance(found, tuple) else found
    raise ModelError(
        f"architecture {name or config.model_type!r} of {folder} is not in transformers {transformers.__version__}; "
        "upgrade transformers, or pass --trust-remote-code if the model brings its own code"
    )


def has_base(model: Any) -> bool:
    """Whether transformers has the model without a head as a class of its own."""
    from transformers import MODEL_MAPPING

    config = type(model.config)
    return config in MODEL_MAPPING and not isinstance(MODEL_MAPPING[config], tuple | list | type(model))


def compute_parameters(model: Any, missing: list[str]) -> dict[str, Tensor]:
    """Parameters that checkpoints leave out because the model computes them (marian's sinusoidal positions), float32.

    Only names that the model itself declares may be missing, and only when its initialisation gives the same values
    twice; anything random stays missing.
    """
    patterns = [re.compile(pattern) for pattern in getattr(model, "_keys_to_ignore_on_load_missing", None) or ()]
    found: dict[str, Tensor] = {}
    for name in missing:
        if not any(pattern.search(name) for pattern in patterns):
            continue
        path, _, leaf = name.rpartition(".")
        drawn = []
        for seed in (0, 1):
            module = deepcopy(model.get_submodule(path)).to_empty(device="cpu")
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                model._init_weights(module)
            drawn.append(module.get_parameter(leaf).detach().clone())
        if torch.equal(*drawn):
            found[name] = drawn[0]
    return found
