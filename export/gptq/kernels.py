"""Which kernel runs a GPTQ checkpoint on a GPU: rules of the servers themselves, checked without a GPU.

Sources: vLLM 0.32.0, under vllm/model_executor, and GPTQModel 7, under gptqmodel/nn_modules/qlinear.
- vLLM opens symmetric checkpoints of 4 and 8 bits and no others (layers/quantization/auto_gptq.py, TYPE_MAP), and takes
  the first kernel that can of Machete, Marlin, ExLlama (kernels/linear/__init__.py).
- Machete: compute capability 9.0 (mixed_precision/machete.py); groups -1, 64, 128, inputs in 64s, outputs in 128s
  (layers/quantization/utils/machete_utils.py).
- Marlin: 7.5 and later, groups -1, 32, 64, 128 (utils/marlin_utils.py, MARLIN_SUPPORTED_GROUP_SIZES); shapes that are
  not outputs in 64s with inputs in 128s, or outputs in 128s with inputs in 64s, are padded (marlin_padded_nk).
- ExLlama: groups that divide the inputs, outputs in 32 / bits, float16 (mixed_precision/exllama.py).
- GPTQModel opens zero points and 2, 3, 4 and 8 bits: ExLlama v2 at 4 bits with inputs and outputs in 32s and groups -1,
  32, 64, 128 (exllamav2.py), Triton and plain torch otherwise (tritonv2.py, torch.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from export.source import Coded

GROUPS = (-1, 32, 64, 128)


def in_vllm(layers: Iterable[Coded]) -> bool:
    """Whether vLLM opens a checkpoint of these layers."""
    return all(coded.scheme.symmetric and coded.scheme.bits in (4, 8) for coded in layers)


def kernel_notes(layers: Iterable[Coded]) -> Iterable[str]:
    """Sentences on what runs the layers on a GPU, and why it is not a faster kernel."""
    every = list(layers)
    if not in_vllm(every):
        yield (
            "vLLM opens symmetric GPTQ checkpoints of 4 and 8 bits only (0.32: auto_gptq.py); quantize with "
            "--symmetric for it, or serve compressed-tensors"
        )
    counts: Counter[tuple[str, str]] = Counter(kernel(coded, in_vllm(every)) for coded in every)
    for (name, because), count in counts.most_common():
        share = "every layer" if count == len(every) else f"{count} of {len(every)} layers"
        reason = f" ({because})" if because else ""
        yield f"on a GPU {name} runs {share}{reason}; statically checked, not run here"


def kernel(coded: Coded, vllm: bool) -> tuple[str, str]:
    """What runs a layer, and what keeps it from a faster kernel. vllm: whether vLLM opens the checkpoint at all."""
    scheme, (rows, columns) = coded.scheme, coded.layer.shape
    if not vllm:
        if scheme.bits == 4 and scheme.group_size in GROUPS and rows % 32 == 0 and columns % 32 == 0:
            return "GPTQModel's ExLlama v2", ""
        return "GPTQModel's Triton kernel", "ExLlama takes 4 bits, groups of 32, 64 and 128, sizes in 32s"
    if scheme.group_size not in GROUPS:
        return "vLLM's ExLlama in float16", f"groups of {scheme.group_size} are not 32, 64 or 128"
    if scheme.group_size != 32 and columns % 64 == 0 and rows % 128 == 0:
        return "vLLM's Machete (Hopper) or Marlin (Turing and later)", ""
    fits = (rows % 64 == 0 and columns % 128 == 0) or (rows % 128 == 0 and columns % 64 == 0)
    return "vLLM's Marlin (Turing and later)", "" if fits else "padded: outputs and inputs are not in 64s and 128s"
