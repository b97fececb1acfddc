"""Plug-ins are files: the file name is the registered name is the name on the command line."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from pathlib import Path
from typing import Any

from compress.core.errors import UsageError

HOMES = {
    "method": ("compress.methods", "METHOD"),
    "format": ("export.formats", "EXPORT"),
    "runtime": ("export.runtimes", "RUNTIME"),
    "block-method": ("compress.methods.block", "METHOD"),
    "collector": ("calibrate.collectors", "COLLECTOR"),
    "task": ("compress.core.tasks", "TASK"),
    "tuning": ("compress.train.methods", "TUNING"),
}


def names(kind: str) -> list[str]:
    """The registered names of a kind, found by listing files; nothing is imported but the package."""
    package = importlib.import_module(HOMES[kind][0])
    return sorted(
        m.name.replace("_", "-") for m in pkgutil.iter_modules(package.__path__) if m.name[0] != "_" and not m.ispkg
    )


def files(kind: str) -> dict[str, Path]:
    """The source file of every registered name of a kind."""
    folder = Path(importlib.import_module(HOMES[kind][0]).__path__[0])
    return {name: folder / f"{name.replace('-', '_')}.py" for name in names(kind)}


def load(kind: str, name: str) -> Any:
    """The plug-in `name` of `kind` (`method`, `format`, `collector`, `task` ...).

    Raises UsageError with the known names when there is no such file.
    """
    if name not in (known := names(kind)):
        said = "tuning method" if kind == "tuning" else kind
        raise UsageError(f"no {said} is called {name!r}; there is {', '.join(known)}")
    package, attribute = HOMES[kind]
    return getattr(importlib.import_module(f"{package}.{name.replace('-', '_')}"), attribute)
