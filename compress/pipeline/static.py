"""What can be said of an export without its runtime: its files, the codes in them, the weights that stayed float."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from compress.core.errors import CompressError
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
    count, wrong = 0, ""
    try:
        for name, weight in form.read_back(where, source):
            hooks.report("reading codes back", count, len(told["packed"]))
            count += 1
            if not wrong and not torch.equal(weight, dequantize(source.codes(name))):
                wrong = f"{name} is not what its codes stand for"
    except (CompressError, LookupError, OSError, ValueError) as error:  # what a damaged file makes readers raise
        wrong = wrong or f"they cannot be read ({type(error).__name__}: {error})"
    if count != len(told["packed"]):
        wrong = wrong or f"{count} layers could be read, {len(told['packed'])} were written"
    line = {"check": "codes and scales read back", "runtime": told["format"], "layers": count, "passed": not wrong}
    lines.append({**line, **({"said": wrong} if wrong else {})})
    return [*lines, *([_kept(where, told, source, form)] if form.kept is not None else [])]


def _kept(where: Path, told: dict[str, Any], source: Source, form: ExportFormat) -> Line:
    """Weights that stayed float, and grids of inputs, as they lie in the file."""
    assert form.kept is not None
    count, wrong = 0, ""
    for name, found, expected in form.kept(where, source):
        count += 1
        if not wrong and not (found.shape == expected.shape and torch.equal(found, expected)):
            wrong = f"{name} is not that of the artifact"
    line = {"check": "kept weights read back", "runtime": told["format"], "tensors": count, "passed": not wrong}
    return {**line, **({"said": wrong} if wrong else {})}
