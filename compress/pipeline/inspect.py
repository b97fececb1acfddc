"""The stage behind `compress inspect`: structure and sizes from headers alone."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from compress.core import device
from compress.core.artifact import MANIFEST, open_artifact
from compress.core.blocks import find_structure
from compress.core.checkpoint import Checkpoint
from compress.core.errors import ModelError
from compress.core.opening import resolve
from compress.core.types import LayerRef, Measurement, RunRecord
from compress.measure.size import weight_bytes
from compress.pipeline import fitness, like, limits
from compress.pipeline.budgeted import suffix
from compress.pipeline.finish import command_line
from compress.pipeline.identity import default_out
from compress.pipeline.inputs import quiet_libraries
from compress.pipeline.labelled import has_rows, hears
from compress.pipeline.prepare import read_data
from compress.plan import edited
from compress.plan.uniform import all_layers
from compress.recipe import Recipe
from compress.report import fit


def inspect(model: str, allow_pickle: bool, trust_remote_code: bool, say: Callable[[str], None]) -> RunRecord:
    """What `model` (anything that quantize takes, or an artifact) is made of. Raises ModelError."""
    quiet_libraries()
    if (Path(model) / MANIFEST).is_file():
        return _artifact(Path(model))
    opened = resolve(model, allow_pickle, say)
    checkpoint = Checkpoint(opened.folder, trust_remote_code)
    structure = find_structure(checkpoint.model, checkpoint.config)
    stored = Counter(str(entry.dtype).removeprefix("torch.") for entry in checkpoint.entries.values())
    card = {
        "name": opened.name,
        "architecture": structure.architecture,
        "parameters": checkpoint.parameters,
        "bytes": checkpoint.nbytes,
        "dtypes": dict(stored.most_common()),
        "blocks": len(structure.blocks),
        "stacks": list(dict.fromkeys(block.stack for block in structure.blocks)),
        "tied": structure.tied,
        "roles": [_role(role, layers) for role, layers in _by_role(all_layers(structure)).items()],
    }
    notes = (*opened.notes, *([structure.generic] if structure.generic else []))
    sizes = (Measurement("original", "bytes", "bytes", checkpoint.nbytes),)
    return RunRecord("inspect", card, None, measurements=sizes, notes=notes, environment=device.environment())


def inspect_text(recipe: Recipe, say: Callable[[str], None]) -> RunRecord:
    """Whether the calibration text of `recipe` is fit for its model and its use, from tokenizer and config alone.

    Raises ModelError for a model that no text runs through, DataError for text that cannot be read.
    """
    quiet_libraries()
    opened = resolve(recipe.model, recipe.allow_pickle, say)
    like.check(recipe, opened.folder)
    checkpoint = Checkpoint(opened.folder, recipe.trust_remote_code)
    structure = find_structure(checkpoint.model, checkpoint.config)
    heard = hears(recipe, checkpoint.config) and has_rows(recipe, opened.folder)
    if because := limits.cannot_stream(checkpoint, structure, heard):
        raise ModelError(f"{opened.name} is calibrated on no text: {because}")
    data, text = read_data(recipe, opened, checkpoint)
    data = fitness.assessed(recipe, opened, fitness.use_of(checkpoint, structure, text, True), data, text)
    card = {"name": opened.name, "architecture": structure.architecture, "parameters": checkpoint.parameters}
    settings, notes = recipe.model_dump(), (*opened.notes, *data.card["warnings"])
    return RunRecord("inspect", card, None, settings, data=data.card, notes=notes, environment=device.environment())


def inspect_plans(path: str, other: str | None) -> RunRecord:
    """What a plan.json says, or what two differ in. Raises InputError, RecipeError for files that are no plans."""
    one = edited.read(path)
    if other is None:
        schemes = Counter(str(line["scheme"]) for line in one.values())
        card = {"name": path, "layers": len(one), "schemes": dict(schemes.most_common())}
        rows = [(name, str(line["scheme"]), str(line.get("reason") or "")) for name, line in one.items()]
        return RunRecord("inspect", {**card, "lines": rows}, None, plan={"layers": dict(one)})
    rows = edited.differences(one, edited.read(other))
    card = {"name": f"{path} and {other}", "layers": len(one), "different": len(rows)}
    return RunRecord("inspect", {**card, "lines": rows}, None, plan={"layers": dict(one)})


def _artifact(path: Path) -> RunRecord:
    manifest = open_artifact(path).manifest
    plan = json.loads((path / "compress" / "plan.json").read_text(encoding="utf-8"))
    schemes = Counter(line["scheme"] for line in plan["layers"].values())
    card = {"name": manifest["model"], "format": manifest["format"], "schemes": dict(schemes.most_common())}
    sizes = (Measurement(str(path), "bytes", "bytes", weight_bytes(path)),)
    notes = ("every file has the sha256 that its manifest names",)
    return RunRecord(
        "inspect", card, str(path), plan=plan, measurements=sizes, notes=notes, environment=device.environment()
    )


def _by_role(layers: list[LayerRef]) -> dict[str, list[LayerRef]]:
    groups: dict[str, list[LayerRef]] = {}
    for layer in layers:
        groups.setdefault(layer.role, []).append(layer)
    return groups


def _role(role: str, layers: list[LayerRef]) -> dict[str, Any]:
    return {
        "role": role,
        "layers": len(layers),
        "shapes": sorted({f"{rows} x {columns}" for rows, columns in (layer.shape for layer in layers)}),
        "parameters": sum(layer.shape[0] * layer.shape[1] for layer in layers if layer.tied_to is None),
        "stored": sorted({layer.container for layer in layers}),
        "fused_with": sorted({name.rpartition(".")[2] for layer in layers for name in layer.fused_with}),
        "tied_to": next((layer.tied_to for layer in layers if layer.tied_to), None),
    }


def show(record: RunRecord, console: Console) -> None:
    """Print what was found."""
    card = dict(record.model)
    roles, lines = card.pop("roles", []), card.pop("lines", None)
    head = Table(box=None, show_header=False, pad_edge=False)
    for name, value in card.items():
        head.add_row(name, escape(_plain(value)))
    console.print(head)
    if roles:
        table = Table(title=None, header_style="bold")
        for column in ("role", "layers", "shapes (out x in)", "parameters", "stored as", "shares its input with"):
            table.add_column(column, justify="right" if column in ("layers", "parameters") else "left")
        for line in roles:
            shared = f"tied to {line['tied_to']}" if line["tied_to"] else ", ".join(line["fused_with"])
            cells = (line["role"], str(line["layers"]), ", ".join(line["shapes"][:3]), f"{line['parameters']:,}")
            table.add_row(*map(escape, (*cells, ", ".join(line["stored"]), shared)))
        console.print(table)
    if lines is not None:
        for name, first, second in lines:
            console.print(f"{name}: {first or '(not named)'}  {second or '(not named)'}", markup=False, highlight=False)
        return
    if (found := fit.table(record)) is not None:
        console.print(*found, sep="\n")
    for note in record.notes:
        console.print(f"· {note}", markup=False)
    if record.data:
        console.print(f"Next: {_with_same_text(record)}", markup=False, soft_wrap=True)  # to be copied whole
        return
    name = record.artifact or card.get("name", "MODEL")
    verb = f"compress report {name}" if record.artifact else "compress quantize MODEL --bits 4"
    console.print(f"Next: {verb}", markup=False)


def _with_same_text(record: RunRecord) -> str:
    """The command that quantizes with the text that was looked at."""
    recipe = Recipe(**record.recipe)
    return command_line(recipe, Path(default_out(str(record.model["name"]), suffix(recipe))))


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} ({count})" for name, count in value.items())
    if isinstance(value, list):
        return ", ".join(str(item) or "the whole model" for item in value)
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
