"""ONNX for onnxruntime and optimum: encoders, classifiers, taggers, embedders, and models that hear or read and write.

The graph is `torch.onnx.export`'s, dynamic in batch and sequence; the codes are put into it afterwards, see
`export.onnxfile.rewrite`. Names of files, inputs and outputs are those that optimum's `ORTModelFor...` looks for.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from compress.core.errors import MissingExtraError, RecipeError
from compress.core.files import write_json
from compress.core.numerics.activation import quantize_linear
from compress.core.types import BITS, FormatCaps
from export.kinds import ExportFormat as Format
from export.kinds import Report, Written
from export.onnxfile import file, read, triton
from export.onnxfile.graph import OPSET
from export.onnxfile.rewrite import Writer, block_size, held_bits
from export.source import Coded, Source


@dataclass(frozen=True)
class Options:
    """Settings of the format."""

    weights: Literal["codes", "float32"] = "codes"  # float32: what the codes stand for, and no rounded inputs
    accuracy_level: int = 1  # of weight-only products: 1 float32, 4 rounds inputs to int8 by block, faster
    signed: bool = False  # int8 codes of inputs on static grids, which TensorRT asks for; onnxruntime wants uint8
    attention: Literal["fused", "plain"] = "fused"  # of encoders: onnxruntime's own operator, or standard ones
    triton: bool = False  # laid out as a model repository of Triton Inference Server
    external_data: bool = False  # weights beside the file also below 2 GB


def refuses(source: Source, options: Options) -> str | None:
    """Why this artifact cannot be written; None when it can. Raises MissingExtraError when onnx is not there."""
    for package in ("onnx", "onnxscript"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, "onnx")
    if options.accuracy_level not in (0, 1, 2, 3, 4):
        raise RecipeError(f"accuracy_level={options.accuracy_level} is not one of MatMulNBits' 0 to 4; use 1 or 4")
    if options.weights not in ("codes", "float32"):
        raise RecipeError(f"weights={options.weights} is not understood; use codes or float32")
    if options.attention not in ("fused", "plain"):
        raise RecipeError(f"attention={options.attention} is not understood; use fused or plain")
    if (said := _refused_model(source)) is not None:
        return said
    if options.weights == "float32":
        return None
    for coded in source.coded.values():
        if (because := _refused_layer(coded)) is not None:
            return f"{coded.layer.name} is {coded.scheme.name}: {because}"
    return None


def _refused_model(source: Source) -> str | None:
    config = source.checkpoint.config
    if getattr(config, "is_encoder_decoder", False):
        return None
    if source.model.can_generate():
        return "a decoder-only language model is written for onnxruntime-genai; use --to onnx-genai"
    if getattr(source.model, "main_input_name", "input_ids") not in ("input_ids", "input_features"):
        return f"it reads {source.model.main_input_name}; models of text and speech can be written"
    return None


def _refused_layer(coded: Coded) -> str | None:
    if coded.layer.container not in ("linear", "embedding"):
        return (f"a {coded.layer.container} weight has no place in it; experts and transposed layers go to gguf or "
                "compressed-tensors")  # fmt: skip
    activation = coded.activation
    if activation is not None and activation.strategy == "token" and not activation.symmetric:
        return "inputs by token have no zero point here; quantize again with --act-symmetric, or --act-strategy tensor"
    if coded.scheme.kind != "int":
        return "only int codes can be held; quantize again with --bits 4 or 8"
    if block_size(coded.scheme.group_size, coded.layer.shape[1]) == 0:
        return ("MatMulNBits takes groups that a power of two of 16 or more divides; quantize again with "
                "--group-size 32, 64, 128 or -1")  # fmt: skip
    return None


def operators(source: Source, options: Options) -> tuple[str, ...]:
    """What onnxruntime multiplies with, by the names of its probe."""
    if options.weights == "float32":
        return ()
    found = set()
    for coded in source.coded.values():
        if coded.activation is not None:
            found.add("8-bit weights and inputs")
        elif coded.scheme.bits <= 4:
            found.add("4-bit weights, int8 inputs" if options.accuracy_level == 4 else "4-bit weights")
    return tuple(sorted(found))


def write(source: Source, folder: Path, options: Options, report: Report) -> Written:
    """Trace, rewrite, and put the files there: models, config.json without quantization_config."""
    from export.onnxfile import encoder
    from export.onnxfile import writer as decoders

    fused = options.attention == "fused" and not options.signed  # who asks for signed codes has not onnxruntime
    writer = Writer(source, options.accuracy_level, options.weights == "float32", options.signed, fused)
    writes = bool(getattr(source.checkpoint.config, "is_encoder_decoder", False))
    report("writing onnx: graph", 0, 1)
    models: dict[str, Any] = (decoders if writes else encoder).write(source, folder, writer)
    report("writing onnx: graph", 1, 1)
    shared = decoders.SHARED if writes else ""
    nodes = _operators(models)
    file.save(folder, models, 0 if options.external_data else file.LIMIT, shared)
    config = {k: v for k, v in source.config.items() if k != "quantization_config"} | {"dtype": "float32"}
    write_json(folder / "config.json", config)
    if options.triton:
        triton.arrange(folder, source, sorted(models))
    facts: dict[str, Any] = {"opset": OPSET, "operators": nodes, "options": vars(options)}
    if options.accuracy_level == 4 and "MatMulNBits" in nodes:
        why = "inputs of MatMulNBits rounded to int8 by block (accuracy_level 4)"
        facts["arithmetic"] = {"coded": "int8-group", "why": why}
    return Written(tuple(writer.packed), facts, _notes(source, writer, options, nodes))


def _operators(models: dict[str, Any]) -> dict[str, int]:
    """How often the operators occur that hold or round numbers."""
    shown = ("MatMulNBits", "MatMulIntegerToFloat", "MatMulInteger", "QuantizeLinear", "DynamicQuantizeLinear",
             "DequantizeLinear", "MatMul", "MultiHeadAttention")  # fmt: skip
    kinds = [node.op_type for model in models.values() for node in model.graph.node]
    return {kind: kinds.count(kind) for kind in shown if kind in kinds}


def _notes(source: Source, writer: Writer, options: Options, nodes: dict[str, int]) -> tuple[str, ...]:
    schemes = [source.coded[name] for name in writer.packed]
    said = []
    bits_here = sorted({coded.scheme.bits for coded in schemes if coded.activation is None})
    if odd := [bits for bits in bits_here if held_bits(bits) != bits]:
        taken = ", ".join(f"{bits} bits take {held_bits(bits)}" for bits in odd)
        said.append(f"codes of {taken} in MatMulNBits; their values are the same")
    if any(coded.activation is not None and coded.activation.strategy == "tensor" and coded.activation.dynamic
           for coded in schemes):  # fmt: skip
        said.append(
            "a dynamic grid for a whole tensor is one for the whole batch: answers depend on what else is in it"
        )
    if any(coded.activation is not None and coded.scheme.group_size != -1 for coded in schemes):
        said.append("weights in groups have no integer product: inputs are rounded to int8, products are float32")
    if any(c.activation is not None and c.activation.dynamic and c.activation.symmetric for c in schemes):
        said.append("inputs rounded by token use com.microsoft MatMulIntegerToFloat: onnxruntime runs it on CPUs")
    if "MultiHeadAttention" in nodes:
        said.append("attention is com.microsoft MultiHeadAttention; for other runtimes than onnxruntime export with "
                    "--option attention=plain")  # fmt: skip
    if options.weights == "float32":
        said.append("weights are float32, as their codes stand for them; inputs are not rounded")
    return tuple(said)


def read_back(folder: Path, source: Source) -> Iterator[tuple[str, Tensor]]:
    """Every packed layer, decoded with the onnx package and numpy."""
    del source
    yield from read.weights(folder)


def readme(folder: Path) -> list[str]:
    """How it is served and asked once."""
    from export.onnxfile import readme as page

    return page.lines(folder)


EXPORT = Format(
    summary="ONNX, for onnxruntime and optimum's ORTModelFor...",
    caps=FormatCaps(
        bits=BITS,
        auto_groups=(128, 64, 32, 16),
        symmetric_only=frozenset(),
        containers=frozenset({"linear", "embedding"}),
        notes=("int8 inputs by token are symmetric",),
    ),
    runtimes=("onnxruntime", "optimum"),
    options=Options,
    refuses=refuses,
    write=write,
    read_back=read_back,
    readme=readme,
    acts=quantize_linear,
    kept=read.kept,
    operators=operators,
)
