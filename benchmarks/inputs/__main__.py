"""Make the named inputs, or all: one line each with its seconds. An input is a module of this package.

One that cannot be made, for want of a program say, does not keep the others from being made.
"""

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
    """Make what is asked for under runs/inputs; exit 1 when one cannot be made, 2 for a name that there is not."""
    there = names()
    if unknown := [name for name in wanted if name not in there]:
        print(f"no input is called {unknown[0]!r}; there is {', '.join(there)}")
        return 2
    INPUTS.mkdir(parents=True, exist_ok=True)
    failed = False
    for name in wanted or there:
        started = time.perf_counter()
        print(f"{name:<20} ...", end="", flush=True)
        try:
            said = importlib.import_module(f"benchmarks.inputs.{name.replace('-', '_')}").make(INPUTS)
        except SystemExit as refused:
            failed, said = True, refused
        print(f" {time.perf_counter() - started:7.1f} s  {said}", flush=True)
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
