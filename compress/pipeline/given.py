"""`quantize --profile FILE`: costs that `compress sensitivity` has found before, for the plan of a budget."""

from __future__ import annotations

from pathlib import Path

from compress.core.errors import DataError
from compress.core.fingerprint import file_sha256
from compress.core.types import LayerPlan
from compress.pipeline.identity import model_files
from compress.pipeline.prepare import Prepared
from compress.pipeline.profiling import Chosen
from compress.plan import profile
from compress.plan.profile import Profile

FILE = "model file "  # what names of files begin with in a fingerprint


def read(ready: Prepared, chosen: Chosen) -> tuple[Profile, Chosen]:
    """The profile, and what of `chosen` it knows the cost of (a layer that is kept costs nothing).

    Raises InputError and DataError for a file that is none, DataError for one of another model or without a layer.
    """
    path = _place(ready.recipe.profile)
    found = profile.read(path)
    weights = (entry.path for entry in ready.checkpoint.entries.values())
    files = model_files(ready.opened.folder, weights, ready.recipe.trust_remote_code)
    here = {f"{FILE}{file.name}": file_sha256(file) for file in files}
    there = {name: value for name, value in found.mark.items() if name.startswith(FILE)}
    if different := sorted(name for name in {*here, *there} if here.get(name) != there.get(name)):
        raise DataError(
            f"{path} is of another model than {ready.opened.name}: {different[0].removeprefix(FILE)} differs; run "
            "compress sensitivity on this one, or leave out --profile"
        )
    known = {(one.layer, one.scheme) for one in found.sensitivities}
    kept: dict[str, tuple[LayerPlan, ...]] = {}
    for name, plans in chosen.items():
        kept[name] = tuple(p for p in plans if p.scheme.kind == "dense" or (name, p.treatment) in known)
        if all(p.scheme.kind == "dense" for p in kept[name]):
            asked = ", ".join(p.treatment for p in plans)
            raise DataError(f"{path} says nothing of {name} at {asked}; run compress sensitivity without --schemes")
    return found, kept


def _place(given: str) -> Path:
    """A profile.json, or the folder of a run that has one."""
    path = Path(given).expanduser()
    return path / profile.PLACE if path.is_dir() else path
