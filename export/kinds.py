"""What an export format is, and what it says it wrote."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compress.core.numerics.activation import Coding
from compress.core.types import FormatCaps, LayerRef, Scheme
from export.source import Source

Report = Callable[[str, int, int], None]
"""(stage, done, total)"""


@dataclass(frozen=True)
class Written:
    """What lies in a finished export. packed: names of the layers whose codes it holds; every other weight is a float.

    facts: about the file, for export.json. notes: sentences for the README and the terminal.
    """

    packed: tuple[str, ...]
    facts: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sizes:
    """Bytes of an export before anything is solved: fixed, and of each layer by how it is treated."""

    fixed: int
    layer: Callable[[LayerRef, Scheme], int]


@dataclass(frozen=True)
class ExportFormat:
    """One serving format; every function is pure but for the files it writes.

    caps: what it can hold, for plans made with `--to`. runtimes: names of those that open it, the first judges it.
    options: a frozen dataclass of its settings. refuses: (source, options) -> why this artifact cannot be written in it
    and what can, None when it can; looks at names, shapes and schemes only. write: (source, folder, options, report)
    into an empty folder; the files that the tokenizer and server need lie there already. read_back: (folder, source) ->
    (layer, weight (O, I) float32) of every packed layer, by a reader that is not ours where there is one. readme:
    (folder) -> lines that serve it and ask it once, Markdown. acts: how whoever opens the file rounds inputs that the
    artifact rounds to int8, None where they are not rounded. kept: (folder, source) -> (name, as stored, as it should
    be) of what else the file says in numbers: weights that stayed float, grids of inputs. operators: (source, options)
    -> names of the runtime's operators (Runtime.probe) that do the work. sizes: (source, options, dtype of OUT's kept
    weights, names of layers) -> how many bytes the files will have with these layers in any scheme; None where nobody
    knows before they are written. writer: the runtime whose own converter takes part in writing; without it nothing
    can be written.
    """

    summary: str
    caps: FormatCaps
    runtimes: tuple[str, ...]
    options: type
    refuses: Callable[[Source, Any], str | None]
    write: Callable[[Source, Path, Any, Report], Written]
    read_back: Callable[[Path, Source], Iterator[tuple[str, Tensor]]]
    readme: Callable[[Path], list[str]]
    acts: Coding | None = None
    kept: Callable[[Path, Source], Iterator[tuple[str, Tensor, Tensor]]] | None = None
    operators: Callable[[Source, Any], tuple[str, ...]] | None = None
    sizes: Callable[[Source, Any, torch.dtype, Collection[str]], Sizes] | None = None
    writer: str = ""
