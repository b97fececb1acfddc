"""openvino: an IR whose weights are our codes, decompressed inside OpenVINO's matrix products.

optimum-intel converts the model (in the runtime's own environment) from the float32 weights that the codes stand for;
its constants are then replaced by codes (`runtimes/_openvino_builder.py`). Symmetric schemes are i4 or i8 without zero
points, others u4 or u8 with them; 2 and 3 bits sit in 4, 5 and 6 in 8. What is kept is stored in the 16 bits that
hold it.

By itself OpenVINO's CPU plugin rounds inputs and cache to int8; the IR's runtime options say that it does not. Where a
CPU has bfloat16 the plugin computes in it unless INFERENCE_PRECISION_HINT is f32, which only whoever opens it can say;
it is judged in float32.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compress.core import device
from compress.core.errors import CompressError, MissingRuntimeError
from compress.core.files import write_json
from compress.core.safetensors_file import Pending, write_file
from compress.core.types import BITS, FormatCaps
from export import environments
from export.genai.whole import names_by_digest, write_whole
from export.kinds import ExportFormat, Report, Written
from export.runtimes import _openvino_builder
from export.source import Coded, Source

Array = np.ndarray[Any, Any]
RUNTIME, MODEL = "openvino", "openvino_model.xml"
PATIENCE_SECONDS = 7200.0
TASKS = {
    "ForCausalLM": "text-generation-with-past",
    "LMHeadModel": "text-generation-with-past",
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForMaskedLM": "fill-mask",
    "Model": "feature-extraction",
}
"""What a class ends with -> optimum's task; the first that fits."""
UNKNOWN = frozenset({"Gemma3ForCausalLM"})
"""What optimum-intel 2.2.0 refuses with the transformers it is pinned with here ("Maximum required is 5.0")."""
CAPS = FormatCaps(
    bits=BITS,
    auto_groups=(128, 64, 32),
    symmetric_only=frozenset(),
    containers=frozenset({"linear", "embedding", "conv1d"}),
    notes=("groups must divide the inputs; 2 and 3 bits are stored in 4, 5 and 6 in 8",),
)


@dataclass(frozen=True)
class Options:
    """The format has no settings."""


def refuses(source: Source, _: Options) -> str | None:
    """Why OpenVINO cannot have `source`; None when it can. Raises MissingRuntimeError when it is not installed."""
    if source.structure.architecture in UNKNOWN:
        return f"its converter has no {source.structure.architecture} with transformers 5; export gguf or onnx-genai"
    if _task(source) is None:
        return f"no task is known for {source.structure.architecture}; export compressed-tensors"
    for name, coded in source.coded.items():
        if (because := _misfit(coded)) is not None:
            return f"{name} {because}"
    where = environments.place(RUNTIME)
    if where.interpreter is None:
        raise MissingRuntimeError(where.name, where.install)
    return None


def _task(source: Source) -> str | None:
    name = source.structure.architecture
    if source.checkpoint.config.is_encoder_decoder:
        return None
    return next((task for ending, task in TASKS.items() if name.endswith(ending)), None)


def _misfit(coded: Coded) -> str | None:
    scheme, columns = coded.scheme, coded.layer.shape[1]
    if scheme.kind != "int":
        return f"is {scheme.name}; an IR holds integer codes here (--bits 4)"
    if coded.activation is not None:
        return "takes int8 inputs, which this format does not say; export onnx, or quantize with --activations none"
    if coded.layer.container not in CAPS.containers:
        return f"is a {coded.layer.container} weight, which its graph does not multiply by itself; export gguf"
    if scheme.group_size != -1 and columns % scheme.group_size:
        return f"has {columns} inputs, which groups of {scheme.group_size} do not divide; quantize with --group-size 32"
    return None


def write(source: Source, folder: Path, _: Options, report: Report) -> Written:
    """Convert in a folder aside, and write the IR with our codes into `folder`."""
    work = folder / ".work"
    try:
        work.mkdir()
        _codes(source, work / "codes.safetensors")
        write_whole(source, work / "checkpoint", report)
        report("optimum-intel converts the model", 0, 1)
        _build(source, work)
        report("optimum-intel converts the model", 1, 1)
        for name in (MODEL, "openvino_model.bin"):
            (work / name).replace(folder / name)
        config = {key: value for key, value in source.config.items() if key != "quantization_config"}
        write_json(folder / "config.json", config)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    notes = ["inputs and cache stay in float32; CPUs with bfloat16 need INFERENCE_PRECISION_HINT=f32 for that too"]
    if any(coded.scheme.bits not in (4, 8) for coded in source.coded.values()):
        notes.append("codes of 2 and 3 bits are stored in 4, of 5 and 6 in 8: the same values")
    facts = {"converter": f"optimum-intel with openvino {environments.place(RUNTIME).version}", "task": _task(source)}
    return Written(tuple(source.coded), facts, tuple(notes))


def _codes(source: Source, path: Path) -> None:
    """Codes as the converting process reads them."""
    layers, tensors = {}, {}
    for key, name in names_by_digest(source).items():
        coded = source.coded[name]
        (rows, columns), scheme = coded.layer.shape, coded.scheme
        groups = scheme.groups(columns)
        parts = ["codes", "scale"] + ([] if scheme.symmetric else ["zero"])
        size = columns if scheme.group_size == -1 else scheme.group_size
        layers[name] = {"sha256": key.hex(), "bits": scheme.bits, "group_size": size, "parts": parts}
        for part in parts:
            shape = (rows, columns) if part == "codes" else (rows, groups)
            dtype = torch.float32 if part == "scale" else torch.uint8
            tensors[f"{name}.{part}"] = Pending(
                dtype,
                shape,
                lambda n=name, p=part, d=dtype: getattr(source.codes(n), p).to(d),  # type: ignore[misc]
            )
    write_file(path, tensors, {"layers": json.dumps(layers)})


def _build(source: Source, work: Path) -> None:
    where = environments.place(RUNTIME)
    if where.interpreter is None:
        raise MissingRuntimeError(where.name, where.install)
    command = [
        str(where.interpreter), str(_openvino_builder.__file__), str((work / "checkpoint").resolve()),
        str((work / "codes.safetensors").resolve()), str(_task(source)), str(work.resolve()),
    ]  # fmt: skip
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    environment = device.plain_environment() | offline
    try:
        run = subprocess.run(
            command, capture_output=True, text=True, env=environment, check=False, timeout=PATIENCE_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise CompressError(f"the conversion for OpenVINO did not end within {PATIENCE_SECONDS:.0f} s") from None
    if run.returncode or not (work / MODEL).is_file():
        said = " | ".join((run.stderr.strip() or run.stdout.strip() or "no message").splitlines()[-3:])
        raise CompressError(f"the conversion for OpenVINO failed: {said[-600:]}")


def read_back(folder: Path, source: Source) -> Iterator[tuple[str, Tensor]]:
    """(layer, weight (O, I) float32) of every layer with codes, from the IR's XML and bytes, without OpenVINO."""
    data = (folder / MODEL).with_suffix(".bin")
    parts: dict[str, Array] = {}
    for layer in ET.parse(folder / MODEL).getroot().iter("layer"):
        name, said = str(layer.get("name")), layer.find("data")
        if layer.get("type") == "Const" and name.rpartition("/")[2] in ("codes", "zero", "scale") and said is not None:
            parts[name] = _constant(data, said.attrib)
    for name in source.coded:
        if f"{name}/codes" in parts:
            values = parts[f"{name}/codes"].astype(np.float32)
            if f"{name}/zero" in parts:
                values = values - parts[f"{name}/zero"].astype(np.float32)
            values = values * parts[f"{name}/scale"].astype(np.float32)
            yield name, torch.from_numpy(values.reshape(len(values), -1))


def _constant(data: Path, said: dict[str, str]) -> Array:
    """A constant of the IR, its numbers one by one."""
    shape = [int(n) for n in said["shape"].split(",")]
    kind = said["element_type"]
    raw = np.fromfile(data, np.uint8, int(said["size"]), offset=int(said["offset"]))
    if kind in ("u4", "i4"):
        digits = np.unpackbits(raw, bitorder="little").reshape(-1, 4)
        values = (digits @ np.array([1, 2, 4, -8 if kind == "i4" else 8]))[: int(np.prod(shape))]
    else:
        values = raw.view({"u8": np.uint8, "i8": np.int8, "f16": np.float16, "f32": np.float32}[kind])
    found: Array = values.reshape(shape)
    return found


def readme(folder: Path) -> list[str]:
    """How to run it, and one request."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if not str((config.get("architectures") or [""])[0]).endswith(("ForCausalLM", "LMHeadModel")):
        opened = f"model = ov.Core().compile_model('{MODEL}', 'CPU', {{'INFERENCE_PRECISION_HINT': 'f32'}})"
        return ["```python", "import openvino as ov", opened, "```"]
    return [
        "```python",
        "from optimum.intel import OVModelForCausalLM",
        "from transformers import AutoTokenizer",
        "model = OVModelForCausalLM.from_pretrained('.', ov_config={'INFERENCE_PRECISION_HINT': 'f32'})",
        "tokenizer = AutoTokenizer.from_pretrained('.')",
        "messages = [{'role': 'user', 'content': 'Name three fruits, please.'}]",
        "inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True,",
        "                                       return_tensors='pt')",
        "print(tokenizer.decode(model.generate(**inputs, max_new_tokens=100)[0]))",
        "```",
    ]


EXPORT = ExportFormat(
    summary="An OpenVINO IR with compressed weights, for optimum-intel and openvino-genai",
    caps=CAPS,
    runtimes=(RUNTIME,),
    options=Options,
    refuses=refuses,
    write=write,
    read_back=read_back,
    readme=readme,
    writer=RUNTIME,
)
