"""compress: budgets in, a model file that your server opens out.

    from compress import quantize
    record = quantize("path/or/hub-id", out="model-4bit", bits=4)

The names below are imported on first use, so `import compress` costs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Recipe", "bench", "quantize"]

if TYPE_CHECKING:
    from compress.api import bench, quantize
    from compress.recipe import Recipe

_HOMES = {"quantize": "compress.api", "bench": "compress.api", "Recipe": "compress.recipe"}


def __getattr__(name: str) -> Any:
    """Import a public name from the file that defines it, on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module 'compress' has no attribute {name!r}; it has {', '.join(__all__)}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
