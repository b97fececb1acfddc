"""Every parameter is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from compress.train.tuning import Ground, Tuning


@dataclass(frozen=True)
class Options:
    """None."""


def apply(model: Any, ground: Ground, options: Options) -> Any:
    """The model as it is."""
    del ground, options
    return model


TUNING = Tuning(apply, Options, 5e-5, "", "every parameter", adapter=False)
