"""What a run needs beside weights: tokenizer, method options, sequence limits, quiet libraries."""

from __future__ import annotations

import dataclasses
import logging
import sys
import typing
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compress.core.errors import ModelError, RecipeError
from compress.core.types import LayerMethod
from compress.recipe import Recipe, TuneRecipe
from compress.train.tuning import Tuning


def quiet_libraries() -> None:
    """Stop other libraries' progress bars and advice; ours is one bar, and errors are raised, not logged."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if datasets := sys.modules.get("datasets"):  # 90 MB that built-in text and text files do without
        datasets.disable_progress_bars()
    for name in ("datasets", "huggingface_hub", "accelerate", "compressed_tensors", "httpx", "bitsandbytes"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")


def load_tokenizer(folder: Path, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a model folder. Raises ModelError when there is none or it is broken."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
    except Exception as error:  # tokenizers raises its own kinds; all mean the files cannot be used
        said = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"{folder} has no usable tokenizer ({said}); copy tokenizer.json next to the weights"
        ) from None


def longest_sequence(config: Any) -> int:
    """The longest input the model takes, by its config; a large number when it sets no limit."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    limits = [getattr(text, name, None) for name in ("max_position_embeddings", "n_positions", "max_target_positions")]
    found = [int(n) for n in limits if isinstance(n, int) and n > 0]
    limit = min(found) if found else 1 << 20
    # roberta-like models count positions from the padding id onwards
    shifted = getattr(text, "model_type", "") in ("roberta", "xlm-roberta", "mpnet", "camembert")
    return limit - 2 if shifted and found else limit


def method_options(method: LayerMethod | Tuning, recipe: Recipe | TuneRecipe) -> dict[str, Any]:
    """`recipe.options` converted to the method's own types. Raises RecipeError for names or values it does not have."""
    found = _converted(method.options, recipe.options, recipe.method)
    method.options(**found)
    return found


def convert_options(kind: type, given: Mapping[str, Any], owner: str) -> Any:
    """The options dataclass `kind` of `owner` with the values `given`. Raises RecipeError as `method_options` does."""
    return kind(**_converted(kind, given, owner))


def _converted(kind: type, given: Mapping[str, Any], owner: str) -> dict[str, Any]:
    fields = {f.name: f for f in dataclasses.fields(kind)}
    hints = typing.get_type_hints(kind)
    found: dict[str, Any] = {}
    for name, value in given.items():
        if name not in fields:
            raise RecipeError(f"{owner} has no option {name!r}; it has {', '.join(sorted(fields)) or 'none'}")
        found[name] = _convert(name, value, hints[name])
    return found


def _convert(name: str, value: Any, kind: Any) -> Any:
    if not isinstance(value, str) or kind is str or typing.get_origin(kind) is typing.Literal:
        return value
    if kind is bool:
        if value.lower() not in ("true", "false", "1", "0", "yes", "no"):
            raise RecipeError(f"option {name}={value} must be true or false")
        return value.lower() in ("true", "1", "yes")
    try:
        return kind(value)
    except (TypeError, ValueError):
        raise RecipeError(f"option {name}={value} must be a {kind.__name__}") from None
