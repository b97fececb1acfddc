"""What `--option` takes, for --help: read from the source of the method files, so that --help imports no torch."""

from __future__ import annotations

import ast
from pathlib import Path

from compress.core import registry


def method_options(kind: str = "method") -> list[str]:
    """One line a method: `gptq: damp=0.01 act_order=True scales=hessian|mse|minmax ...`, the default first.

    Methods that quantize are followed by those that tune blocks: `--effort best: tune.epochs=0 ...`.
    """
    lines = [f"{name}: {' '.join(_fields(file))}".rstrip(": ") for name, file in registry.files(kind).items()]
    if kind == "method":
        tuned = [field for file in registry.files("block-method").values() for field in _fields(file)]
        lines.append(f"--effort best: {' '.join(f'tune.{field}' for field in tuned)}")
    return lines


def _fields(file: Path) -> list[str]:
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (OSError, SyntaxError):
        return []  # installed without sources: --option NAME=VALUE still names the options in its error
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and "Options" in {name.name for name in node.names}:  # dora has lora's
            return _fields(file.with_name(f"{(node.module or '').rpartition('.')[2]}.py"))
    options = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Options")
    fields = [line for node in options for line in node.body if isinstance(line, ast.AnnAssign)]
    return [f"{ast.unparse(field.target)}={_values(field)}" for field in fields if field.value is not None]


def _values(field: ast.AnnAssign) -> str:
    default = field.value.value if isinstance(field.value, ast.Constant) else ast.unparse(field.value or field)
    choices = [default]
    if isinstance(field.annotation, ast.Subscript) and isinstance(field.annotation.slice, ast.Tuple):
        named = [n.value for n in field.annotation.slice.elts if isinstance(n, ast.Constant)]
        choices += [choice for choice in named if choice != default]
    return "|".join(str(choice) for choice in choices)
