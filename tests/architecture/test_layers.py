"""The plan of the house, enforced by parsing every file: who may import whom, how long, how documented."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("compress", "calibrate", "export")
HEAVY = ("torch", "transformers", "datasets", "rich", "plotly", "numpy", "yaml", "compress.recipe")
"""Not in the process after --help. typer itself loads pydantic when it reads the options of a command."""

LAYERS = {
    "compress.core": 1,
    "compress.recipe": 2,
    "calibrate": 3,
    "compress.plan": 3,
    "compress.methods": 3,
    "compress.train": 3,
    "export": 4,
    "compress.measure": 5,
    "compress.report": 5,
    "compress.pipeline": 6,
    "compress.api": 7,
    "compress.commands": 7,
    "compress.cli": 8,
}
"""Row of each package. Imports go to a lower row or stay inside the package; `compress` itself only names its home."""

ENVIRONMENT_READERS = {"compress.core.device", "compress.recipe"}
MAX_LINES, MAX_FUNCTION, MAX_PARAMETERS = 400, 60, 6


@cache
def files() -> dict[str, Path]:
    """Module name -> file, of everything a wheel installs."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def tree(name: str) -> ast.Module:
    """The parsed file of a module."""
    return ast.parse(files()[name].read_text(encoding="utf-8"))


def package_of(module: str) -> str | None:
    """The row's package that a module belongs to."""
    return next((name for name in LAYERS if module == name or module.startswith(f"{name}.")), None)


def imports(module: str) -> set[str]:
    """Modules of ours that a file imports: at the top, inside functions and under TYPE_CHECKING alike."""
    found: set[str] = set()
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole in files() else str(node.module))
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            found |= {str(a.value) for a in node.args if isinstance(a, ast.Constant)}
    return {name for name in found if name.split(".")[0] in PACKAGES}


def functions(module: str) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef, bool]]:
    """(qualified name, node, public) of every function and method; nested functions are private."""

    def visit(body: list[ast.stmt], path: str, public: bool) -> Iterator[tuple[str, ast.FunctionDef, bool]]:
        for node in body:
            if isinstance(node, ast.ClassDef):
                yield from visit(node.body, f"{path}.{node.name}", public and not node.name.startswith("_"))
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{path}.{node.name}", node, public and not node.name.startswith("_")  # type: ignore[misc]
                yield from visit(node.body, f"{path}.{node.name}", False)

    yield from visit(tree(module).body, module, True)


def test_every_module_has_a_row() -> None:
    homeless = {name for name in files() if package_of(name) is None} - {"compress", "compress.__main__"}
    assert homeless == set()
    assert len(files()) > 50


def test_imports_go_down_only() -> None:
    wrong = []
    for module in files():
        home = package_of(module)
        for other in sorted(imports(module)):
            there = package_of(other)
            if home is None or there in (None, home):
                continue
            if LAYERS[there] >= LAYERS[home]:
                wrong.append(f"{module} (row {LAYERS[home]}) imports {other} (row {LAYERS[there]})")
    assert wrong == []


def test_plug_in_homes_are_named_only_in_the_registry() -> None:
    # the one way up: a name in a table, loaded by whoever stands above both
    named = [m for m in files() if m != "compress.core.registry" and m.startswith("compress.core")]
    for module in named:
        text = files()[module].read_text(encoding="utf-8")
        assert not re.search(r"[\"'](compress\.(methods|plan|pipeline)|export\.|calibrate\.)", text), module


def test_no_import_cycles() -> None:
    graph = {
        module: {other for other in imports(module) if other in files() and other != "compress"} for module in files()
    }
    state: dict[str, int] = {}  # `compress` itself holds the version and names its api on first use

    def walk(module: str, path: tuple[str, ...]) -> None:
        assert state.get(module) != 1, " -> ".join((*path[path.index(module) :], module))
        if state.get(module) == 2:
            return
        state[module] = 1
        for other in sorted(graph[module]):
            walk(other, (*path, module))
        state[module] = 2

    for module in graph:
        walk(module, ())


@pytest.mark.parametrize("module", sorted(files()))
def test_sizes(module: str) -> None:
    lines = files()[module].read_text(encoding="utf-8").count("\n")
    assert lines <= MAX_LINES, f"{module} has {lines} lines"
    for name, node, _ in functions(module):
        if name.endswith(".command") and module.startswith("compress.commands"):
            continue  # its parameters are the list of options
        start = node.body[1].lineno if ast.get_docstring(node) and len(node.body) > 1 else node.lineno
        length = (node.end_lineno or start) - start + 1
        assert length <= MAX_FUNCTION, f"{name} has {length} lines"
        parameters = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
        count = len([a for a in parameters if a not in ("self", "cls")])
        assert count <= MAX_PARAMETERS, f"{name} has {count} parameters"


@pytest.mark.parametrize("module", sorted(files()))
def test_public_things_are_documented_and_typed(module: str) -> None:
    if files()[module].stat().st_size:
        assert ast.get_docstring(tree(module)), f"{module} says nothing about itself"
    for node in tree(module).body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{module}.{node.name} has no docstring"
    for name, node, public in functions(module):
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        untyped = [a.arg for a in arguments if a.annotation is None and a.arg not in ("self", "cls")]
        assert not untyped, f"{name}: {untyped} have no type"
        assert node.returns is not None, f"{name} has no return type"
        if public:
            assert ast.get_docstring(node), f"{name} has no docstring"
            settings_from_keys = name in ("compress.recipe.Recipe.build", "compress.recipe.Recipe.read")
            journal_fields = name == "compress.core.journal.Journal.append"
            assert node.args.kwarg is None or settings_from_keys or journal_fields, f"{name} takes **kwargs"


@pytest.mark.parametrize("module", sorted(files()))
def test_what_no_file_may_hold(module: str) -> None:
    text = files()[module].read_text(encoding="utf-8")
    found = re.search(r"\b(TO[D]O|FIX[M]E|XX[X]|NotImplementedErro[r])\b", text)
    handled = found is not None and re.search(rf"except .*{found[0]}", text)  # what other libraries raise
    assert found is None or handled, f"{module}: {found[0]}"
    path = re.search(r"[\"'](/(work|home|root|Users|tmp|var|mnt)/|[A-Z]:\\\\)", text)
    assert path is None, f"{module} names a path of one machine: {path[0]}"
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Attribute) and module not in ENVIRONMENT_READERS:
            assert ast.unparse(node) not in ("os.environ", "os.getenv", "os.environb"), f"{module} reads variables"
        if isinstance(node, ast.ImportFrom) and node.module == "os":
            assert not {a.name for a in node.names} & {"environ", "getenv"}, module
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("print", "eval", "exec"), f"{module} calls {node.func.id}"


@pytest.mark.parametrize("arguments", [["--help"], ["quantize", "--help"], ["bench", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    heavy = HEAVY if len(arguments) > 1 else (*HEAVY, "pydantic")
    code = (
        "import sys\n"
        "from compress.cli import main\n"
        f"sys.argv = ['compress', *{arguments!r}]\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert end.code == 0, end.code\n"
        f"loaded = [m for m in {heavy!r} if m in sys.modules]\n"
        "sys.stderr.write(','.join(loaded))\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    assert "compress" in run.stdout


def test_help_takes_little_processor_time() -> None:
    # processor seconds, the best of three: a busy machine does not make this fail
    code = "import resource, subprocess, sys\n" + (
        "def once():\n"
        "    before = resource.getrusage(resource.RUSAGE_CHILDREN)\n"
        "    subprocess.run([sys.executable, '-m', 'compress.cli', '--help'], stdout=subprocess.DEVNULL, check=True)\n"
        "    after = resource.getrusage(resource.RUSAGE_CHILDREN)\n"
        "    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime\n"
        "print(min(once() for _ in range(3)))\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert float(run.stdout) < 0.3


def test_the_core_imports_without_what_stands_above_it() -> None:
    code = (
        "import sys\n"
        "import compress.core.types, compress.core.errors, compress.core.registry\n"
        "above = [m for m in sys.modules if m.split('.')[0] in ('calibrate', 'export') or m == 'compress.recipe']\n"
        "assert not above, above\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
