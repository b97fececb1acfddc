"""What can be said of an export without its runtime: its files, the codes in them, the weights that stayed float."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compress.core.fingerprint import file_sha256
from compress.core.numerics.affine import dequantize
from compress.pipeline.hooks import Hooks
from export import folder
from export.judge import Line
from export.kinds import ExportFormat
from export.source import Source


def static_lines(where: Path, told: dict[str, Any], source: Source, form: ExportFormat, hooks: Hooks) -> list[Line]:
    """What can be said without a runtime: files as they were written, companions byte by byte, codes read back."""
    changed = folder.changed(where, told)
    lines: list[Line] = [{
        "check": "files as they were written", "runtime": "sha256", "files": len(told["files"]), "passed": not changed,
        **({"said": f"{changed[0]} changed since"} if changed else {}),
    }]  # fmt: skip
    names = source.companions()
    other = [n for n in names if not (where / n).is_file() or file_sha256(where / n) != file_sha256(source.folder / n)]
    lines.append({
        "check": "tokenizer, template and settings as in the artifact", "runtime": "sha256", "files": len(names),
        "passed": not other, **({"said": f"{other[0]} is missing or differs"} if other else {}),
    })  # fmt: skip
    every = ((name, weight, dequantize(source.codes(name))) for name, weight in form.read_back(where, source))
    count, wrong = _compared(every, "is not what its codes stand for", hooks, len(told["packed"]))
    if count != len(told["packed"]):
        wrong = wrong or f"{count} layers could be read, {len(told['packed'])} were written"
    line = {"check": "codes and scales read back", "runtime": told["format"], "layers": count, "passed": not wrong}
    lines.append({**line, **({"said": wrong} if wrong else {})})
    return [*lines, *([_kept(where, told, source, form, hooks)] if form.kept is not None else [])]


def _kept(where: Path, told: dict[str, Any], source: Source, form: ExportFormat, hooks: Hooks) -> Line:
    """Weights that stayed float, and grids of inputs, as they lie in the file."""
    assert form.kept is not None
    count, wrong = _compared(form.kept(where, source), "is not that of the artifact", hooks, 0)
    line = {"check": "kept weights read back", "runtime": told["format"], "tensors": count, "passed": not wrong}
    return {**line, **({"said": wrong} if wrong else {})}


def _compared(every: Iterable[tuple[str, Tensor, Tensor]], differs: str, hooks: Hooks, total: int) -> tuple[int, str]:
    """How many (name, found, expected) there are, and a sentence on the first that is wrong; "" when none is."""
    count, wrong = 0, ""
    try:
        for name, found, expected in every:
            if total:
                hooks.report("reading codes back", count, total)
            count += 1
            if not wrong and not (found.shape == expected.shape and torch.equal(found, expected)):
                wrong = f"{name} {differs}"
    except Exception as error:  # a damaged file: every library that reads one raises its own kinds
        wrong = wrong or f"they cannot be read ({type(error).__name__}: {error})"
    return count, wrong
