"""compress: budgets in, a model file that your server opens out.

    from compress import quantize, tune
    record = tune("path/or/hub-id", data="reviews.csv", out="reviews")
    record = quantize("reviews", out="reviews-8bit", bits=8)

The names below are imported on first use, so `import compress` costs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Recipe", "SensitivityRecipe", "TuneRecipe", "bench", "quantize", "sensitivity", "tune"]

if TYPE_CHECKING:
    from compress.api import bench, quantize, sensitivity, tune
    from compress.recipe import Recipe, SensitivityRecipe, TuneRecipe

_HOMES = {
    "quantize": "compress.api",
    "tune": "compress.api",
    "bench": "compress.api",
    "sensitivity": "compress.api",
    "Recipe": "compress.recipe",
    "SensitivityRecipe": "compress.recipe",
    "TuneRecipe": "compress.recipe",
}


def __getattr__(name: str) -> Any:
    """Import a public name from the file that defines it, on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module 'compress' has no attribute {name!r}; it has {', '.join(__all__)}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
