"""Make the named inputs, or all: one line each with its seconds. An input is a module of this package."""

from __future__ import annotations

import importlib
import pkgutil
import sys
import time

from benchmarks import inputs
from benchmarks.inputs._making import INPUTS


def names() -> list[str]:
    """Every input there is: `bbc-topics` for bbc_topics.py."""
    found = (module.name for module in pkgutil.iter_modules(inputs.__path__))
    return sorted(name.replace("_", "-") for name in found if not name.startswith("_"))


def main(wanted: list[str]) -> int:
    """Make what is asked for under runs/inputs; exit 2 for a name that there is not."""
    there = names()
    if unknown := [name for name in wanted if name not in there]:
        print(f"no input is called {unknown[0]!r}; there is {', '.join(there)}")
        return 2
    INPUTS.mkdir(parents=True, exist_ok=True)
    for name in wanted or there:
        started = time.perf_counter()
        print(f"{name:<20} ...", end="", flush=True)
        path = importlib.import_module(f"benchmarks.inputs.{name.replace('-', '_')}").make(INPUTS)
        print(f" {time.perf_counter() - started:7.1f} s  {path}", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
