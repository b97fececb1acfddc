"""GGUF for llama.cpp, Ollama and what is built on them: our codes in ggml's block types, bit by bit.

Codes solved for ggml (`--scheme q4_1` ...) go in as they are, integer schemes where they fit without rounding
(compress.core.numerics.ggml): int4-g64-asym becomes Q4_1 with every scale twice. Kept matrices stay in OUT's dtype,
vectors and positions are float32, as llama.cpp wants them. Written with the gguf package, a tensor in memory.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from compress.core.errors import MissingExtraError, ModelError, RecipeError
from compress.core.numerics.ggml import BLOCK, kind_for, pack, to_blocks
from compress.core.types import BITS, GGML_BITS, FormatCaps, LayerRef, QTensor, Scheme
from export.ggml import architecture
from export.ggml.tensors import ALWAYS_FLOAT, Named, named
from export.ggml.vocabulary import Vocabulary, vocabulary, write_vocabulary
from export.kinds import ExportFormat, Report, Sizes, Written
from export.source import Source

FILE = "model.gguf"
DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
MATRIX = 2
ALIGNMENT = 32
"""Bytes that tensors begin at multiples of (gguf.GGUF_DEFAULT_ALIGNMENT)."""


@dataclass(frozen=True)
class Options:
    """kept: dtype of matrices without codes; auto: OUT's. words: llama.cpp's name of how text is cut, if the table is
    wrong."""

    kept: Literal["auto", "F32", "F16", "BF16"] = "auto"
    words: str = ""


def refuses(source: Source, options: Options) -> str | None:
    """Why llama.cpp cannot hold or compute this artifact; None when it can."""
    config = source.checkpoint.config
    if options.kept not in ("auto", *DTYPES.values()):
        return f"kept={options.kept} is unknown; use auto, {', '.join(DTYPES.values())}"
    if (because := architecture.refuses(config, type(source.model).__name__)) is not None:
        return because
    for coded in source.coded.values():
        layer, scheme = coded.layer, coded.scheme
        if layer.expert is not None:
            return f"{layer.name} is one of many experts, which are not written to GGUF here"
        if kind_for(scheme) is None:
            return (
                f"{layer.name} is {scheme.name}; GGUF holds {', '.join(GGML_BITS)} (--scheme), and integer codes in "
                f"groups of a multiple of {BLOCK}, if they are symmetric or have at most 4 bits"
            )
        if layer.shape[1] % BLOCK:
            return f"{layer.name} has {layer.shape[1]} inputs, which blocks of {BLOCK} do not divide"
    try:
        list(named(source))
        vocabulary(source.folder, config.vocab_size, options.words)
        architecture.pooling(source.folder)
    except RecipeError as error:
        return str(error)
    except ImportError:
        raise MissingExtraError("gguf", "gguf") from None
    return None


def write(source: Source, folder: Path, options: Options, report: Report) -> Written:
    """model.gguf. Raises RecipeError when a scale is no float16 number."""
    config = source.checkpoint.config
    found = architecture.architecture_of(config)
    tensors = list(named(source))
    kinds = {each.name: _kind(each, source, options) for each in tensors}
    writer, words, factors = _begun(source, folder, options, tensors, kinds)
    with closing(writer):
        for number, each in enumerate(tensors):
            report("writing gguf", number, len(tensors))
            writer.write_tensor_data(_data(each, source, kinds[each.name].name))
        if factors is not None:
            writer.write_tensor_data(factors.numpy())
    packed = tuple(each.layer for each in tensors if each.layer is not None)
    facts: dict[str, Any] = {"file": FILE, "tensors": dict(Counter(kind.name for kind in kinds.values()))}
    if found.embedder:  # what its server is asked for, and what is right then
        facts["pooling"] = architecture.pooling(source.folder)
    facts["arithmetic"] = {"dense": _INPUTS[_kept_dtype(source, options)]}
    return Written(packed, *_limits(config, words, facts))


def _begun(
    source: Source, folder: Path, options: Options, tensors: Sequence[Named], kinds: Mapping[str, Any]
) -> tuple[Any, Vocabulary, Tensor | None]:
    """A writer whose file has everything but the tensors' data; the vocabulary; factors of the rotation."""
    import gguf

    config = source.checkpoint.config
    writer = gguf.GGUFWriter(folder / FILE, architecture.architecture_of(config).arch)
    writer.add_name(source.name)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    architecture.write_parameters(writer, config, source.folder)
    words = vocabulary(source.folder, config.vocab_size, options.words)
    write_vocabulary(writer, words, source.folder)
    for each in tensors:
        _announce(writer, each, _shape(each, source), kinds[each.name])
    factors = architecture.rope_factors(config)
    if factors is not None:
        writer.add_tensor_info("rope_freqs.weight", list(factors.shape), np.dtype(np.float32), factors.nbytes)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    return writer, words, factors


def sizes(source: Source, options: Options, dtype: torch.dtype, names: Collection[str]) -> Sizes:
    """Of model.gguf: the header as it will be, and every tensor up to the next multiple of ALIGNMENT."""
    plain = DTYPES.get(dtype, "F32") if options.kept == "auto" else options.kept
    tensors = list(named(source))
    kinds = {each.name: _kind(each, source, options, plain) for each in tensors}
    with TemporaryDirectory() as folder:
        writer, _, factors = _begun(source, Path(folder), options, tensors, kinds)
        writer.close()
        fixed = _aligned((Path(folder) / FILE).stat().st_size)
    fixed += _aligned(factors.nbytes) if factors is not None else 0
    for each in tensors:
        if each.layer not in names:
            fixed += _tensor_bytes(_shape(each, source), kinds[each.name].name)

    def layer(of: LayerRef, scheme: Scheme) -> int:
        kind = plain if scheme.kind == "dense" else str(kind_for(scheme)).upper()
        return _tensor_bytes(of.shape, kind)

    return Sizes(fixed, layer)


def _tensor_bytes(shape: Sequence[int], kind: str) -> int:
    import gguf

    size, width = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    return _aligned(math.prod(shape) // size * width)


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _announce(writer: Any, each: Named, shape: tuple[int, ...], kind: Any) -> None:
    """Name, shape and type of a tensor, before any data is written."""
    import gguf

    size, width = gguf.GGML_QUANT_SIZES[kind]
    dtype = {"F32": np.float32, "F16": np.float16}.get(kind.name, np.uint8)
    stored = shape if dtype != np.uint8 else (*shape[:-1], shape[-1] // size * width)
    nbytes = int(np.prod(stored)) * np.dtype(dtype).itemsize
    raw = kind if dtype == np.uint8 else None
    writer.add_tensor_info(each.name, list(stored), np.dtype(dtype), nbytes, raw_dtype=raw)


def _limits(config: Any, words: Vocabulary, facts: dict[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Facts and notes with what llama.cpp does otherwise than transformers."""
    notes = []
    if (window := architecture.same_up_to(config)) is not None:
        facts["longest"] = window
        notes.append(f"llama.cpp has no sliding window here: texts above {window} tokens come out otherwise")
    if words.unlike:
        facts["unlike"] = list(words.unlike)
        notes.append(f"llama.cpp cuts {', '.join(words.unlike).capitalize()} otherwise than the tokenizer does")
    return facts, tuple(notes)


_INPUTS = {"F32": "", "F16": "float16", "BF16": "bfloat16"}


def read_back(folder: Path, source: Source) -> Iterator[tuple[str, Tensor]]:
    """Every packed layer as the gguf package reads and dequantizes it. Raises ModelError for a file it cannot read."""
    for each, weight in _stored(folder, source):
        if each.layer is not None:
            yield each.layer, weight


def kept(folder: Path, source: Source) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(name, as the gguf package reads it, as it should be) of every other tensor, float32."""
    for each, value in _stored(folder, source):
        if each.layer is None:
            meant = source.weight(each.param) + each.shift
            dtypes = (torch.float32, torch.bfloat16, torch.float16)
            forms = [meant.to(dtype).float() for dtype in dtypes]
            turned = value.t() if each.turned else value
            yield each.param, turned, next((form for form in forms if torch.equal(form, turned)), meant)


def _stored(folder: Path, source: Source) -> Iterator[tuple[Named, Tensor]]:
    """Every tensor, rows in the model's order. A tensor that is not there is a ModelError, as is a damaged file."""
    import gguf

    try:
        stored = {tensor.name: tensor for tensor in gguf.GGUFReader(folder / FILE).tensors}
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise ModelError(f"{folder / FILE} cannot be read ({error}); run compress export again") from None
    for each in named(source):
        if each.name not in stored:
            raise ModelError(f"{folder / FILE} lacks {each.name}; run compress export again")
        tensor = stored[each.name]
        weight = torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).copy())
        if each.order is not None:
            back = torch.empty_like(weight)
            back[each.order] = weight
            weight = back
        yield each, weight


def operators(source: Source, options: Options) -> tuple[str, ...]:
    """The block types that ggml multiplies by."""
    del options
    return tuple(sorted({str(kind_for(coded.scheme)) for coded in source.coded.values()}))


def readme(folder: Path) -> list[str]:
    """How it is served."""
    del folder
    return [
        "```sh",
        f"llama-server -m {FILE} --port 8080        # llama.cpp",
        f"python -m llama_cpp.server --model {FILE}  # pip install 'llama-cpp-python[server]'",
        f"ollama create my-model -f Modelfile        # Modelfile: FROM ./{FILE}",
        "curl http://localhost:8080/v1/chat/completions -H 'Content-Type: application/json' \\",
        """  -d '{"messages": [{"role": "user", "content": "Hello"}]}'""",
        "```",
    ]


def _kept_dtype(source: Source, options: Options) -> str:
    if options.kept != "auto":
        return options.kept
    kept = [p for p, value in source.model.named_parameters() if value.dim() == MATRIX and p not in source.by_param]
    return DTYPES.get(source.dtype_of(kept[0]), "F32") if kept else "F32"


def _kind(each: Named, source: Source, options: Options, plain: str = "") -> Any:
    """Its type in the file. plain: of matrices without codes, where that is not to be read from the source."""
    import gguf

    if each.layer is not None:
        kind = kind_for(source.coded[each.layer].scheme)
        return gguf.GGMLQuantizationType[str(kind).upper()]
    vector = source.model.get_parameter(each.param).dim() < MATRIX
    if vector or each.name.startswith(ALWAYS_FLOAT):
        return gguf.GGMLQuantizationType.F32
    return gguf.GGMLQuantizationType[plain or _kept_dtype(source, options)]


def _shape(each: Named, source: Source) -> tuple[int, ...]:
    shape = tuple(source.model.get_parameter(each.param).shape)
    return shape[::-1] if each.turned else shape


def _data(each: Named, source: Source, kind: str) -> Any:
    """A tensor as it lies in the file: bytes of blocks and of bfloat16, numbers otherwise."""
    if each.layer is not None:
        q = source.codes(each.layer)
        return pack(to_blocks(_ordered(q, each.order) if each.order is not None else q)).numpy()
    value = source.weight(each.param)
    value = value.t() if each.turned else value
    if each.order is not None:
        value = value[each.order]
    value = (value + each.shift).contiguous()
    if kind == "BF16":
        return value.bfloat16().view(torch.uint8).reshape(value.shape[0], -1).numpy()
    return value.half().numpy() if kind == "F16" else value.numpy()


def _ordered(q: QTensor, order: Tensor) -> QTensor:
    zero, minimum = (None if part is None else part[order] for part in (q.zero, q.minimum))
    return QTensor(q.codes[order], q.scale[order], zero, q.scheme, minimum)


EXPORT = ExportFormat(
    summary="GGUF for llama.cpp and Ollama",
    caps=FormatCaps(
        bits=BITS,
        auto_groups=(64, 32),
        symmetric_only=frozenset(),
        containers=frozenset({"linear", "conv1d", "embedding"}),
        notes=("integer codes are held in Q4_0, Q4_1 and Q8_0",),
    ),
    runtimes=("llama-cpp",),
    options=Options,
    refuses=refuses,
    write=write,
    read_back=read_back,
    readme=readme,
    kept=kept,
    operators=operators,
    sizes=sizes,
)
